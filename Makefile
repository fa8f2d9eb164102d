# One environment in .venv serves every target. TORCH is the build to install:
#   make setup TORCH="torch --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
READY := .venv/.ready
RECIPES := sana_core/training/recipes
NANO_VERSION := 1
TYPECHECK := .cache/typecheck

.PHONY: setup lint test demo bench nano crr evaluate clean

setup: $(READY)

$(READY): pyproject.toml requirements.txt
	@echo "setting up .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@$(PIP) $(TORCH)
	@$(PIP) --editable ".[standalone,dev]"
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy needs the root under its package name; the root's own folder may be called anything.
	mkdir -p $(TYPECHECK) && ln -sfn ../.. $(TYPECHECK)/sana_streaming
	cd $(TYPECHECK) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --package sana_streaming

test: lint
	$(BIN)/python -m pytest

bench: $(READY)
	$(BIN)/python benchmarks/speed.py --device cpu --replace
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/startup.py

demo: $(READY)
	mkdir -p out
	$(BIN)/python -m sana_streaming edit "$$($(BIN)/python benchmarks/common.py bikes.mp4)" out/demo.mp4 \
		--prompt "make it a warm sunset" --max-frames 97 --sheet out/demo.png

# Trains nano anew in out/nano (an interrupted run is gone on with), puts it in place and measures it.
nano: $(READY)
	$(BIN)/python -m sana_streaming train-vae $(RECIPES)/nano_vae.yaml --folder out/nano/vae
	$(BIN)/python -m sana_streaming train $(RECIPES)/nano_dit.yaml --folder out/nano/dit
	$(BIN)/python -m sana_streaming train $(RECIPES)/nano_crr.yaml --folder out/nano/crr
	$(BIN)/python -m sana_streaming train $(RECIPES)/nano_long.yaml --folder out/nano/long
	$(BIN)/python -m sana_streaming train $(RECIPES)/nano_late.yaml --folder out/nano/late
	$(BIN)/python -m sana_streaming train-vae $(RECIPES)/nano_decoder.yaml --folder out/nano/decoder
	$(BIN)/python -m sana_streaming.sana_core.training.nano out/nano $(NANO_VERSION)
	$(MAKE) evaluate

evaluate: $(READY)
	$(BIN)/python -m sana_streaming evaluate --json benchmarks/results/cpu/nano.json --sheet docs/images/nano.jpg

# Keeps the finished runs in the file; remove it to start anew. About half an hour on one core.
crr: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m sana_streaming.sana_core.training.crr_experiment --seeds 5 --json benchmarks/results/cpu/crr.json

clean:
	rm -rf .cache out build dist *.egg-info
