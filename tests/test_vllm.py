"""vLLM as an engine: what it is asked, what it is refused, and (`make test-vllm`) its answers beside our own."""

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import qwen3

from pockettune import load_rows, save_rows
from pockettune.bulk import Extractor, extract
from pockettune.generation import complete
from pockettune.tasks import complaints

real = pytest.mark.skipif("POCKETTUNE_TEST_VLLM" not in os.environ, reason="make test-vllm")


@pytest.fixture
def rows(root):
    return load_rows(root / "data/complaints_eval.jsonl", 6)


def test_vllm_gets_token_ids_and_a_grammar_for_each_row(rows, tmp_path, monkeypatch):
    asked, ends = {}, ["stop"] * len(rows)

    class LLM:
        __module__ = "vllm.entrypoints.llm"

        def __init__(self, model, **options):
            asked.update(options, model=model)

        def generate(self, prompts, params, use_tqdm):
            asked.update(prompts=prompts, params=params)
            if "疯" in qwen3.tokenizer().decode(prompts[0]["prompt_token_ids"]):
                raise errors.VLLMClientError("疯")
            texts = zip([complaints.by_rules(row) for row in rows], ends, strict=True)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=t, finish_reason=end)]) for t, end in texts]

    library, sampling, errors = (ModuleType(name) for name in ("vllm", "vllm.sampling_params", "vllm.exceptions"))
    errors.VLLMError = type("VLLMError", (Exception,), {})
    library.__spec__ = ModuleSpec("vllm", None)  # transformers looks for it
    library.LLM, library.SamplingParams = LLM, lambda **options: options
    sampling.StructuredOutputsParams = lambda grammar: grammar
    errors.VLLMClientError = type("VLLMClientError", (errors.VLLMError,), {})
    for name, module in (("vllm", library), ("vllm.sampling_params", sampling), ("vllm.exceptions", errors)):
        monkeypatch.setitem(sys.modules, name, module)
    folder = str(qwen3.write(tmp_path / "tiny", qwen3.TINY))
    extractor = Extractor(folder, max_new_tokens=64, max_seq_length=512, vllm=True)
    found = extractor([{"input": row["input"]} for row in rows])
    assert all(row["valid"] and row["reason"] is None for row in found)
    assert asked["model"] == folder and asked["max_model_len"] == 512 and asked["dtype"] in ("float32", "bfloat16")
    assert asked["structured_outputs_config"] == {"backend": "guidance"}
    ids = [prompt["prompt_token_ids"] for prompt in asked["prompts"]]
    assert qwen3.tokenizer().decode(ids[0]).endswith("<think>\n\n</think>\n\n")
    assert [p["structured_outputs"] for p in asked["params"]] == [complaints.grammar(row) for row in rows]
    assert all(p["temperature"] == 0 and p["max_tokens"] == 64 for p in asked["params"])
    prompts = [complaints.to_example(row)["prompt"] for row in rows]
    ends[1:3] = "length", "stop"
    assert [cut for _, cut in complete(extractor.model, extractor.tokenizer, prompts, 64)][:3] == [False, True, False]
    ends[1] = "error"
    with pytest.raises(RuntimeError, match=r"vLLM broke off an answer \(error\)"):
        complete(extractor.model, extractor.tokenizer, prompts, 64)
    with pytest.raises(ValueError, match=r"^vLLM refused a prompt or its grammar \(VLLMClientError\)$"):
        complete(extractor.model, extractor.tokenizer, [complaints.to_example({"input": "疯了"})["prompt"]], 64)


def test_adapters_and_a_missing_library_are_said(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds adapters: vLLM reads whole models"):
        Extractor(str(tmp_path), vllm=True)
    for other in ("rules", "model.gguf"):
        with pytest.raises(ValueError, match="neither rules nor a GGUF file"):
            Extractor(other, vllm=True)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="vLLM wants an environment of its own"):
        Extractor("embedded/gemma-3-270m", vllm=True)


@real
def test_vllm_answers_as_the_model_does_here(rows, root, embedded_folder, tmp_path):
    source = save_rows(tmp_path / "in.jsonl", [{"input": row["input"]} for row in rows])
    command = [root / ".venv-vllm/bin/python", "-m", "pockettune.bulk", source, tmp_path / "there"]
    command += ["--model", embedded_folder, "--vllm", "--max-seq-length", "1024"]
    subprocess.run(command, check=True)
    extract(source, tmp_path / "here", str(embedded_folder), max_seq_length=1024)
    here, there = (load_rows(tmp_path / place / "part-000000.jsonl") for place in ("here", "there"))
    same = sum(a == b for a, b in zip(here, there, strict=True))
    assert same >= len(rows) - 1, (
        f"{same} of {len(rows)} alike"
    )  # the untuned model hesitates: one tie may fall otherwise
    assert all(row["grounded"] and row["valid"] for row in there)
