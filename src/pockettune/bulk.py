"""Millions of rows: a file in, shards of extracted fields out, each written once and whole.

python -m pockettune.bulk complaints.csv fields --model outputs/02_complaint_extraction/model --text 内容 --keep id
"""

import hashlib
import io
import json
import sqlite3
import time
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from pockettune import models, vllm_engine
from pockettune.environment import keep_freed_memory
from pockettune.generation import complete, render
from pockettune.rows import file_digest, records, write_bytes, write_text

RULES = "rules"  # in the place of a model: the task's regular expressions


class Extractor:
    """A model, loaded once, that turns records into rows of fields.

    `model` is a folder, a hub name, "embedded/gemma-3-270m", a GGUF file with `merge`'s folder `merged` beside it (llama.cpp
    answers then, on the CPU) or "rules"; with `vllm` vLLM answers, for a whole model such as `merged`. `task` is the name of a
    module in `pockettune.tasks`, `text` the column to be read; `keep` names columns to be carried over. Answers are held to
    the task's grammar unless `held` is False. Raises ValueError for columns that would take the place of the result's own,
    for limits that leave a prompt no room, and for what vLLM cannot read.
    """

    def __init__(
        self,
        model: str,
        task: str = "complaints",
        text: str = "input",
        keep: tuple[str, ...] = (),
        held: bool = True,
        max_new_tokens: int = 256,
        max_seq_length: int = 2048,
        vllm: bool = False,
    ):
        self.task = import_module(f"pockettune.tasks.{task}")
        self.text, self.keep, self.held = text, tuple(keep), held
        self.settings = {"task": task, "text": text, "keep": [*keep], "held": held}
        self.settings |= {"max_new_tokens": max_new_tokens, "max_seq_length": max_seq_length}
        self.settings |= {"vllm": True} if vllm else {}
        if vllm and (model == RULES or model.endswith(".gguf")):
            raise ValueError("vLLM reads whole models, such as the folder merged: neither rules nor a GGUF file")
        self.max_new_tokens, self.max_seq_length = max_new_tokens, max_seq_length
        if taken := {"row", "reason", "model", "prompt", *self.task.fields("", {"input": ""})} & set(keep):
            raise ValueError(
                f"a column {', '.join(sorted(taken))} is the result's own: rename it in the source to keep it"
            )
        if max_new_tokens >= max_seq_length:
            raise ValueError(
                f"max_seq_length={max_seq_length} leaves no room for a prompt before {max_new_tokens} new tokens"
            )
        self.plain = self.task.read({text: "x"}, text, None)
        self.model = self.tokenizer = None
        if model == RULES:
            self.digests = {"model": RULES, "prompt": file_digest(Path(self.task.__file__))[:16]}
            return
        if model.endswith(".gguf"):
            from transformers import AutoTokenizer

            self.model, self.tokenizer = model, AutoTokenizer.from_pretrained(Path(model).with_name("merged"))
        elif vllm:
            self.model, self.tokenizer = vllm_engine.load(model, max_seq_length)
        else:
            self.model, self.tokenizer = models.load_model(model, max_seq_length, lora_r=0)
        asked = self._render(self.plain) + (self.task.grammar(self.plain) if held else "")
        folder = Path(model)
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_config.json")]) or [folder]
        digests = [file_digest(file)[:16] for file in files if file.is_file()]
        name = _short(digests) if digests else folder.name if folder.is_dir() else model  # a hub name stands for itself
        self.digests = {"model": name, "prompt": _short([asked])}

    def __call__(self, found: list[dict | ValueError], known: dict | None = None) -> list[dict]:
        """Make a row for each record, or for the ValueError in the place of one that could not be read.

        A row has the columns kept, the task's fields, `valid`, `grounded`, `reason` (why there is no answer, or None) and
        digests of model and prompt. Identical texts are answered once; `known` holds earlier answers and takes the new ones.
        """
        known = {} if known is None else known
        rows = [self._read(record) for record in found]
        keys = [None if isinstance(row, ValueError) else _short([self._asked(row)]) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key and key not in known}
        for key, answer in zip(new, self._answer(list(new.values())), strict=True):
            known[key] = answer
        made = []
        for record, row, key in zip(found, rows, keys, strict=True):
            answer, reason = known[key] if key else (None, str(row))
            fields = self.task.fields(answer or "", row if key else {"input": ""})
            if reason is None and not fields["valid"]:
                reason = "the answer is not valid"
            kept = {name: record.get(name) if isinstance(record, dict) else None for name in self.keep}
            made.append({k: _writable(v) for k, v in {**kept, **fields, "reason": reason, **self.digests}.items()})
        keep_freed_memory(False)  # that of the many threads which read grammars
        return made

    def _read(self, record: dict | ValueError) -> dict | ValueError:
        if isinstance(record, ValueError):
            return record
        try:
            row = self.task.read(record, self.text, None)
            self._asked(row).encode()
        except UnicodeEncodeError:
            return ValueError("the text holds half of a character")
        except ValueError as error:
            return error
        return row

    def _asked(self, row: dict) -> str:
        return json.dumps(self.task.to_example(row)["prompt"], ensure_ascii=False)

    def _render(self, row: dict) -> str:
        return render(self.tokenizer, self.task.to_example(row)["prompt"])

    def _answer(self, rows: list[dict]) -> list[tuple[str | None, str | None]]:
        """An answer to each row, or None and the reason."""
        if self.model is None:
            return [(self.task.by_rules(row), None) for row in rows]
        room, answers = self.max_seq_length - self.max_new_tokens, {}
        asked = [self._render(row) for row in rows]
        tokenized = self.tokenizer(asked, add_special_tokens=False)["input_ids"] if asked else []
        for i, length in enumerate(map(len, tokenized)):
            if length > room:
                answers[i] = None, f"too long: {length} tokens, at most {room} fit"
        fit = [i for i in range(len(rows)) if i not in answers]
        for i, (text, cut) in zip(fit, self._each([rows[i] for i in fit]), strict=True):
            reason = f"cut off after {self.max_new_tokens} tokens" if cut is True else cut
            answers[i] = (None, reason) if reason else (text, None)
        return [answers[i] for i in range(len(rows))]

    def _each(self, rows: list[dict]) -> list[tuple[str, bool | str]]:
        """Answers, and whether they were cut off; where a batch fails, halves of it, down to the row that is at fault."""
        try:
            return self._complete(rows)
        except (ValueError, RuntimeError) as error:
            kind = type(error).__name__  # the error itself would hold the batch's memory
        if len(rows) > 1:
            return self._each(rows[: len(rows) // 2]) + self._each(rows[len(rows) // 2 :])
        self._complete([self.plain])  # which raises if it is not the row
        return [("", f"not answered ({kind})")]

    def _complete(self, rows: list[dict]) -> list[tuple[str, bool]]:
        prompts = [self.task.to_example(row)["prompt"] for row in rows]
        grammars = [self.task.grammar(row) for row in rows] if self.held else None
        return complete(self.model, self.tokenizer, prompts, self.max_new_tokens, grammar=grammars) if rows else []


def extract(
    source: str | Path, out: str | Path, model: str, *, shard_rows: int = 200, file_format: str = "jsonl", **options
) -> dict:
    """Answer every row of a file of any size, and write the fields to shards in the folder `out`; return its manifest.

    `source` is .csv, .jsonl or .parquet; `options` go to `Extractor`. Shards have a row for each row of the source, with its
    number there from 0, as "jsonl" or "parquet"; failed-*.jsonl beside them say which have no answer and why. Started again
    after a crash, it goes on where it was and redoes one shard at most. Raises ValueError when `out` was begun with something
    else, RuntimeError when a shard cannot be written or another process is writing there. No text is in any message.
    """
    from filelock import FileLock, Timeout
    from tqdm import tqdm

    if shard_rows < 1 or file_format not in _WRITERS:
        raise ValueError(
            f"shard_rows {shard_rows}, file_format {file_format!r}: at least 1, one of {', '.join(_WRITERS)}"
        )
    source, out = Path(source), Path(out)
    columns = {key for _, row in islice(records(source), 100) if isinstance(row, dict) for key in row}
    _check_columns(source, columns, **options)
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / ".lock", timeout=0).acquire()
    except Timeout:
        raise RuntimeError(f"another process is writing to {out.name}: wait for it, or choose another folder") from None
    with lock:
        total = sum(1 for _ in records(source))
        extractor = Extractor(model, **options)
        begun = {"source": source.name, "source_sha256": file_digest(source)[:16], "rows": total}
        begun |= {"shard_rows": shard_rows, "file_format": file_format} | extractor.settings | extractor.digests
        manifest = _begin(out, begun)
        shards, known = manifest["shards"], _Answers(out / ".answers.sqlite")
        done, failed = min(len(shards) * shard_rows, total), sum(shard["failed"] for shard in shards)
        found = islice((record for _, record in records(source)), done, None)
        with tqdm(total=total, initial=done, unit=" rows", postfix={"failed": failed}) as bar:
            while batch := list(islice(found, shard_rows)):
                started, name = time.perf_counter(), f"{len(shards):06}"
                rows = [{"row": done + i, **row} for i, row in enumerate(extractor(batch, known))]
                wrong = [{"row": row["row"], "reason": row["reason"]} for row in rows if row["reason"]]
                seconds = round(time.perf_counter() - started, 2)
                shards.append({"rows": len(rows), "failed": len(wrong), "seconds": seconds})
                try:
                    known.commit()
                    if wrong:
                        _WRITERS["jsonl"](out / f"failed-{name}.jsonl", wrong)
                    _WRITERS[file_format](out / f"part-{name}.{file_format}", rows)
                    write_text(out / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
                except (OSError, sqlite3.Error) as error:
                    raise RuntimeError(
                        f"shard {name} could not be written ({error.args[-1]}); those before it are whole: start again with more room"
                    ) from None
                done, failed = done + len(rows), failed + len(wrong)
                bar.set_postfix(failed=failed, refresh=False)
                bar.update(len(rows))
        known.delete()
    return manifest


def _check_columns(source: Path, columns: set[str], text: str = "input", keep: tuple[str, ...] = (), **others) -> None:
    """Raise ValueError for columns that are not there; without a header a table's may be a person's text: they are not quoted."""
    if missing := {text, *keep} - columns:
        raise ValueError(
            f"{source.name} has no column {', '.join(sorted(missing))} among {len(columns)} (has it a header?)"
        )


def _begin(out: Path, begun: dict) -> dict:
    """The manifest of the same work begun earlier, or a new one."""
    for path in out.iterdir():
        if path.name.startswith((".part-", ".failed-", ".manifest")):
            path.unlink()  # half a file of a process that died
    file = out / "manifest.json"
    if file.exists():
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if other := [key for key in {**manifest, **begun} if key != "shards" and manifest.get(key) != begun.get(key)]:
            raise ValueError(
                f"{out.name} was begun with another {', '.join(other)}: choose another folder, or delete it"
            )
        return manifest
    if others := [path.name for path in out.iterdir() if not path.name.startswith(".")]:
        raise ValueError(f"{out.name} holds {others[0]} and no manifest.json: choose another folder")
    (out / ".answers.sqlite").unlink(missing_ok=True)  # of work whose folder was emptied
    write_text(file, json.dumps({**begun, "shards": []}, indent=1, ensure_ascii=False))
    return {**begun, "shards": []}


class _Answers(dict):
    """Answers by the digest of a text: those of the shard under way in memory, all others on disk."""

    def __init__(self, path: Path):
        self.path, self.base = path, sqlite3.connect(path)
        self.base.execute("create table if not exists answers (key text primary key, answer, reason) without rowid")

    def __contains__(self, key: str) -> bool:
        return super().__contains__(key) or self[key] is not None

    def __missing__(self, key: str) -> tuple | None:  # not kept: a shard asks for few of them twice
        return self.base.execute("select answer, reason from answers where key = ?", (key,)).fetchone()

    def commit(self) -> None:
        with self.base:
            self.base.executemany("insert or ignore into answers values (?, ?, ?)", ((k, *v) for k, v in self.items()))
        self.clear()

    def delete(self) -> None:
        self.base.close()
        self.path.unlink()


def extract_with_ray(
    source: str, out: str, model: str, *, workers: int, batch_rows: int = 1000, gpus: float = 0, **options
) -> dict:
    """Do the same on a Ray cluster with `workers` models at a time, `gpus` for each, by Ray Data (`pip install "ray[data]"`).

    `source` is Parquet, one file or a folder of them, and `out` a new folder, which gets Parquet too; all machines reach both. Ray
    starts a worker that died anew and gives it its rows again. Rows come in any order, without a number: name a column in
    `keep` to know them by. Identical texts are answered once in a batch only. Returns how many rows there are and how many failed.
    """
    import ray

    if Path(out).is_dir() and any(Path(out).iterdir()):
        raise ValueError(f"{Path(out).name} is not empty, and Ray would add to it: choose another folder")
    rows = ray.data.read_parquet(str(source))
    _check_columns(Path(source), set(rows.schema().names), **options)

    class Worker(Extractor):
        def __call__(self, batch):
            return _arrow(super().__call__(batch.to_pylist()))

    rows.repartition(target_num_rows_per_block=batch_rows).map_batches(
        Worker,
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=[model],
        fn_constructor_kwargs=options,
        num_gpus=gpus,
    ).write_parquet(str(out))
    reasons = ray.data.read_parquet(str(out), columns=["reason"])
    return {"rows": reasons.count(), "failed": reasons.filter(lambda row: row["reason"] is not None).count()}


def _writable(value):
    """A value as JSON and Parquet can hold it: no half of a character, no NaN."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and value != value else value


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_bytes(path, lines.encode("utf-8", "replace"))  # a list in a column kept may hold half of a character


def _write_parquet(path: Path, rows: list[dict]) -> None:
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(_arrow(rows), file)
    write_bytes(path, file.getvalue())


_WRITERS = {"jsonl": _write_jsonl, "parquet": _write_parquet}


def _arrow(rows: list[dict]):
    """Rows as an Arrow table whose types do not depend on them: columns that are kept become text."""
    import pyarrow as pa

    kinds = {"row": pa.int64(), "valid": pa.bool_(), "grounded": pa.bool_()}
    texts = [{k: v if v is None or k in kinds else str(v) for k, v in row.items()} for row in rows]
    return pa.Table.from_pylist(texts, pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]]))


def _short(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


app = typer.Typer(pretty_exceptions_show_locals=False)  # which hold texts


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="a .csv, .jsonl or .parquet file")],
    out: Annotated[str, typer.Argument(help="the folder for the shards")],
    model: Annotated[str, typer.Option(help="a folder, a .gguf file, a hub name, or rules")],
    task: Annotated[str, typer.Option(help="a module of pockettune.tasks")] = "complaints",
    text: Annotated[str, typer.Option(help="the column with the text")] = "input",
    keep: Annotated[list[str], typer.Option(help="a column to be carried over; may be given again")] = [],  # noqa: B006
    shard_rows: Annotated[
        int, typer.Option(help="rows in a shard, all a crash can cost; 1000 or more pay on a GPU")
    ] = 200,
    file_format: Annotated[str, typer.Option(help="of the shards: jsonl or parquet")] = "jsonl",
    held: Annotated[bool, typer.Option(help="hold answers to the grammar of each text")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="cap on an answer")] = 256,
    max_seq_length: Annotated[int, typer.Option(help="tokens of prompt and answer; longer texts fail")] = 2048,
    vllm: Annotated[bool, typer.Option(help="answer with vLLM, in an environment that has it")] = False,
    workers: Annotated[int, typer.Option(help="so many models at a time under Ray Data, Parquet in and out")] = 0,
    gpus: Annotated[float, typer.Option(help="GPUs for each of them")] = 0,
) -> None:
    """Extract fields from every row of a file, on this machine; start it again after a crash."""
    options = {"task": task, "text": text, "keep": keep, "held": held}
    options |= {"max_new_tokens": max_new_tokens, "max_seq_length": max_seq_length, "vllm": vllm}
    try:
        if workers:
            done = extract_with_ray(source, out, model, workers=workers, batch_rows=shard_rows, gpus=gpus, **options)
            rows, failed = done["rows"], done["failed"]
        else:
            manifest = extract(
                Path(source), Path(out), model, shard_rows=shard_rows, file_format=file_format, **options
            )
            rows, failed = manifest["rows"], sum(shard["failed"] for shard in manifest["shards"])
    except (ValueError, RuntimeError, OSError, ImportError, sqlite3.Error) as error:
        raise SystemExit(f"{error}") from None
    print(f"{rows} rows, {failed} without an answer: {out}")


if __name__ == "__main__":
    app()
