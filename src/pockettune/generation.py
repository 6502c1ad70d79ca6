"""Answers: the one renderer of prompts, and batched generation, greedy or sampled, free or held to a grammar."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from pathlib import Path

from pockettune.environment import device_precision


def render(tokenizer, prompt: list[dict], completion: list[dict] | None = None) -> str:
    """Render messages as the model reads them: the text up to the answer, or the whole with the answer.

    Training, evaluation and export all use this. Thinking is off where a template knows the switch.
    """
    options = {"tokenize": False, "enable_thinking": False}
    if completion is None:
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)
    return tokenizer.apply_chat_template([*prompt, *completion], **options)


def unthinking_template(tokenizer) -> str:
    """The chat template with thinking off, also for programs that do not know the switch."""
    template = tokenizer.chat_template
    off = "{%- set enable_thinking = false %}"
    return off + template if "enable_thinking" in template and off not in template else template


def turn_end(tokenizer) -> int:
    """The token that ends an answer in the chat template."""
    asked = [{"role": "user", "content": "x"}]
    turn = render(tokenizer, asked, [{"role": "assistant", "content": "y"}])[len(render(tokenizer, asked)) :]
    return tokenizer(turn, add_special_tokens=False)["input_ids"][1]


def stop_ids(model) -> list[int]:
    """The token ids that end an answer."""
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids)


def generate(
    model,
    tokenizer,
    prompts: list[list[dict]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    batch_size: int | None = None,
    grammar: list[str] | None = None,
) -> list[str]:
    """Answer prompts (lists of messages), greedily at temperature 0; returns one text for each, in order.

    `model` may be the path of a GGUF file, which llama.cpp then answers with, or an LLM of vLLM's. `batch_size` is chosen by
    free memory where it is None. `grammar` holds one grammar for each prompt, in llguidance's Lark: an answer can then be nothing else, but for one
    that hits the token limit. Raises ValueError for a grammar that cannot be read.
    """
    return [text for text, _ in complete(model, tokenizer, prompts, max_new_tokens, temperature, batch_size, grammar)]


def complete(
    model, tokenizer, prompts, max_new_tokens=256, temperature=0.0, batch_size=None, grammar=None
) -> list[tuple[str, bool]]:
    """Answer prompts like `generate`, and tell of each whether it was cut off by the token limit."""
    if grammar is not None and len(grammar) != len(prompts):
        raise ValueError(f"{len(grammar)} grammars for {len(prompts)} prompts: give one for each")
    if isinstance(model, str | Path):
        from pockettune import llamacpp

        return llamacpp.complete(model, tokenizer, prompts, max_new_tokens, temperature, batch_size, grammar)
    if type(model).__module__.startswith("vllm."):
        from pockettune import vllm_engine

        return vllm_engine.complete(model, tokenizer, prompts, max_new_tokens, temperature, batch_size, grammar)
    import torch

    texts = [render(tokenizer, prompt) for prompt in prompts]
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    answers: list[tuple[str, bool]] = [("", False)] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        tokenized = tokenizer(texts, add_special_tokens=False)["input_ids"]
        stops = stop_ids(model)
        batch_size = batch_size or _fitting(model, max(map(len, tokenized), default=0) + max_new_tokens)
        with merged_weights(model), torch.inference_mode(), autocast(model):
            answer, length = partial(_complete_batch, model, sampling=sampling), math.inf
            for rows in _batches([len(ids) for ids in tokenized], batch_size):
                needed = len(tokenized[rows[0]]) + max_new_tokens  # the longest come first
                if temperature == 0 and 2 * needed < length and _recordable(model):
                    from pockettune.graphs import GraphedAnswers

                    answer, length = None, needed  # what the one before held is free
                    answer = GraphedAnswers(model, min(batch_size, len(prompts)), length)
                held = None  # a batch's grammars take half a gigabyte: those before go first
                held = _Held(model, tokenizer, [grammar[i] for i in rows]) if grammar is not None else None
                batch = {"input_ids": [tokenized[i] for i in rows]}
                batch = tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(model.device)
                found = answer(batch["input_ids"], batch["attention_mask"], max_new_tokens, stops, held)
                for i, new in zip(rows, found, strict=True):
                    end = next((n for n, token in enumerate(new) if token in stops), None)
                    answers[i] = (tokenizer.decode(new[:end], skip_special_tokens=True), end is None)
    finally:
        model.train(was_training)
    return answers


def _complete_batch(
    model, ids, mask, max_new_tokens: int, stops: list[int], held, *, sampling: dict
) -> list[list[int]]:
    """Answer the prompts of one batch together; whenever half of the answers have ended, go on with the others alone."""
    import torch

    start, going, cache = ids.shape[1], list(range(len(ids))), None
    answers: list[list[int]] = [[] for _ in going]

    def half_ended(input_ids, scores, **_):
        ended = torch.isin(input_ids[:, start:], torch.tensor(stops, device=input_ids.device)).any(1)
        return ended | (2 * ended.sum() >= len(ended))

    while going:
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=start + max_new_tokens - ids.shape[1],
            max_length=None,  # Unsloth sets one, and each call would warn of the two
            eos_token_id=stops,
            stopping_criteria=[half_ended],
            use_cache=True,
            return_dict_in_generate=True,
            logits_processor=held and [held],
            **sampling,
        )
        left = []
        for at, new in enumerate(output.sequences[:, start:].tolist()):
            if len(new) < max_new_tokens and not any(token in stops for token in new):
                left.append(at)
            else:
                answers[going[at]] = new
        going, ids, cache = [going[at] for at in left], output.sequences[left], output.past_key_values
        mask = torch.nn.functional.pad(mask[left], (0, ids.shape[1] - mask.shape[1]), value=1)
        if hasattr(cache, "batch_select_indices"):
            cache.batch_select_indices(left)
        else:  # Unsloth's Qwen3 on a GPU has one that cannot be cut: what there is of the others is read anew
            cache = None
        if held:
            held.keep(left)
    return answers


def autocast(model):
    """Answer in the precision of training; a loaded model would otherwise take another than the trained one."""
    import torch

    flags = device_precision(model.config.model_type)
    dtype = torch.float16 if flags.fp16 else torch.bfloat16
    return torch.autocast(model.device.type, dtype, enabled=flags.fp16 or flags.bf16)


def _batches(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def plain_lora(model) -> bool:
    """Whether a model's adapters are sums that can be added into its weights: no DoRA, no tuned heads, no quantized weights."""
    configs = getattr(model, "peft_config", {}).values()
    weights = (m.get_base_layer().weight for m in model.modules() if hasattr(m, "get_delta_weight"))
    return not any(c.use_dora or c.modules_to_save for c in configs) and all(w.is_floating_point() for w in weights)


