"""Complaint extraction: messy Chinese in, four values out, each copied from the text or null.

{"system": "将文本中的name、…", "instruction": "", "input": "您好，我是周敏，家住无锡市梁溪区花园街5号。电梯又坏了！ zm@example.com",
 "output": '{"name":"周敏","address":"无锡市梁溪区花园街5号","email":"zm@example.com","question":"电梯又坏了！"}'}
"""

import json
import re
from collections import Counter
from itertools import pairwise

from pockettune.tasks import parse

FIELDS = ("name", "address", "email", "question")
# The instruction of the article that began this: "extract name, address, email and question from the text, as JSON".
SYSTEM = (
    "将文本中的name、address、email、question提取出来，以json格式输出，"
    "字段为name、address、email、question，值为文本中提取出来的内容。"
)
# Characters: half as long again as the longest in the data, or more.
LONGEST = {"name": 24, "address": 100, "email": 64}


def read(record: dict, text: str = "input", answer: str | None = "output") -> dict:
    """Make a row of any record: the text from one column, the answer from another, as JSON, or from four named as the fields.

    With `answer=None` it is a row to be answered; other columns stay as they are. Raises ValueError when the text or the
    answer is missing, or when a value of the answer does not stand in the text; it never quotes them.
    """
    if text not in record:
        raise ValueError(f"no column {text!r} among {len(record)} (has the file a header?)")
    if not isinstance(record[text], str) or not record[text].strip():
        raise ValueError(f"the column {text!r} holds no text")
    if not isinstance(record.get("instruction") or "", str):
        raise ValueError("the column 'instruction' holds no text")
    kept = {key: value for key, value in record.items() if key not in (text, answer, "system", *FIELDS)}
    row = kept | {"instruction": record.get("instruction") or "", "input": record[text]}
    if answer is None:
        return row
    values = record.get(answer) or {field: record[field] for field in FIELDS if field in record}
    if isinstance(values, str):
        values, _ = parse(values)
    if not isinstance(values, dict) or any(field not in values for field in FIELDS):
        raise ValueError(
            f"no answer with {', '.join(FIELDS)}, neither as JSON in {answer!r} nor in columns of these names"
        )
    values = {field: values[field] or None for field in FIELDS}  # an empty cell of a table is null
    for field, value in values.items():
        if value is not None and not (isinstance(value, str) and value in _text(row)):
            raise ValueError(f"the {field} of the answer does not stand in the text, character for character")
    return {**row, "output": _dumps(values)}


def to_example(row: dict) -> dict:
    """Turn a row into prompt and completion messages (where the row has an output)."""
    example = {"prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": _text(row)}]}
    if "output" in row:
        example["completion"] = [{"role": "assistant", "content": row["output"]}]
    return example


def grammar(row: dict) -> str:
    """The answers a row allows, in llguidance's Lark: the four keys in order, each value null or a piece of the text.

    A piece is made of the text's characters as JSON writes them, so that no escape is cut in two. `LONGEST` bounds the
    pieces.
    """
    characters = re.findall(r"\\u....|\\.|[^\\]", _dumps(_text(row))[1:-1])
    pieces = json.dumps({"substring_chunks": characters}, ensure_ascii=False)
    members = ' "," '.join(rf'"\"{field}\":" ("null" | "\"" {field.upper()} "\"")' for field in FIELDS)
    bounds = {field: f".{{1,{LONGEST[field]}}}" for field in LONGEST} | {"question": ".+"}
    terminals = [f"{field.upper()}: PIECE & /(?s:{bounds[field]})/" for field in FIELDS]
    return "\n".join([f'start: "{{" {members} "}}"', *terminals, f"PIECE: %regex {pieces}"])


def score(completion: str, row: dict, *, capped: bool = False, known: tuple[str, ...] = ()) -> dict[str, float]:
    """Score an answer: each value from 0 to 1, higher is better, save `capped` (it hit the token limit).

    `name` to `question` are exact matches, `all_exact` all four; `nulls` asks that null stands where, and only where,
    nothing is given; `grounded` that every value stands in the text; `question_f1` is the F1 of character pairs.
    """
    truth, found = json.loads(row["output"]), fields(completion, row)
    schema = found.pop("valid")
    grounded = found.pop("grounded")
    exact = {field: float(schema and found[field] == truth[field]) for field in FIELDS}
    return {
        "valid_json": float(parse(completion)[1]),
        "schema": float(schema),
        **exact,
        "all_exact": float(all(exact.values())),
        "nulls": float(schema and all((found[f] is None) == (truth[f] is None) for f in FIELDS)),
        "grounded": float(grounded),
        "question_f1": _f1(found["question"] or "", truth["question"] or "") if schema else 0.0,
        "capped": float(capped),
    }


def fields(completion: str, row: dict) -> dict:
    """The four values of an answer, None without a valid one; whether it is `valid`, and `grounded`: each value stands in the text."""
    answer, _ = parse(completion)
    valid = (
        isinstance(answer, dict)
        and set(answer) == set(FIELDS)
        and all(value is None or (isinstance(value, str) and value) for value in answer.values())
    )
    found = {field: answer[field] if valid else None for field in FIELDS}
    grounded = valid and all(value is None or value in _text(row) for value in found.values())
    return {**found, "valid": valid, "grounded": grounded}


def by_rules(row: dict) -> str:
    """Answer a row with regular expressions, as one would write them in an hour: the baseline."""
    text = _text(row)
    email = re.search(r"[\w.+-]+[@＠][\w-]+(?:[.．][\w-]+)+", text, re.ASCII)
    name = re.search(
        r"(?:姓\s*名|联系人|投诉人|反映人|客户|称呼|名字)\s*[】:：=是为]?\s*([^\s，。,；;|：:【]{2,12})"
        r"|(?:我叫|本人|我是|名叫)\s*([\u4e00-\u9fff·]{2,4}?)(?=[，。,；;\s（(、]|家住|住)"
        r"|^\s*([\u4e00-\u9fff]{2,4})\s*[，,]",
        text,
    )
    address = re.search(
        r"(?:地\s*址|住址|家住|住在|现居|我住)\s*[】:：=是为]?\s*([^，。,；;\n|【]{4,60})"
        r"|([\u4e00-\u9fff]{2,8}(?:省|自治区|市)[^，。,；;\n|【]{4,60})",
        text,
    )
    values = {
        "name": name and next(filter(None, name.groups())),
        "address": address and next(filter(None, address.groups())).strip(),
        "email": email and email[0],
    }
    rest = text
    for value in filter(None, values.values()):
        rest = rest.replace(value, "\n")
    parts = [
        re.sub(r"^[^\n：:]{0,6}[：:]", "", part).strip("，,；; \t")
        for part in re.split(r"\n|(?<=。)(?=谢谢|请尽快|盼复)", rest)
    ]
    return _dumps({**values, "question": max(parts, key=len) or None})


def _text(row: dict) -> str:
    return "\n".join(filter(None, (row.get("instruction"), row["input"])))


def _dumps(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _f1(found: str, truth: str) -> float:
    """F1 of the character pairs of two texts (of characters where one has a single one).

    >>> _f1("电梯坏了", "电梯坏了。"), _f1("", ""), _f1("灯", "灯坏")
    (0.8571428571428571, 1.0, 0.6666666666666666)
    """
    single = min(len(found), len(truth)) < 2
    pairs = [Counter(text if single else pairwise(text)) for text in (found, truth)]
    total = sum(map(Counter.total, pairs))
    return 2 * (pairs[0] & pairs[1]).total() / total if total else 1.0
