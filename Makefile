# Everything a developer types. `make` alone lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := rompatch tests migrations $(wildcard scripts benchmarks)

# The environment's commands come first for every recipe, so that scripts find `rompatch` by its name.
# OpenMP threads that spin while they wait make torch many times slower where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv demo test fast lint check docs bench clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP) ## make .venv and install rompatch and its tools in it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	  echo "rompatch needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make venv PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)." >&2; exit 1; }
	@$(BIN)/python -m pip install --no-input --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## run the main job on the real default model: create, apply, generate, verify, revert, bake
	@bash scripts/demo.sh

# A worker for each core; a file's tests stay together, with the models that they share.
PYTEST := $(BIN)/pytest -q --numprocesses auto --dist loadfile

test: $(STAMP) ## run every test, those on the real model included
	@OMP_NUM_THREADS=1 $(PYTEST)

fast: $(STAMP) ## run the tests that need no real model
	@OMP_NUM_THREADS=1 $(PYTEST) -m "not slow"

lint: $(STAMP) ## ruff, formatting, types
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy --strict --package rompatch

check: lint test ## what CI runs: lint, then every test (the import ranks are one of them)

docs: $(STAMP) ## write docs/cli.md from the commands' own help
	@$(BIN)/python -m rompatch.cli.reference

# Measured with threads that spin: the sides of a ratio take turns, and nothing else should run meanwhile.
bench: $(STAMP) ## measure speed and memory: edits, key statistics, start-up; about 20 minutes on quiet cores
	@for each in "speed.py --plot docs/images/growth.svg" key_statistics.py memory.py startup.py; do \
	  echo "== $$each"; env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/$$each || exit 1; done

clean: ## remove the environment and everything built
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find rompatch tests migrations -name __pycache__ -type d -prune -exec rm -rf {} +
