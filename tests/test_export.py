"""Files for phones: the merge, GGUF files of Gemma 3 and Qwen3, the adapter, and a gate that refuses damaged ones."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import qwen3
import torch
from gguf import GGUFReader

import pockettune as pt
from pockettune import export, gguf_files, load_rows, merge
from pockettune.evaluation import score_completions
from pockettune.generation import render
from pockettune.llamacpp import complete, serve
from pockettune.tasks import complaints, roast

TOKENS = 24


@pytest.fixture(scope="module")
def rows(root):
    return load_rows(root / "data/strava_roasts_eval.jsonl", 4)


@pytest.fixture(scope="module")
def prompts(rows):
    return [roast.to_example(row)["prompt"] for row in rows]


@pytest.fixture(scope="module")
def tuned(loaded):
    """The real Gemma, with adapters that do something."""
    model, _ = loaded
    torch.manual_seed(1)
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.03)
    yield loaded
    with torch.no_grad():
        for parameter in adapters:
            parameter.zero_()


@pytest.fixture(scope="module")
def answers(tuned, prompts):
    return pt.generate(*tuned, prompts, max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def merged(tuned, prompts, tmp_path_factory):
    return merge(*tuned, tmp_path_factory.mktemp("export") / "merged", prompts[:2])


@pytest.fixture(scope="module")
def same(answers, rows):
    """A task whose one score asks for the tuned model's own answer."""
    wanted = {json.dumps(row): answer for row, answer in zip(rows, answers, strict=True)}
    return SimpleNamespace(
        to_example=roast.to_example,
        score=lambda completion, row, capped, known: {"same": float(completion == wanted[json.dumps(row)])},
    )


def gate(file, tuned, rows, same, answers, reference=None, **options):
    reference = reference or score_completions(answers, [True] * len(rows), rows, same)
    return pt.check_export(file, tuned[1], rows, same, reference, max_new_tokens=TOKENS, **options)


def test_a_merged_folder_is_an_ordinary_model(merged, loaded, prompts):
    config, ends = (json.loads((merged / f"{n}.json").read_text()) for n in ("config", "generation_config"))
    assert config["use_cache"] and config["dtype"] == "bfloat16" and ends["eos_token_id"] == [1, 106]
    small = "".join(path.read_text() for path in merged.glob("*config.json"))
    assert str(merged.parent) not in small and str(Path.home()) + "/" not in small
    assert sorted(path.suffix for path in merged.iterdir()) == [
        ".jinja",
        ".json",
        ".json",
        ".json",
        ".json",
        ".safetensors",
    ]
    assert not list(merged.parent.glob(".merged-*"))


def test_a_merge_that_lost_the_adapters_is_refused_and_leaves_nothing(tuned, prompts, tmp_path, monkeypatch):
    whole, uses = export.merged_weights, []

    def once_without(model):
        uses.append(model)
        return contextlib.nullcontext(model.disable_adapter()) if len(uses) == 1 else whole(model)

    monkeypatch.setattr(export, "merged_weights", once_without)
    with pytest.raises(RuntimeError, match="answers differently"):
        merge(*tuned, tmp_path / "merged", prompts[:1])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "run_card.json"
    path.write_text(json.dumps({"model": "embedded/gemma-3-270m", "data": {"train": {"sha256": "abc"}}}))
    return path


def test_a_file_passes_the_gate_and_the_card_gains_a_line(merged, tuned, rows, prompts, same, answers, card, tmp_path):
    file = pt.export_gguf(merged, tmp_path / "roast.gguf", run_card=card, example=prompts[0])
    between = score_completions(answers[:3] + ["other"], [False] * 4, rows, same)
    table = gate(file, tuned, rows, same, answers, run_card=card, merged=between)
    assert list(table.columns) == ["tuned", "merged", "exported", "gain"]
    assert table.loc["same", "tuned"].startswith("100") and table.loc["same", "merged"].startswith("75")
    (line,) = json.loads(card.read_text())["exports"]
    assert line["bytes"] == file.stat().st_size and len(line["sha256"]) == 64 and line["tokens_per_second"] > 0
    scores = {label: found["same"]["mean"] for label, found in line["scores"].items()}
    assert scores["tuned"] == 1 and scores["merged"] == 0.75 and scores["exported"] >= 0.75
    assert line["rows"] == len(rows) and line["same_text"] == 4 * scores["exported"]
    assert 0.1 < line["peak_memory_gb"] < 4
    fields = GGUFReader(file).fields
    told = {key: field.contents() for key, field in fields.items() if key.startswith(("general.", "pockettune."))}
    assert told["general.license"] == "gemma" and told["pockettune.base_model"] == "embedded/gemma-3-270m"
    assert told["pockettune.train_sha256"] == "abc"
    modelfile, said = ((tmp_path / f"roast.{end}").read_text() for end in ("Modelfile", "md"))
    assert roast.SYSTEM in modelfile and "FROM ./roast.gguf" in modelfile
    assert prompts[0][1]["content"] in said and "<start_of_turn>user" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["roast.Modelfile", "roast.gguf", "roast.md"]
    for place in (str(tmp_path.parent), str(Path.home()) + "/"):
        assert place not in modelfile + said + str(told)


