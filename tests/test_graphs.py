"""Steps as CUDA graphs: the batches, the loss they compute (on any device) and, with a GPU, the replays."""

import contextlib
import sys
from unittest.mock import MagicMock

import pytest
import torch

from pockettune import load_rows, make_trainer, to_dataset, training
from pockettune.environment import device_precision
from pockettune.tasks import roast


@pytest.fixture(scope="module")
def trainer(loaded, root, tmp_path_factory):
    model, tokenizer = loaded
    rows = load_rows(root / "data/strava_roasts.jsonl", 3)
    with torch.no_grad():  # adapters that do something
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    yield make_trainer(
        model, tokenizer, to_dataset(rows, roast.to_example), output_dir=str(tmp_path_factory.mktemp("run"))
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()


def gradients(model) -> torch.Tensor:
    found = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found


@pytest.mark.parametrize("longest", [1024, 250])
def test_a_batch_has_a_round_shape_and_names_every_labelled_token_once(trainer, longest):
    from pockettune.graphs import STEP, FixedShapes

    rows = list(trainer.train_dataset)
    batch = FixedShapes(0, longest)(rows)
    assert batch["input_ids"].shape[1] % STEP == 0 or batch["input_ids"].shape[1] == longest
    assert len(batch["places"]) % (STEP * len(rows)) == 0
    length = batch["input_ids"].shape[1]
    for i, row in enumerate(rows):
        assert batch["input_ids"][i].tolist() == row["input_ids"] + [0] * (length - len(row["input_ids"]))
    following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()[batch["places"]]
    assert following[following != -100].tolist() == [label for row in rows for label in row["labels"] if label != -100]


def test_the_loss_and_its_gradient_are_those_of_the_rows_one_by_one(trainer):
    from pockettune.graphs import FixedShapes, GraphedStep

    model, rows = trainer.model, list(trainer.train_dataset)
    model.train()
    batch = FixedShapes(0, 1024)(rows)
    count = sum(label != -100 for row in rows for label in row["labels"])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    loss = GraphedStep(trainer)._pass(batch | {"count": torch.tensor([float(count)], device=model.device)})
    together = gradients(model)

    alone = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            states = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(states)[0, :-1].float()
        targets = torch.tensor(row["labels"][1:], device=model.device)
        part = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / count
        part.backward()
        alone += part.item()
    apart = gradients(model)
    assert loss.item() == pytest.approx(alone, rel=5e-3)
    assert (together - apart).norm() < 0.05 * apart.norm()


def test_layers_that_are_computed_again_change_no_gradient_and_dropout_has_none(trainer):
    from pockettune.graphs import FixedShapes, GraphedStep

    step, calls = GraphedStep(trainer), [0] * 18
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(step.backbone.layers)
    ]
    trainer.model.train()
    batch = FixedShapes(0, 1024)(list(trainer.train_dataset)[:1]) | {"count": torch.tensor([100.0])}
    batch = {name: tensor.to(trainer.model.device) for name, tensor in batch.items()}
    loss, again = step._pass(dict(batch)).item(), gradients(trainer.model)
    assert calls == [1, 2, 2] * 6
    step.checkpointed = []
    assert step._pass(dict(batch)).item() == loss and torch.equal(gradients(trainer.model), again)
    assert calls == [2, 3, 3] * 6
    for hook in hooks:
        hook.remove()
    dropped = torch.nn.Dropout(0.1)
    trainer.model.add_module("dropped", dropped)
    assert GraphedStep(trainer).checkpointed == []
    del trainer.model.dropped


