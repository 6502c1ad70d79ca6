"""Models leave the notebook here: adapters merged into 16-bit weights, and the gate that exported files must pass."""

import contextlib
import copy
import io
import json
import os
import random
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from pockettune import litert, llamacpp
from pockettune.evaluation import Result, compare, evaluate, intervals, score_completions, summarize
from pockettune.generation import (
    autocast,
    generate,
    merged_weights,
    plain_lora,
    render,
    stop_ids,
    turn_end,
    unthinking_template,
)
from pockettune.gguf_files import export_gguf, export_gguf_adapter
from pockettune.models import load_model, locate, model_folder
from pockettune.rows import file_digest, load_rows, write_text


def merge(model, tokenizer, path: str | Path, prompts: list[list[dict]]) -> Path:
    """Write the model with its adapters merged into bfloat16 weights, load it again and compare.

    On the answers that `model` gives to `prompts` (messages, a few) the written model must choose the same tokens, but
    where the first two are nearly alike, and its distributions lie within 0.05 nats (0.3 where the model computes in 16
    bits). Raises RuntimeError otherwise, and leaves an older folder as it was; ValueError for adapters that cannot be
    merged.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    if not prompts:
        raise ValueError("no prompts to compare the merged model on: give a few")
    if not plain_lora(model):
        raise ValueError("only plain LoRA over unquantized weights is merged here: no DoRA, no modules_to_save")
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = copy.deepcopy(causal.config)
    config.update({"dtype": torch.bfloat16, "use_cache": True, "architectures": [type(causal).__name__]})
    for key in ("unsloth_version", "unsloth_fixed", "_name_or_path"):  # marks of how it was loaded, and from where
        vars(config).pop(key, None)
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with model_folder(path) as new:
        config.save_pretrained(new)
        GenerationConfig(eos_token_id=stop_ids(model), use_cache=True, **ends).save_pretrained(new)
        without_thinking = copy.copy(tokenizer)  # its vocabulary is shared
        without_thinking.chat_template = unthinking_template(tokenizer)
        without_thinking.save_pretrained(new)
        with merged_weights(model):
            weights = {
                name.replace(".base_layer", ""): weight.detach().to("cpu", torch.bfloat16).contiguous().clone()
                for name, weight in causal.named_parameters()
                if ".lora_" not in name
            }
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        with contextlib.redirect_stdout(io.StringIO()):  # where Unsloth's banner names the folder
            reloaded, saved = load_model(str(new), model.max_seq_length, lora_r=0)
        if render(saved, prompts[0]) != render(tokenizer, prompts[0]):
            raise RuntimeError("the saved tokenizer renders a prompt differently: its chat template was lost")
        _compare(model, reloaded, tokenizer, prompts)
    return Path(path)


def _compare(model, reloaded, tokenizer, prompts) -> None:
    """Raise RuntimeError unless two models agree on the first one's answers."""
    import torch
    from torch.nn.functional import kl_div

    answers = generate(model, tokenizer, prompts, max_new_tokens=64)
    allowed, alike = (0.05, 0.1) if model.dtype == torch.float32 else (0.3, 0.5)
    was_training = model.training
    model.eval()
    reloaded.eval()
    try:
        for prompt, answer in zip(prompts, answers, strict=True):
            start = len(tokenizer(render(tokenizer, prompt), add_special_tokens=False)["input_ids"])
            text = render(tokenizer, prompt) + answer
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
            with torch.inference_mode(), autocast(model), merged_weights(model):
                tuned, written = (
                    m(input_ids=ids).logits[0, start - 1 :].float().log_softmax(-1) for m in (model, reloaded)
                )
            distance = kl_div(written, tuned, log_target=True, reduction="none").sum(-1).max().item()
            best = tuned.topk(2).values
            other = tuned.argmax(-1) != written.argmax(-1)
            if not distance <= allowed or (other & (best[:, 0] - best[:, 1] > alike)).any():  # NaN is refused too
                raise RuntimeError(
                    f"the merged model answers differently: up to {distance:.3f} nats from the tuned one ({allowed} allowed), "
                    f"another token at {int(other.sum())} of {len(other)} places. Nothing was written"
                )
    finally:
        model.train(was_training)


class _Refused(ValueError):
    """What the gate finds wrong with a file; any other error is not the file's fault."""


