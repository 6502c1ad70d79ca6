"""Answers by a GGUF file: llama.cpp in this process, several rows at a time."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pockettune.generation import render


def serve(path: str | Path, *, slots: int, tokens: int, adapter: str | Path | None = None):
    """Start llama.cpp on a GGUF file, `slots` rows of up to `tokens` tokens at a time; returns xllamacpp's Server.

    It ends, and its memory is given back, when the last reference to it goes.
    """
    import xllamacpp

    if Path(path).suffix != ".gguf" or not Path(path).is_file():
        raise FileNotFoundError(f"no GGUF file {Path(path).name}: `export_gguf` writes one")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx = slots, slots * tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.warmup = False
    params.verbosity = -1
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    return xllamacpp.Server(params)


def complete(
    path, tokenizer, prompts, max_new_tokens=256, temperature=0.0, batch_size=None, grammar=None, adapter=None
) -> list[tuple[str, bool]]:
    """Answer prompts with a GGUF file; of each the text and whether it was cut off by the token limit."""
    if not prompts:
        return []
    ids = tokenizer([render(tokenizer, prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    slots = batch_size or min(len(ids), 16)
    server = serve(path, slots=slots, tokens=max(map(len, ids)) + max_new_tokens + 8, adapter=adapter)

    def answer(i: int) -> tuple[str, bool]:
        found = ask(server, ids[i], max_new_tokens, temperature, grammar and grammar[i])
        return found["choices"][0]["text"], found["choices"][0]["finish_reason"] == "length"

    with ThreadPoolExecutor(slots) as pool:
        return list(pool.map(answer, range(len(ids))))


def ask(server, ids: list[int], max_tokens: int, temperature: float = 0.0, grammar: str | None = None) -> dict:
    """One completion of token ids, as llama.cpp returns it; RuntimeError says what it did not like."""
    request = {"prompt": ids, "max_tokens": max_tokens, "temperature": temperature, "cache_prompt": False}
    if grammar:
        request["grammar"] = "%llguidance {}\n" + grammar
    found = server.handle_completions(request)
    if "choices" not in found:
        raise RuntimeError(f"llama.cpp refused a prompt: {str(found.get('error', found))[:300]}")
    return found
