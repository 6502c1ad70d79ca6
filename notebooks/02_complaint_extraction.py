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
# # A tiny model that reads messy complaints
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/pockettune/pockettune/blob/main/notebooks/02_complaint_extraction.ipynb)
#
# Complaints come as they come: forms, chats, voice transcripts, with typos, other people's names and pasted order
# numbers. Here a small model learns to take four values out of them, in Chinese, as JSON, on the machine that runs
# this notebook. Each value is null or an exact piece of the text; it may still be the wrong piece.
#
# **By the end you will have** a tuned model, its scores beside the untuned model's and a set of regular expressions',
# by kind of mess, and one file that a phone can open. It is set for Qwen3-0.6B on a free Colab T4, which was not measured: the
# scores and times in the README are of Gemma 3 270M, which needs no model hub. `make complaints` runs that on two CPU
# cores in five to eight minutes, `make complaints-gpu` on a GPU. The model and its settings are parameters.

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
import json
import os
import random
from functools import partial
from importlib import import_module
from pathlib import Path

import pockettune as pt

places = [Path("/content/pockettune"), Path.cwd(), *Path.cwd().parents]
os.chdir(next(place for place in places if (place / "notebooks").is_dir()))  # the paths below start here

# %% [markdown]
# ## Parameters
#
# All settings of this notebook. A batch run overrides them from a file, as `make complaints` does with
# `notebooks/parameters/complaints_cpu.yaml`. The rank, scale, dropout and learning rate here are those of the article
# that began this, for Qwen3-0.6B; the ones measured with Gemma are in `complaints_gpu.yaml`.

# %% tags=["parameters"]
model_name: str = "Qwen/Qwen3-0.6B"  # a hub name, a folder, or "embedded/gemma-3-270m", which needs no hub
model_type: str = "qwen3"  # or "gemma3_text"; precision depends on it
task_name: str = "complaints"  # or "complaints_twice", with the text twice in the prompt, better in long runs
train_file: str = "data/complaints.jsonl"  # rows to learn from; .jsonl, .json, .csv or .parquet
eval_file: str = "data/complaints_eval.jsonl"  # rows of another hand, to be judged on; empty: a tenth of the others
text_column: str = "input"  # where these files have the text
answer_column: str = "output"  # where they have the answer, as JSON; or columns named as the four fields
own_file: str = "data/complaints_own.csv"  # complaints of your own to be read, without answers
own_text_column: str = "内容"  # where that file has the text (here the Chinese for content)
output_dir: str = "outputs/02_complaint_extraction"  # everything the run leaves behind
train_rows: int = -1  # how many rows to learn from, all by default
eval_rows: int = -1  # how many rows to be judged on, all by default
max_seq_length: int = 1280  # tokens in the longest row, prompt and answer
lora_r: int = 8  # rank of the adapters; 0 tunes every weight
lora_alpha: int = 32  # their scale
lora_dropout: float = 0.1  # share of the adapters' inputs left out at random in training
learning_rate: float = 1e-4  # peak, after the warm-up
warmup_steps: int = 10  # steps up to the peak
num_train_epochs: float = 0.5  # how often each row is seen; 3 or so with some hundred rows of your own
max_steps: int = -1  # if positive, stop after so many steps whatever the epochs
per_device_train_batch_size: int = 4  # rows at once; four of the longest fit a T4
gradient_accumulation_steps: int = 4  # so often before the weights are changed
optim: str = "adamw_8bit"  # on a CPU, torch's own AdamW takes its place
seed: int = 3407  # order of the rows
report_to: str = "none"  # a tracker of the run: swanlab (kept offline), trackio, wandb or tensorboard
max_new_tokens: int = 256  # cap on an answer; the longest in the training rows has 206
quantization: str = "q8_0"  # of the file for a phone: q8_0, q4_k_m, bf16 or f16; empty writes none
rows_per_month: int = 20000  # texts to be read in a month, for the costs
sensitive: str = "yes"  # whether they must stay on your machine: yes or no
reasoning: str = "no"  # whether an answer needs a chain of steps: yes or no

