# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   jupytext:
#     cell_metadata_filter: tags
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tiny model that roasts your runs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/pockettune/pockettune/blob/main/notebooks/01_strava_roast.ipynb)
#
# Gemma 3 270M is small enough for a phone. This is the pretrained model, which was not taught to follow instructions.
# Here it learns to read a run from Strava and to answer with a dry, rude verdict, whose numbers are checked.
#
# **By the end you will have** a model of your own, its answers beside those of the model you began with, scores on
# runs it never saw, and one file that a phone can open. It takes a few minutes on a GPU (made for a free Colab T4) and, with the
# smaller settings of `make roast`, three to six minutes on two CPU cores.

# %% [markdown]
# ## Setup
#
# On Colab the next cell fetches the code and the tested set of libraries, about two minutes.
# On your own machine `make setup` has done that and the cell does nothing: open the notebook with the kernel of `.venv`.

# %% language="bash"
# if [ -n "$COLAB_RELEASE_TAG" ] && [ ! -f /content/pockettune/ready ]; then
#   set -e
#   rm -rf /content/pockettune
#   git clone -q --depth 1 https://github.com/pockettune/pockettune /content/pockettune
#   cd /content/pockettune
#   pip install -q -r requirements.txt
#   pip install -q --no-deps -r requirements-unsloth.txt .
#   pip uninstall -q -y torchao
#   touch ready
# fi

# %%
import os
import random
from pathlib import Path

import pockettune as pt
from pockettune.sources import strava
from pockettune.tasks import roast

places = [Path("/content/pockettune"), Path.cwd(), *Path.cwd().parents]
os.chdir(next(place for place in places if (place / "notebooks").is_dir()))  # the paths below start here

# %% [markdown]
# ## Parameters
#
# All settings of this notebook. A batch run overrides them from a file, as `make roast` does with
# `notebooks/parameters/roast_cpu.yaml`.

# %% tags=["parameters"]
model_name: str = "embedded/gemma-3-270m"  # comes with the package index; or a folder, or a hub name
train_file: str = "data/strava_roasts.jsonl"  # rows to learn from
eval_file: str = "data/strava_roasts_eval.jsonl"  # rows of other runners, in another voice, to be judged on
strava_export: str = "data/strava_export"  # your export zip, folder or activities.csv; this one is invented
teacher_model: str = ""  # a model that writes verdicts on your own runs, such as gemini-3.8-flash; empty for none
teacher_base_url: str = "https://generativelanguage.googleapis.com/v1beta/openai/"  # its OpenAI-compatible endpoint
output_dir: str = "outputs/01_strava_roast"  # everything the run leaves behind
train_rows: int = -1  # how many rows to learn from, all by default
eval_rows: int = -1  # how many rows to be judged on, drawn from all runners; all by default
max_seq_length: int = 512  # tokens in the longest row, prompt and answer
lora_r: int = 64  # rank of the adapters; 0 tunes every weight
lora_alpha: int = 64  # their scale
learning_rate: float = 5e-4  # peak, after the warm-up
lr_scheduler_type: str = "linear"  # from the peak down to zero
warmup_steps: int = 5  # steps up to the peak
weight_decay: float = 0.01  # pull of the weights towards zero
num_train_epochs: float = 3  # how often each row is seen
max_steps: int = -1  # if positive, stop after so many steps whatever the epochs
per_device_train_batch_size: int = 8  # rows in a step
gradient_accumulation_steps: int = 1  # steps before the weights move
optim: str = "adamw_8bit"  # on a CPU, torch's own AdamW takes its place
seed: int = 3407  # order of the rows
save_strategy: str = "no"  # "epoch" keeps a checkpoint to go on from
resume_from_checkpoint: str = ""  # a checkpoint folder of an interrupted run
max_new_tokens: int = 96  # cap on an answer; the longest training answer has 82
quantization: str = "q8_0"  # of the file for a phone: q8_0, q4_k_m, bf16 or f16; empty writes none

# %%
environment = pt.preflight(allow_cpu=True, model_type="gemma3_text")

# %% [markdown]
# The line above says in which precision this machine trains, and why. A T4 has no bfloat16, and Gemma 3 overflows
# float16, so there it trains in float32.

