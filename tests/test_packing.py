"""Steps on a CPU: rows laid end to end, with what they begin with computed once, learn what each alone would."""

import pytest
import torch

from pockettune import load_rows, make_trainer, to_dataset, training
from pockettune.packing import PackedRows
from pockettune.tasks import roast

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has steps of its own")


@pytest.fixture(scope="module")
def trainer(loaded, root, tmp_path_factory):
    model, tokenizer = loaded
    rows = to_dataset(load_rows(root / "data/strava_roasts.jsonl", 3), roast.to_example)
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        for parameter in adapters:  # that do something
            parameter.normal_(std=0.02)
    yield make_trainer(model, tokenizer, rows, output_dir=str(tmp_path_factory.mktemp("run")))
    with torch.no_grad():
        for parameter in adapters:
            parameter.zero_()


def test_a_packed_batch_holds_each_token_once_and_says_where_a_row_s_are(trainer):
    features = list(trainer.train_dataset)
    batch = PackedRows()(features)
    for feature, row in zip(features, batch["rows"], strict=True):
        places = row[: len(feature["input_ids"])]
        assert batch["input_ids"][0, places].tolist() == feature["input_ids"]
        assert batch["labels"][0, places].tolist() == feature["labels"]
        assert batch["position_ids"][0, places].tolist() == [*range(len(places))]
    assert batch["rows"].flatten()[batch["places"]].tolist() == [*range(batch["input_ids"].shape[1])]
    shared = (batch["rows"] == batch["rows"][0]).all(0).sum()
    assert batch["input_ids"].shape[1] == sum(len(feature["input_ids"]) for feature in features) - 2 * shared < 700


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [([2, 5, 6, 7], [2, 5, 6, 8], 2), ([2, 5, 6, 7], [2, 5, 6, 7], 2), ([2, 3, 6, 7], [4, 5, 6, 7], 0)],
    ids=["alike up to a label", "all alike", "nothing alike"],
)
def test_a_row_s_own_part_begins_before_its_labels(first, second, shared):
    labels = [-100, -100, -100]
    rows = [{"input_ids": ids, "labels": [*labels, ids[3]]} for ids in (first, second)]
    batch = PackedRows()(rows)
    assert batch["input_ids"].tolist() == [first + second[shared:]]
    assert batch["labels"].tolist() == [[*labels, first[3], *labels[shared:], second[3]]]


@pytest.mark.parametrize("window", [512, 64], ids=["within Gemma's window", "beyond it"])
def test_loss_and_gradients_are_those_of_the_rows_one_by_one(trainer, monkeypatch, window):
    model, features = trainer.model, list(trainer.train_dataset)
    monkeypatch.setattr(model.config, "sliding_window", window)
    for layer in model.get_decoder().layers:
        if layer.self_attn.sliding_window:
            monkeypatch.setattr(layer.self_attn, "sliding_window", window)
    count = torch.tensor(sum(label != -100 for feature in features for label in feature["labels"]))
    loss = trainer.training_step(model, PackedRows()(features), count).item()
    together, alone = gradients(model), 0.0
    monkeypatch.setattr(trainer, "compute_loss", trainer.compute_loss.__self__.compute)
    for feature in features:
        row = {name: torch.tensor([values]) for name, values in feature.items()}
        alone += trainer.training_step(model, row | {"attention_mask": torch.ones_like(row["input_ids"])}, count).item()
    apart, bf16 = gradients(model), trainer.args.bf16
    assert loss == pytest.approx(alone, rel=5e-3 if bf16 else 1e-5)
    assert (together - apart).norm() < (0.05 if bf16 else 1e-4) * apart.norm()


def test_batches_that_are_added_up_step_as_usual_ones_do(loaded, root, tmp_path, monkeypatch):
    rows = to_dataset(load_rows(root / "data/strava_roasts.jsonl", 4), roast.to_example)
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "learning_rate": 0.0,
    }
    logs = []
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr(training, "_packs", lambda *_: False)
        trainer = make_trainer(*loaded, rows, output_dir=str(tmp_path), **settings)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "grad_norm", "num_tokens"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=0.02 if trainer.args.bf16 else 1e-4)


def test_evaluation_and_prediction_keep_rows_apart(trainer):
    rows, loader = trainer.train_dataset, trainer.get_train_dataloader()
    assert isinstance(loader.collate_fn, PackedRows) and not isinstance(trainer.data_collator, PackedRows)
    found = trainer.predict(rows.select([0, 1]))
    assert len(found.predictions) == 2 and found.metrics["test_loss"] == pytest.approx(
        trainer.evaluate(rows.select([0, 1]))["eval_loss"]
    )


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"packing": True}])
def test_settings_that_need_the_usual_steps_get_them(loaded, root, tmp_path, settings):
    rows = to_dataset(load_rows(root / "data/strava_roasts.jsonl", 2), roast.to_example)
    trainer = make_trainer(*loaded, rows, output_dir=str(tmp_path), **settings)
    loaded[0].disable_input_require_grads()
    assert not isinstance(trainer.get_train_dataloader().collate_fn, PackedRows)


def gradients(model) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found
