# The operator's manual. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KLINES ?=
RECIPE ?= demo
WORKERS ?= 2
N ?= 40
QUICK := not gpu and not network and not slow and not whole

.PHONY: help install install-dev demo run test check drills mutants lint constraints docs up deploy ui-prefect ui-mlflow clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed, found {v.major}.{v.minor}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[service]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,service]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps kronos-model-arch==0.1.0
	@touch $@

install: $(VENV)/.installed  ## Create .venv and install the program

install-dev: $(VENV)/.installed-dev  ## Add the linters, test tools and upstream's package

demo: install  ## Run recipe demo offline, end to end (KLINES=DIR: over your own candles)
	$(BIN)/kronos run --recipe demo $(if $(KLINES),--klines "$(KLINES)")

run: install  ## Run one night against Binance (RECIPE=doge_1h)
	$(BIN)/kronos run --recipe $(RECIPE)

test: lint  ## Lint, types, import contracts, tests, in WORKERS=2 processes
	$(BIN)/pytest -n $(WORKERS)

check: lint  ## The same without the tests that start servers, processes, browsers or nights
	$(BIN)/pytest -n $(WORKERS) -m '$(QUICK)'

drills: install-dev  ## Thirty nights in a row through faults of all kinds, then all slow tests: stopped and killed sites
	$(BIN)/python -m tests.drills.nights
	$(BIN)/pytest -m slow

mutants: install-dev  ## N=40 single changes to the product, and how many of them the tests notice
	$(BIN)/python -m tests.mutants --count $(N)

lint: install-dev  ## Lint, types and import contracts only
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

constraints: install-dev  ## Write constraints.txt anew from what is installed
	$(BIN)/pip freeze --exclude-editable | sed -E 's/\+cpu$$//' | grep -vE '^(kronos-model-arch|kronos-nightly)' > constraints.txt

docs: install-dev  ## Write docs/recipes.md and the architecture picture anew from the code
	$(BIN)/python docs/make_recipes.py
	$(BIN)/python docs/make_architecture.py

up: install  ## Prefect, MLflow, the deployments and a worker on this machine, until Ctrl-C
	$(BIN)/kronos up

deploy: install  ## Bring the Prefect server at PREFECT_API_URL up to date with prefect.yaml
	$(BIN)/kronos deploy

ui-prefect: install  ## Open the Prefect UI over .kronos on http://127.0.0.1:4200
	$(BIN)/kronos ui prefect

ui-mlflow: install  ## Open the MLflow UI over .kronos on http://127.0.0.1:5000
	$(BIN)/kronos ui mlflow

clean:  ## Remove caches (never .kronos, never .venv)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