# %% [markdown]
# ## Look at the rows
#
# A row is an invented run, in the form in which a real one is read from Strava's export: with the two runs before it,
# and the verdict that was written for it.

# %%
rows = pt.load_rows(train_file, train_rows)
held_out = pt.load_rows(eval_file)
if 0 < eval_rows < len(held_out):
    held_out = random.Random(seed).sample(held_out, eval_rows)
runs = strava.read_export(strava_export)
print(len(rows), "rows to learn from,", len(held_out), "to be judged on,", len(runs), "runs in the export")
rows[min(40, len(rows) - 1)]

# %% [markdown]
# With `teacher_model` set, a large model writes verdicts on your own runs, and they are added to the rows to learn from.
# It is sent weekday, month, kind, distance, pace, climbing and how they compare, and nothing else of your export. The cell prints the
# cost first, asks for the key (or takes `TEACHER_API_KEY` from the environment or Colab's secrets), checks each verdict
# as the tuned model's will be, and keeps every one: interrupted and run again, it goes on where it was.

# %%
if teacher_model:
    ask = {"out": f"{output_dir}/labels.jsonl", "model": teacher_model, "base_url": teacher_base_url}
    own = [{"input": run} for run in runs]
    pt.label_rows(own, roast, **ask, dry_run=True)
    rows += pt.label_rows(own, roast, **ask)

# %% [markdown]
# A model this small copies a number rightly and subtracts two of them wrongly. So the comparisons are computed here
# and written into the prompt; all the model has to do is be rude about them.

# %%
example = roast.to_example(held_out[5 % len(held_out)])
print(example["prompt"][0]["content"], example["prompt"][1]["content"], sep="\n\n")

# %% [markdown]
# ## Ask the base model first
#
# The untuned model gets the same prompts. Its answers are shown as they come.

# %%
model, tokenizer = pt.load_model(model_name, max_seq_length, lora_r, lora_alpha=lora_alpha)
known = tuple(roast.to_example(row)["completion"][0]["content"] for row in rows)
before = pt.evaluate(model, tokenizer, held_out, roast, known=known, max_new_tokens=max_new_tokens)
print(before[5 % len(before)]["completion"])

# %% [markdown]
# It repeats the question or wanders off, and does not know when to stop: this is what tuning has to change.

# %% [markdown]
# ## From rows to training examples
#
# `make_trainer` returns TRL's `SFTTrainer`. Before it does, it checks every row: the loss falls on the answer and the
# token that ends it, and on nothing else. Grey is read, green is learned.

# %%
trainer = pt.make_trainer(
    model,
    tokenizer,
    pt.to_dataset(rows, roast.to_example),
    output_dir=f"{output_dir}/checkpoints",
    learning_rate=learning_rate,
    lr_scheduler_type=lr_scheduler_type,
    warmup_steps=warmup_steps,
    weight_decay=weight_decay,
    num_train_epochs=num_train_epochs,
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    gradient_accumulation_steps=gradient_accumulation_steps,
    optim=optim,
    seed=seed,
    save_strategy=save_strategy,
)
pt.show_example(trainer, index=min(40, len(rows) - 1))

# %% [markdown]
# ## Fine-tune
#
# The first step is slow, the rest are alike. The run stops if the loss becomes NaN.

# %%
trainer.train(resume_from_checkpoint=resume_from_checkpoint or None)
pt.plot_loss(trainer)
pt.show_memory()

# %% [markdown]
# The curve drops in the first steps, while the model learns the form of an answer. After that it falls slowly and with
# noise. A short run on a CPU ends there, and its answers are plain; a full run goes on to learn something of the voice.

# %% [markdown]
# ## Ask again
#
# The same held-out runs: other runners than the training rows have, and verdicts in another voice. Red words under an
# answer name the checks it missed.

# %%
after = pt.evaluate(trainer.model, tokenizer, held_out, roast, known=known, max_new_tokens=max_new_tokens)
pt.show_answers(before, after, describe=lambda row: "\n".join(roast.describe(row["input"])), n=5)

# %% [markdown]
# What the scores ask of an answer: **valid_json** parses; **schema** has exactly the two fields; **faithful** holds no
# number and no comparison that does not follow from the run, as far as a checker can read; **original** is no copy of
# a training answer; **capped** was cut off at the token limit, so that less is better and a negative gain is good.
# **copied** is the baseline: each run gets the training verdict of the run most like it, unchanged.
#
# An interval of no width only says that all answers agreed: of n right ones, the true share of wrong ones may still
# be about 3 in n.

