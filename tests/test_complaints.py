"""Complaints: what a row may be, how an answer is scored, what a grammar lets through, what the baseline finds."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pockettune import load_rows
from pockettune.tasks import complaints, complaints_twice
from pockettune.tasks.complaints import FIELDS

TEXT = '您好，我是周敏，家住无锡市梁溪区花园街5号。电梯"又"坏了！\n邮箱 ＺＭ＠example.com 🐶 客服刘强'
TRUTH = {"name": "周敏", "address": "无锡市梁溪区花园街5号", "email": "ＺＭ＠example.com", "question": '电梯"又"坏了！'}
ROW = {"instruction": "", "input": TEXT, "output": json.dumps(TRUTH, ensure_ascii=False)}


def answer(**changes):
    return json.dumps(TRUTH | changes, ensure_ascii=False)


def test_the_right_answer_scores_one_everywhere():
    scores = complaints.score(answer(), ROW)
    assert scores.pop("capped") == 0 and set(scores.values()) == {1.0}


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("周敏", {"valid_json"}),
        ("[]", {"schema"}),
        (answer(phone="1"), {"schema"}),
        (answer(name=""), {"schema"}),
        ('{"name": "周敏", ' + answer()[1:], {"schema"}),  # a field twice
        (answer(name="刘强"), {"name", "all_exact"}),
        (answer(email=None), {"email", "all_exact", "nulls"}),
        (answer(email="ZM@example.com"), {"email", "all_exact", "grounded"}),
        (answer(question="电梯"), {"question", "all_exact", "question_f1"}),
    ],
)
def test_each_fault_costs_the_score_that_names_it(text, lost):
    scores = complaints.score(text, ROW, capped=True)
    assert scores.pop("capped") == 1
    if lost & {"valid_json", "schema"}:  # no answer at all scores nothing
        lost = set(scores) - ({"valid_json"} - lost)
    assert {name for name, value in scores.items() if value < 1} == lost


def test_a_row_is_read_from_columns_and_a_value_that_is_not_in_the_text_is_refused(tmp_path):
    table = tmp_path / "own.csv"
    table.write_bytes(f'内容,name,address,email,question\n"{TEXT.replace(chr(34), "”")}",周敏,,,\n'.encode("gb18030"))
    (row,) = load_rows(table, read=lambda record: complaints.read(record, text="内容"))
    assert json.loads(row["output"]) == {"name": "周敏", "address": None, "email": None, "question": None}
    assert complaints.read({"内容": TEXT, "编号": "7"}, text="内容", answer=None) == {
        "编号": "7",
        "instruction": "",
        "input": TEXT,
    }
    for record, message in (
        ({"text": TEXT}, "no column 'input' among 1"),
        (ROW | {"output": '{"name": null}'}, "no answer with name, address, email, question"),
        (ROW | {"output": None}, "no answer with name, address"),
        (ROW | {"output": "{oops"}, "no answer with name, address"),
        (ROW | {"output": answer(name="周民")}, "the name of the answer does not stand in the text"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            complaints.read(record)
        assert "周" not in str(error.value)


def test_the_article_s_shape_is_read_too():
    row = complaints.read({"system": "s", "instruction": "我是周敏", "input": "电梯坏了", "output": answer(
        address=None, email=None, question="电梯坏了")})  # fmt: skip
    assert complaints.to_example(row)["prompt"][1]["content"] == "我是周敏\n电梯坏了"
    twice = complaints_twice.to_example(row)
    assert twice["prompt"][1]["content"] == "我是周敏\n电梯坏了\n\n我是周敏\n电梯坏了"
    assert twice["completion"] == complaints.to_example(row)["completion"]


def test_the_instruction_is_the_article_s():
    assert complaints.to_example(ROW)["prompt"][0]["content"] == (
        "将文本中的name、address、email、question提取出来，以json格式输出，字段为name、address、email、question，"
        "值为文本中提取出来的内容。"
    )


def test_rules_find_the_easy_and_copy_what_they_find():
    found = json.loads(complaints.by_rules(ROW | {"input": "姓名：周敏\n邮箱：a@example.com\n内容：电梯坏了"}))
    assert found == {"name": "周敏", "address": None, "email": "a@example.com", "question": "电梯坏了"}


@pytest.fixture(scope="module")
def vocabularies(embedded_folder):
    """Both tokenizers as llguidance reads them, at the size of their models' logits."""
    import qwen3
    from llguidance.hf import from_tokenizer
    from transformers import AutoTokenizer

    gemma, qwen = AutoTokenizer.from_pretrained(embedded_folder), qwen3.tokenizer()
    return {
        "gemma3": (gemma, from_tokenizer(gemma, n_vocab=262144, eos_token=[1, 106])),
        "qwen3": (qwen, from_tokenizer(qwen, n_vocab=151936, eos_token=[151645, 151643])),
    }


def allowed(vocabulary, row, text) -> bool:
    from llguidance import LLMatcher

    tokenizer, its = vocabulary
    matcher = LLMatcher(its, complaints.grammar(row))
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("model", ["gemma3", "qwen3"])
def test_the_grammar_takes_pieces_of_the_text_and_null_and_nothing_else(vocabularies, model):
    def takes(**changes):
        return allowed(vocabularies[model], ROW, complaints._dumps(TRUTH | changes))

    assert takes() and takes(name=None, address=None, email=None, question=None) and takes(question='又"坏了！\n邮箱')
    assert not takes(name="周民") and not takes(email="ZM@example.com") and not takes(name="")
    assert takes(name=TEXT[:24]) and not takes(name=TEXT[:25]), "no name is that long"
    assert not takes(question="n邮箱"), "a newline is one piece, not a backslash and an n"
    assert not allowed(vocabularies[model], ROW, '{"address":null,"name":null,"email":null,"question":null}')
    assert not allowed(vocabularies[model], ROW, '{"name":"周敏\\"}')


SCRIPTS = st.sampled_from('"\\/\n\t \r{}[]:,，。：“”ａ＠１aZ9.é中電🐶👨‍👩‍👧­\u200bا')


@pytest.mark.parametrize("model", ["gemma3", "qwen3"])
@settings(max_examples=60, deadline=None)
@given(st.text(SCRIPTS, min_size=1, max_size=40), st.data())
def test_any_piece_of_any_text_passes_and_comes_back_as_it_stands(vocabularies, model, text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    piece = text[start : data.draw(st.integers(start + 1, len(text)))]
    row = {"input": text}
    whole = complaints._dumps(dict.fromkeys(FIELDS) | {"question": piece})
    assert allowed(vocabularies[model], row, whole)
    stranger = data.draw(st.text(SCRIPTS, min_size=1, max_size=8))
    other = complaints._dumps(dict.fromkeys(FIELDS) | {"question": stranger})
    assert allowed(vocabularies[model], row, other) == (stranger in text)


def test_every_marked_answer_is_one_its_grammar_allows(vocabularies, root):
    rows = load_rows(root / "data/complaints_eval.jsonl") + load_rows(root / "data/complaints.jsonl", 200)
    assert [row["output"] for row in rows if not allowed(vocabularies["gemma3"], row, row["output"])] == []
