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
# # A file of complaints, read to the end
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/pockettune/pockettune/blob/main/notebooks/03_bulk_extraction.ipynb)
#
# The complaints' notebook tunes a model; here it reads a whole file, of any size, on the machine that runs this notebook. What
# is done stays done: stopped at any moment and started again, it goes on where it was.
#
# **By the end you will have** a folder of shards with the four fields of every row, the rows that have no answer
# and why, and a view of what a person should look at first. It needs the model of `02_complaint_extraction` (`make
# complaints`, or `make complaints-gpu` with `complaints_twice` as the task); on Colab upload its folder `model` first, or set `model`
# to `rules` to see how it works. Two CPU cores read two to three thousand rows an hour, an H200 500,000 to 700,000; the
# same job without a notebook is `python -m pockettune.bulk --help`.

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
from pathlib import Path

import pandas as pd

import pockettune as pt
from pockettune.bulk import extract
from pockettune.rows import records

places = [Path("/content/pockettune"), Path.cwd(), *Path.cwd().parents]
os.chdir(next(place for place in places if (place / "notebooks").is_dir()))  # the paths below start here

# %% [markdown]
# ## Parameters
#
# All settings of this notebook; a batch run overrides them with papermill's `-p` or `-f`.

# %% tags=["parameters"]
source: str = "data/complaints_eval.jsonl"  # the file to be read; .csv, .jsonl or .parquet
text_column: str = "input"  # where it has the text
id_column: str = ""  # a column to be carried over, by which you know a row again; empty for its number alone
model: str = "outputs/02_complaint_extraction/model"  # a folder, a .gguf file, a hub name, or rules
task: str = "complaints"  # how the model was tuned to be asked; complaints_twice for that of `make complaints-gpu`
output_dir: str = "outputs/03_bulk_extraction"  # the folder of the shards; name it again to continue a run
shard_rows: int = 200  # rows in a shard, all that is done twice after a crash; 4000 on a GPU
file_format: str = "jsonl"  # of the shards: jsonl or parquet
max_seq_length: int = 2048  # tokens of a prompt and its answer; longer ones fail
max_new_tokens: int = 256  # cap on an answer

# %% [markdown]
# ## Look at the rows
#
# The first row as the file has it. The cell prints it: clear the outputs before you share the notebook, if the texts
# are real.

# %%
first = next(record for _, record in records(source) if isinstance(record, dict))
print(first.get(text_column, f"no column {text_column} here"))

# %% [markdown]
# ## Read the file
#
# Every answer is held to a grammar of its text: each value is null or stands in the text. Identical texts are answered once. A
# shard is written whole or not at all. The bar counts rows, rows a second, the time left, and rows without an answer.

# %%
keep = (id_column,) if id_column else ()
limits = {"max_seq_length": max_seq_length, "max_new_tokens": max_new_tokens}
shard = {"shard_rows": shard_rows, "file_format": file_format}
manifest = extract(source, output_dir, model, task=task, text=text_column, keep=keep, **limits, **shard)

# %% [markdown]
# ## What came out
#
# The first rows of the result, here without the texts they were read from.

# %%
shards = sorted(Path(output_dir).glob(f"part-*.{file_format}"))
looked_at = shards[:100]  # of a very large file
rows = pd.concat([pd.DataFrame(pt.load_rows(shard)) for shard in looked_at])
rows.drop(columns=["model", "prompt"]).head()

# %% [markdown]
# How fast it went, and how often a field is null. A share of nulls that is not what your texts are like is the first sign of
# a model that does not know them.

# %%
import matplotlib.pyplot as plt

_, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
done = pd.DataFrame(manifest["shards"])
left.plot(done["rows"].cumsum(), done["rows"] / done["seconds"].clip(lower=0.01), "o-")
left.set(title="Rows a second", xlabel="rows read", xlim=(0, None), ylim=(0, None))
nulls = rows[["question", "email", "address", "name"]].isna().mean() * 100
right.bar_label(right.barh(nulls.index, nulls), fmt="%.0f", padding=3)
right.set(title=f"Null, % of {len(rows):,} rows", xlim=(0, 105))
plt.show()

# %% [markdown]
# What a person should look at first: rows without an answer, by reason; then answers with the same value in two fields, those
# without a complaint, and those with very little in it. A value that stands in the text can still be the wrong one: read a
# sample of the rest as well.

# %%
print(rows["reason"].value_counts().to_string() if rows["reason"].notna().any() else "every row has an answer")
twice = rows[nulls.index].apply(lambda row: row.dropna().duplicated().any(), axis=1)
doubts = rows.assign(twice=twice, letters=rows["question"].str.len().fillna(0))[rows["valid"]]
doubts = doubts.sort_values(["twice", "letters"], ascending=[False, True], kind="stable")
doubts.drop(columns=["model", "prompt", "valid", "grounded", "reason"]).head(8)

# %% [markdown]
# ## What we learned
#
# Each row carries the digests of the model and the prompt that made it, so that an auditor can tell which did. The shards
# are plain tables: `pd.read_json(shard, lines=True)`, `pd.read_parquet`, or `datasets.load_dataset("json", data_files=…)` read
# them. `failed-*.jsonl` beside them names the rows to be mended; read them with a longer `max_seq_length` or by hand.
#
# On many machines the same work runs under Ray Data (`extract_with_ray`); `model` may also be the GGUF file that
# `make phone-complaints` writes, with the folder `merged` beside it.
