# One environment in .venv serves every target. TORCH is the build to install:
#   make setup TORCH="torch --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
READY := .venv/.ready
TYPECHECK := .cache/typecheck

.PHONY: setup lint test demo bench clean

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
	$(BIN)/python benchmarks/memory.py

# A random toy until a trained small model is part of the package: it shows the pipeline, not an edit.
demo: $(READY)
	mkdir -p out
	$(BIN)/python -m sana_streaming toy out/toy
	$(BIN)/python -m sana_streaming edit "$$($(BIN)/python benchmarks/common.py bigbuckbunny.mp4)" out/demo.mp4 \
		--model out/toy --prompt "turn it into a watercolour" --height 160 --width 256 --max-frames 97 --sheet out/demo.png

clean:
	rm -rf .cache out build dist *.egg-info
