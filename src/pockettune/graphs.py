"""Training steps and answers as CUDA graphs: a small model's kernels take less time to run than a CPU takes to launch them."""

import contextlib
from functools import cache, partial

import torch
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, TrainerCallback

STEP = 64  # rows are padded to a multiple of 64 tokens, labelled places to one of 64 times the rows, so that few shapes occur
CHUNK = 128  # labelled tokens whose logits are in memory at once

recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


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

    Logits are made for labelled tokens only. Without dropout two layers of three are checkpointed: they keep their input
    alone and are computed again in the backward pass. It stands in for SFTTrainer.training_step on batches of `FixedShapes`.
    """

    def __init__(self, trainer):
        self.trainer, model = trainer, trainer.model
        self.backbone, self.head = model.get_decoder(), model.get_output_embeddings()
        # Dropout would drop other values the second time.
        dropout = model.config.attention_dropout or any(
            isinstance(m, torch.nn.Dropout) and m.p for m in model.modules()
        )
        self.checkpointed = [] if dropout else [layer for i, layer in enumerate(self.backbone.layers) if i % 3]
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
        recorded = _capture("these steps", lambda: self._pass(batch), pool=self.pool, stream=self.stream)
        if recorded:
            graph, loss = recorded
            self.graphs[shape] = graph, batch, loss
        self.failed = recorded is None

    def _pass(self, batch: dict) -> torch.Tensor:
        with torch.autocast(self.tuned[0].device.type, torch.bfloat16), self._checkpointing():
            hidden = self.backbone(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
            hidden = hidden.flatten(0, 1)[batch["places"]]
            targets = pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()[batch["places"]]
            pieces = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            loss = sum(recompute(self._loss, *piece) for piece in pieces)
            loss = (loss / batch["count"]).squeeze()
        loss.backward()
        return loss.detach()

    @contextlib.contextmanager
    def _checkpointing(self):
        for layer in self.checkpointed:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, recompute
        try:
            yield
        finally:
            for layer in self.checkpointed:
                layer.gradient_checkpointing = False

    def _loss(self, hidden, targets):
        return cross_entropy(self.head(hidden).float(), targets, ignore_index=-100, reduction="sum")

    def on_train_end(self, args, state, control, **kwargs):
        self.graphs.clear()  # and their memory with them
        self.stream = self.pool = None


class GraphedAnswers:
    """Greedy answers of Gemma 3, batch by batch: a decode step is one CUDA graph over a KV cache of fixed length.

    The prefill is the model's own pass. `length` bounds prompt and answer, in tokens. The graph holds the addresses of
    the weights: it must not outlive them. Without a GPU, or where it cannot be recorded, the same step runs as it is.
    """

    def __init__(self, model, rows: int, length: int):
        self.backbone, self.head = model.get_decoder(), model.get_output_embeddings()
        config, device, dtype = model.config, model.device, self.head.weight.dtype
        on_gpu = device.type == "cuda"
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        self.length, self.window, self.layers = _up(length, STEP), config.sliding_window, self.backbone.layers
        self.token, self.position_ids = torch.zeros((2, rows, 1), dtype=torch.long, device=device)
        self.cache_position = torch.zeros(1, dtype=torch.long, device=device)  # where all rows write next
        self.columns = torch.arange(self.length, device=device)
        self.attention_mask = torch.zeros((rows, self.length), dtype=torch.bool, device=device)
        self.logits = torch.zeros((rows, config.vocab_size), dtype=dtype, device=device)
        shape = (2, len(self.layers), rows, config.num_key_value_heads, self.length, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.next_tokens = torch.zeros((rows, 1), dtype=torch.long, pin_memory=on_gpu)
        self.copied = torch.cuda.Event() if on_gpu else None
        self.step = self._record() if on_gpu else self._step

    def _record(self):
        stream = _stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()  # what is made once is made now
        torch.cuda.current_stream().wait_stream(stream)
        recorded = _capture("these answers", self._step, stream=stream)
        return recorded[0].replay if recorded else self._step

    def __call__(self, input_ids, attention_mask, max_new_tokens: int, stops: list[int], held) -> list[list[int]]:
        """Answer prompts padded on the left; returns each row's tokens up to where all had ended."""
        rows, start = input_ids.shape
        cache = DynamicCache()
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        logits = self.head(self.backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1])
        for layer, keys, values in zip(cache.layers, self.keys, self.values, strict=True):
            keys[:rows, :, :start], values[:rows, :, :start] = layer.keys, layer.values
        del cache
        self.attention_mask[:] = False
        self.attention_mask[:rows, :start] = attention_mask.bool()
        self.position_ids[:rows] = position_ids[:, -1:] + 1
        self.cache_position[:] = start
        answers, going = [[] for _ in range(rows)], set(range(rows))
        next_tokens = self.next_tokens[:rows]
        for _ in range(max_new_tokens):
            self.token[:rows] = logits.argmax(-1, keepdim=True)
            next_tokens.copy_(self.token[:rows], non_blocking=True)
            if self.copied:
                self.copied.record()
            asked = logits.clone() if held else None  # the step writes over them
            self.step()  # it makes the next logits while the CPU reads these tokens
            logits = self.logits[:rows]
            if self.copied:
                self.copied.synchronize()
            tokens = next_tokens.flatten().tolist()
            corrected = held.correct(tokens, asked) if held else []
            for row, token in enumerate(tokens):
                answers[row].append(token)
                if token in stops:
                    going.discard(row)
            if not going:
                break
            if corrected:  # the step once more, in the same place
                self.token[corrected, 0] = torch.tensor([tokens[row] for row in corrected], device=self.token.device)
                self.cache_position -= 1
                self.position_ids -= 1
                self.step()
        return answers

    def _step(self) -> None:
        self.attention_mask.index_fill_(1, self.cache_position, True)
        near = self.attention_mask & (self.columns > self.cache_position - self.window)
        masks = {
            kind: torch.zeros_like(mask, dtype=self.keys.dtype).masked_fill_(~mask, -torch.inf)[:, None, None]
            for kind, mask in (("full_attention", self.attention_mask), ("sliding_attention", near))
        }
        attentions = [layer.self_attn for layer in self.layers]
        cached = zip(attentions, self.keys, self.values, strict=True)
        with using((attention, partial(self._attend, attention, *cache)) for attention, *cache in cached):
            states = self.backbone(
                input_ids=self.token, position_ids=self.position_ids, attention_mask=masks, use_cache=False
            ).last_hidden_state
        self.logits.copy_(self.head(states[:, -1]))
        self.cache_position += 1
        self.position_ids += 1

    def _attend(self, attention, keys, values, hidden_states, position_embeddings, attention_mask, **_):
        """One token's attention: the heads that share keys and values are as many queries of one head."""
        rows, heads, _, width = keys.shape
        query, key, value = project_heads(attention, hidden_states, position_embeddings)
        keys.index_copy_(2, self.cache_position, key.to(keys.dtype))
        values.index_copy_(2, self.cache_position, value.to(keys.dtype))
        query = query.to(keys.dtype).view(rows, heads, -1, width)
        mask = attention_mask.expand(-1, heads, query.shape[2], -1)
        found = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=attention.scaling)
        return attention.o_proj(found.view(rows, 1, -1)), None


@contextlib.contextmanager
def using(forwards):
    """Let modules use other forwards meanwhile; `forwards` are pairs of the two."""
    kept = []
    try:
        for module, forward in forwards:
            kept.append((module, vars(module).get("forward")))
            module.forward = forward
        yield
    finally:
        for module, forward in kept:
            del module.forward
            if forward:
                module.forward = forward


def project_heads(attention, hidden_states, position_embeddings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gemma 3's queries, keys and values, normed and turned: each (rows, heads, tokens, width)."""
    from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

    query, key, value = (
        project(hidden_states).view(*hidden_states.shape[:2], -1, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return *apply_rotary_pos_emb(attention.q_norm(query), attention.k_norm(key), *position_embeddings), value


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """One for all recordings of answers: cuBLAS keeps 34 MB for each stream it has been on."""
    return torch.cuda.Stream(device)


def _capture(what: str, run, **options) -> tuple | None:
    """Record a call as a CUDA graph: the graph and what it returned, or None and a line that says why."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, **options):
            returned = run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        print(f"{what} cannot be recorded as a CUDA graph ({reason}): they run as they are")
        return None
    return graph, returned


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
