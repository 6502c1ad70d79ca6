"""Steps on a CPU: rows laid end to end, with what they begin with computed once, learn what each alone would."""

import ctypes
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from pockettune import cpu_steps, load_rows, make_trainer, to_dataset, training
from pockettune.cpu_steps import PackedRows, _plain, head_loss
from pockettune.tasks import roast

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has steps of its own")


@pytest.fixture(scope="module")
def trainer(loaded, root, tmp_path_factory):
    """Of a model in float32, where sums differ by their order alone, with adapters that do something."""
    model, tokenizer = loaded
    rows = to_dataset(load_rows(root / "data/strava_roasts.jsonl", 3), roast.to_example)
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    dtype = model.dtype
    for parameter in adapters:
        parameter.data.normal_(std=0.02)
    for parameter in frozen:
        parameter.data = parameter.data.float()
    yield make_trainer(model, tokenizer, rows, output_dir=str(tmp_path_factory.mktemp("run")))
    for parameter in adapters:
        parameter.data.zero_()
    for parameter in frozen:
        parameter.data = parameter.data.to(dtype)


def test_a_packed_batch_holds_each_token_once_and_says_how_long_a_row_s_part_is(trainer):
    features = list(trainer.train_dataset)
    batch = PackedRows()(features)
    shared, *own = batch.pop("parts").tolist()
    assert shared > 40 and [shared + length for length in own] == [len(feature["input_ids"]) for feature in features]
    parts = {name: batch[name][0].split([shared, *own]) for name in ("input_ids", "labels", "position_ids")}
    for i, feature in enumerate(features, 1):
        row = {name: torch.cat((part[0], part[i])).tolist() for name, part in parts.items()}
        assert row.pop("position_ids") == [*range(shared + own[i - 1])]
        assert row == {name: feature[name] for name in ("input_ids", "labels")}
    assert batch["attention_mask"].sum() == sum(len(feature["input_ids"]) for feature in features)


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


@pytest.mark.parametrize(
    ("window", "long", "alike"),
    [(512, 512, True), (64, 512, True), (64, 200, True), (512, 512, False)],
    ids=["within Gemma's window", "beyond it", "long rows", "nothing alike"],
)
def test_loss_and_gradients_are_those_of_the_rows_one_by_one(trainer, monkeypatch, window, long, alike):
    model, features = trainer.model, list(trainer.train_dataset)
    if not alike:
        features[1]["input_ids"][0] += 1
    monkeypatch.setattr(cpu_steps, "LONG", long)
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
    apart = gradients(model)
    assert loss == pytest.approx(alone, rel=1e-5)
    assert (together - apart).norm() < 1e-4 * apart.norm()


@pytest.mark.parametrize("long", [512, 100], ids=["short rows", "long rows"])
def test_batches_that_are_added_up_step_as_usual_ones_do(loaded, root, tmp_path, monkeypatch, long):
    monkeypatch.setattr(cpu_steps, "LONG", long)
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


def test_every_adapted_layer_norm_and_the_head_s_loss_are_the_faster_ones(trainer):
    from unsloth_zoo.cpu import ops

    forwards = [forward.func for _, forward in trainer.compute_loss.__self__.forwards]
    assert forwards.count(cpu_steps._adapt) == 7 * 18 and forwards.count(cpu_steps._normalize) == 6 * 18 + 1
    assert ops._ChunkedLinearCrossEntropy.forward.__module__ == cpu_steps.__name__


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sure", [0, 3], ids=["a guess", "a sure answer"])
def test_the_head_s_loss_is_the_one_of_all_logits(loaded, sure, dtype, rel):
    from unsloth_zoo.cpu import ops

    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(21, 16), torch.randn(50, 16).to(dtype), torch.arange(21)
    hidden[:sure] = 3 * weight[:sure]
    hidden = hidden.to(dtype).requires_grad_()
    loss = ops._ChunkedLinearCrossEntropy.apply(hidden, weight, labels, 21.0, 10, -100)
    exact = cross_entropy(hidden.float() @ weight.float().T, labels)
    assert loss.item() == pytest.approx(exact.item(), rel=rel)
    (found,), (wanted,) = torch.autograd.grad(2 * loss, hidden), torch.autograd.grad(2 * exact, hidden)
    assert (found - wanted).norm() < rel * wanted.norm()


def test_training_that_fails_leaves_no_memory_kept(trainer, monkeypatch):
    calls = []
    cpu_steps._memory(1, 1, torch.float32)
    monkeypatch.setattr(cpu_steps, "keep_freed_memory", calls.append)
    monkeypatch.setattr(trainer.compute_loss.__self__, "run", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert calls == [True, False] and not cpu_steps._memory.cache_info().currsize


def test_a_head_that_is_tuned_and_rows_without_labels_are_left_to_unsloth():
    calls = []
    forward = head_loss(lambda *given: calls.append(given))
    labels = torch.arange(4)
    forward(None, torch.ones(4, 2), torch.ones(5, 2, requires_grad=True), labels, 4.0, 10, -100)
    forward(None, torch.ones(4, 2), torch.ones(5, 2), labels.fill_(-100), 4.0, 10, -100)
    assert len(calls) == 2


def test_layers_with_dropout_two_adapters_or_a_tuned_weight_stay_as_they_are(trainer, monkeypatch):
    layer = trainer.model.get_decoder().layers[0].mlp.up_proj
    assert _plain(layer)
    monkeypatch.setitem(layer.lora_dropout._modules, "default", torch.nn.Dropout(0.1))
    assert not _plain(layer)
    monkeypatch.undo()
    for names in (["default", "other"], ["other"]):
        monkeypatch.setattr(layer, "_active_adapter", names)
        assert not _plain(layer)
    monkeypatch.undo()
    monkeypatch.setattr(layer.get_base_layer().weight, "requires_grad", True)
    assert not _plain(layer)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's")
def test_freed_memory_is_kept_and_given_back():
    """In a process of its own, since the heap of this one is in use."""
    code = """
import resource, torch
from pockettune.environment import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(4 << 20) for _ in range(10)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
for keep in (True, True, False):
    keep_freed_memory(keep)
    print(pages())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, kept, given_back = map(int, found.stdout.split())
    assert kept < 1000 < 20_000 < given_back


def gradients(model) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found
