# `make` alone lists the targets. Everything runs in $(VENV), which is made on first use.

VENV ?= .venv
# The first interpreter that is new enough; set PYTHON=... to choose another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
DEMO ?= demo-output

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROGRAM := $(BIN)/captum-transformer-lrp
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One thread per test worker: the models are small, and threads that compete make them slower.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help install demo test slow oldest docs lint format types dist clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(INSTALLED) ## the virtual environment with the package and its tools

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.10 found: run 'make PYTHON=/path/to/python3'." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing PyTorch, the package and its tools: several gigabytes, a few minutes."
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

# What the README's programs need, without the tools of developers.
$(PROGRAM): setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing PyTorch and the package: several gigabytes, a few minutes."
	$(PIP_INSTALL) -e '.[cli]' scikit-image
	@touch $@

demo: $(PROGRAM) ## explain the bundled pictures and a sentence; writes $(DEMO)/report.html
	$(PROGRAM) demo --output $(DEMO)

test: $(INSTALLED) ## the tests that take seconds
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

slow: $(INSTALLED) ## the sweeps that take minutes
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow $(ARGS)

# A pin for each lower bound of the package itself; the tools of the tests are the newest that fit.
OLDEST := build/oldest
PINS = $$(sed -n '/^install_requires/,/^$$/s/^    \([A-Za-z]*\)>=\(.*\)/\1==\2/p' setup.cfg)
oldest: ## the tests that take seconds, with the oldest versions that setup.cfg allows (not on 3.13)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' $(PINS)
	# The newest torchao needs a newer PyTorch, and transformers fails to import beside it.
	$(OLDEST)/bin/python -m pip uninstall --quiet --yes torchao
	# The sweep builds every architecture of the newest timm and transformers.
	$(ONE_THREAD) $(OLDEST)/bin/python -m pytest -n $(WORKERS) --ignore=tests/sweep \
		--ignore=tests/test_sweep.py $(ARGS)

docs: $(INSTALLED) ## the documentation, the tutorials and the API reference as HTML, in site/
	# -W: a dead link, or a page that no other leads to, is an error.
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d build/doctrees . site
	@echo "open site/index.html"

lint: $(INSTALLED) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## mypy here; mypy and pyright, both strict, on what users write
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m slow tests/test_types.py

dist: $(INSTALLED) ## the wheel and the source archive, checked, in dist/
	rm -rf build dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

clean: ## remove what the other targets made, the virtual environment included
	rm -rf $(VENV) $(DEMO) site jupyter_execute build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
