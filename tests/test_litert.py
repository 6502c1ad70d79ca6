"""Files for AI Edge Gallery: what cannot be done is said, nothing is left half-written, damaged files are refused.

The real export runs in `make test-litert` only: it takes minutes, 6.4 GB of memory and an environment of its own.
"""

import json
import os
import platform
import shutil
import sys
from types import SimpleNamespace

import psutil
import pytest

from pockettune import check_export, export_litertlm, litert, load_rows, merge
from pockettune.evaluation import score_completions
from pockettune.generation import render
from pockettune.tasks import roast

real = pytest.mark.skipif("POCKETTUNE_TEST_LITERT" not in os.environ, reason="`make test-litert` runs it")


@pytest.fixture
def model(tmp_path):
    """As much of a merged folder as is looked at before the export."""
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
    (folder / "model.safetensors").write_bytes(b"0" * 1000)
    return folder


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "roast.litertlm"


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Put a script in the worker's place."""
    monkeypatch.setattr(litert, "_python", lambda: sys.executable)
    monkeypatch.setattr(litert, "_WORKER", tmp_path / "worker.py")
    begin = "import os, pathlib, signal, sys\nfolder = pathlib.Path(sys.argv[3])\n"
    return lambda script: (tmp_path / "worker.py").write_text(begin + script)


def test_steps_are_printed_and_the_file_appears_whole(model, out, worker, capsys):
    stale = out.with_name(".roast.litertlm.part")
    stale.mkdir()
    (stale / "half").write_text("of a run that was killed")
    worker(
        "print('(00:01) [START] All > Convert > Lower')\nprint('(00:02) [START] All > B > C > D > E')\nprint('noise', file=sys.stderr)\n"
        "print('(01:30) [START] All > Write Model to /tmp/x/model.tflite')\n(folder / 'model.litertlm').write_text('new')"
    )
    assert export_litertlm(model, out) == out and out.read_text() == "new"
    assert capsys.readouterr().out == "00:01 Lower\n01:30 Write Model\n" and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "import atexit\natexit.register(print, 'INFO: bye')\nraise OSError(28, 'No space left on device')",
            "failed: OSError: .Errno 28. No space left on device",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL: most likely memory ran out"),
        ("os.kill(os.getpid(), signal.SIGBUS)", "ended by SIGBUS: most likely the disk is full"),
        ("print('a converter gave up'); sys.exit(3)", "failed: a converter gave up"),
        ("sys.exit(3)", "failed: exit status 3"),
    ],
)
def test_a_failed_export_says_why_and_leaves_the_older_file(script, said, model, out, worker):
    out.write_text("older")
    worker(f"(folder / 'model.litertlm').write_text('half')\n{script}")
    with pytest.raises(RuntimeError, match=said):
        export_litertlm(model, out)
    assert out.read_text() == "older" and list(out.parent.iterdir()) == [out]


def test_an_interrupted_export_ends_the_worker_and_leaves_nothing(model, out, worker, monkeypatch):
    worker("print('(00:01) [START] All > Convert', os.getpid())\nimport time\ntime.sleep(60)")
    pids = []

    def stop(minute, step, flush):
        pids.append(int(step.split()[-1]))
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", stop)
    with pytest.raises(KeyboardInterrupt):
        export_litertlm(model, out)
    assert list(out.parent.iterdir()) == [] and not psutil.pid_exists(pids[0])


def test_what_a_machine_lacks_is_said_before_anything_is_written(model, out, worker, monkeypatch):
    worker("(folder / 'model.litertlm').write_text('new')")
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="on Linux x86_64 only, this is Darwin"):
        m.setattr(platform, "system", lambda: "Darwin")
        export_litertlm(model, out)
    (model / "model.safetensors").write_bytes(b"0" * 10_000_000)
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match=r"needs 0\.1 GB of memory and finds 0\.0 GB"):
        m.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9_000_000))
        export_litertlm(model, out)
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="GB of disk and finds"):
        m.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=30_000_000))
        export_litertlm(model, out)
    assert list(out.parent.iterdir()) == []


