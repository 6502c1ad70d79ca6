"""The shipped rows: well formed, true, decent, and not written by a template."""

import collections
import json
import re
import runpy

import opencc
import pytest

from pockettune import load_rows
from pockettune.tasks import complaints, roast
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


@pytest.fixture(scope="module")
def complaint_rows(root):
    return {name: load_rows(root / f"data/{name}.jsonl") for name in ("complaints", "complaints_eval")}


def test_complaints_have_the_article_s_shape_and_values_that_stand_in_the_text(complaint_rows):
    for name, count in (("complaints", 3000), ("complaints_eval", 300)):
        assert len(complaint_rows[name]) >= count
        for row in complaint_rows[name]:
            assert list(row)[:4] == ["system", "instruction", "input", "output"] and row["system"] == complaints.SYSTEM
            assert complaints.read(row)["output"] == row["output"], "compact, one line, plain Chinese"
            assert complaints.score(row["output"], row)["all_exact"] == 1
    for field in complaints.FIELDS:
        absent = sum(json.loads(row["output"])[field] is None for row in complaint_rows["complaints"])
        assert absent > 50, field


def test_the_training_bank_is_wide(root):
    bank = load_rows(root / "data/complaints/bank.jsonl")
    assert len({row["question"] for row in bank}) >= 400 and len({row["field"] for row in bank}) >= 20


def test_no_complaint_of_the_bank_is_nearly_a_held_out_one(root, complaint_rows):
    """Eight characters in a row, in simplified ones and without marks and mailboxes."""
    simple = opencc.OpenCC("t2s")

    def pieces(text):
        text = re.sub(r"[\w.@-]*\.example|[^\w\u4e00-\u9fff]", "", simple.convert(text))
        return {text[i : i + 8] for i in range(len(text) - 7)}

    known = set().union(*(pieces(row["input"]) for row in complaint_rows["complaints_eval"]))
    bank = [row["question"] for row in load_rows(root / "data/complaints/bank.jsonl")]
    assert [question for question in bank if pieces(question) & known] == []


def test_the_held_out_complaints_cover_each_noise_and_many_are_written_by_hand(complaint_rows):
    by = collections.Counter(row["by"] for row in complaint_rows["complaints_eval"])
    noise = collections.Counter(row["noise"] for row in complaint_rows["complaints_eval"])
    assert by["hand"] >= 60 and len(noise) >= 15 and min(noise.values()) >= 10


@pytest.mark.parametrize("name", ["complaints", "complaints_eval"])
def test_the_complaints_are_what_their_generator_writes(root, complaint_rows, name):
    """`make data` leaves nothing to commit."""
    assert runpy.run_path(str(root / f"data/{name}/generate.py"))["rows"]() == complaint_rows[name]


def test_held_out_complaints_share_nothing_with_training(complaint_rows):
    train, held_out = complaint_rows["complaints"], complaint_rows["complaints_eval"]
    for field in ("question", "address", "email"):
        values = [{json.loads(row["output"])[field] for row in rows} - {None} for rows in (train, held_out)]
        assert not values[0] & values[1], field

    def frame(row):
        """The text without its values."""
        text = row["input"]
        for field, value in sorted(json.loads(row["output"]).items(), key=lambda item: -len(item[1] or "")):
            text = text.replace(value, f"{{{field}}}") if value else text
        return re.sub(r"\d+", "0", text)

    assert not {f for f in map(frame, train) if re.search(r"\w{6}", re.sub(r"\{\w+\}", "", f))} & set(
        map(frame, held_out)
    )
    grams = lambda text: {text[i : i + 10] for i in range(len(text) - 9)}  # noqa: E731
    known = set().union(*(grams(frame(row)) | grams(json.loads(row["output"])["question"] or "") for row in train))
    shares = []
    for row in held_out:
        own = {
            g
            for g in grams(frame(row)) | grams(json.loads(row["output"])["question"] or "")
            if not re.search("[{}]", g)
        }
        shares.append(sum(g in known for g in own) / max(1, len(own)))
    assert sum(shares) / len(shares) < 0.025 and max(shares) < 0.5
