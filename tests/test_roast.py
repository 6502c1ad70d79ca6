"""What an answer may claim, by hand-written cases both ways, and how the rest of it is scored."""

import json

import pytest

from pockettune.tasks import roast
from pockettune.tasks.claims import unsupported

RUN = {  # 5:54 against 6:14 and 5:49 (mean 6:02); 3.08 km against 3.06 and 5.12 (mean 4.09); 18 minutes
    "date": "2024-01-07",
    "activity": "Run",
    "distance_km": 3.08,
    "pace": "5:54/km",
    "elevation_gain_m": 4,
    "recent_runs": [{"distance_km": 3.06, "pace": "6:14/km"}, {"distance_km": 5.12, "pace": "5:49/km"}],
}
FIRST = {**RUN, "recent_runs": []}
# The article's own failure: 5.29 km in 18:22 can be no pace
ARTICLE = {**RUN, "distance_km": 5.29, "pace": "6:22/km", "recent_runs": [{"distance_km": 3.06, "pace": "6:14/km"}]}

TRUE = [
    "3.08 km at 5:54/km, 20 s/km faster than last run.",
    "3.1 km in 18 minutes.",
    "Three kilometres, four metres of climbing and twenty seconds a kilometre faster than last time.",
    "It took 18:10, a Sunday in January well wasted.",
    "5 s/km slower than the run before last, 8 s/km faster than recent average.",
    "0.02 km longer than last run, 1.01 km shorter than recent average.",
    "Slower than the run before last and faster than last run.",
    "The last run was slower, at 6:14/km.",
    "The last run was slower at 6:14/km and 3.06 km.",
    "Down from 5.12 km two runs ago.",
    "It was no longer than the average.",
    "Not the fastest of the last 3, nor the slowest of the last 3.",
    "Neither longest nor shortest of the last 3.",
    "11.26 km over the last 3 runs.",
    "A mere 4 m of climbing, about 1 m per km.",
    "At 10.2 km/h this is still a run.",
    "Nearly 20 minutes, over 3 km.",
    "60 % of the run before last, in distance.",
    "On 2024-01-07 something resembling a run took place.",
    "The same distance as last run, for what that is worth.",
    "The 7th of January, or January 7 if you must.",
    "No longer a debut, and no better for it, in January 2024.",
    "A run in January may march on without you.",
]
FALSE = [
    ("3.18 km at 5:54/km.", "3.18 km"),
    ("3.08 km at 6:14/km.", "6:14/km"),  # the last run's pace, claimed for this one
    ("5.12 km of nothing.", "5.12 km"),
    ("Slower than last run.", "slower"),
    ("20 s/km slower than last run.", "slower"),
    ("20 s/km faster than recent average.", "faster"),
    ("21 s/km faster than last run.", "21 s/km"),
    ("1.01 km longer than recent average.", "longer"),
    ("Faster than both recent runs.", "faster"),
    ("Fastest of the last 3.", "fastest"),
    ("Not the slowest, but shorter than last run.", "shorter"),
    ("The last run was faster.", "faster"),
    ("The last run was shorter than usual, this is 9 km.", "9 km"),
    ("No faster than last run.", "faster"),
    ("18 minutes per kilometre.", "18 minutes per kilometre"),
    ("It took 22 minutes.", "22 minutes"),
    ("A pace of 18:10.", "18:10"),
    ("Forty metres of climbing.", "40 metres"),
    ("Half a kilometre longer than last run.", "longer"),
    ("Twice the distance of last run.", "twice"),
    ("The same pace as last time.", "same pace"),
    ("5:54/km, the pace of the last run.", "pace"),
    ("The trail was 6:14/km, slower than recent average.", "6:14/km"),  # the last run's pace again
    ("Last run was 5.12 km at 5:49/km.", "5.12 km"),  # that was the one before
    ("The last run was 3.08 km at 5:54/km.", "3.08 km"),  # this run's values, given to that one
    ("The run before last was 3.06 km.", "3.06 km"),
    ("At 6:14/km, slower than the run before last.", "6:14/km"),
    ("5:54/km for the last time, 6:14/km today.", "6:14/km"),
    ("3.08 km after last run's 5.12 km.", "5.12 km"),
    ("3080 m of climbing.", "3080 m"),
    ("Eleven kilometres.", "11 kilometres"),
    ("A marathon in spirit.", "marathon"),
    ("First run on record.", "first run on record"),
    ("Faster than ever.", "than ever"),
    ("A 12 % improvement.", "12 %"),
    ("7 excuses.", "7"),
    ("Monday again.", "monday"),
    ("A June morning.", "june"),
    ("Hillier than last run.", "hillier"),
    ("A personal best.", "personal best"),
    ("The pace was 3.08 km, the distance 5:54/km.", "pace was 3.08 km"),
    ("5 runs and counting.", "5 runs"),
    ("On 2024-01-08 nothing happened.", "2024-01-08"),
]


