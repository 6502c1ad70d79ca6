"""Complaint extraction with the text twice in the prompt, for long runs; all else is `complaints`.

A model that reads from left to right knows how the text ends when it reads the second copy. With 1,890 steps that is worth
two points of all four exact, with 100 steps it costs four (benchmarks/README.md).
"""

from pockettune.tasks import complaints
from pockettune.tasks.complaints import FIELDS, SYSTEM, by_rules, fields, grammar, parse, read, score

__all__ = ["FIELDS", "SYSTEM", "by_rules", "fields", "grammar", "parse", "read", "score", "to_example"]


def to_example(row: dict) -> dict:
    """Turn a row into prompt and completion messages (where the row has an output)."""
    example = complaints.to_example(row)
    example["prompt"][1]["content"] = "\n\n".join([example["prompt"][1]["content"]] * 2)
    return example
