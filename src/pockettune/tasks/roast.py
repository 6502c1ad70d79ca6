"""Roasts of runs: what the model is told, how a run becomes an example, how an answer is checked.

One row of data/strava_roasts.jsonl (the input is what `sources.strava.read_export` returns):

    {"input": {"date": "2024-01-07", "activity": "Run", "distance_km": 3.08, "pace": "5:54/km",
               "elevation_gain_m": 4, "recent_runs": [{"distance_km": 3.06, "pace": "6:14/km"}]},
     "output": {"summary": "...", "reflection": "..."}}
"""

import json
import re
from datetime import date
from functools import lru_cache
from math import log
from statistics import mean

from pockettune.tasks import parse
from pockettune.tasks.claims import seconds_per_km, unsupported

SYSTEM = (
    "Roast this run: dry, rude about the run, never about the runner. Use only the numbers and comparisons given. "
    'Answer in one line of JSON: {"summary": "what happened", "reflection": "the verdict"}'
)

TEACHER = """You write verdicts on runs for a runner who asked for it: dry, laconic, rude about the run.
Never about the runner's body, weight, age, health, sex or identity, and nothing cruel about the person.
You are given a run, the runs before it and how they compare. Answer with one JSON object of exactly two strings:
"summary": one sentence that states what happened, with figures or comparisons copied from the lines given. Compute
nothing yourself: no other number, no other comparison.
"reflection": one sentence, the verdict, without any figure and without any claim about pace, distance or time: a
comparison with something else in life (a shop, an institution, an animal, a meeting) that is funny because it fits.
No two verdicts alike; no exclamation marks; English."""
SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "reflection": {"type": "string"}},
    "required": ["summary", "reflection"],
    "additionalProperties": False,
}


def to_example(row: dict) -> dict:
    """Turn a row into a prompt, with the comparisons computed, and its completion (where the row has an output)."""
    example = {
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "\n".join(describe(row["input"]))},
        ]
    }
    if "output" in row:
        answer = json.dumps(row["output"], ensure_ascii=False)
        example["completion"] = [{"role": "assistant", "content": answer}]
    return example


def describe(run: dict) -> list[str]:
    """Say in a few lines what an answer may use: the run, the runs before it, and how they compare.

    The comparisons are computed here, because a 270M model copies numbers rightly and subtracts wrongly.

    >>> run = {"date": "2024-01-07", "activity": "Run", "distance_km": 3.08, "pace": "5:54/km",
    ...        "elevation_gain_m": 4, "recent_runs": [{"distance_km": 3.06, "pace": "6:14/km"}]}
    >>> print(*describe(run), sep="\\n")
    Run on a Sunday in January: 3.08 km at 5:54/km, 18 minutes, 4 m of climbing
    last run 3.06 km at 6:14/km
    20 s/km faster than last run, 0.02 km longer than last run
    """
    km, pace = run["distance_km"], seconds_per_km(run["pace"])
    kms, paces = [r["distance_km"] for r in run["recent_runs"]], [seconds_per_km(r["pace"]) for r in run["recent_runs"]]
    day = date.fromisoformat(run["date"])
    lines = [
        f"{run['activity']} on a {day:%A} in {day:%B}: {km:g} km at {run['pace']}, {km * pace / 60:.0f} minutes, "
        f"{run['elevation_gain_m']} m of climbing"
    ]
    if not kms:
        return [*lines, "first run on record"]
    earlier = [f"{r['distance_km']:g} km at {r['pace']}" for r in run["recent_runs"]]
    lines.append(f"last run {', before that '.join(earlier)}")
    # Each comparison names its own reference: where two shared one, the model mixed them up.
    lines.append(_compare(km, pace, kms[0], paces[0], "last run"))
    if len(kms) > 1:
        lines.append(_compare(km, pace, mean(kms), mean(paces), "recent average"))
        extremes = {
            "fastest": pace < min(paces),
            "slowest": pace > max(paces),
            "longest": km > max(kms),
            "shortest": km < min(kms),
        }
        lines.append(", ".join(f"{word} of the last {len(kms) + 1}" for word, true in extremes.items() if true))
    return [line for line in lines if line]


def _compare(km, pace, other_km, other_pace, name):
    seconds, metres = round(pace - other_pace), round((km - other_km) * 1000, -1)
    speed = f"{abs(seconds)} s/km {'slower' if seconds > 0 else 'faster'} than" if seconds else "same pace as"
    length = (
        f"{abs(metres) / 1000:.2f} km {'longer' if metres > 0 else 'shorter'} than" if metres else "same distance as"
    )
    return f"{speed} {name}, {length} {name}"


def nearest(row: dict, rows: list[dict]) -> str:
    """Answer a row with the verdict of the most similar run among rows, unchanged: what copying alone can score."""

    def distance(other):
        run, seen = row["input"], other["input"]
        pace = seconds_per_km(run["pace"]) / seconds_per_km(seen["pace"])
        return abs(log(run["distance_km"] / seen["distance_km"])) + abs(log(pace))

    return json.dumps(min(rows, key=distance)["output"], ensure_ascii=False)


def score(completion: str, row: dict, *, capped: bool = False, known: tuple[str, ...] = ()) -> dict[str, float]:
    """Score an answer: each value is 0 or 1 and higher is better, save `capped` (it hit the token limit).

    `schema` asks for exactly two non-empty strings, `faithful` that nothing in them is `unsupported`, `original`
    that they share less than half of their 5-word runs with any one of the `known` training answers.
    """
    answer, valid = parse(completion)
    texts = list(answer.values()) if isinstance(answer, dict) else []
    schema = (
        isinstance(answer, dict)
        and set(answer) == {"summary", "reflection"}
        and all(isinstance(t, str) and t.strip() for t in texts)
    )
    shingles = _shingles(completion)
    return {
        "valid_json": float(valid),
        "schema": float(schema),
        "faithful": float(schema and not any(unsupported(text, row["input"]) for text in texts)),
        "original": float(schema and not any(2 * len(shingles & _shingles(k)) >= len(shingles) > 0 for k in known)),
        "capped": float(capped),
    }


def objection(completion: str, row: dict) -> str:
    """Say why a teacher's answer cannot be a label, or nothing; it quotes the answer only.

    >>> run = {"date": "2024-01-07", "activity": "Run", "distance_km": 3.08, "pace": "5:54/km",
    ...        "elevation_gain_m": 4, "recent_runs": []}
    >>> objection('{"summary": "4 km.", "reflection": "Noted."}', {"input": run})
    'these do not follow from the run: 4 km'
    """
    scores = score(completion, row)
    if not scores["schema"]:
        return 'it is not one JSON object of two strings, "summary" and "reflection"'
    if not scores["faithful"]:
        wrong = [found for text in json.loads(completion).values() for found in unsupported(text, row["input"])]
        return f"these do not follow from the run: {', '.join(wrong)}"
    return ""


@lru_cache(maxsize=4096)
def _shingles(text: str) -> frozenset:
    words = re.findall(r"[a-z']+|#", re.sub(r"\d+([.:,]\d+)*", "#", text.lower()))
    return frozenset(zip(*(words[i:] for i in range(5)), strict=False))
