"""Intervals, tables and the run card."""

import json

import pytest

from pockettune import compare, make_trainer, preflight, score_completions, to_dataset, write_run_card
from pockettune.evaluation import evaluate, intervals
from pockettune.tasks import roast

ROW = {
    "input": {
        "date": "2024-01-07",
        "activity": "Run",
        "distance_km": 3.08,
        "pace": "5:54/km",
        "elevation_gain_m": 4,
        "recent_runs": [],
    },
    "output": {"summary": "3.08 km.", "reflection": "Noted."},
}
GOOD = json.dumps(ROW["output"])


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say():
    import numpy as np

    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, low, high = intervals(rng.random(60) < 0.7, resamples=400)
        hits += low <= 0.7 <= high
    assert 178 <= hits <= 200


def test_intervals_are_reproducible_and_hold_the_mean():
    mean, low, high = intervals([1, 1, 0, 1, 0, 1, 1, 1])
    assert (mean, low, high) == intervals([1, 1, 0, 1, 0, 1, 1, 1]) and low < mean == 0.75 < high


def test_compare_sets_base_beside_tuned_and_pairs_the_gain():
    base = score_completions(["no", "no", GOOD], [True, False, False], [ROW] * 3, roast)
    tuned = score_completions([GOOD] * 3, [False] * 3, [ROW] * 3, roast)
    table = compare(base, tuned, copied=tuned)
    assert list(table.columns) == ["base", "tuned", "copied", "gain"] and table.columns.name == "%, n = 3"
    assert table.loc["valid_json", "tuned"] == "100.0 [100.0, 100.0]" and table.loc["valid_json", "gain"].startswith(
        "66.7"
    )
    assert table.loc["capped", "base"].startswith("33.3")


def test_a_mismatch_of_rows_and_answers_is_refused():
    with pytest.raises(ValueError):
        score_completions(["a"], [False], [ROW, ROW], roast)


def test_the_run_card_says_what_ran_and_holds_no_row_path_or_key(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    model, tokenizer = loaded
    trainer = make_trainer(
        model,
        tokenizer,
        to_dataset([ROW] * 2, roast.to_example),
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-9,
    )
    trainer.train()
    results = evaluate(model, tokenizer, [ROW], roast, max_new_tokens=2)
    path = write_run_card(
        tmp_path / "card.json",
        environment=preflight(),
        trainer=trainer,
        model_name=str(tmp_path),
        train_rows=[ROW] * 2,
        results={"base": results, "tuned": results},
    )
    text = path.read_text()
    card = json.loads(text)
    assert card["optimizer"] == "torch AdamW", "on a CPU Unsloth puts torch's AdamW in the place of the 8-bit one"
    assert card["steps"] == 1 and card["data"]["train"]["rows"] == 2 and len(card["data"]["eval"]["sha256"]) == 64
    assert card["scores"]["tuned"]["capped"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert {"import", "load", "tokenize", "first step", "evaluate"} <= card["seconds"].keys()
    assert card["precision"]["reason"] and card["peak_memory_gb"] > 0.5
    for secret in ("hf_secret", str(tmp_path), "3.08", "Noted", "2024-01-07", "/root", "/home"):
        assert secret not in text
    assert card["model"] == "a local folder"


def test_a_card_that_cannot_be_written_leaves_the_old_one(tmp_path):
    from pockettune.rows import write_bytes, write_text

    write_text(tmp_path / "card.json", "old")
    with pytest.raises(TypeError):  # from the write itself, when the new file is already begun
        write_bytes(tmp_path / "card.json", "no bytes")
    assert (tmp_path / "card.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