@contextlib.contextmanager
def merged_weights(model) -> Iterator[None]:
    """Answer with the adapters added into the weights: without their three products a layer; then all is as it was."""
    layers = [layer for layer in model.modules() if hasattr(layer, "get_delta_weight") and not layer.merged]
    if not layers or not plain_lora(model):
        yield
        return
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, kept, strict=True):
            delta = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
            layer.get_base_layer().weight.data = (weight.float() + delta.float()).to(weight.dtype)
        with model.disable_adapter():
            yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight


def _recordable(model) -> bool:
    """Whether a decode step can be a CUDA graph of ours; for Qwen3 Unsloth has one."""
    import torch

    if model.device.type != "cuda" or model.config.model_type != "gemma3_text":
        return False
    # On a T4 a model whose weights are float32 needs Unsloth's own autocast.
    return model.get_output_embeddings().weight.dtype != torch.float32 or device_precision("gemma3_text").bf16


def _fitting(model, tokens: int) -> int:
    """How many rows of so many tokens fit into half of the free memory, 256 at most."""
    import psutil
    import torch

    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 4 * config.num_hidden_layers * config.num_key_value_heads * width  # bytes a token: keys, values, 16 bits
    row = tokens * (cache + 16 * config.intermediate_size) + 16 * config.vocab_size
    free = psutil.virtual_memory().available
    if model.device.type == "cuda":
        row += 2 * tokens * cache  # GraphedAnswers' copy of it, and a T4's 32 bits
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return max(1, min(256, int(free / 2 / row)))


