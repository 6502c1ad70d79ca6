"""Answers by vLLM, where it is installed: a whole model, hundreds of rows at a time."""

import os
from pathlib import Path

from pockettune.environment import device_precision
from pockettune.generation import render
from pockettune.models import locate


def load(path: str, max_seq_length: int = 2048):
    """Load a whole model, such as `merge` writes, in the precision it was trained in; returns vLLM's LLM and the tokenizer.

    Raises ImportError without vLLM, ValueError for a folder of adapters.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise ValueError(f"{Path(path).name} holds adapters: vLLM reads whole models, such as the folder `merge` wrote")
    try:
        from vllm import LLM
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}: vLLM wants an environment of its own, and the README says how to make it"
        ) from None
    from transformers import AutoConfig, AutoTokenizer

    path = locate(path)
    flags = device_precision(AutoConfig.from_pretrained(path).model_type)
    dtype = "bfloat16" if flags.bf16 else "float16" if flags.fp16 else "float32"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # GB; on a CPU vLLM else wants 92 % of all memory to be free.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    backend = {"backend": "guidance"}  # llguidance, as in `generate`: the same grammars
    model = LLM(path, dtype=dtype, max_model_len=max_seq_length, structured_outputs_config=backend)
    return model, AutoTokenizer.from_pretrained(path)


def complete(
    model, tokenizer, prompts, max_new_tokens=256, temperature=0.0, batch_size=None, grammar=None
) -> list[tuple[str, bool]]:
    """Answer prompts; of each the text and whether it was cut off by the token limit. vLLM chooses its batches itself.

    Raises ValueError for a prompt or a grammar it does not take, RuntimeError when it fails; neither quotes them.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError, VLLMError
    from vllm.sampling_params import StructuredOutputsParams

    ids = tokenizer([render(tokenizer, prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    settings = {"temperature": temperature, "max_tokens": max_new_tokens}
    try:
        held = [StructuredOutputsParams(grammar=one) for one in grammar] if grammar else [None] * len(ids)
        params = [SamplingParams(structured_outputs=one, **settings) for one in held]
        outputs = model.generate([{"prompt_token_ids": one} for one in ids], params, use_tqdm=False)
    except VLLMClientError as error:
        raise ValueError(f"vLLM refused a prompt or its grammar ({type(error).__name__})") from None
    except VLLMError as error:
        raise RuntimeError(f"vLLM failed ({type(error).__name__})") from None
    found = [output.outputs[0] for output in outputs]
    if broken := {one.finish_reason for one in found} - {"stop", "length"}:
        raise RuntimeError(f"vLLM broke off an answer ({', '.join(map(str, broken))})")
    return [(one.text, one.finish_reason == "length") for one in found]