# %%
environment = pt.preflight(allow_cpu=True, model_type=model_type)

# %% [markdown]
# The line above says in which precision this machine trains, and why. A T4 has no bfloat16: Qwen3 trains in float16
# there, and Gemma 3, which overflows float16, in float32.

# %% [markdown]
# ## Look at the rows
#
# The texts are invented. The four fields are **name** (姓名), **address** (地址), **email** (邮箱) and **question**
# (诉求, the complaint itself). A value is copied from the text as it stands there, or null; only the complainant's
# own counts, not the clerk's name and not the company's e-mail. `data/README.md` has the rules.

# %%
complaints = import_module(f"pockettune.tasks.{task_name}")
read = partial(complaints.read, text=text_column, answer=answer_column)
rows = pt.load_rows(train_file, train_rows, read)
if eval_file:
    held_out = pt.load_rows(eval_file, -1, read)
else:
    rows, held_out = pt.split_rows(rows, seed=seed, group=lambda row: row["input"])
if 0 < eval_rows < len(held_out):
    held_out = random.Random(seed).sample(held_out, eval_rows)
print(len(rows), "rows to learn from,", len(held_out), "to be judged on\n")
row = held_out[3 % len(held_out)]
print(row["input"], row["output"], sep="\n\n")

# %% [markdown]
# ## Ask the base model first
#
# The untuned model gets the instruction (提取, extract the four fields as JSON) and the text. Its answer is shown as
# it comes.

# %%
model, tokenizer = pt.load_model(model_name, max_seq_length, lora_r, lora_alpha=lora_alpha, lora_dropout=lora_dropout)
before = pt.evaluate(model, tokenizer, held_out, complaints, max_new_tokens=max_new_tokens)
print(before[3 % len(before)]["completion"])

# %% [markdown]
# Now the same model, held to a grammar of the row: the four keys in order, and each value null or a piece of the
# text (of at most 24, 100 and 64 characters for name, address and e-mail). At every step the tokens that would leave the
# grammar are ruled out. Unless it is cut off at the token limit, it cannot write broken JSON, and it cannot invent;
# whether it picks the right piece is another matter.

# %%
print(complaints.grammar(row)[:400], "…\n")
before_held = pt.evaluate(
    model, tokenizer, held_out, complaints, grammar=complaints.grammar, max_new_tokens=max_new_tokens
)
print(before_held[3 % len(before)]["completion"])

# %% [markdown]
# ## From rows to training examples
#
# `make_trainer` returns TRL's `SFTTrainer`. Before it does, it checks every row: the loss falls on the answer and the
# token that ends it, and on nothing else; the prompt is the one that will be sent later, with thinking off. Grey is
# read, green is learned.

# %%
trainer = pt.make_trainer(
    model,
    tokenizer,
    pt.to_dataset(rows, complaints.to_example),
    output_dir=f"{output_dir}/checkpoints",
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    num_train_epochs=num_train_epochs,
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    gradient_accumulation_steps=gradient_accumulation_steps,
    train_sampling_strategy="group_by_length",  # rows of like length share a step: less padding
    optim=optim,
    seed=seed,
    report_to=report_to,
)
pt.show_example(trainer, index=0)

# %% [markdown]
# ## Fine-tune
#
# The first step is slow, the rest are alike. The run stops if the loss becomes NaN.

# %%
trainer.train()
pt.plot_loss(trainer)
pt.show_memory()

# %% [markdown]
# The loss falls within the first dozens of steps: most of an answer is copied, and the model soon sees that. What is
# left is where a value begins and ends, and whose it is.

# %% [markdown]
# ## Ask again
#
# The same rows, free and held to the grammar. Below, the untuned model's free answers beside the tuned and held ones;
# red words under an answer name what it missed. These rows and the training rows were written separately.

# %%
after = pt.evaluate(trainer.model, tokenizer, held_out, complaints, max_new_tokens=max_new_tokens)
after_held = pt.evaluate(
    trainer.model, tokenizer, held_out, complaints, grammar=complaints.grammar, max_new_tokens=max_new_tokens
)
pt.show_answers(before, after_held, describe=lambda row: row["input"], n=4)