def check_export(
    file: str | Path,
    tokenizer,
    rows: list[dict],
    task,
    reference: list[Result],
    *,
    limit: float = 2.0,
    grammar=None,
    known: tuple[str, ...] = (),
    max_new_tokens: int = 256,
    run_card: str | Path | None = None,
    adapter: str | Path | None = None,
    merged: list[Result] | None = None,
):
    """Answer held-out rows with an exported file itself; return its scores beside the tuned model's as a DataFrame.

    The file is GGUF, which llama.cpp answers here, or .litertlm, which LiteRT-LM answers in .venv-litert, without a
    grammar. `reference` are the tuned model's results on the same rows. The file must cut every prompt and answer into
    the tokens the model was trained on, with one <bos> where it has one, and render the chat as it was trained. Raises
    ValueError when it does not, or when a score surely falls by more than `limit` points (the paired 95 % interval of
    the loss lies above it); the file is then renamed to .refused. With `run_card` the card gains a line about the file.
    With `adapter`, a GGUF adapter over the file, it is the adapter that is judged. `merged`, results of the merged model
    on the same rows, becomes a column.
    """
    file = Path(file)
    exported = Path(adapter or file)
    if not rows or len(rows) != len(reference):
        raise ValueError(
            f"{len(rows)} rows and {len(reference)} results of the tuned model: give one for each, and some"
        )
    if adapter and file.suffix == ".litertlm":
        raise ValueError(f"{file.name} takes no adapter: merge it and export the whole")
    if run_card and not Path(run_card).is_file():
        raise FileNotFoundError(f"no run card {Path(run_card).name}: `write_run_card` writes one")
    prompts = [task.to_example(row)["prompt"] for row in rows]
    grammars = grammar and [grammar(row) for row in rows]
    completions = [r["completion"] for r in reference]
    ask = _ask_litertlm if file.suffix == ".litertlm" else _ask_gguf
    between, blamed = {"merged": merged} if merged else {}, file
    try:
        answers, measured = ask(file, tokenizer, prompts, completions, max_new_tokens, grammars, adapter)
        results = score_completions(*zip(*answers, strict=True), rows, task, known=known)
        table = compare(reference, results, **between).rename(columns={"base": "tuned", "tuned": "exported"})
        table = table[["tuned", *between, "exported", "gain"]]
        blamed = exported  # how it reads a text is the file's doing, how it answers the adapter's
        _check_scores(exported.name, reference, results, limit, table)
    except _Refused:
        os.replace(blamed, f"{blamed}.refused")
        _note(run_card, exported.name)
        raise
    scores = {"tuned": reference, **between, "exported": results}
    same = sum(a["completion"] == b["completion"] for a, b in zip(reference, results, strict=True))
    line = {"bytes": exported.stat().st_size, "sha256": file_digest(exported)}
    line |= {"over": file.name} if adapter else {}
    line |= measured | {"rows": len(rows), "same_text": same}
    _note(run_card, exported.name, line | {"scores": {label: summarize(found) for label, found in scores.items()}})
    return table


def _check_scores(name: str, reference: list[Result], results: list[Result], limit: float, table) -> None:
    """Raise unless each score is within `limit` points of the tuned model's, as far as the number of rows can tell."""
    for score in reference[0]["scores"]:
        sign = -100 if score == "capped" else 100
        pairs = zip(reference, results, strict=True)
        lost, low, _ = intervals([sign * (a["scores"][score] - b["scores"][score]) for a, b in pairs])
        if low > limit:
            raise _Refused(
                f"{name} is worse than the tuned model: {score} lost {lost:.1f} points on {len(results)} rows (95 % sure "
                f"of {low:.1f}), {limit:g} are allowed. A GGUF file of q8_0 or bf16 is nearer to it\n{table.to_string()}"
            )