# %%
copied = [roast.nearest(row, rows) for row in held_out]
baseline = pt.score_completions(copied, [False] * len(copied), held_out, roast, known=known)
pt.plot_scores(before, after, copied=baseline)
pt.compare(before, after, copied=baseline)

# %% [markdown]
# The run card keeps what a later reader needs to trust these numbers: data digests, versions, device, precision,
# settings, the optimizer that really ran, seconds by phase and scores with their intervals. It holds no run.

# %%
pt.write_run_card(
    f"{output_dir}/run_card.json",
    environment=environment,
    trainer=trainer,
    model_name=model_name,
    train_rows=rows,
    results={"base": before, "tuned": after, "copied": baseline},
)
pt.save_rows(
    f"{output_dir}/answers.jsonl",
    (
        {"prompt": "\n".join(roast.describe(a["row"]["input"])), "base": a["completion"], "tuned": b["completion"]}
        for a, b in zip(before, after, strict=True)
    ),
)
print("run card and answers are in", output_dir)

# %% [markdown]
# ## Take it with you
#
# The adapters and the tokenizer go into one folder. Loaded again, they must give the same answer, word for word.

# %%
folder = pt.save_model(trainer.model, tokenizer, f"{output_dir}/model")
reloaded, tokenizer = pt.load_model(str(folder), max_seq_length, lora_r)
again = pt.generate(reloaded, tokenizer, [example["prompt"]], max_new_tokens=max_new_tokens)
once = pt.generate(trainer.model, tokenizer, [example["prompt"]], max_new_tokens=max_new_tokens)
assert again == once, "the reloaded model answers differently"
print(again[0])

# %% [markdown]
# For a phone, or a program without Python, the adapters are merged into the weights, compared with the tuned model, and
# written as one GGUF file. Then that file itself answers the held-out rows, as do the merged weights: if it surely
# scores more than two points worse than the tuned model, or cuts a text into other tokens, the cell stops. PocketPal (Android,
# iOS), Ollama and llama.cpp open it; the two small files beside it say how to ask. In Colab, download them from the Files panel on the left.

# %%
if quantization:
    whole = pt.merge(trainer.model, tokenizer, f"{output_dir}/merged", [example["prompt"]])
    model, tokenizer = pt.load_model(str(whole), max_seq_length, lora_r=0)
    merged = pt.evaluate(model, tokenizer, held_out, roast, known=known, max_new_tokens=max_new_tokens)
    card = f"{output_dir}/run_card.json"
    file = f"{output_dir}/roast-{quantization}.gguf"
    pt.export_gguf(whole, file, quantization, run_card=card, example=example["prompt"])
    options = {"max_new_tokens": max_new_tokens, "merged": merged, "run_card": card}
    display(pt.check_export(file, tokenizer, held_out, roast, after, known=known, **options))
else:
    print("no file, because quantization is empty; `make phone` writes one of the last `make roast`")

# %% [markdown]
# ## What we learned
#
# A few hundred good examples teach a 270M model the form of an answer and, in a full run, something of the voice. It
# copies numbers well and subtracts badly, so the code subtracts. An answer that parses may still be false: that is why
# each is checked.
#
# Now a run of your own. Ask Strava for your archive (Settings, My Account, Download or Delete Your Account, Request
# Your Archive: this deletes nothing); it comes as a zip by e-mail. On Colab upload it in the Files panel and give
# `/content/NAME.zip`. Set `strava_export` in the parameters, run that cell and the one below; nothing is tuned again.
#
# The export is read on the machine that runs this notebook, on Colab Google's, and is sent nowhere else. The cell
# shows your newest run, the verdict, and what of it does not follow from the run: clear its output before you share the
# notebook.

# %%
newest = {"input": strava.read_export(strava_export)[-1]}
print("\n".join(roast.describe(newest["input"])), "\n")
verdict = pt.generate(reloaded, tokenizer, [roast.to_example(newest)["prompt"]], max_new_tokens=max_new_tokens)[0]
print(verdict, roast.objection(verdict, newest) or "checked: every number follows from the run", sep="\n\n")