def test_a_file_of_k_quants_begins_as_the_model_does(merged, tuned, prompts, answers, tmp_path):
    file = pt.export_gguf(merged, tmp_path / "roast.gguf", "q4_k_m")
    first = [text.split()[0] for text, _ in complete(file, tuned[1], prompts, 8)]
    alike = sum(a == b.split()[0] for a, b in zip(first, answers, strict=True))
    assert alike >= 2 and file.stat().st_size < 260e6


def without_a_layer(monkeypatch):
    whole = gguf_files._tensors
    monkeypatch.setattr(
        gguf_files,
        "_tensors",
        lambda *a: ((n, 0 * t if n == "model.layers.9.mlp.down_proj.weight" else t) for n, t in whole(*a)),
    )


def without_template(monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "add_chat_template", lambda self, template: None)


def without_stop(monkeypatch):
    for method in ("add_eos_token_id", "add_eot_token_id"):
        monkeypatch.setattr(gguf.GGUFWriter, method, lambda self, token: None)


def with_a_split_control_token(monkeypatch):
    relabelled(monkeypatch, 105)


def relabelled(monkeypatch, token: int):
    whole = gguf.GGUFWriter.add_token_types

    def add(self, types):
        types[token] = gguf.TokenType.NORMAL
        whole(self, types)

    monkeypatch.setattr(gguf.GGUFWriter, "add_token_types", add)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_a_layer, "is worse than the tuned model: same lost 100.0 points on 4 rows"),
        (without_template, "chat template"),
        (without_stop, "does not name <end_of_turn> as the end of an answer"),
        (with_a_split_control_token, "control token <start_of_turn>"),
    ],
)
def test_a_damaged_file_is_refused(damage, reason, merged, tuned, rows, same, answers, tmp_path, monkeypatch):
    damage(monkeypatch)
    file = pt.export_gguf(merged, tmp_path / "roast.gguf", "bf16")
    with pytest.raises(ValueError, match=reason):
        gate(file, tuned, rows, same, answers)
    assert not file.exists() and (tmp_path / "roast.gguf.refused").is_file()


@pytest.mark.parametrize(("n", "lost", "refused"), [(72, 4, False), (72, 7, True), (16, 4, True), (363, 9, False)])
def test_a_loss_is_held_against_a_file_when_it_is_surely_more_than_two_points(n, lost, refused):
    before, after = ([{"scores": {"original": float(i >= worse)}} for i in range(n)] for worse in (0, lost))
    with pytest.raises(ValueError, match=f"original lost .* on {n} rows") if refused else contextlib.nullcontext():
        export._check_scores("a.gguf", before, after, 2.0, SimpleNamespace(to_string=str))


def test_what_is_not_the_files_fault_leaves_the_file(tuned, rows, same, answers, tmp_path):
    file = tmp_path / "roast.gguf"
    file.write_text("a file")
    with pytest.raises(ValueError, match="3 rows and 4 results"):
        gate(file, tuned, rows[:3], same, answers, reference=score_completions(answers, [True] * 4, rows, same))
    with pytest.raises(ValueError, match="0 rows and 0 results"):
        gate(file, tuned, [], same, [])
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture(scope="module")
def base(embedded_folder, tmp_path_factory):
    return pt.export_gguf(embedded_folder, tmp_path_factory.mktemp("base") / "base.gguf", "bf16")


