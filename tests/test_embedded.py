"""The embedded model: true token ids, true renderings, made whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pockettune import embedded

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "你好"}]


@pytest.fixture(scope="module")
def tokenizer(embedded_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_folder)


def test_every_golden_text_gives_its_true_ids(tokenizer, goldens):
    wrong = [
        g["text"] for g in goldens["tokens"] if tokenizer(g["text"], add_special_tokens=False).input_ids != g["gemma3"]
    ]
    assert len(goldens["tokens"]) > 200 and wrong == []


def test_the_ids_decode_to_the_text(tokenizer, goldens):
    assert [g["text"] for g in goldens["tokens"] if tokenizer.decode(g["gemma3"]) != g["text"]] == []


def test_rendering_is_gemmas_own(tokenizer, goldens):
    from pockettune import render

    answer = [{"role": "assistant", "content": '{"a": 1}'}]
    assert render(tokenizer, MESSAGES) == goldens["chats"]["gemma3"]["prompt"]
    assert render(tokenizer, MESSAGES, answer) == goldens["chats"]["gemma3"]["full"]


def test_generation_stops_on_eos_and_end_of_turn(embedded_folder, tokenizer):
    config = json.loads((embedded_folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == [1, 106]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 262144
    assert tokenizer("user").input_ids == [2, 2364]


def test_the_weights_are_gemma_3_270m(loaded):
    model, _ = loaded
    base = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    assert base == 268_098_176


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="embedded/gemma-3-270m"):
        embedded.ensure("embedded/gemma-7b")


def test_parts_that_do_not_match_the_digest_are_refused(tmp_path, monkeypatch):
    part = tmp_path / "part"
    part.write_bytes(b"not a model")
    monkeypatch.setattr(embedded, "_parts", lambda scratch: [part])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="digest"):
        embedded.ensure()
    assert not (tmp_path / "pockettune" / "gemma-3-270m").exists()


def test_a_killed_run_leaves_nothing_half_made_and_two_at_once_share_the_work(tmp_path):
    """Kills one process in the middle of the work, then starts two together on the same cache."""
    cache = tmp_path / "pockettune"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    code = "from pockettune import embedded; print(embedded.ensure())"

    def start():
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, process_group=0)

    first = start()
    deadline = time.time() + 120
    while not list(cache.glob("making-*/done")) and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert list(cache.glob("making-*")) and not (cache / "gemma-3-270m").exists()

    outputs = [process.communicate(timeout=300)[0] for process in (start(), start())]
    assert [output.splitlines()[-1] for output in outputs] == [str(cache / "gemma-3-270m")] * 2
    assert sum("Gemma Terms of Use" in output for output in outputs) == 1
    assert not list(cache.glob("making-*"))
    shutil.rmtree(cache)