@pytest.mark.parametrize("text", TRUE)
def test_true_claims_pass(text):
    assert unsupported(text, RUN) == []


@pytest.mark.parametrize(("text", "claim"), FALSE)
def test_false_claims_are_named(text, claim):
    assert claim in unsupported(text, RUN)


def test_the_articles_failure_is_caught():
    text = "You ran 5.29 km at an 18:22 pace, which is unimportable."
    assert unsupported(text, ARTICLE) == ["18:22 pace"]


def test_without_earlier_runs_no_comparison_holds():
    assert unsupported("The first run on record: 3.08 km at 5:54/km.", FIRST) == []
    for text in ("Faster than last run.", "Slowest of the last 3.", "20 s/km faster."):
        assert unsupported(text, FIRST)


def answer(**fields) -> str:
    return json.dumps({"summary": "3.08 km at 5:54/km.", "reflection": "Noted, and best forgotten by all."} | fields)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (answer(), {"valid_json": 1, "schema": 1, "faithful": 1}),
        (answer(summary="9 km."), {"valid_json": 1, "schema": 1, "faithful": 0}),
        (answer(summary=" "), {"valid_json": 1, "schema": 0, "faithful": 0}),
        (answer(summary=3), {"valid_json": 1, "schema": 0, "faithful": 0}),
        (answer(more="x"), {"valid_json": 1, "schema": 0, "faithful": 0}),
        ('{"summary": "a"}', {"valid_json": 1, "schema": 0, "faithful": 0}),
        ("[]", {"valid_json": 1, "schema": 0, "faithful": 0}),
        ('{"summary": "3.08 km', {"valid_json": 0, "schema": 0, "faithful": 0}),
        (
            '{"summary": "9 km.", "summary": "3.08 km.", "reflection": "x"}',
            {"valid_json": 1, "schema": 0, "faithful": 0},
        ),
        ("[" * 5000, {"valid_json": 0, "schema": 0, "faithful": 0}),
        ("", {"valid_json": 0, "schema": 0, "faithful": 0}),
        (answer() + answer(), {"valid_json": 0, "schema": 0, "faithful": 0}),
    ],
)
def test_score(completion, expected):
    found = roast.score(completion, {"input": RUN})
    assert {name: found[name] for name in expected} == expected
    assert found["capped"] == 0


def test_capped_is_counted_apart_from_invalid():
    assert roast.score('{"summary": "3.0', {"input": RUN}, capped=True)["capped"] == 1
    assert roast.score("nonsense", {"input": RUN})["capped"] == 0


def test_a_training_answer_with_other_numbers_is_no_original():
    known = (answer(summary="At 9.99 km and 4:44/km the run was filed under furniture, and dusted weekly."),)
    copy = answer(summary="At 3.08 km and 5:54/km the run was filed under furniture, and dusted weekly.")
    assert roast.score(copy, {"input": RUN}, known=known)["original"] == 0
    assert roast.score(answer(summary="3.08 km of it."), {"input": RUN}, known=(copy,))["original"] == 1


def test_the_prompt_holds_the_comparisons_and_the_completion_only_the_answer():
    row = {"input": RUN, "output": {"summary": "Größe: 3.08 km.", "reflection": "So."}}
    example = roast.to_example(row)
    text = example["prompt"][1]["content"]
    for phrase in ("20 s/km faster than last run", "0.02 km longer than last run", "8 s/km faster than recent average"):
        assert phrase in text
    assert json.loads(example["completion"][0]["content"]) == row["output"] and "Größe" in str(example["completion"])
    assert "completion" not in roast.to_example({"input": RUN})
    assert "first run on record" in roast.to_example({"input": FIRST})["prompt"][1]["content"]


def test_every_line_of_the_prompt_is_itself_faithful():
    for run in (RUN, FIRST, ARTICLE):
        assert [line for line in roast.describe(run) if unsupported(line, run)] == []


def test_the_nearest_run_lends_its_verdict():
    rows = [{"input": {**RUN, "distance_km": km}, "output": {"summary": str(km)}} for km in (10.0, 3.2, 42.2)]
    assert roast.nearest({"input": RUN}, rows) == '{"summary": "3.2"}'
