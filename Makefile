PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: help demo test torture bench clean
help:
	@echo "make demo     install into $(VENV), then ingest, train and inspect CartPole in a temporary folder"
	@echo "make test     install the dev extras into $(VENV), then format, lint, types, contracts and tests"
	@echo "make torture  the same install, then every crash, damage and fork suite at full length: some hours"
	@echo "make bench    install the bench extra and, into $(VENV)-torchrl, TorchRL; then measure beside them: some hours"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) -e '.[bench]'
	@touch $@

# TorchRL in an environment of its own; its extension is compiled where no wheel fits the pinned torch.
$(VENV)-torchrl/.installed: constraints.txt benchmarks/compare/build_torchrl.py
	$(PYTHON) -m venv $(VENV)-torchrl
	$(VENV)-torchrl/bin/pip install -q --disable-pip-version-check -c constraints.txt torch numpy setuptools ninja
	$(VENV)-torchrl/bin/pip install -q --disable-pip-version-check -c constraints.txt torchrl==0.14.1 tensordict==0.14.3
	PATH="$(abspath $(VENV)-torchrl/bin):$$PATH" $(VENV)-torchrl/bin/python -m benchmarks.compare.build_torchrl
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py

test: $(VENV)/.dev
	$(BIN)/python tools/check.py

torture: $(VENV)/.dev
	$(BIN)/python -m tests.torture

bench: $(VENV)/.bench $(VENV)-torchrl/.installed
	$(BIN)/python -m benchmarks --torchrl-python $(VENV)-torchrl/bin/python $(BENCH)

clean:
	rm -rf $(VENV) $(VENV)-torchrl build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
