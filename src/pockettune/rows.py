"""Rows: JSON Lines in and out, CSV and Parquet in, seeded splits that keep related rows together, rows to a Dataset."""

import csv
import hashlib
import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def load_rows(path: str | Path, limit: int = -1, read: Callable[[dict], dict] | None = None) -> list[dict]:
    """Read a .jsonl, .json, .csv or .parquet file, the first `limit` rows of it (all by default), each through `read` if given.

    Raises FileNotFoundError, or ValueError naming the line (of .json and .parquet the row) that is wrong; it never quotes a row.
    """
    rows, name = [], Path(path).name
    for number, row in records(path):
        if len(rows) == limit:
            break
        if isinstance(row, ValueError):
            raise ValueError(f"{name}, line {number}: {row}")
        try:
            rows.append(read(row) if read else row)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
    if not rows and limit != 0:
        raise ValueError(f"{name} holds no rows")
    return rows


def records(path: str | Path) -> Iterator[tuple[int, dict | ValueError]]:
    """Read a file row by row, each with its line; in the place of one that cannot be read stands a ValueError.

    Memory does not grow with the file, but for .json, which is read whole.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.name} in {path.parent.resolve().name}/: give its path")
    suffix = path.suffix.lower()
    readers = {".jsonl": _json_lines, ".json": _json_array, ".csv": _table, ".parquet": _parquet}
    if suffix not in readers:
        raise ValueError(f"{path.name} is none of {', '.join(readers)}")
    for number, row in readers[suffix](path):
        known = isinstance(row, dict | ValueError)
        yield number, row if known else ValueError(f"expected a JSON object, found {type(row).__name__}")


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = _decoded(line) or json.loads(line)
                except json.JSONDecodeError as error:
                    row = ValueError(f"not JSON ({error.msg} at column {error.colno})")
                except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
                    row = ValueError(f"not JSON that can be read ({type(error).__name__})")
                yield number, row


def _json_array(path: Path) -> Iterator[tuple[int, object]]:
    with _open(path) as file:
        try:
            rows = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path.name}: expected an array of objects, found {type(rows).__name__}")
    yield from enumerate(rows, 1)


def _table(path: Path) -> Iterator[tuple[int, dict | ValueError]]:
    """The rows of a CSV file with a header."""
    with _open(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            reader.fieldnames  # noqa: B018  (read here: a row must not be taken for the header)
        except csv.Error as error:
            raise ValueError(f"{path.name}, line 1: the header cannot be read: {error}") from None
        while True:
            start = reader.reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # a quote that is not closed may take many lines with it
                row = ValueError(f"{error} (lines {start} to {reader.reader.line_num})")
            else:
                if None in row:
                    row = ValueError("more cells than columns; quote texts with commas")
                else:
                    row = _decoded("".join(filter(None, row.values()))) or row
            yield reader.reader.line_num, row


def _parquet(path: Path) -> Iterator[tuple[int, dict]]:
    from pyarrow import parquet

    batches = parquet.ParquetFile(path).iter_batches(1000)
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def _open(path: Path):
    """Open a text file in UTF-8 or, as Chinese spreadsheets write it, in GB18030: where it is neither, the one that fits best."""
    undecoded = {}
    for encoding in ("utf-8-sig", "gb18030"):
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            chunks = iter(lambda: file.read(1 << 20), "")
            undecoded[encoding] = sum(len(re.findall("[\ud800-\udfff]", chunk)) for chunk in chunks)
        if not undecoded[encoding]:
            break
    return path.open(encoding=min(undecoded, key=undecoded.get), errors="surrogateescape", newline="")


def _decoded(text: str) -> ValueError | None:
    """What is wrong with a text whose bytes were in no known encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ValueError("neither UTF-8 nor GB18030: save the file as UTF-8")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_rows(path: str | Path, rows: Iterable[dict]) -> Path:
    """Write rows as JSON Lines, whole or not at all."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: str | Path, text: str) -> Path:
    """Write a file in one rename, so that a reader never sees half of it."""
    return write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file in one rename, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
    return path


def split_rows(
    rows: list[dict],
    eval_fraction: float = 0.1,
    seed: int = 3407,
    group: Callable[[dict], object] | None = None,
) -> tuple[list[dict], list[dict]]:
    """Split rows into (train, eval), reproducibly; rows with the same `group(row)` stay on one side.

    >>> train, held_out = split_rows([{"day": d} for d in "aabbcc"], 0.3, group=lambda row: row["day"])
    >>> len(train), len(held_out), held_out[0] == held_out[1]
    (4, 2, True)
    """
    if not 0 < eval_fraction < 1:
        raise ValueError(f"eval_fraction is {eval_fraction}, expected a number between 0 and 1")
    keys = [i if group is None else group(row) for i, row in enumerate(rows)]
    order = sorted(set(keys), key=str)
    if len(order) < 2:
        raise ValueError(f"{len(rows)} rows in {len(order)} group(s) cannot be split: at least 2 groups are needed")
    random.Random(seed).shuffle(order)
    held_out = set()
    for key in order[:-1]:
        if sum(k in held_out for k in keys) >= eval_fraction * len(rows):
            break
        held_out.add(key)
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held_out]


def to_dataset(rows: list[dict], to_example: Callable[[dict], dict]):
    """Turn rows into a Dataset of prompt and completion messages, the one form the trainer takes."""
    from datasets import Dataset

    return Dataset.from_list([to_example(row) for row in rows])
