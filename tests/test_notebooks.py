"""The notebooks: rendered one way from their .py, in the shape all share, and run end to end on the real model."""

import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest
import qwen3
import yaml
from endpoint import Server

import pockettune

TUNING = ["Setup", "Parameters", "Look at the rows", "Ask the base model first", "From rows to training examples"]
TUNING += ["Fine-tune", "Ask again", "Take it with you", "What we learned"]
HEADINGS = {
    "01_strava_roast": TUNING,
    "02_complaint_extraction": TUNING,
    "03_bulk_extraction": [*TUNING[:3], "Read the file", "What came out", "What we learned"],
}
PREFIXES = {"01_strava_roast": "roast", "02_complaint_extraction": "complaints"}  # of their parameter files


@pytest.fixture(params=HEADINGS)
def name(request):
    return request.param


@pytest.fixture
def notebook(root, name):
    return nbformat.read(root / f"notebooks/{name}.ipynb", as_version=4)


def parameters(notebook_path) -> dict:
    return papermill.inspect_notebook(str(notebook_path))


def test_the_ipynb_is_the_render_of_the_py(root, name, tmp_path):
    """`make notebooks` leaves nothing to commit."""
    render = tmp_path / f"{name}.ipynb"
    jupytext.write(jupytext.read(root / f"notebooks/{name}.py"), render)
    strip = [sys.executable, "-m", "nbstripout", "--strip-init-cells", "--extra-keys", "metadata.jupytext", render]
    subprocess.run(strip, check=True)
    assert render.read_text() == (root / f"notebooks/{name}.ipynb").read_text(), "run: make notebooks"


def test_it_has_the_shared_outline_and_nothing_left_over(notebook, name):
    markdown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == HEADINGS[name]
    assert len(re.findall(r"^# ", markdown, re.MULTILINE)) == 1 and "By the end you will have" in markdown
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 25 and not any(cell.outputs or cell.execution_count for cell in code)
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.accelerator == "GPU" and notebook.metadata.colab.gpuType == "T4"
    assert notebook.metadata.kernelspec.name == "python3"
    limits = {"parameters": 30, "": 22}
    long = [
        cell.source for cell in code if len(cell.source.splitlines()) > limits["".join(cell.metadata.get("tags", []))]
    ]
    assert long == []
    assert not re.search(r"if False|if TEST|def .*:\n(.+\n){9,}", "\n".join(cell.source for cell in code))