def test_what_cannot_be_asked_for_is_said(model, out, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="give a name that ends in .litertlm"):
        export_litertlm(model, out.with_suffix(".task"))
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="qwen3 models cannot be written"):
        export_litertlm(model, out)
    (model / "config.json").write_text('{"model_type": "gemma3_text"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(litert, "__file__", str(tmp_path / "a/b/litert.py"))
    with pytest.raises(FileNotFoundError, match="no .venv-litert here.*make litert"):
        export_litertlm(model, out)
    with pytest.raises(FileNotFoundError, match="no file roast.litertlm"):
        litert.ask(out, None, [[]], 12)
    with pytest.raises(ValueError, match="LiteRT-LM takes no grammar"):
        litert.ask(out, None, [[]], 12, ["start: /a/"])
    assert list(out.parent.iterdir()) == []


@pytest.fixture(scope="module")
def tokenizer(embedded_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_folder)


@pytest.fixture(scope="module")
def rows(root):
    return load_rows(root / "data/strava_roasts_eval.jsonl", 4)


@pytest.fixture
def gate(tokenizer, rows, out, monkeypatch):
    """The gate over a file that answers as told, with one thing of what LiteRT-LM tells changed."""
    task = SimpleNamespace(
        to_example=roast.to_example, score=lambda completion, row, capped, known: {"said": float("yes" in completion)}
    )
    out.write_text("a file")

    def check(change=lambda found: None, reference=("yes",) * 4, **options):
        def ask(file, tokenizer, prompts, max_new_tokens, grammar, texts):
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            rendered = [tokenizer(render(tokenizer, p), add_special_tokens=False)["input_ids"] for p in prompts]
            found = {
                "answers": [["yes", False] for _ in prompts],
                "ids": ids,
                "bos": 2,
                "stops": [[1], [106], [236761, 106]],
            }
            found |= {"prompt_lengths": [len(r) for r in rendered], "rendered": [r[1:] for r in rendered]}
            found |= {"prompt_tokens_per_second": 300.04, "tokens_per_second": 30.04, "peak_memory_gb": 1.234}
            change(found)
            return found

        monkeypatch.setattr(litert, "ask", ask)
        results = score_completions(reference, [False] * len(reference), rows[: len(reference)], task)
        return check_export(out, tokenizer, rows, task, results, **options)

    return check


def test_a_sound_file_passes_and_the_card_gains_a_line(gate, out, tmp_path):
    card = tmp_path / "run_card.json"
    card.write_text("{}")
    assert gate(run_card=card).loc["said", "exported"].startswith("100")
    (line,) = json.loads(card.read_text())["exports"]
    assert line["file"] == "roast.litertlm" and line["bytes"] == 6 and len(line["sha256"]) == 64 and out.is_file()
    assert (line["prompt_tokens_per_second"], line["tokens_per_second"], line["peak_memory_gb"]) == (300.0, 30.0, 1.23)


def answered_worse(found):
    found["answers"] = [["no", False] for _ in found["answers"]]


def without_stop(found):
    found["stops"].remove([106])


def with_two_bos(found):
    found["prompt_lengths"] = [length + 1 for length in found["prompt_lengths"]]


def with_a_split_control_token(found):
    at = found["ids"].index([105])
    found["ids"][at] = [235322, 2997]


def with_another_cut(found):
    found["ids"][-1] = [0]


def with_another_template(found):
    found["rendered"][0] = found["rendered"][0][1:]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (answered_worse, "is worse than the tuned model: said lost 100.0 points on 4 rows"),
        (without_stop, "does not name <end_of_turn> as the end of an answer"),
        (with_two_bos, "a <bos> is lost or doubled"),
        (with_a_split_control_token, "control token <start_of_turn>"),
        (with_another_cut, "tokenizer cuts a prompt or an answer differently"),
        (with_another_template, "chat template renders a prompt differently"),
    ],
)
def test_a_damaged_file_is_refused(damage, reason, gate, out):
    with pytest.raises(ValueError, match=reason):
        gate(damage)
    assert not out.exists() and out.with_name("roast.litertlm.refused").is_file()


def test_what_is_not_the_files_fault_leaves_the_file(gate, out):
    with pytest.raises(ValueError, match="4 rows and 3 results"):
        gate(reference=("yes",) * 3)
    with pytest.raises(ValueError, match="takes no adapter"):
        gate(adapter="adapter.gguf")

    def ask_wrongly(found):
        raise ValueError("LiteRT-LM takes no grammar")

    with pytest.raises(ValueError, match="takes no grammar"):
        gate(ask_wrongly)
    assert out.is_file()


@real
def test_the_real_model_as_a_file_reads_and_answers_as_in_memory(loaded, rows, goldens, tmp_path, monkeypatch):
    import torch

    model, tokenizer = loaded
    prompts = [roast.to_example(row)["prompt"] for row in rows]
    file = export_litertlm(merge(model, tokenizer, tmp_path / "merged", prompts[:2]), tmp_path / "base.litertlm")
    texts = [golden["text"] for golden in goldens["tokens"]]
    found = litert.ask(file, tokenizer, prompts, 12, texts=texts)
    assert found["ids"] == [golden["gemma3"] for golden in goldens["tokens"]] and len(texts) > 200
    monkeypatch.setenv("UNSLOTH_RETURN_LOGITS", "1")
    for prompt, (answer, capped) in zip(prompts, found["answers"], strict=True):
        ids = tokenizer(render(tokenizer, prompt), add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():  # untuned, the model hesitates between several first words: no more can be asked
            likely = model(input_ids=ids).logits[0, -1].topk(8).indices.tolist()
        assert capped and any(answer.startswith(tokenizer.decode([token])) for token in likely), answer
    task = SimpleNamespace(to_example=roast.to_example, score=lambda text, row, **rest: {"said": float(bool(text))})
    reference = score_completions(["yes"] * 4, [True] * 4, rows, task)
    table = check_export(file, tokenizer, rows, task, reference, max_new_tokens=12)
    assert table.loc["said", "exported"].startswith("100") and 250e6 < file.stat().st_size < 320e6
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "merged"]
