"""Training steps on a CPU, which pays for every token and every pass over memory."""

from functools import cache, partial
from itertools import takewhile

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn.functional import scaled_dot_product_attention, softplus

from pockettune.environment import keep_freed_memory
from pockettune.graphs import project_heads, using

# Rows of more tokens get torch's attention kernel: slower, but it keeps no scores for the backward pass.
LONG = 512
PIECE = 8  # rows of logits of 262k words, in float32: as much as a cache holds


class PackedRows:
    """Collate rows into one: first the tokens that all begin with, then the rest of each; `parts` has the length of each part.

    LoRA's dropout, if there is any, falls on the common tokens once for all rows.
    """

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        tokens = [feature["input_ids"] for feature in features]
        # A row's first token of its own must not be a labelled one: another row's would stand before it.
        labelled = min(next(i for i, label in enumerate(feature["labels"]) if label != -100) for feature in features)
        alike = takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False))
        shared = min(sum(1 for _ in alike), labelled - 1)
        batch = {"input_ids": tokens[0][:shared], "labels": [-100] * shared, "position_ids": [*range(shared)]}
        for feature in features:
            batch["input_ids"] = batch["input_ids"] + feature["input_ids"][shared:]
            batch["labels"] += feature["labels"][shared:]
            batch["position_ids"] += range(shared, len(feature["input_ids"]))
        packed = {name: torch.tensor([values]) for name, values in batch.items()}
        # Four dimensions, or the model makes masks that nothing reads; TRL counts the rows' tokens by its sum.
        packed["attention_mask"] = torch.ones((1, 1, 1, sum(map(len, tokens))), dtype=torch.long)
        return packed | {"parts": torch.tensor([shared, *(len(row) - shared for row in tokens)])}


class PackedSteps:
    """Let a trainer's steps run over `PackedRows`: its usual loss, but for attention, which sees row by row.

    An adapted layer and a norm are one autograd function each, and freed memory is kept while `train` runs. Evaluation and
    prediction keep their own batches.
    """

    def __init__(self, trainer):
        self.trainer, self.compute, self.load = trainer, trainer.compute_loss, trainer.get_train_dataloader
        backbone = trainer.model.get_decoder()
        self.attentions = [layer.self_attn for layer in backbone.layers]
        adapted = [m for m in backbone.modules() if isinstance(m, LoraLinear) and _plain(m)]
        norms = [m for m in backbone.modules() if type(m) is type(backbone.norm) and not m.weight.requires_grad]
        self.forwards = [*((m, partial(_adapt, m)) for m in adapted), *((m, partial(_normalize, m)) for m in norms)]
        self.run = trainer.train
        trainer.compute_loss, trainer.get_train_dataloader, trainer.train = self.loss, self.loader, self.train

    def loader(self):
        usual, self.trainer.data_collator = self.trainer.data_collator, PackedRows()
        try:
            return self.load()
        finally:
            self.trainer.data_collator = usual

    def loss(self, model, inputs: dict, *args, **kwargs):
        if "parts" not in inputs:
            return self.compute(model, inputs, *args, **kwargs)
        parts = inputs.pop("parts").tolist()
        longest = parts[0] + max(parts[1:])
        # In the model's type, which torch's kernel wants: of others each layer would keep a copy.
        later = torch.full((longest, longest), -torch.inf, dtype=self.trainer.model.dtype).triu(1)
        masks = {None: later}
        for window in {a.sliding_window for a in self.attentions} - {None}:
            masks[window] = later + torch.full_like(later, -torch.inf).tril(-window)
        attend = ((a, partial(_attend, a, parts=parts, mask=masks[a.sliding_window])) for a in self.attentions)
        with using([*attend, *self.forwards]):
            return self.compute(model, inputs, *args, **kwargs)

    def train(self, *args, **kwargs):
        keep_freed_memory(True)
        try:
            return self.run(*args, **kwargs)
        finally:
            _memory.cache_clear()
            keep_freed_memory(False)


def _attend(attention, hidden_states, position_embeddings, parts, mask, **_):
    query, key, value = (states[0] for states in project_heads(attention, hidden_states, position_embeddings))
    found = []
    groups, width = len(query) // len(key), query.shape[-1]  # queries that share keys and values
    queries = (query * attention.scaling).unflatten(0, (-1, groups)).split(parts, 2)
    keys, values = key.split(parts, 1), value.split(parts, 1)
    for i, (own, count) in enumerate(zip(queries, parts, strict=True)):
        k, v = (keys[0], values[0]) if i == 0 else (torch.cat((s[0], s[i]), 1) for s in (keys, values))
        length = k.shape[1]
        seen = mask[length - count : length, :length]
        if length > LONG:
            # Views, and of four dimensions: of copies, and of three, torch would keep more for the backward pass.
            states = own, *(s[:, None].expand(-1, groups, -1, -1) for s in (k, v))
            states = (part.flatten(0, 1)[None] for part in states)
            found.append(scaled_dot_product_attention(*states, attn_mask=seen.to(v.dtype), scale=1.0)[0])
        else:
            scores = _Scores.apply(own.flatten(1, 2), k).unflatten(1, (groups, count))
            shares = (scores + seen).softmax(-1).to(v.dtype)
            found.append((shares.flatten(1, 2) @ v).view(len(query), count, width))
    return attention.o_proj(torch.cat(found, 1).transpose(0, 1).reshape(1, -1, len(query) * width)), None


