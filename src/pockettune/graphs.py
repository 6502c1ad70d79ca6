"""Training steps as CUDA graphs: a small model's kernels take less time to run than a CPU takes to launch them."""

import torch
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

STEP = 64  # rows are padded to a multiple of 64 tokens, labelled places to one of 64 times the rows, so that few shapes occur
CHUNK = 128  # labelled tokens whose logits are in memory at once


class FixedShapes:
    """Collate rows into few shapes, padded on the right, with the places from which a labelled token is predicted.

    No attention mask is needed: with padding on the right a causal model never sees it.
    """

    def __init__(self, pad_token_id: int, longest: int):
        self.pad_token_id = pad_token_id
        self.longest = longest  # Unsloth's Qwen3 cuts a batch off there, and the places would be wrong

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        length = min(_up(max(len(row["input_ids"]) for row in rows), STEP), self.longest)
        batch = {
            name: torch.tensor([row[name] + [filler] * (length - len(row[name])) for row in rows])
            for name, filler in (("input_ids", self.pad_token_id), ("labels", -100))
        }
        places = pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten().ne(-100).nonzero().flatten()
        # Surplus places are a row's last, from which nothing is predicted.
        surplus = _up(len(places), STEP * len(rows)) - len(places)
        return batch | {"places": pad(places, (0, surplus), value=length - 1)}


class GraphedStep(TrainerCallback):
    """A trainer's forward and backward pass, recorded the second time a shape occurs and replayed from then on.

    Logits are made for labelled tokens only. It stands in for SFTTrainer.training_step on batches of `FixedShapes`.
    """

    def __init__(self, trainer):
        self.trainer, model = trainer, trainer.model
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.backbone, self.head = causal.model, causal.get_output_embeddings()
        self.tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.tuned]
        self.graphs: dict[tuple, tuple | None] = {}
        self.stream = self.pool = None
        self.failed = False

    def __call__(self, model, inputs: dict, num_items_in_batch) -> torch.Tensor:
        if not model.training:
            model.train()
        if self.tuned[0].grad is None:  # the optimizer has stepped; a graph always adds to the same tensors
            torch._foreach_zero_(self.gradients)
            for parameter, gradient in zip(self.tuned, self.gradients, strict=True):
                parameter.grad = gradient
        batch = self.trainer._prepare_inputs(inputs)
        count = num_items_in_batch  # labelled tokens of all batches up to the optimizer's next step
        if count is None:
            count = batch["labels"].ne(-100).sum() * self.trainer.current_gradient_accumulation_steps
        batch["count"] = torch.as_tensor(count, device=model.device).float().reshape(1)
        shape = (batch["input_ids"].shape, batch["places"].shape)
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        if shape in self.graphs and self.graphs[shape] is None and not self.failed:
            self._record(shape, batch)
        if self.failed or shape not in self.graphs:
            self.graphs[shape] = None
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):  # gradients must be added on the stream that is recorded later
                loss = self._pass(batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss
        graph, static, loss = self.graphs[shape]
        for name, tensor in static.items():
            tensor.copy_(batch[name])
        graph.replay()
        return loss.clone()

    def _record(self, shape: tuple, batch: dict) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                loss = self._pass(batch)
            self.graphs[shape] = graph, batch, loss
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.failed = True
            reason = str(error).splitlines()[0]
            print(f"these steps cannot be recorded as a CUDA graph ({reason}): they run as they are")

    def _pass(self, batch: dict) -> torch.Tensor:
        with torch.autocast(self.tuned[0].device.type, torch.bfloat16):
            hidden = self.backbone(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
            hidden = hidden.flatten(0, 1)[batch["places"]]
            targets = pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()[batch["places"]]
            pieces = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            loss = sum(
                checkpoint(self._loss, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces
            )
            loss = (loss / batch["count"]).squeeze()
        loss.backward()
        return loss.detach()

    def _loss(self, hidden, targets):
        return cross_entropy(self.head(hidden).float(), targets, ignore_index=-100, reduction="sum")

    def on_train_end(self, args, state, control, **kwargs):
        self.graphs.clear()  # and their memory with them
        self.stream = self.pool = None


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
