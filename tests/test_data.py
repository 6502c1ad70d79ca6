"""The shipped rows: well formed, true, decent, and not written by a template."""

import collections
import re

import pytest

from pockettune import load_rows
from pockettune.tasks import roast
from pockettune.tasks.claims import unsupported

FACTS = re.compile(
    r"# (m|km|s km|minutes)\b|s km (faster|slower)|last run|recent average|of the last|first run on|of climbing"
)
INDECENT = re.compile(
    r"\b(fat|obese|overweight|belly|knees?|lungs?|heart attack|injur\w*|limp(?:s|ing)?|wheez\w*|your age|old man|grandma\b|grandmother\w*|ugly"
    r"|stupid|idiot\w*|moron\w*|crippl\w*|asthma\w*|disab\w*|pregnan\w*|female|male|women|woman)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def train(root):
    return load_rows(root / "data/strava_roasts.jsonl")


@pytest.fixture(scope="module")
def held_out(root):
    return load_rows(root / "data/strava_roasts_eval.jsonl")


def texts(rows):
    return [text for row in rows for text in row["output"].values()]


def words(text):
    return re.findall(r"[a-z']+|#", re.sub(r"\d+([.:,/]\d+)*", "#", text.lower()))


def test_there_are_enough_and_all_have_the_schema(train, held_out):
    assert len(train) >= 300 and len(held_out) >= 60
    for row in train + held_out:
        assert list(row["input"]) == ["date", "activity", "distance_km", "pace", "elevation_gain_m", "recent_runs"]
        assert list(row["output"]) == ["summary", "reflection"] and len(row["input"]["recent_runs"]) <= 2
        assert re.fullmatch(r"\d{1,2}:[0-5]\d/km", row["input"]["pace"])


def test_every_number_and_comparison_is_true(train, held_out):
    wrong = [
        (text, found)
        for row in train + held_out
        for text in row["output"].values()
        if (found := unsupported(text, row["input"]))
    ]
    assert wrong == []


def test_runs_are_of_every_kind(train):
    inputs = [row["input"] for row in train]
    assert {run["activity"] for run in inputs} == {"Run", "Trail Run", "Virtual Run"}
    assert any(not run["recent_runs"] for run in inputs)
    assert len({run["date"][5:7] for run in inputs}) == 12
    assert min(run["distance_km"] for run in inputs) < 2 and max(run["distance_km"] for run in inputs) > 42


def test_they_are_rude_about_the_run_alone(train, held_out):
    assert [text for text in texts(train + held_out) if INDECENT.search(text)] == []


def test_no_two_are_alike(train, held_out):
    everything = texts(train + held_out)
    assert len(set(everything)) == len(everything)
    reflections = collections.Counter(" ".join(words(row["output"]["reflection"])[:4]) for row in train + held_out)
    assert max(reflections.values()) <= 2
    openings = collections.Counter(" ".join(words(row["output"]["summary"])[:4]) for row in train + held_out)
    plain = {opening: n for opening, n in openings.items() if not FACTS.search(opening) and n > 4}
    assert plain == {}, "summaries that open alike beyond the facts they state"


def test_no_skeleton_is_behind_them(train):
    """Six words in a row, numbers masked, stand in at most four rows, unless they only state a fact of the prompt."""
    seen = collections.defaultdict(set)
    for i, row in enumerate(train):
        for text in row["output"].values():
            for gram in zip(*(words(text)[j:] for j in range(6)), strict=False):
                seen[" ".join(gram)].add(i)
    reused = {gram: len(rows) for gram, rows in seen.items() if len(rows) > 4 and not FACTS.search(gram)}
    assert reused == {}


def test_held_out_runs_and_phrases_are_not_in_the_training_rows(train, held_out):
    runs = {(row["input"]["date"], row["input"]["distance_km"]) for row in train}
    assert not runs & {(row["input"]["date"], row["input"]["distance_km"]) for row in held_out}
    known = tuple(roast.to_example(row)["completion"][0]["content"] for row in train)
    for row in held_out:
        completion = roast.to_example(row)["completion"][0]["content"]
        assert roast.score(completion, row, known=known) == {
            "valid_json": 1, "schema": 1, "faithful": 1, "original": 1, "capped": 0,
        }  # fmt: skip
