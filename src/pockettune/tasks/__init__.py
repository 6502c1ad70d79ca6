"""Tasks: one module each, passed to the core as it is. To add a use, write such a module.

A task module has
- `to_example(row) -> {"prompt": [messages], "completion": [messages]}`, the completion where the row has an output;
- `score(completion, row, *, capped=False, known=()) -> dict[str, float]`: named numbers from 0 to 1, higher is
  better, and `capped`, 1 where the token limit cut the answer off. `known` are the training answers;
- where its answers have one, `grammar(row) -> str`: llguidance's Lark, for `generate` and `evaluate`;
- where files of any size are to be answered (`pockettune.bulk`), `read(record, text, answer) -> row`, which makes a row of a
  record's columns, its text under `input`, or raises ValueError, `fields(completion, row) -> dict` with `valid` and `grounded`, and `by_rules(row) -> str`;
- where a teacher can label its rows, `TEACHER: str` (the teacher's instruction), `SCHEMA: dict` (JSON Schema of an
  answer) and `objection(completion, row) -> str`: why an answer cannot be a label, or "".

It imports the standard library only, so that it is tested in milliseconds.
"""

import json


def parse(completion: str) -> tuple[object, bool]:
    """Read an answer: what it holds, None for an object that names a field twice, and whether it is JSON at all."""
    try:
        return json.loads(completion, object_pairs_hook=lambda p: dict(p) if len(dict(p)) == len(p) else None), True
    except (ValueError, RecursionError):
        return None, False