@lru_cache(maxsize=1)
def _threads():
    """Threads that read grammars, and llguidance's own that make masks: few, and for all batches, since glibc keeps a heap for each."""
    from llguidance import LLExecutor

    threads = min(16, os.cpu_count())
    return ThreadPoolExecutor(threads), LLExecutor(num_threads=threads)


@lru_cache(maxsize=1)
def _vocabulary(tokenizer, size: int, stops: tuple[int, ...]):
    """The tokenizer as llguidance reads it, which takes seconds; `size` is the model's, where the logits end."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=size, eos_token=list(stops))


NOT_ALLOWED = "a token was drawn that its grammar does not allow: logits of NaN, or a limit of llguidance's, perhaps"


class _Held:
    """The grammars of one batch's answers: a logits processor for transformers, and `correct` for `GraphedAnswers`."""

    def __init__(self, model, tokenizer, grammars: list[str]):
        import numpy as np
        import torch
        from llguidance import LLMatcher

        size, stops, on_gpu = model.config.vocab_size, stop_ids(model), model.device.type == "cuda"
        readers, self.threads = _threads()
        # The grammars are read while the model reads the prompts.
        self.matchers = readers.map(partial(LLMatcher, _vocabulary(tokenizer, size, tuple(stops))), grammars)
        self.bits = torch.full((len(grammars), -(-size // 32)), -1, dtype=torch.int32, pin_memory=on_gpu)
        self.masks = self.bits.numpy()
        self.stop = stops[-1]
        self.end = np.zeros_like(self.masks[0])
        self.end[self.stop // 32] = np.uint32(1 << self.stop % 32).astype(np.int32)
        self.shifts = torch.arange(8, dtype=torch.uint8, device=model.device)
        self.begun = False

    @cached_property
    def live(self) -> dict:
        """Matchers by row; where an answer is whole there is none."""
        live, self.matchers = dict(enumerate(self.matchers)), None
        for matcher in live.values():
            if matcher.is_error():
                raise ValueError(f"llguidance cannot read the grammar: {matcher.get_error()[:300]}")
        return live

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        self.live = {i: self.live[row] for i, row in enumerate(rows) if row in self.live}

    def __call__(self, input_ids, scores):
        if self.begun and self._take(enumerate(input_ids[:, -1].tolist())):
            raise RuntimeError(NOT_ALLOWED)
        self.begun = True
        return self._masked(scores, range(len(scores)))

    def correct(self, tokens: list[int], scores) -> list[int]:
        """Consume each row's likeliest token, or put the likeliest that its grammar allows in its place; returns those rows.

        Almost all are allowed, and to see that costs a tenth of a mask or less (benchmarks/README.md).
        """
        for row in range(len(tokens)):
            if row not in self.live:
                tokens[row] = self.stop
        if refused := self._take(enumerate(tokens)):
            for row, token in zip(refused, self._masked(scores[refused], refused).argmax(-1).tolist(), strict=True):
                tokens[row] = token
            if self._take((row, tokens[row]) for row in refused):
                raise RuntimeError(NOT_ALLOWED)
        return refused

    def _take(self, drawn: Iterable[tuple[int, int]]) -> list[int]:
        """Consume a token for each row; returns the rows whose grammars do not allow theirs, and are as before."""
        refused = []
        for row, token in drawn:
            if matcher := self.live.get(row):
                if not matcher.try_consume_tokens([token]):
                    refused.append(row)
                elif matcher.is_stopped():
                    del self.live[row]
        return refused

    def _masked(self, scores, rows: Sequence[int]):
        """Leave each of these rows only the tokens that its grammar allows next, or the end where the answer is whole."""
        import torch
        from llguidance.numpy import fill_next_token_bitmask_par

        asked = [(self.live[row], i) for i, row in enumerate(rows) if row in self.live]
        self.masks[[i for i, row in enumerate(rows) if row not in self.live]] = self.end
        if asked:
            fill_next_token_bitmask_par(self.threads, asked, self.masks)
        octets = self.bits[: len(rows)].to(scores.device, non_blocking=True).view(torch.uint8)
        allowed = (octets[:, :, None] >> self.shifts & 1).view(len(octets), -1)[:, : scores.shape[1]].bool()
        return scores.masked_fill(~allowed, -torch.inf)
