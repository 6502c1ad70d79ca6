"""How fast a whole file is read: rows a second, memory, the hours a million would take, beside answers one by one.

python benchmarks/bulk.py write FILE N                       N invented complaints for it (wants requirements-dev.txt)
python benchmarks/bulk.py FILE MODEL [--task NAME] [--seconds S] [--shard-rows N] [--alone M]
                            read it for S seconds (300) with a folder or a GGUF file, then M rows (8) one by one, by the
                            same model in memory
"""

import argparse
import json
import runpy
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import psutil


def write(file: str, n: int) -> None:
    """Write complaints of the training generator with another seed, each once."""
    from pockettune.rows import load_rows, save_rows

    generator = runpy.run_path("data/complaints/generate.py")
    writer = generator["Writer"](11)
    bank = [row["question"] for row in load_rows("data/complaints/bank.jsonl")]
    complaints, kinds, made = generator["Complaints"](writer, bank), generator["KINDS"], {}
    while len(made) < n:
        text, _ = generator["framed"](writer, kinds[len(made) % len(kinds)], complaints.draw())
        made[text] = {"id": len(made), "input": text}
    save_rows(file, made.values())


def read(file: str, model: str, task: str, seconds: float, shard_rows: int) -> None:
    """Read for so long, then stop it as a power cut would; print what was whole by then."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "pockettune.bulk", file, f"{out}/fields", "--model", model, "--keep", "id"]
        process = subprocess.Popen([*command, "--task", task, "--shard-rows", str(shard_rows)])
        manifest, memory, started = Path(out, "fields/manifest.json"), [], time.time()
        while process.poll() is None and time.time() - started < seconds:
            time.sleep(0.5)
            done = len(json.loads(manifest.read_text())["shards"]) if manifest.exists() else 0
            if done > len(memory):
                memory += [psutil.Process(process.pid).memory_info().rss / 1e9] * (done - len(memory))
        process.kill()
        process.wait()
        shards = json.loads(manifest.read_text())["shards"] if manifest.exists() else []
    if not memory:
        sys.exit("no shard was whole by then: give it more --seconds, or smaller --shard-rows")
    rows, failed = (sum(shard[key] for shard in shards) for key in ("rows", "failed"))
    speeds = [shard["rows"] / max(shard["seconds"], 0.01) for shard in shards]
    speed = rows / max(sum(shard["seconds"] for shard in shards), 0.01)
    print(f"{rows} rows whole after {time.time() - started:.0f} s, {failed} without an answer; {len(shards)} shards")
    print(
        f"{speed:.2f} rows a second (shards {min(speeds):.2f} to {max(speeds):.2f}), a million in {1e6 / speed / 3600:.1f} h"
    )
    some = sorted({round(i * (len(memory) - 1) / 19) for i in range(20)})
    print("resident memory after shard:", *(f"{i + 1}: {memory[i]:.2f} GB" for i in some), flush=True)


def alone(file: str, model: str, task: str, n: int) -> None:
    """The article's loop: a row, a call."""
    import torch

    import pockettune as pt
    from pockettune.generation import render, stop_ids

    to_example = import_module(f"pockettune.tasks.{task}").to_example
    model, tokenizer = pt.load_model(model, max_seq_length=1024, lora_r=0)
    for i, row in enumerate(pt.load_rows(file, n + 1)):
        if i == 1:
            started = time.time()  # the first pays for what is made once
        text = render(tokenizer, to_example(row)["prompt"])
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            model.generate(**ids, max_new_tokens=256, do_sample=False, max_length=None, eos_token_id=stop_ids(model))
    print(f"one by one: {n / (time.time() - started):.2f} rows a second", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["write"]:
        return write(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("model")
    parser.add_argument("--task", default="complaints")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--shard-rows", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=8)
    options = parser.parse_args()
    read(options.file, options.model, options.task, options.seconds, options.shard_rows)
    if options.alone:
        whole = Path(options.model).with_name("merged") if options.model.endswith(".gguf") else options.model
        alone(options.file, str(whole), options.task, options.alone)


if __name__ == "__main__":
    main()
