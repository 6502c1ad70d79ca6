"""Answers: the one renderer of prompts, and batched generation, greedy or sampled, free or held to a grammar."""

import os
from collections.abc import Iterator
from functools import lru_cache

from pockettune.environment import device_precision


def render(tokenizer, prompt: list[dict], completion: list[dict] | None = None) -> str:
    """Render messages as the model reads them: the text up to the answer, or the whole with the answer.

    Training, evaluation and export all use this. Thinking is off where a template knows the switch.
    """
    options = {"tokenize": False, "enable_thinking": False}
    if completion is None:
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)
    return tokenizer.apply_chat_template([*prompt, *completion], **options)


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
    batch_size: int = 64,
    grammar: list[str] | None = None,
) -> list[str]:
    """Answer prompts (lists of messages), greedily at temperature 0; returns one text for each, in order.

    `grammar` holds one grammar for each prompt, in llguidance's Lark: an answer can then be nothing else, but for one
    that hits the token limit. Raises ValueError for a grammar that cannot be read.
    """
    return [text for text, _ in complete(model, tokenizer, prompts, max_new_tokens, temperature, batch_size, grammar)]


def complete(
    model, tokenizer, prompts, max_new_tokens=256, temperature=0.0, batch_size=64, grammar=None
) -> list[tuple[str, bool]]:
    """Answer prompts like `generate`, and tell of each whether it was cut off by the token limit."""
    import torch

    stops = stop_ids(model)
    # The precision of training, which a trained model keeps and a loaded one does not: so both answer alike.
    flags = device_precision(model.config.model_type)
    dtype = torch.float16 if flags.fp16 else torch.bfloat16
    texts = [render(tokenizer, prompt) for prompt in prompts]
    if grammar is not None and len(grammar) != len(prompts):
        raise ValueError(f"{len(grammar)} grammars for {len(prompts)} prompts: give one for each")
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    answers: list[tuple[str, bool]] = [("", False)] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for indices in _batches([len(text) for text in texts], batch_size):
            batch = tokenizer(
                [texts[i] for i in indices],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            ).to(model.device)
            held = [_hold(model, tokenizer, [grammar[i] for i in indices])] if grammar is not None else None
            with torch.inference_mode(), torch.autocast(model.device.type, dtype, enabled=flags.fp16 or flags.bf16):
                output = model.generate(
                    **batch,
                    max_new_tokens=max_new_tokens,
                    max_length=None,  # Unsloth sets one, and each call would warn of the two
                    eos_token_id=stops,
                    use_cache=True,
                    logits_processor=held,
                    **sampling,
                )
            for i, ids in zip(indices, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((at for at, token in enumerate(ids) if token in stops), None)
                answers[i] = (tokenizer.decode(ids[:end], skip_special_tokens=True), end is None)
    finally:
        model.train(was_training)
    return answers


def _batches(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@lru_cache(maxsize=1)
def _vocabulary(tokenizer, size: int, stops: tuple[int, ...]):
    """The tokenizer as llguidance reads it, which takes seconds; `size` is the model's, where the logits end."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=size, eos_token=list(stops))


def _hold(model, tokenizer, grammars: list[str]):
    """A logits processor that leaves each row of one batch only the tokens its grammar allows next."""
    import numpy as np
    import torch
    from llguidance import LLExecutor, LLMatcher
    from llguidance.numpy import allocate_token_bitmask, consume_token_par, fill_next_token_bitmask_par
    from transformers import LogitsProcessor

    size, stops = model.config.vocab_size, stop_ids(model)
    matchers = [LLMatcher(_vocabulary(tokenizer, size, tuple(stops)), text) for text in grammars]
    for matcher in matchers:
        if matcher.is_error():
            raise ValueError(f"llguidance cannot read the grammar: {matcher.get_error()[:300]}")
    threads = LLExecutor(num_threads=os.cpu_count())
    masks = allocate_token_bitmask(len(matchers), size)
    end = np.zeros_like(masks[0])
    end[stops[-1] // 32] = np.uint32(1 << stops[-1] % 32).astype(np.int32)

    class Hold(LogitsProcessor):
        started, live = False, [(m, i) for i, m in enumerate(matchers)]

        def __call__(self, input_ids, scores):
            if self.started:
                last = input_ids[:, -1].tolist()
                if not all(consume_token_par(threads, [(m, last[i]) for m, i in self.live])):
                    raise RuntimeError("a token was drawn that its grammar does not allow: logits of NaN, perhaps")
                for matcher, i in self.live:
                    if matcher.is_stopped():  # the answer is whole: nothing but its end may follow
                        masks[i] = end
            self.started, self.live = True, [(m, i) for m, i in self.live if not m.is_stopped()]
            if self.live:
                fill_next_token_bitmask_par(threads, self.live, masks)
            bits = torch.from_numpy(masks).to(scores.device)[:, :, None] >> torch.arange(32, device=scores.device)
            return scores.masked_fill((bits & 1).view(len(masks), -1)[:, : scores.shape[1]] == 0, -torch.inf)

    return Hold()
