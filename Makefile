# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
ROAST := outputs/01_strava_roast
OWN := $(if $(EXPORT),-p strava_export "$(EXPORT)")
REPORT = @$(BIN)/python -c 'from pockettune.evaluation import show_report; show_report("$(1)")'
PAPERMILL := $(BIN)/papermill --kernel python3 --no-log-output

.DEFAULT_GOAL := help
.PHONY: help setup roast roast-gpu roast-article test lint notebooks settings clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: .venv/ready  ## make .venv with the tested set of libraries (two minutes, 2 GB)
.venv/ready: requirements.txt requirements-unsloth.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-unsloth.txt -e .
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

roast: setup  ## tune Gemma 3 270M to roast runs, on a CPU, in minutes; prints answers before and after
	@mkdir -p $(ROAST)
	$(PAPERMILL) notebooks/01_strava_roast.ipynb $(ROAST)/01_strava_roast.ipynb -f notebooks/parameters/cpu.yaml $(OWN)
	$(call REPORT,$(ROAST))

roast-gpu: setup  ## the same notebook with its own settings, for a GPU
	@mkdir -p $(ROAST)_gpu
	$(PAPERMILL) notebooks/01_strava_roast.ipynb $(ROAST)_gpu/01_strava_roast.ipynb -p output_dir $(ROAST)_gpu $(OWN)
	$(call REPORT,$(ROAST)_gpu)

roast-article: setup  ## the same notebook with the settings of the article that began this, for a GPU
	@mkdir -p $(ROAST)_article
	$(PAPERMILL) notebooks/01_strava_roast.ipynb $(ROAST)_article/01_strava_roast.ipynb -f notebooks/parameters/article.yaml
	$(call REPORT,$(ROAST)_article)

test: lint  ## lint, unit tests, and the notebook on the real model at a few steps
	$(BIN)/python -m pytest

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: .venv/ready-dev  ## render every notebook from its .py, one way and byte for byte
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py
	$(BIN)/nbstripout --strip-init-cells --extra-keys "metadata.jupytext" notebooks/*.ipynb

settings: setup  ## compare training settings on held-out rows (GPU)
	$(BIN)/python benchmarks/roast_settings.py

clean:  ## remove the environment and all outputs
	rm -rf .venv outputs