# %% [markdown]
# **name** to **question** are exact matches, **all_exact** all four of them; **nulls** asks for null where, and only
# where, nothing is given; **grounded** that every value stands in the text; **question_f1** forgives an edge of the
# complaint that is off by a little; **capped** was cut off at the token limit, so that less is better. **rules** is the
# baseline: regular expressions as one would write them in an hour.
#
# An interval of no width only says that all answers agreed: of n right ones, the true share of wrong ones may still
# be about 3 in n.

# %%
answers = [complaints.by_rules(row) for row in held_out]
rules = pt.score_completions(answers, [False] * len(answers), held_out, complaints)
results = {"rules": rules, "base, held": before_held, "tuned, held": after_held}
pt.plot_scores(before, after, **results)
pt.compare(before, after, **results)

# %% [markdown]
# Which kinds of mess cost most? Each has about twenty rows in the full set: one row is five points, and differences
# under some 25 points may be chance.

# %%
if "noise" in held_out[0]:
    pt.plot_by(
        pt.compare_by("noise", "all_exact", rules=rules, base=before, tuned=after, **{"tuned, held": after_held}),
        "All four fields exact, by kind of mess",
    )

# %% [markdown]
# The first of the answers that are still wrong, with the text they were read from. Judge for yourself which would do
# harm.

# %%
wrong = [i for i, result in enumerate(after_held) if not result["scores"]["all_exact"]]
pt.show_answers(
    [{**after_held[i], "completion": after_held[i]["row"]["output"], "scores": {}} for i in wrong],
    [after_held[i] for i in wrong],
    describe=lambda row: row["input"],
    n=6,
    heads=("text", "marked", "answered"),
)

# %% [markdown]
# The run card keeps what a later reader needs to trust these numbers: data digests, versions, device, precision,
# settings, the optimizer that really ran, seconds by phase and scores with their intervals. It holds no text; the
# answers beside it and this notebook's outputs do.

# %%
pt.write_run_card(
    f"{output_dir}/run_card.json",
    environment=environment,
    trainer=trainer,
    model_name=model_name,
    train_rows=rows,
    results={"base": before, "tuned": after, **results},
    by="noise" if "noise" in held_out[0] else None,
)
pt.save_rows(
    f"{output_dir}/answers.jsonl",
    (
        {"prompt": a["row"]["input"], "base": a["completion"], "tuned": b["completion"]}
        for a, b in zip(before, after_held, strict=True)
    ),
)
print("run card and answers are in", output_dir)

# %% [markdown]
# ## Take it with you
#
# The adapters and the tokenizer go into one folder. Loaded again, they must give the same answer, word for word. The
# text is the noisy example of the article that began this: it ends in keyboard mash.

# %%
article = {
    "input": "龙琳   ，宁夏回族自治区璐市城东林街g座 955491，nafan@example.com。小区垃圾堆积成山，晚上噪音扰人清梦，"
    "停车难上加难，简直无法忍受！太插件了阿萨德看见啊啥的健康仨都会撒娇看到撒谎的、"
}
ask = {"prompts": [complaints.to_example(article)["prompt"]], "grammar": [complaints.grammar(article)]}
folder = pt.save_model(trainer.model, tokenizer, f"{output_dir}/model")
reloaded, tokenizer = pt.load_model(str(folder), max_seq_length, lora_r)
again = pt.generate(reloaded, tokenizer, **ask, max_new_tokens=max_new_tokens)
once = pt.generate(trainer.model, tokenizer, **ask, max_new_tokens=max_new_tokens)
assert again == once, "the reloaded model answers differently"
json.loads(again[0])

# %% [markdown]
# For a phone, or a program without Python, the adapters are merged into the weights, compared with the tuned model, and
# written as one GGUF file. Then that file itself answers held-out rows, as do the merged weights: if it surely scores
# more than two points worse than the tuned model, or cuts a text into other tokens, the cell stops. PocketPal (Android, iOS), Ollama and llama.cpp open it;
# the two small files beside it say how to ask. In Colab, download them from the Files panel on the left. Apps do
# not hold the answers to the grammar: there a value may be no piece of the text.