def test_an_adapter_over_the_base_model_passes_the_gate_and_one_of_nothing_is_refused(
    tuned, base, rows, same, answers, tmp_path, monkeypatch
):
    folder, card = pt.save_model(*tuned, tmp_path / "model"), tmp_path / "run_card.json"
    adapter = pt.export_gguf_adapter(folder, tmp_path / "adapter.gguf")
    card.write_text("{}")
    gate(base, tuned, rows, same, answers, adapter=adapter, run_card=card)
    (line,) = json.loads(card.read_text())["exports"]
    assert line["file"] == "adapter.gguf" and line["over"] == "base.gguf" and line["bytes"] == adapter.stat().st_size
    assert line["same_text"] >= 3

    whole = gguf_files._tensors
    monkeypatch.setattr(gguf_files, "_tensors", lambda *a: ((name, 0 * tensor) for name, tensor in whole(*a)))
    nothing = pt.export_gguf_adapter(folder, tmp_path / "nothing.gguf")
    with pytest.raises(ValueError, match="nothing.gguf is worse than the tuned model: same lost 100"):
        gate(base, tuned, rows, same, answers, adapter=nothing)
    assert base.is_file() and not nothing.exists() and (tmp_path / "nothing.gguf.refused").is_file()


def test_generate_takes_a_file_and_a_grammar(base, tuned, root):
    held_out = load_rows(root / "data/complaints_eval.jsonl", 3)
    asked = [complaints.to_example(row)["prompt"] for row in held_out]
    found = pt.generate(
        base, tuned[1], asked, grammar=[complaints.grammar(row) for row in held_out], max_new_tokens=200
    )
    for answer, row in zip(found, held_out, strict=True):
        assert complaints.score(answer, {**row, "output": answer})["grounded"] == 1


@pytest.mark.parametrize("kind", ["gemma3", "qwen3"])
def test_the_file_cuts_texts_as_the_model_does(kind, goldens, merged, tmp_path):
    import requests

    folder = merged if kind == "gemma3" else qwen3.write(tmp_path / "tiny", qwen3.TINY)
    file = pt.export_gguf(folder, tmp_path / "file.gguf", "q8_0")
    server, session = serve(file, slots=1, tokens=256), requests.Session()
    session.trust_env = False

    def theirs(text):
        body = {"content": text, "parse_special": True}
        return session.post(f"{server.listening_address}/tokenize", json=body).json()["tokens"]

    assert [g["text"] for g in goldens["tokens"] if theirs(g["text"]) != g[kind]] == [] and len(goldens["tokens"]) > 200


def test_qwen3_answers_as_in_memory(tmp_path, root):
    from transformers import AutoModelForCausalLM

    folder = qwen3.write(tmp_path / "tiny", qwen3.TINY)
    tokenizer, model = qwen3.tokenizer(), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    held_out = load_rows(root / "data/complaints_eval.jsonl", 3)
    asked = [complaints.to_example(row)["prompt"] for row in held_out]
    here = pt.generate(model, tokenizer, asked, max_new_tokens=12)
    there = pt.generate(pt.export_gguf(folder, tmp_path / "tiny.gguf", "bf16"), tokenizer, asked, max_new_tokens=12)
    assert sum(a == b for a, b in zip(here, there, strict=True)) >= 2
    assert (
        "<think>\n\n</think>" in render(tokenizer, asked[0]) and "</think>" in (tmp_path / "tiny.Modelfile").read_text()
    )


def test_what_cannot_be_written_is_said(merged, loaded, prompts, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no quantization 'q3': choose one of f16, bf16, q8_0, q4_k_m"):
        pt.export_gguf(merged, tmp_path / "a.gguf", "q3")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="exists and holds no model"):
        merge(*loaded, tmp_path / "mine", prompts)
    (tmp_path / "mine").rmdir()
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        pt.generate(tmp_path / "none.gguf", loaded[1], prompts)
    with pytest.raises(FileNotFoundError, match="no GGUF file config.json"):
        pt.generate(merged / "config.json", loaded[1], prompts)
    monkeypatch.setattr(
        gguf.GGUFWriter, "write_tensors_to_file", lambda self: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        pt.export_gguf(merged, tmp_path / "a.gguf", "bf16")
    assert list(tmp_path.iterdir()) == []
