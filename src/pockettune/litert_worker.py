"""Run by the Python of .venv-litert, which has no pockettune: writes a .litertlm file, or answers prompts with one."""

import ctypes
import json
import os
import re
import signal
import statistics
import sys
import types
from pathlib import Path


def export(source: str, folder: str) -> None:
    """Write `folder`/model.litertlm, of int8 weights, from a merged folder."""
    import torch._dynamo  # noqa: F401  (looks for a real TensorFlow: before the stand-in)
    from ai_edge_litert import schema_py_generated as schema

    # litert-torch reads one module of TensorFlow without asking for TensorFlow; ai-edge-litert brings the same one.
    parents = ("tensorflow", "tensorflow.lite", "tensorflow.lite.python")
    for name in parents:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules[parents[-1]].schema_py_generated = schema
    sys.modules[f"{parents[-1]}.schema_py_generated"] = schema
    from litert_torch.generative.export_hf.export import export

    for name in (*parents, f"{parents[-1]}.schema_py_generated"):  # others would take it for the whole of TensorFlow
        del sys.modules[name]
    export(model=source, output_dir=folder, quantization_recipe="dynamic_wi8_afp32")


def answer(file: str, request: str, response: str) -> None:
    """Answer the prompts in a JSON file greedily; write the answers, how the file reads texts, and its speed to another."""
    from litert_lm import Engine, SamplerConfig

    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    cap = asked["max_new_tokens"]
    # One more than the cap: an answer that ends just there has its stop token counted, one that was cut has it not.
    options = {"max_output_tokens": cap + 1, "sampler_config": SamplerConfig(top_k=1)}
    answers, runs, rendered = [], [], []
    with Engine(file, enable_benchmark=True, cache_dir=":nocache") as engine:
        for prompt in asked["prompts"]:
            with engine.create_session(apply_prompt_template=False, **options) as session:
                session.run_prefill([prompt])
                text = session.run_decode().texts[0]
                runs.append(session.get_benchmark_info())
            answers.append((text, runs[-1].last_decode_token_count > cap))
        for *before, last in asked["messages"]:
            with engine.create_conversation(messages=before) as chat:
                rendered.append(engine.tokenize(chat.render_message_to_string(last)))
        found = {
            "answers": answers,
            "prompt_lengths": [run.last_prefill_token_count for run in runs],
            "ids": [engine.tokenize(text) for text in asked["texts"]],
            "rendered": rendered,
            "bos": engine.bos_token_id,
            "stops": engine.eos_token_ids,
            "prompt_tokens_per_second": statistics.median(run.last_prefill_tokens_per_second for run in runs),
            "tokens_per_second": statistics.median(run.last_decode_tokens_per_second for run in runs),
        }
    # Not getrusage: its peak begins with that of the program that started this one.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    found["peak_memory_gb"] = int(peak) * 1024 / 1e9
    Path(response).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the program that began it
    os.environ["HF_HUB_OFFLINE"] = "1"
    {"export": export, "answer": answer}[sys.argv[1]](*sys.argv[2:])
