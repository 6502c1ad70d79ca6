"""How fast are answers? The same complaints answered in six ways; prints rows a second and ratios to one by one.

python benchmarks/answers.py [FOLDER] [--rows N] [--alone M]

FOLDER holds adapters that the complaint notebook saved, or a whole model; without it a model is tuned for 150 steps
first, which wants a GPU. N rows of the evaluation set (all), of which the first M (--alone, 24) are also answered one by one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKENS = 256


def tuned(folder: str) -> None:
    """Tune for 150 steps and save the adapters."""
    import pockettune as pt
    from pockettune.tasks import complaints

    model, tokenizer = pt.load_model(max_seq_length=1280, lora_r=64)
    rows = pt.to_dataset(pt.load_rows("data/complaints.jsonl", 4800), complaints.to_example)
    settings = {"learning_rate": 5e-4, "max_steps": 150, "per_device_train_batch_size": 32, "disable_tqdm": True}
    trainer = pt.make_trainer(model, tokenizer, rows, output_dir="outputs/answers", **settings)
    trainer.train()
    pt.save_model(trainer.model, tokenizer, folder)


def with_unsloth(folder: str, rows: int, alone: int) -> None:
    """One by one as in the article, by prompt lookup, and our `generate`, free and held."""
    import torch

    import pockettune as pt
    from pockettune.generation import render, stop_ids
    from pockettune.tasks import complaints

    model, tokenizer = pt.load_model(folder, max_seq_length=1280, lora_r=64)
    held_out = pt.load_rows("data/complaints_eval.jsonl", rows)
    prompts = [complaints.to_example(row)["prompt"] for row in held_out]
    grammars = [complaints.grammar(row) for row in held_out]

    def singly(prompts, **options):
        answers = []
        for prompt in prompts:
            ids = tokenizer(render(tokenizer, prompt), add_special_tokens=False, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                found = model.generate(
                    **ids,
                    max_new_tokens=TOKENS,
                    do_sample=False,
                    max_length=None,
                    eos_token_id=stop_ids(model),
                    **options,
                )
            answers.append(tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        return answers

    def ours(prompts, grammar=None):
        return pt.generate(model, tokenizer, prompts, grammar=grammar, max_new_tokens=TOKENS)

    ours(prompts[:2], grammars[:2])  # what is made once in a process
    singly(prompts[:1])
    report("one by one", lambda: singly(prompts[:alone]))
    report("one by one, prompt lookup", lambda: singly(prompts[:alone], prompt_lookup_num_tokens=10))
    report("ours, one row at a time", lambda: pt.generate(model, tokenizer, prompts[:alone], batch_size=1))
    report("ours", lambda: ours(prompts))
    report("ours, held to the grammar", lambda: ours(prompts, grammars))


def continuous(folder: str, rows: int, alone: int) -> None:
    """Transformers' continuous batching, without Unsloth, adapters merged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    import pockettune as pt
    from pockettune import embedded
    from pockettune.generation import render
    from pockettune.tasks import complaints

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    adapters = (Path(folder) / "adapter_config.json").is_file()
    base = embedded.ensure() if adapters else folder
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="sdpa").to(device)
    if adapters:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        render(tokenizer, complaints.to_example(row)["prompt"])
        for row in pt.load_rows("data/complaints_eval.jsonl", rows)
    ]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    stops = {"eos_token_id": model.generation_config.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, **stops)

    def answer(ids):
        found = model.generate_batch(inputs=ids, generation_config=config, progress_bar=False)
        by = {tuple(output.prompt_ids): output.generated_tokens for output in found.values()}
        return [tokenizer.decode(by[tuple(one)], skip_special_tokens=True) for one in ids]

    answer(ids[:2])
    report("transformers, continuous batching", lambda: answer(ids))


def report(name: str, answer) -> None:
    start = time.time()
    answers = answer()
    print("RESULT " + json.dumps({"name": name, "s": time.time() - start, "answers": answers}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--rows", type=int, default=-1)
    parser.add_argument("--alone", type=int, default=24)
    parser.add_argument("--part", choices=["tuned", "with_unsloth", "continuous"])
    options = parser.parse_args()
    if options.part:
        more = () if options.part == "tuned" else (options.rows, options.alone)
        return globals()[options.part](options.folder, *more)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or str(Path(scratch) / "model")
        results = []
        for part in ["with_unsloth", "continuous"] if options.folder else ["tuned", "with_unsloth", "continuous"]:
            command = [sys.executable, __file__, folder, "--part", part]
            command += ["--rows", str(options.rows), "--alone", str(options.alone)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
                for line in running.stdout:
                    if line.startswith("RESULT "):
                        results.append(json.loads(line[7:]))
                        print(*show(results[-1], results[0]), sep=" | ", flush=True)
            if running.returncode:
                print(f"{part} failed", flush=True)
    print("\n| | rows | rows a second | x one by one | as one by one |\n|---|---|---|---|---|")
    for result in results:
        print("| " + " | ".join(show(result, results[0])) + " |")


def show(result: dict, first: dict) -> list[str]:
    """Name, rows, rows a second, that over the first way's, and how many of its answers are the same."""
    n, alone = len(result["answers"]), len(first["answers"])
    same = sum(a == b for a, b in zip(first["answers"], result["answers"], strict=False))
    times = (n / result["s"]) / (alone / first["s"])
    return [result["name"], str(n), f"{n / result['s']:.2f}", f"{times:.1f}", f"{same} of {alone}"]


if __name__ == "__main__":
    main()
