"""Trackers: SwanLab stays offline, and one that fails never ends a training."""

import logging
import sys

import pytest

from pockettune import make_trainer, to_dataset, tracking
from pockettune.tasks import complaints

ROWS = [{"input": "停水三天", "output": '{"name":null,"address":null,"email":null,"question":"停水三天"}'}] * 2


def run(loaded, folder, report_to):
    examples = to_dataset(ROWS, complaints.to_example)
    trainer = make_trainer(
        *loaded, examples, output_dir=str(folder), max_steps=1, per_device_train_batch_size=2, learning_rate=0.0,
        report_to=report_to,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_swanlab_tracks_a_run_without_a_network(loaded, tmp_path, caplog):
    import swanlab

    run(loaded, tmp_path, "swanlab")
    swanlab.finish()
    assert "swanlab is off" not in caplog.text
    records = b"".join(path.read_bytes() for path in (tmp_path / "swanlab").rglob("*") if path.is_file())
    assert b"train/loss" in records, "the run left no record"


def test_a_tracker_that_is_not_there_is_named_and_passed_over(loaded, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        assert run(loaded, tmp_path, "wandb").state.global_step == 1
    assert "wandb is off for this run" in caplog.text


def test_a_tracker_that_breaks_in_the_middle_is_dropped(loaded, tmp_path, caplog, monkeypatch):
    from transformers import TrainerCallback

    calls = []

    class Breaking(TrainerCallback):
        def on_log(self, *args, **kwargs):
            calls.append("log")
            raise ConnectionError("secret-key in the message")

    monkeypatch.setattr("transformers.integrations.get_reporting_integration_callbacks", lambda names: [Breaking])
    with caplog.at_level(logging.WARNING):
        assert run(loaded, tmp_path, "tensorboard").state.global_step == 1
    assert calls == ["log"] and "ConnectionError" in caplog.text and "secret-key" not in caplog.text


def test_an_unknown_tracker_is_an_error():
    with pytest.raises(ValueError, match="report_to is 'mlflow', expected one of none, swanlab"):
        tracking.callbacks("mlflow", "unused")
