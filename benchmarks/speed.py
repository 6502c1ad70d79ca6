"""One tuning job, from a fresh process to a saved model, done in several ways; prints seconds by phase and ratios to ours.

python benchmarks/speed.py roast|complaints [--warm] [CONTENDER ...]      all on one machine, in shuffled order
python benchmarks/speed.py roast|complaints bound                         the steps alone (GPU)

Every contender gets the same rows, epochs, rank, learning rate and model folder, a process of its own and, unless --warm
is given, empty compile caches; with --warm each runs twice and the second run counts. The model of "complaints" has
Qwen3-0.6B's geometry and random weights (its held-out loss says nothing), that of "roast" is the embedded Gemma.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time

START = time.time()
BATCH, RATE = 8, 5e-4
PHASES = ["import", "load", "build", "first step", "warming", "steady", "evaluate", "save"]


def job(name: str) -> dict:
    """Rows, epochs and rank of a job; on a CPU a smaller one."""
    import torch

    import pockettune as pt
    from pockettune.tasks import complaints, roast

    gpu = torch.cuda.is_available()
    if name == "roast":
        task, stem, rows, epochs, rank = roast, "strava_roasts", 200 if gpu else 48, 5 if gpu else 2, 64
    else:
        task, stem, rows, epochs, rank = complaints, "complaints", 1000 if gpu else 48, 1, 8
    train, held_out = (
        pt.load_rows(f"data/{stem}{part}.jsonl", n) for part, n in (("", rows), ("_eval", 72 if gpu else 16))
    )
    return {
        "train": [task.to_example(row) for row in train],
        "held_out": [task.to_example(row) for row in held_out],
        "epochs": epochs,
        "rank": rank,
    }


class Clock:
    """Seconds by phase, each from the end of the one before it."""

    def __init__(self):
        self.last, self.seconds = START, {}

    def lap(self, name: str) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = round(time.time() - self.last, 2)
        self.last = time.time()


def watch(clock: Clock, model, tokens: list[int]):
    """A callback that times the first step, those up to the middle and the rest, without waiting for the device in between."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                clock.lap("first step")
            if state.global_step == state.max_steps // 2:
                clock.lap("warming")

        def on_train_end(self, args, state, control, **kwargs):
            clock.lap("steady")
            half = state.max_steps - state.max_steps // 2
            clock.steady = {"ms a step": round(1000 * clock.seconds["steady"] / half, 1)}
            share = half / state.max_steps * args.num_train_epochs
            clock.steady["tokens a second"] = round(share * sum(tokens) / clock.seconds["steady"])

    return Watch()


def arguments(epochs: float, **others) -> dict:
    """What every contender's trainer is told."""
    import torch

    settings = {"num_train_epochs": epochs, "learning_rate": RATE, "lr_scheduler_type": "linear", "warmup_steps": 5}
    settings |= {"weight_decay": 0.01, "seed": 3407, "report_to": "none", "save_strategy": "no", "logging_steps": 5}
    return {
        **settings,
        "bf16": torch.cuda.is_available(),
        "output_dir": "outputs/speed",
        "disable_tqdm": True,
        **others,
    }


def texts(tokenizer, examples) -> list[str]:
    from pockettune.generation import render

    return [render(tokenizer, e["prompt"], e["completion"]) for e in examples]


def with_peft(folder: str, rank: int):
    """The model by transformers and PEFT, for the contenders without Unsloth."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="auto")
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=modules))
    return model, AutoTokenizer.from_pretrained(folder)


def tutorial(folder, work, clock):
    """HF Trainer and PEFT, batch 4, accumulation 4, gradient checkpointing."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from pockettune.generation import render

    clock.lap("import")
    model, tokenizer = with_peft(folder, work["rank"])
    model.enable_input_require_grads()
    clock.lap("load")

    def process(example):
        prompt, whole = (render(tokenizer, example["prompt"], c) for c in (None, example["completion"]))
        prompt, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole))
        return {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}

    rows = Dataset.from_list(work["train"]).map(process, remove_columns=["prompt", "completion"])
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(work["epochs"], **options)),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    return trainer, tokenizer


def trl(folder, work, clock):
    """TRL's SFTTrainer and PEFT without Unsloth."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock.lap("import")
    model, tokenizer = with_peft(folder, work["rank"])
    clock.lap("load")
    args = SFTConfig(**arguments(work["epochs"], per_device_train_batch_size=BATCH))
    return SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(work["train"]), args=args
    ), tokenizer


def unsloth(folder, work, clock):
    """Unsloth's own notebook: FastModel, its checkpointing, a text column, train_on_responses_only, defaults elsewhere.

    But for the accumulation, which is 2 by default and would make half as many steps.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastModel
    from unsloth.chat_templates import train_on_responses_only

    clock.lap("import")
    model, tokenizer = FastModel.from_pretrained(folder, max_seq_length=1024, load_in_4bit=False)
    settings = {"lora_alpha": work["rank"], "lora_dropout": 0, "use_gradient_checkpointing": "unsloth"}
    model = FastModel.get_peft_model(model, r=work["rank"], random_state=3407, **settings)
    clock.lap("load")
    rows = Dataset.from_dict({"text": [t.removeprefix("<bos>") for t in texts(tokenizer, work["train"])]})
    options = {"dataset_text_field": "text", "per_device_train_batch_size": BATCH, "optim": "adamw_8bit"}
    options["gradient_accumulation_steps"] = 1
    args = SFTConfig(**arguments(work["epochs"], **options))
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=args)
    turns = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    if "gemma" in model.config.model_type:
        turns = ("<start_of_turn>user\n", "<start_of_turn>model\n")
    return train_on_responses_only(trainer, instruction_part=turns[0], response_part=turns[1]), tokenizer