class _Scores(torch.autograd.Function):
    """q k' in float32: bfloat16 would round off what softmax tells apart."""

    @staticmethod
    def forward(ctx, q, k):
        ctx.save_for_backward(q, k)
        with torch.autocast("cpu", enabled=False):
            return q.float() @ k.float().mT

    @staticmethod
    def backward(ctx, gradient):
        q, k = ctx.saved_tensors
        gradient = gradient.to(q.dtype)
        return gradient @ k, gradient.mT @ q


def _plain(layer) -> bool:
    """Whether an adapted layer is one sum of products: one plain adapter, no dropout, no bias, and nothing else is tuned."""
    names, base = layer.active_adapters, layer.get_base_layer()
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and not layer.lora_variant
        and not base.weight.requires_grad
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
        and type(base) is torch.nn.Linear
        and base.bias is layer.lora_B[names[0]].bias is None
    )


def _adapt(layer, x):
    (name,), weight = layer.active_adapters, layer.get_base_layer().weight
    a, b = (side[name].weight.to(weight.dtype) for side in (layer.lora_A, layer.lora_B))
    return _Adapted.apply(x.to(weight.dtype), weight, a, b, layer.scaling[name])


class _Adapted(torch.autograd.Function):
    """x W' + s x A' B', added up as it is multiplied."""

    @staticmethod
    def forward(ctx, x, weight, a, b, scaling):
        ctx.scaling = scaling
        with torch.autocast("cpu", enabled=False):
            narrow = x[0] @ a.T
            ctx.save_for_backward(x, weight, a, b, narrow)
            return (x[0] @ weight.T).addmm_(narrow, b.T, alpha=scaling)[None]

    @staticmethod
    def backward(ctx, gradient):
        x, weight, a, b, narrow = ctx.saved_tensors
        gradient = gradient[0]
        down = (gradient @ b).mul_(ctx.scaling)
        back = (gradient @ weight).addmm_(down, a)[None] if ctx.needs_input_grad[0] else None
        return back, None, down.T @ x[0], (gradient.T @ narrow).mul_(ctx.scaling), None


def _normalize(norm, x):
    return _Normalized.apply(x, 1 + norm.weight.float(), norm.eps)


class _Normalized(torch.autograd.Function):
    """Gemma's norm, in float32, by a weight that is not tuned."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        normed = x.float()
        factor = (normed.square().mean(-1, keepdim=True) + eps).rsqrt_()
        normed = normed * factor
        ctx.save_for_backward(normed, factor, weight)
        return (normed * weight).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        normed, factor, weight = ctx.saved_tensors
        back = gradient.float() * weight
        along = torch.linalg.vecdot(back, normed)[..., None] / normed.shape[-1]
        return back.addcmul_(normed, along, value=-1).mul_(factor).to(gradient.dtype), None, None


@cache
def _memory(rows: int, words: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory for the logits of one chunk, kept from step to step."""
    return torch.empty(rows, words, dtype=dtype)


def head_loss(usual):
    """Wrap the forward pass of Unsloth's chunked cross entropy: the same sums, piece by piece in the cache, in memory that is kept.

    Tuned heads and rows without labels are left to `usual`.
    """

    def forward(ctx, hidden, weight, labels, divisor, chunk_rows, ignore_index):
        if weight.requires_grad or (labels == ignore_index).any():
            return usual(ctx, hidden, weight, labels, divisor, chunk_rows, ignore_index)
        states, total = hidden.to(weight.dtype), torch.zeros(())
        gradient = torch.empty_like(states)
        for some, targets, back in zip(*(t.split(chunk_rows) for t in (states, labels, gradient)), strict=True):
            logits = torch.mm(some, weight.T, out=_memory(chunk_rows, len(weight), weight.dtype)[: len(some)])
            for piece, target in zip(logits.split(PIECE), targets[:, None].split(PIECE), strict=True):
                scores = piece.float()  # of float32 no copy
                scores.sub_(scores.amax(-1, keepdim=True))
                wanted = scores.gather(-1, target)
                others = scores.exp_().scatter_(-1, target, 0.0).sum(-1, keepdim=True)
                log_probability = -softplus(others.log() - wanted)
                total -= log_probability.sum()
                piece.copy_(scores.div_(others + wanted.exp()).scatter_(-1, target, log_probability.expm1()))
            torch.mm(logits, weight, out=back)
        ctx.divisor, ctx.has_hidden, ctx.has_weight = divisor, True, False
        ctx.weight_dtype, ctx.hidden_dtype = weight.dtype, hidden.dtype
        ctx.save_for_backward(gradient, torch.empty(0))
        return total / (divisor or 1.0)

    return forward
