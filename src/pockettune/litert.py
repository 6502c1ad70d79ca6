"""Files for AI Edge Gallery: written and asked by LiteRT-LM, which has an environment and a process of its own."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from collections import deque
from pathlib import Path

from pockettune.generation import render

_WORKER = Path(__file__).with_name("litert_worker.py")


def export_litertlm(path: str | Path, out: str | Path) -> Path:
    """Write a merged folder of Gemma 3 as a .litertlm file of int8 weights; prints each step, two minutes in all.

    Raises ValueError for another kind of model, FileNotFoundError without .venv-litert, RuntimeError where this machine
    cannot do it or the export fails. Of an export that fails nothing is left; an older file stays as it was.
    """
    path, out = Path(path), Path(out)
    kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind != "gemma3_text":
        raise ValueError(f"{kind} models cannot be written as .litertlm here, gemma3_text can: try `export_gguf`")
    if out.suffix != ".litertlm":
        raise ValueError(f"{out.name}: give a name that ends in .litertlm, by which apps know the file")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_machine(sum(file.stat().st_size for file in path.glob("*.safetensors")), out.parent)
    try:
        part.mkdir()
        _work("export", path, part)
        os.replace(part / "model.litertlm", out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def ask(file, tokenizer, prompts, max_new_tokens: int, grammar=None, texts: tuple[str, ...] = ()) -> dict:
    """Answer prompts greedily; returns `answers` (text, cut off by the limit or not) and how the file reads and runs.

    That is the token `ids` of `texts`, those of each prompt by the file's own template (`rendered`), its `bos` and `stops`, speed
    and memory.

    Raises ValueError for a grammar, RuntimeError where LiteRT-LM cannot load the file or read a prompt.
    """
    if grammar:
        raise ValueError("LiteRT-LM takes no grammar: ask without one, and compare with answers given without one")
    if not Path(file).is_file():
        raise FileNotFoundError(f"no file {Path(file).name}: `export_litertlm` writes one")
    # The runtime puts a <bos> of its own before what it is given.
    raw = [render(tokenizer, prompt).removeprefix(tokenizer.bos_token) for prompt in prompts]
    asked = {"prompts": raw, "messages": prompts, "texts": list(texts), "max_new_tokens": max_new_tokens}
    with tempfile.TemporaryDirectory() as scratch:
        request, response = Path(scratch, "request.json"), Path(scratch, "response.json")
        request.write_text(json.dumps(asked), encoding="utf-8")
        _work("answer", Path(file).resolve(), request, response)
        return json.loads(response.read_text(encoding="utf-8"))


def _check_machine(weights: int, folder: Path) -> None:
    """Raise RuntimeError where the weights, in bytes, cannot be exported: measured on Gemma 3 270M's 0.54 GB."""
    import psutil

    if (found := f"{platform.system()} {platform.machine()}") != "Linux x86_64":
        raise RuntimeError(
            f"a .litertlm file is written on Linux x86_64 only, this is {found}: use Colab or `export_gguf`"
        )
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    for what, needed, free in (("memory", 12 * weights, memory), ("disk", 4 * weights, disk)):
        if free < needed:
            raise RuntimeError(
                f"the export needs {needed / 1e9:.1f} GB of {what} and finds {free / 1e9:.1f} GB free: close what else "
                "runs, or free some, or use a larger machine; `export_gguf` needs less"
            )


def _python() -> Path:
    """The Python that has LiteRT, in the current folder or in the repository."""
    for root in (Path.cwd(), Path(__file__).parents[2]):
        if (root / ".venv-litert" / "ready").is_file():
            return root / ".venv-litert" / "bin" / "python"
    raise FileNotFoundError("no .venv-litert here or in the repository: `make litert` makes it")


def _work(command: str, *arguments: Path) -> None:
    """Run the worker and print the larger steps it begins; RuntimeError says why it failed."""
    call = [_python(), "-I", "-u", _WORKER, command, *arguments]  # -I: the modules beside the worker are not for it
    wide = {**os.environ, "COLUMNS": "500"}  # or its lines are broken
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    last: deque[str] = deque(maxlen=100)
    with subprocess.Popen(call, env=wide, **streams) as process:
        try:
            for line in process.stdout:
                last.append(line.strip())
                if step := re.match(r"\((\d+:\d+)\) \[START\] (?:[^>]+ > ){1,3}([^>]+?)(?: to \S*/.*)?$", line):
                    print(step[1], step[2], flush=True)
        except BaseException:
            process.kill()
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        likely = {"SIGKILL": "memory ran out", "SIGBUS": "the disk is full"}.get(name, "a fault of its own")
        raise RuntimeError(f"the {command} in .venv-litert was ended by {name}: most likely {likely}")
    if process.returncode:
        lines = [line for line in last if line] or [f"exit status {process.returncode}"]
        why = ([line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)] or lines)[-1]
        raise RuntimeError(f"the {command} in .venv-litert failed: {why[:500]}")