def test_every_parameter_is_typed_explained_and_seen_by_papermill(root, name, notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    found = parameters(root / f"notebooks/{name}.ipynb")
    assert len(found) == len(cell.source.splitlines())
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+: (int|float|str) = [^#]+  # [^=]+", line), line
    assert all(p["inferred_type_name"] in ("int", "float", "str") and p["help"] for p in found.values())


@pytest.mark.parametrize("name", PREFIXES)
def test_parameter_files_name_only_parameters_there_are(root, name):
    files = [*(root / "notebooks/parameters").glob(f"{PREFIXES[name]}_*.yaml"), root / f"tests/smoke/{name}.yaml"]
    assert len(files) >= 3
    known = parameters(root / f"notebooks/{name}.ipynb").keys()
    for file in files:
        assert yaml.safe_load(file.read_text()).keys() <= known, file.name


def test_the_article_file_holds_the_published_settings(root):
    file = yaml.safe_load((root / "notebooks/parameters/roast_article.yaml").read_text())
    assert {key: file[key] for key in file if key != "output_dir"} == {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 5,
        "num_train_epochs": 5,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.01,
        "seed": 3407,
        "optim": "adamw_8bit",
    }


@pytest.fixture(scope="module", params=PREFIXES)
def executed(request, root, tmp_path_factory):
    """A notebook, executed as a batch job would, from another folder and with no way out of this machine.

    The roast on the real Gemma 3 270M, with a teacher on loopback; the complaints on a tiny Qwen3 with random weights and the real tokenizer.
    """
    name, folder = request.param, tmp_path_factory.mktemp("smoke")
    overrides = yaml.safe_load((root / f"tests/smoke/{name}.yaml").read_text()) | {"output_dir": str(folder / "out")}
    if "model_name" in overrides:
        overrides["model_name"] = str(qwen3.write(folder / "tiny", qwen3.TINY))
    if "teacher_model" in overrides:
        overrides["teacher_base_url"] = Server().url
    (folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    environment = {**os.environ, "PYTHONPATH": str(root / "tests/offline"), "TEACHER_API_KEY": "canary-value"}
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar", "--no-log-output"]
    command += ["--cwd", str(root / "notebooks"), "-f", str(folder / "overrides.yaml")]
    command += [str(root / f"notebooks/{name}.ipynb"), str(folder / "executed.ipynb")]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    notebook = nbformat.read(folder / "executed.ipynb", as_version=4)
    return {"name": name, "notebook": notebook, "out": folder / "out", "overrides": overrides}


def test_the_notebook_runs_and_every_override_reaches_it(executed):
    cells = [
        cell.source for cell in executed["notebook"].cells if "injected-parameters" in cell.metadata.get("tags", [])
    ]
    for key, value in executed["overrides"].items():
        assert f"{key} = {json.dumps(value)}" in cells[0]
    card = json.loads((executed["out"] / "run_card.json").read_text())
    assert card["steps"] == executed["overrides"]["max_steps"]
    labels = executed["out"] / "labels.jsonl"  # of the teacher, on the runs of the export
    own = len(labels.read_text().splitlines()) if labels.exists() else 0
    assert (own > 5) == ("teacher_model" in executed["overrides"])
    assert card["data"]["train"]["rows"] == executed["overrides"]["train_rows"] + own
    assert card["data"]["eval"]["rows"] == executed["overrides"]["eval_rows"]
    assert card["settings"]["per_device_train_batch_size"] == executed["overrides"]["per_device_train_batch_size"]


def test_it_leaves_a_model_answers_and_a_run_card(executed):
    assert {"answers.jsonl", "model", "run_card.json"} <= {path.name for path in executed["out"].iterdir()}
    assert (executed["out"] / "model" / "adapter_config.json").is_file()
    (line,) = json.loads((executed["out"] / "run_card.json").read_text())["exports"]
    assert (executed["out"] / line["file"]).stat().st_size == line["bytes"] and line["file"].endswith("-q8_0.gguf")


def test_a_reader_sees_the_mask_the_plots_and_the_tables(executed):
    outputs = [output for cell in executed["notebook"].cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    tables = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    stop, count = {"01_strava_roast": ("&lt;end_of_turn&gt;", 2), "02_complaint_extraction": ("&lt;|im_end|&gt;", 4)}[
        executed["name"]
    ]
    assert len(pictures) == count
    assert any("background:#e6f4ea" in html and stop in html for html in tables), "the coloured mask"
    assert any("<th" in html and "tuned" in html and "base" in html for html in tables)
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "unsloth 2026" in printed and "peak memory" in printed


def test_nothing_personal_reaches_the_executed_notebook(executed):
    text = nbformat.writes(executed["notebook"])
    assert "canary-value" not in text and "Morning Run" not in text and "Shoes did not" not in text
    shown = json.dumps([cell.get("outputs", []) for cell in executed["notebook"].cells])
    assert str(Path.home()) + "/" not in shown and sys.prefix not in shown, "a path of this machine"
    assert "UserWarning" not in shown
    assert not [cell for cell in executed["notebook"].cells if "traceback" in json.dumps(cell).lower()]


def test_one_labelled_file_is_enough(root, monkeypatch):
    """Without rows to be judged on, the complaints' notebook holds out a tenth of the others."""
    monkeypatch.chdir(root)
    cells = nbformat.read(root / "notebooks/02_complaint_extraction.ipynb", as_version=4).cells
    (settings,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    (look,) = (cell.source for cell in cells if cell.cell_type == "code" and "split_rows" in cell.source)
    found = {"pt": pockettune, "import_module": import_module, "partial": partial, "random": random}
    exec(settings, found)
    found |= {"eval_file": "", "train_rows": 50}
    exec(look, found)
    assert len(found["rows"]) == 45 and len(found["held_out"]) == 5
    assert not {row["input"] for row in found["rows"]} & {row["input"] for row in found["held_out"]}


def test_a_file_is_read_to_the_end(root, tmp_path, monkeypatch):
    """The third notebook, on a tiny Qwen3 with random weights."""
    model = qwen3.write(tmp_path / "tiny", qwen3.TINY)
    overrides = {"source": "data/complaints_own.csv", "text_column": "内容", "id_column": "编号", "model": str(model)}
    overrides |= {"output_dir": str(tmp_path / "out"), "shard_rows": 2, "max_new_tokens": 64}
    monkeypatch.setenv("PYTHONPATH", str(root / "tests/offline"))
    notebook, executed = root / "notebooks/03_bulk_extraction.ipynb", tmp_path / "executed.ipynb"
    papermill.execute_notebook(notebook, executed, overrides, kernel_name="python3", progress_bar=False)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["rows"] == 3 and [shard["rows"] for shard in manifest["shards"]] == [2, 1]
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 1
    assert sum("text/html" in o.get("data", {}) for o in outputs) == 2
