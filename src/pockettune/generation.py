"""Answers: the one renderer of prompts, and batched greedy or sampled generation."""

from collections.abc import Iterator

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
) -> list[str]:
    """Answer prompts (lists of messages), greedily at temperature 0; returns one text for each, in order."""
    return [text for text, _ in complete(model, tokenizer, prompts, max_new_tokens, temperature, batch_size)]


def complete(model, tokenizer, prompts, max_new_tokens=256, temperature=0.0, batch_size=64) -> list[tuple[str, bool]]:
    """Answer prompts like `generate`, and tell of each whether it was cut off by the token limit."""
    import torch

    stops = stop_ids(model)
    # The precision of training, which a trained model keeps and a loaded one does not: so both answer alike.
    flags = device_precision(model.config.model_type)
    dtype = torch.float16 if flags.fp16 else torch.bfloat16
    texts = [render(tokenizer, prompt) for prompt in prompts]
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
            with torch.inference_mode(), torch.autocast(model.device.type, dtype, enabled=flags.fp16 or flags.bf16):
                output = model.generate(
                    **batch, max_new_tokens=max_new_tokens, eos_token_id=stops, use_cache=True, **sampling
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
