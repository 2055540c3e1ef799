PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: help demo test torture clean
help:
	@echo "make demo     install into $(VENV), then ingest, train and inspect CartPole in a temporary folder"
	@echo "make test     install the dev extras into $(VENV), then format, lint, types, contracts and tests"
	@echo "make torture  the same install, then every crash, damage and fork suite at full length: some hours"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py

test: $(VENV)/.dev
	$(BIN)/python tools/check.py

torture: $(VENV)/.dev
	$(BIN)/python -m tests.torture

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
