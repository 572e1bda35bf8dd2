# Two commands, on any machine with Python >= 3.10 and a package index: `make test` and `make demo`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
READY := $(VENV)/ready

.PHONY: help test demo slow coverage bench sbom clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile

test: $(READY)  ## formatting, lint, types and tests; all four run, and one failure is enough to fail
	@status=0; \
	echo "== ruff format"; $(BIN)/ruff format --check . || status=1; \
	echo "== ruff check"; $(BIN)/ruff check . || status=1; \
	echo "== mypy"; $(BIN)/mypy || status=1; \
	echo "== pytest"; $(BIN)/python -m pytest || status=1; \
	exit $$status

demo: $(READY)  ## convert a trained LoRA, export it, and score it beside the original
	@$(BIN)/python -W ignore::FutureWarning examples/02_convert.py

slow: $(READY)  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow

coverage: $(READY)  ## the lines that the tests run, room by room, into RELIABILITY.md
	@$(PIP) install 'coverage>=7.6'
	@$(BIN)/python tests/reliability/run.py coverage

bench: $(READY)  ## one table per question, each a ratio measured in one run
	@$(BIN)/python benchmarks/run.py --all

sbom: $(READY)  ## what is installed, its versions and licences, as CycloneDX JSON; fails where a part is off
	@$(BIN)/python tests/reliability/supply.py

clean:  ## remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# torch goes first, alone: the rest then finds it there and asks for no other build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tntune needs Python 3.10 or newer, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "installing into $(VENV): once, some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch
	@$(PIP) install --constraint constraints.txt --editable '.[dev,peft,plots,demo]'
	@touch $@