def _note(run_card: str | Path | None, name: str, line: dict | None = None) -> None:
    """Put a line about a file into the run card, in the place of an older one; without a line, strike that out."""
    if run_card:
        card = json.loads(Path(run_card).read_text(encoding="utf-8"))
        others = [old for old in card.get("exports", []) if old["file"] != name]
        card["exports"] = [*others, {"file": name} | line] if line else others
        write_text(run_card, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def _ask_gguf(file, tokenizer, prompts, completions, max_new_tokens, grammars, adapter) -> tuple[list, dict]:
    """Let llama.cpp answer, if it reads texts as the trained model does; also its speed and memory for one row."""
    _check_stop(file, tokenizer, _gguf_ends(file))
    _check_gguf_tokens(file, tokenizer, prompts, completions)
    answers = llamacpp.complete(file, tokenizer, prompts, max_new_tokens, grammar=grammars, adapter=adapter)
    ids = tokenizer(render(tokenizer, prompts[0]), add_special_tokens=False)["input_ids"]
    # In a process of its own: here the file would take memory that training gave back, and seem to need none.
    script = (
        "import json, sys; from pockettune.export import _measure; print(json.dumps(_measure(*json.load(sys.stdin))))"
    )
    request = json.dumps([str(file), adapter and str(adapter), ids])
    call = subprocess.run([sys.executable, "-c", script], input=request, stdout=subprocess.PIPE, text=True, check=True)
    return answers, json.loads(call.stdout.splitlines()[-1])


def _check_gguf_tokens(file, tokenizer, prompts, completions) -> None:
    import requests

    server = llamacpp.serve(file, slots=1, tokens=2048)
    session = requests.Session()
    session.trust_env = False  # no proxy: the server is in this process

    def post(endpoint: str, **body):
        found = session.post(f"{server.listening_address}/{endpoint}", json=body, timeout=60)
        return found.json() if found.ok else {}

    def cut(text: str, special: bool = False) -> list[int] | None:
        return post("tokenize", content=text, add_special=special, parse_special=True).get("tokens")

    control, texts = _to_read(tokenizer, prompts, completions)
    rendered = [cut(post("apply-template", messages=prompt).get("prompt", ""), special=True) for prompt in prompts]
    _check_tokens(tokenizer, control, texts, {text: cut(text) for text in [*control, *texts]}, rendered)


def _measure(file: str, adapter: str | None, ids: list[int]) -> dict[str, float]:
    """Tokens a second and GB of memory that llama.cpp takes to answer one prompt of at most 2048 tokens; for a new process."""

    def gigabytes(name: str) -> float:
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 / 1e9

    before = gigabytes("VmRSS")
    timings = llamacpp.ask(llamacpp.serve(file, slots=1, tokens=2048, adapter=adapter), ids, 64)["timings"]
    return {
        "prompt_tokens_per_second": round(timings["prompt_per_second"], 1),
        "tokens_per_second": round(timings["predicted_per_second"], 1),
        "peak_memory_gb": round(gigabytes("VmHWM") - before, 2),
    }


def _ask_litertlm(file, tokenizer, prompts, completions, max_new_tokens, grammars, adapter=None) -> tuple[list, dict]:
    """The same by LiteRT-LM; the memory is that of its process, the speed the median over all rows."""
    control, texts = _to_read(tokenizer, prompts, completions)
    found = litert.ask(file, tokenizer, prompts, max_new_tokens, grammars, [*control, *texts])
    bos = [tokenizer.bos_token_id]
    _check_stop(file, tokenizer, [ids[0] for ids in found["stops"] if len(ids) == 1])
    ids = dict(zip([*control, *texts], found["ids"], strict=True))
    _check_tokens(tokenizer, control, texts, ids, [bos + rest for rest in found["rendered"]])
    wanted = [len(ids[text]) for text in texts[: len(prompts)]]
    if [found["bos"]] != bos or found["prompt_lengths"] != wanted:
        raise _Refused(
            f"the file begins with token {found['bos']} and reads prompts of {found['prompt_lengths']} tokens, not with "
            f"{bos[0]} and {wanted}: a <bos> is lost or doubled"
        )
    names = ("prompt_tokens_per_second", "tokens_per_second", "peak_memory_gb")
    return found["answers"], {name: round(found[name], 2 if name == names[-1] else 1) for name in names}


def _to_read(tokenizer, prompts, completions) -> tuple[dict[str, int], list[str]]:
    """What a file must cut as the trained model does: the control tokens of a prompt, and all prompts and answers."""
    texts = [render(tokenizer, prompt) for prompt in prompts]
    first = set(tokenizer(texts[0], add_special_tokens=False)["input_ids"]) & set(tokenizer.added_tokens_decoder)
    return {tokenizer.decode([token]): token for token in first}, [*texts, *completions]


def _check_tokens(tokenizer, control: dict[str, int], texts: list[str], theirs: dict, rendered: list) -> None:
    """Raise unless a file's ids of each text, and of the prompts by its own chat template, are the trained model's."""
    for text, token in control.items():
        if theirs[text] != [token]:
            raise _Refused(
                f"the control token {text} is {theirs[text]} in the file, not [{token}]: the chat would break"
            )
    own = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if [theirs[text] for text in texts] != own:
        raise _Refused("the file's tokenizer cuts a prompt or an answer differently than the trained one")
    if rendered != own[: len(rendered)]:
        raise _Refused("the file's chat template renders a prompt differently than in training, or adds a <bos>")


def _check_stop(file: Path, tokenizer, named: list[int]) -> None:
    """Raise unless the token that ended the answers in training is among those that a file names."""
    if (stop := turn_end(tokenizer)) not in named:
        raise _Refused(
            f"{file.name} does not name {tokenizer.decode([stop])} as the end of an answer: it would not stop"
        )


def _gguf_ends(file: Path) -> list[int]:
    """The control tokens that a GGUF file names as ends of an answer."""
    from gguf import TokenType
    from libgguf import inspect_gguf  # gguf's own reader walks all the vocabulary, for ten seconds

    named = {key.removeprefix("tokenizer.ggml."): found.value for key, found in inspect_gguf(file).metadata.items()}
    ends = [named[key] for key in ("eos_token_id", "eot_token_id") if key in named]
    return [token for token in ends if named["token_type"][token] == TokenType.CONTROL]


def main(run: str, task_name: str, train_file: str, eval_file: str, kind: str = "q8_0", n: int = 16) -> None:
    """Export the adapters of a finished notebook run, let the file answer n held-out rows, and print all scores.

    `kind` is a quantization of GGUF; adapter, for the adapters alone over a Q8_0 file of the base model; or litertlm.
    """
    from huggingface_hub import snapshot_download

    task, folder = import_module(f"pockettune.tasks.{task_name}"), Path(run)
    card = folder / "run_card.json"
    rows = random.Random(3407).sample(load_rows(eval_file), n)
    prompts = [task.to_example(row)["prompt"] for row in rows[:3]]
    options = {"max_new_tokens": 176}  # as in the notebooks' settings for a CPU, or more
    if not hasattr(task, "grammar"):  # answers in its own words, which must not be training answers
        options["known"] = tuple(task.to_example(row)["completion"][0]["content"] for row in load_rows(train_file))
    elif kind != "litertlm":  # LiteRT-LM takes none: then both answer without
        options["grammar"] = task.grammar
    model, tokenizer = load_model(str(folder / "model"))
    reference = evaluate(model, tokenizer, rows, task, **options)
    whole = merge(model, tokenizer, folder / "merged", prompts)
    del model
    model, tokenizer = load_model(str(whole), lora_r=0)
    merged = evaluate(model, tokenizer, rows, task, **options)
    del model  # the export may want the memory
    adapter = None
    if kind == "adapter":
        adapter = export_gguf_adapter(folder / "model", folder / f"{task_name}-adapter.gguf")
        base = json.loads((folder / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
        name = Path(base).name if Path(base).is_dir() else base.replace("/", "--")
        file = folder.parent / f"{name}-q8_0.gguf"  # one for all adapters
        if not file.is_file():
            source = locate(base)  # a hub model stays a name
            export_gguf(source if Path(source).is_dir() else snapshot_download(source), file)
        said = f"llama-cli -m {file} --lora {adapter} --temp 0 -sys SYSTEM -p USER asks it as it was trained"
    elif kind == "litertlm":
        file = litert.export_litertlm(whole, folder / f"{task_name}.litertlm")
        said = "import it in AI Edge Gallery"
    else:
        file = export_gguf(whole, folder / f"{task_name}-{kind}.gguf", kind, run_card=card, example=prompts[0])
        said = f"{file.with_suffix('.md')} says how to ask it"
    options |= {"run_card": card, "adapter": adapter, "merged": merged}
    print(check_export(file, tokenizer, rows, task, reference, **options).to_string())
    print(f"\n{adapter or file}: {(adapter or file).stat().st_size / 1e6:.0f} MB; {said}")
