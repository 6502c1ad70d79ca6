"""Training steps on a CPU, which pays for every token: rows laid end to end, unpadded, and what all begin with once."""

from functools import partial
from itertools import takewhile

import torch
from torch.nn.functional import scaled_dot_product_attention

from pockettune.graphs import attending, project_heads


class PackedRows:
    """Collate rows into one: first the tokens that all begin with, then the rest of each.

    `rows` (number of rows, longest) says where in it each row's tokens are, `places` where each of its tokens is in those,
    counted row by row. LoRA's dropout, if there is any, falls on the common tokens once for all rows.
    """

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        tokens = [feature["input_ids"] for feature in features]
        # A row's first token of its own must not be a labelled one: another row's would stand before it.
        labelled = min(next(i for i, label in enumerate(feature["labels"]) if label != -100) for feature in features)
        alike = takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False))
        shared = min(sum(1 for _ in alike), labelled - 1)
        longest = max(map(len, tokens))
        rows = torch.zeros((len(tokens), longest), dtype=torch.long)  # after its end a row's places may say anything
        rows[:, :shared] = torch.arange(shared)
        ids, labels, positions, places = tokens[0][:shared], [-100] * shared, [*range(shared)], [*range(shared)]
        for i, feature in enumerate(features):
            own = range(shared, len(tokens[i]))
            rows[i, shared : len(tokens[i])] = torch.arange(len(ids), len(ids) + len(own))
            ids = ids + tokens[i][shared:]
            labels += feature["labels"][shared:]
            positions += own
            places += [i * longest + place for place in own]
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
        packed = {name: torch.tensor([values]) for name, values in batch.items()}
        # Four dimensions, or the model makes masks that nothing reads; TRL counts the rows' tokens by its sum.
        packed["attention_mask"] = torch.ones((1, 1, 1, sum(map(len, tokens))), dtype=torch.long)
        return packed | {"rows": rows, "places": torch.tensor(places)}


class PackedSteps:
    """Let a trainer's steps run over `PackedRows`: its usual loss, but for attention, which sees row by row.

    Evaluation and prediction keep its own batches.
    """

    def __init__(self, trainer):
        self.trainer, self.compute, self.load = trainer, trainer.compute_loss, trainer.get_train_dataloader
        self.layers = trainer.model.get_decoder().layers
        trainer.compute_loss, trainer.get_train_dataloader = self.loss, self.loader

    def loader(self):
        usual, self.trainer.data_collator = self.trainer.data_collator, PackedRows()
        try:
            return self.load()
        finally:
            self.trainer.data_collator = usual

    def loss(self, model, inputs: dict, *args, **kwargs):
        if "rows" not in inputs:
            return self.compute(model, inputs, *args, **kwargs)
        attend = partial(_attend, rows=inputs.pop("rows"), places=inputs.pop("places"))
        with attending((layer.self_attn, partial(attend, layer.self_attn)) for layer in self.layers):
            return self.compute(model, inputs, *args, **kwargs)


def _attend(attention, hidden_states, position_embeddings, rows, places, **_):
    heads = project_heads(attention, hidden_states, position_embeddings)
    (count, length), width = rows.shape, attention.head_dim
    query, key, value = (  # indexing with a tensor would be the same, and slow in its backward pass
        states[0].transpose(0, 1).index_select(0, rows.flatten()).view(count, length, -1, width).transpose(1, 2)
        for states in heads
    )
    window = attention.sliding_window
    near = None
    if window and length > window:
        near = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
    groups = query.shape[1] // key.shape[1]  # queries that share keys and values
    key, value = (states[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for states in (key, value))
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=near, is_causal=near is None, scale=attention.scaling
    )
    found = found.transpose(1, 2).reshape(count * length, -1).index_select(0, places)
    return attention.o_proj(found[None]), None