# %%
if quantization:
    whole = pt.merge(trainer.model, tokenizer, f"{output_dir}/merged", ask["prompts"])
    card = f"{output_dir}/run_card.json"
    file = f"{output_dir}/complaints-{quantization}.gguf"
    pt.export_gguf(whole, file, quantization, run_card=card, example=ask["prompts"][0])
    few = slice(None, None, -(-len(held_out) // 72))  # 72 rows at most: llama.cpp runs on the CPU here
    held = {"grammar": complaints.grammar, "max_new_tokens": max_new_tokens}
    model, tokenizer = pt.load_model(str(whole), max_seq_length, lora_r=0)
    options = {"merged": pt.evaluate(model, tokenizer, held_out[few], complaints, **held), "run_card": card}
    display(pt.check_export(file, tokenizer, held_out[few], complaints, after_held[few], **held, **options))
else:
    print("no file, because quantization is empty; `make phone-complaints` writes one of the last `make complaints`")

# %% [markdown]
# ## What we learned
#
# A grammar buys form and truth to the text, before any tuning; tuning buys the right piece. What is left in a full
# run: the edges of complaints, and other people's names, streets and mailboxes.
#
# Whether to tune at all? Three questions come first. May the texts leave the machine? Complaints carry names and addresses:
# often they may not, and then the price decides nothing. Does an answer need a chain of steps? Then a model this small
# is the wrong tool. And what does a month cost? A row here has 150 tokens in and 89 out (means of the held-out rows); an API
# would have to be told the rules as well, and may think, which is billed. The speed is this run's; the untuned
# answers run to the token limit, so it is a little low. Prices are list prices with their source and day, in
# `data/prices.json`, a GPU that is not listed is priced as an H100; how well those APIs extract was not measured. 2,000 yuan for labels and checks are a guess: put in your own.

# %%
card = json.loads(Path(f"{output_dir}/run_card.json").read_text(encoding="utf-8"))
costs = pt.should_i_tune(
    rows_per_month,
    tokens_in=150,
    tokens_out=89,
    sensitive=sensitive == "yes",
    reasoning=reasoning == "yes",
    rows_per_second=4 * len(held_out) / card["seconds"]["evaluate"],  # four sets of answers
    machine=next(
        (m for m in ("T4", "H200") if m in card["device"]), "H100" if environment.capability else "2 CPU cores"
    ),
    tuning_cost=2000,
)
print(costs.attrs["verdict"])
pt.plot_break_even(costs)
costs.round(2)

# %% [markdown]
# Where a coloured line crosses the thick blue one, that API begins to cost more than a model of your own; dashed ones rest on
# prices older than 90 days, the dotted one is your volume. Where a cheap API stays below, money is no reason to tune.
#
# Now complaints of your own: set `own_file` (.csv, .json, .jsonl or .parquet) and `own_text_column` in the parameters, run that
# cell and the one below; nothing is tuned again. They are read on the machine that runs this notebook, on Colab
# Google's, and are sent nowhere else. The cell shows the first answers: clear its output before you share the notebook.
# Each answer is written beside its text; one that was cut off at `max_new_tokens` has no fields. To tune on labelled
# rows of your own, give `train_file` and `eval_file` with the columns text, name, address, email and question, an empty
# cell for null and each value exactly as the text has it, and set `text_column`. With one file only leave `eval_file` empty: a tenth
# of its rows is then held out. Rows of the same hand flatter a model.

# %%
own = pt.load_rows(own_file, -1, partial(complaints.read, text=own_text_column, answer=None))
prompts = [complaints.to_example(row)["prompt"] for row in own]
grammars = [complaints.grammar(row) for row in own]
answers = pt.generate(reloaded, tokenizer, prompts, grammar=grammars, max_new_tokens=max_new_tokens)
fields = [complaints.parse(answer)[0] or {} for answer in answers]
pt.save_rows(f"{output_dir}/own_answers.jsonl", (row | found for row, found in zip(own, fields, strict=True)))
print(*answers[:3], sep="\n")