class Unrecordable:
    """A torch.cuda.graph that fails as a real one does, when the recording ends."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *error):
        raise RuntimeError("operation failed due to a previous error during capture\nand more")


def test_steps_that_cannot_be_recorded_run_as_they_are(trainer, monkeypatch, capsys):
    from pockettune.graphs import FixedShapes, GraphedStep

    model = trainer.model
    for name in ("Stream", "CUDAGraph", "graph_pool_handle", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", Unrecordable)
    monkeypatch.setattr(GraphedStep, "_pass", lambda self, batch: torch.tensor(float(len(self.graphs))))
    step, batch = GraphedStep(trainer), FixedShapes(0, 1024)(list(trainer.train_dataset))
    assert [step(model, dict(batch), 100).item() for _ in range(3)] == [1.0] * 3
    assert capsys.readouterr().out.count("these steps cannot be recorded as a CUDA graph (operation failed") == 1
    model.zero_grad()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_replay_gives_what_a_plain_pass_gives(trainer):
    model, (first, second, third) = trainer.model, list(trainer.train_dataset)
    step = trainer.training_step
    for rows in ([first, second], [first, second], [second, third], [third, first]):  # plain, recorded, replayed …
        loss = step(model, trainer.data_collator(rows), 100)
        found = loss.item(), gradients(model)
        batch = {name: tensor.to(model.device) for name, tensor in trainer.data_collator(rows).items()}
        plain = step._pass(batch | {"count": torch.tensor([100.0], device=model.device)})
        assert found[0] == pytest.approx(plain.item(), rel=1e-3)
        apart = gradients(model)
        assert (found[1] - apart).norm() < 0.01 * apart.norm()


def test_graphs_are_refused_where_they_would_change_the_run(loaded, root, tmp_path):
    model, tokenizer = loaded
    rows = to_dataset(load_rows(root / "data/strava_roasts.jsonl", 1), roast.to_example)
    with pytest.raises(ValueError, match="cuda_graphs=True, but they"):
        make_trainer(model, tokenizer, rows, output_dir=str(tmp_path), cuda_graphs=True, dataloader_num_workers=1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, ""),
        ({"bf16": False}, "they need bfloat16"),
        ({"packing": True, "loss_type": "dft"}, "they do not go with packing, loss_type"),
    ],
)
def test_steps_are_graphs_on_one_gpu_unless_a_setting_needs_the_usual_ones(loaded, monkeypatch, settings, reason):
    model, _ = loaded
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert training._no_graphs(model, {"bf16": True, **settings}) == reason


@pytest.mark.skipif(
    not torch.cuda.is_available() or not device_precision("gemma3_text").bf16, reason="needs a GPU with bfloat16"
)
@pytest.mark.parametrize("name", ["norm", "layers.3.self_attn.q_norm"])
def test_a_norm_is_gemma_s_formula_in_one_kernel(loaded, name):
    torch.manual_seed(0)
    norm = loaded[0].get_base_model().model.get_submodule(name)
    states = torch.randn(2, 7, len(norm.weight), device="cuda", dtype=torch.bfloat16, requires_grad=True)
    wide = states.float()
    plain = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps) * (1 + norm.weight.float())
    found = norm(states)
    assert found.grad_fn.name().startswith("Fast_RMS_Layernorm")
    assert torch.allclose(found.float(), plain, rtol=2**-7, atol=1e-6)
    weights = torch.randn_like(plain)
    (expected,) = torch.autograd.grad((plain * weights).sum(), states, retain_graph=True)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    assert (gradient - expected).float().norm() < 0.02 * expected.float().norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel itself is there, and tested above")
def test_every_norm_goes_through_the_kernel(loaded, monkeypatch):
    """With a stand-in for it."""
    from unsloth_zoo.temporary_patches import gemma

    from pockettune import models

    calls = []

    class Kernel:
        @staticmethod
        def apply(x, weight, eps, has_one_added):
            calls.append(has_one_added)
            x = x.float()
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (1 + weight.float())

    base, ids = loaded[0].get_base_model(), torch.arange(5, 25)[None]
    as_if = MagicMock(get_decoder=base.get_decoder, config=base.config)
    as_if.device.type = "cuda"
    monkeypatch.setitem(sys.modules, "unsloth.kernels.rms_layernorm", MagicMock(Fast_RMS_Layernorm=Kernel))
    monkeypatch.setattr(gemma, "_gemma3_rms_norm", None)
    monkeypatch.setattr(models.environment, "device_precision", lambda model_type: MagicMock(bf16=True))
    with torch.inference_mode():
        plain = base(input_ids=ids).logits
        models._fuse_norms(as_if)
        fused = base(input_ids=ids).logits
    norms = [module for module in base.modules() if "forward" in vars(module) and type(module) is type(base.model.norm)]
    for module in norms:
        del module.forward
    assert len(norms) == len(calls) == 6 * 18 + 1 and all(calls)
    assert gemma._gemma3_rms_norm(torch.ones(2), torch.zeros(2), 0.0, torch.bfloat16).dtype == torch.bfloat16
    assert torch.allclose(plain, fused, atol=1e-3)