def ours(folder, work, clock):
    """The notebooks' calls."""
    from datasets import Dataset

    import pockettune as pt
    from pockettune import environment

    model, tokenizer = pt.load_model(folder, max_seq_length=1024, lora_r=work["rank"])
    loaded = environment.PHASES["load"]
    clock.lap("load")
    clock.seconds["import"] = round(clock.seconds["load"] - loaded, 2)
    clock.seconds["load"] = round(loaded, 2)
    args = arguments(work["epochs"], per_device_train_batch_size=BATCH)
    del args["bf16"]
    return pt.make_trainer(model, tokenizer, Dataset.from_list(work["train"]), **args), tokenizer


CONTENDERS = {c.__name__: c for c in (tutorial, trl, unsloth, ours)}


def bound(job_name: str, folder: str, steps: int = 50) -> None:
    """Print how fast one recorded step is replayed with nothing around it: eight rows of 256 tokens, no padding, no optimizer."""
    import torch

    trainer, _ = ours(folder, work := job(job_name), Clock())
    rows = [trainer.train_dataset[i] for i in range(BATCH)]
    labelled = sum(label != -100 for row in rows for label in row["labels"]) // BATCH
    rows = [{"input_ids": (row["input_ids"] * 9)[-256:]} for row in rows]
    batch = trainer.data_collator(
        [row | {"labels": [-100] * (256 - labelled) + row["input_ids"][-labelled:]} for row in rows]
    )
    for count in (3, steps):  # a plain pass, the recording, a replay; then those that count
        torch.cuda.synchronize()
        start = time.time()
        for _ in range(count):
            trainer.training_step(trainer.model, dict(batch), labelled * BATCH)
        torch.cuda.synchronize()
    ms = 1000 * (time.time() - start) / steps
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(
        f"the bound of {job_name}, r={work['rank']}: {ms:.1f} ms a step, {BATCH * 256 / ms * 1000:.0f} tok/s, {peak:.2f} GB"
    )


def contend(name: str, job_name: str, folder: str) -> None:
    """Run one contender in this process and print its line."""
    clock = Clock()
    if name in ("unsloth", "ours"):
        if name == "ours":
            from pockettune.environment import prepare_unsloth

            prepare_unsloth()
        import unsloth  # noqa: F401  (before transformers)
    work = job(job_name)
    trainer, tokenizer = CONTENDERS[name](folder, work, clock)
    rows = getattr(trainer, "train_dataset", None)
    tokens = [len(row["input_ids"]) for row in rows]
    clock.lap("build")
    trainer.add_callback(watch(clock, trainer.model, tokens))
    trainer.train()
    import roast_settings
    import torch

    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    if not gpu:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"  # which the held-out loss reads; it would slow Unsloth's training
    trainer.model.max_seq_length = 1024  # which only Unsloth's models have
    loss = roast_settings.held_out_loss(trainer.model, tokenizer, work["held_out"])
    clock.lap("evaluate")
    with tempfile.TemporaryDirectory() as scratch:
        trainer.model.save_pretrained(scratch)
    clock.lap("save")
    line = {"seconds": clock.seconds, "whole": round(time.time() - START, 1), **clock.steady}
    line |= {"peak GB": round(peak, 2), "held-out loss": round(loss, 4), "steps": trainer.state.global_step}
    print("RESULT " + json.dumps(line), flush=True)


def race(job_name: str, names: list[str], folder: str, warm: bool) -> dict[str, dict]:
    """Run contenders in processes of their own, in shuffled order; each result is printed as it comes."""
    results = {}
    for name in random.Random(time.time()).sample(names, len(names)):
        with tempfile.TemporaryDirectory() as caches:
            keys = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "UNSLOTH_COMPILE_LOCATION")
            env = os.environ | {key: f"{caches}/{key.lower()}" for key in keys}
            for _ in range(1 + warm):
                command = [sys.executable, __file__, "--one", name, job_name, folder]
                done = subprocess.run(command, env=env, capture_output=True, text=True)
        found = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not found:
            print(f"{name} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}", flush=True)
            continue
        results[name] = json.loads(found[0])
        print(name, found[0], flush=True)
    return results


def table(results: dict[str, dict]) -> None:
    """Print seconds by phase and ratios to ours."""
    print("\n| | " + " | ".join(PHASES) + " | whole | x ours | steps | ms a step | tok/s | peak GB | held-out loss |")
    print("|---" * (len(PHASES) + 8) + "|")
    for name, r in results.items():
        cells = [f"{r['seconds'].get(phase, 0):.1f}" for phase in PHASES] + [f"{r['whole']:.1f}"]
        cells += [f"{r['whole'] / results['ours']['whole']:.2f}" if "ours" in results else ""]
        cells += [r["steps"], r["ms a step"]]
        print(
            "| " + " | ".join(map(str, [name, *cells, r["tokens a second"], r["peak GB"], r["held-out loss"]])) + " |"
        )


def main(words: list[str]) -> None:
    if words[0] == "--one":
        return contend(*words[1:])
    job_name, names = words[0], [word for word in words[1:] if not word.startswith("--")]
    if job_name == "roast":
        from pockettune import embedded

        folder = str(embedded.ensure())
    else:
        import qwen3

        folder = str(qwen3.write("outputs/qwen3_geometry"))
    if names == ["bound"]:
        return bound(job_name, folder)
    table(race(job_name, names or list(CONTENDERS), folder, "--warm" in words))


if __name__ == "__main__":
    main(sys.argv[1:])
