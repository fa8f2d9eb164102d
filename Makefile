# One environment in .venv serves every target. TORCH is the build to install:
#   make setup TORCH="torch --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TYPECHECK := .cache/typecheck

.PHONY: setup lint test demo bench clean

setup: $(READY)

$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[standalone,dev]"
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy needs the root under its package name; the root's own folder may be called anything.
	mkdir -p $(TYPECHECK) && ln -sfn ../.. $(TYPECHECK)/sana_streaming
	cd $(TYPECHECK) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --package sana_streaming

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf .cache out build dist *.egg-info
