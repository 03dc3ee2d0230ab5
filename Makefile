# One target per habit; CI runs the same ones. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Warnings of other packages' build steps are not ours to fix.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test test-all check format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with everything that the project needs

$(STAMP): requirements.txt requirements-dev.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 …"; exit 1; }
	@echo "installing into $(VENV), once" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet -r requirements-dev.txt
	@$(PIP) install --quiet --no-deps -e .
	@touch $(STAMP)

demo: install ## a whole subnet on this machine: chain, validator, miners, a rental; DOCKER=1: in containers
	@$(BIN)/python -m compute.demo $(if $(filter-out 0,$(DOCKER)),--docker) $(ARGS)

# --dist worksteal: a worker that has nothing left takes tests from another.
test: install ## everything that a change can break; ARGS="-k lease": a part of it
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long" $(ARGS)

test-all: install ## the long stories too
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: install ## format, lint, types, and whether documentation and code say the same
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not e2e" \
		tests/unit/test_docs.py tests/unit/test_architecture.py tests/e2e/test_commands.py tests/e2e/test_manual.py

format: install ## rewrite the files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## measure, write build/bench.json and print it; ARGS=subnet: that section alone
	@$(BIN)/python test-scripts/bench.py $(ARGS)

clean: ## remove everything that can be made again
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
