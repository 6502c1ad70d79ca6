"""Rows: JSON Lines in and out, seeded splits that keep related rows together, rows to a Dataset."""

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def load_rows(path: str | Path, limit: int = -1) -> list[dict]:
    """Read a JSON Lines file, the first `limit` rows of it (all by default).

    Raises FileNotFoundError, or ValueError naming the line that is not a JSON object; it never quotes the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.name} in {path.parent.resolve().name}/: give the path of a .jsonl file")
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if len(rows) == limit:
                break
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path.name}, line {number}: not JSON ({error.msg} at column {error.colno})"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(f"{path.name}, line {number}: expected a JSON object, found {type(row).__name__}")
            rows.append(row)
    if not rows and limit != 0:
        raise ValueError(f"{path.name} holds no rows: expected one JSON object a line")
    return rows


def save_rows(path: str | Path, rows: Iterable[dict]) -> Path:
    """Write rows as JSON Lines, whole or not at all."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: str | Path, text: str) -> Path:
    """Write a file in one rename, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
            out.write(text)
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
