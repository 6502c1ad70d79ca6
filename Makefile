# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
ROAST := outputs/01_strava_roast
COMPLAINTS := outputs/02_complaint_extraction
OWN := $(if $(EXPORT),-p strava_export "$(EXPORT)")
REPORT = @$(BIN)/python -c 'from pockettune.evaluation import show_report; show_report("$(1)")'
EXPORTED = @$(BIN)/python -c 'from pockettune.export import main; main("$(1)", "$(2)", "data/$(3).jsonl", "data/$(3)_eval.jsonl", "$(4)", $(or $(ROWS),16))'
PAPERMILL := $(BIN)/papermill --kernel python3 --no-log-output

.DEFAULT_GOAL := help
.PHONY: help setup roast roast-gpu roast-article complaints complaints-gpu phone phone-complaints litert litert-complaints bulk data test test-litert test-vllm lint notebooks settings clean

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
	$(PAPERMILL) notebooks/01_strava_roast.ipynb $(ROAST)/01_strava_roast.ipynb -f notebooks/parameters/roast_cpu.yaml $(OWN)
	$(call REPORT,$(ROAST))

roast-gpu: setup  ## the same notebook with its own settings, for a GPU
	@mkdir -p $(ROAST)_gpu
	$(PAPERMILL) notebooks/01_strava_roast.ipynb $(ROAST)_gpu/01_strava_roast.ipynb -p output_dir $(ROAST)_gpu $(OWN)
	$(call REPORT,$(ROAST)_gpu)

roast-article: setup  ## the same notebook with the settings of the article that began this, for a GPU
	@mkdir -p $(ROAST)_article
	$(PAPERMILL) notebooks/01_strava_roast.ipynb $(ROAST)_article/01_strava_roast.ipynb -f notebooks/parameters/roast_article.yaml
	$(call REPORT,$(ROAST)_article)

complaints: setup  ## tune Gemma 3 270M to read messy complaints, on a CPU, in minutes
	@mkdir -p $(COMPLAINTS)
	$(PAPERMILL) notebooks/02_complaint_extraction.ipynb $(COMPLAINTS)/02_complaint_extraction.ipynb -f notebooks/parameters/complaints_cpu.yaml
	$(call REPORT,$(COMPLAINTS))

complaints-gpu: setup  ## the same on all rows, for a GPU; without a model hub too
	@mkdir -p $(COMPLAINTS)_gpu
	$(PAPERMILL) notebooks/02_complaint_extraction.ipynb $(COMPLAINTS)_gpu/02_complaint_extraction.ipynb -f notebooks/parameters/complaints_gpu.yaml
	$(call REPORT,$(COMPLAINTS)_gpu)

phone: setup  ## write the last `make roast` as a GGUF file, and let it answer held-out runs itself (KIND=q8_0 q4_k_m bf16 f16 adapter, ROWS=16)
	$(call EXPORTED,$(ROAST),roast,strava_roasts,$(or $(KIND),q8_0))

phone-complaints: setup  ## the same for the last `make complaints`
	$(call EXPORTED,$(COMPLAINTS),complaints,complaints,$(or $(KIND),q8_0))

.venv-litert/ready: requirements-litert.txt
	$(PYTHON) -m venv .venv-litert
	.venv-litert/bin/python -m pip install --quiet --upgrade pip
	.venv-litert/bin/python -m pip install --quiet -r requirements-litert.txt
	@touch $@

litert: setup .venv-litert/ready  ## write the last `make roast` for AI Edge Gallery, and let that file answer held-out runs
	$(call EXPORTED,$(ROAST),roast,strava_roasts,litertlm)

litert-complaints: setup .venv-litert/ready  ## the same for the last `make complaints`
	$(call EXPORTED,$(COMPLAINTS),complaints,complaints,litertlm)

bulk: setup  ## read a whole file with the last `make complaints`: make bulk SOURCE=mine.csv TEXT=column (ID= OUT= MODEL= TASK=)
	@mkdir -p outputs
	$(PAPERMILL) notebooks/03_bulk_extraction.ipynb outputs/03_bulk_extraction.ipynb -p source "$(or $(SOURCE),data/complaints_own.csv)" \
		-p text_column "$(or $(TEXT),内容)" -p id_column "$(ID)" -p output_dir "$(or $(OUT),outputs/03_bulk_$(basename $(notdir $(or $(SOURCE),sample))))" $(if $(MODEL),-p model "$(MODEL)") $(if $(TASK),-p task $(TASK))

data: .venv/ready-dev  ## write the complaints anew from their generators, byte for byte
	$(BIN)/python data/complaints/generate.py
	$(BIN)/python data/complaints_eval/generate.py

.venv-vllm/ready: requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --quiet -r requirements-vllm.txt
	.venv-vllm/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec  # for pictures and sound; here unused
	.venv-vllm/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

test: lint  ## lint, unit tests, and the notebooks at a few steps; two files at a time, half of the cores each
	OMP_NUM_THREADS=$$(( ($$(nproc) + 1) / 2 )) $(BIN)/python -m pytest -n 2 --dist loadfile

test-litert: .venv/ready-dev .venv-litert/ready  ## write a .litertlm file of the real model and let it answer (five minutes)
	POCKETTUNE_TEST_LITERT=1 $(BIN)/python -m pytest tests/test_litert.py

test-vllm: .venv/ready-dev .venv-vllm/ready  ## let vLLM, in an environment of its own, answer beside our own engine (five minutes)
	POCKETTUNE_TEST_VLLM=1 $(BIN)/python -m pytest tests/test_vllm.py

lint: .venv/ready-dev  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: .venv/ready-dev  ## render every notebook from its .py, one way and byte for byte
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py
	$(BIN)/nbstripout --strip-init-cells --extra-keys "metadata.jupytext" notebooks/*.ipynb

settings: setup  ## compare training settings on held-out rows (GPU)
	$(BIN)/python benchmarks/roast_settings.py
	$(BIN)/python benchmarks/complaint_settings.py

clean:  ## remove the environment and all outputs
	rm -rf .venv .venv-litert .venv-vllm outputs
