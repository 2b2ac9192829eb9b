# Everything that a fresh clone needs is Python 3.11+ (with venv and pip) and make. `make help` lists the verbs.

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	"$$p" -c 'import sys, venv, ensurepip, ssl; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
PYTEST := $(BIN)/python -m pytest $(PYTEST_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check lint types floors docs bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ ##/' | awk -F ' ## ' '{printf "make %-10s %s\n", $$1, $$2}'

# torch alone and first: asked for together with the rest, pip may look at looser requests and fetch several GB of CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Whet needs Python 3.11 or newer with venv and pip; set PYTHON=/path/to/python" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "installing into .venv (about a minute the first time)"
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[compress,llm,dev]'
	@touch $@

demo: $(INSTALLED)  ## trains a small model, optimises it and writes a report
	$(BIN)/python -m whet.demo

test: $(INSTALLED)  ## every test, the slow ones too
	$(PYTEST)

test-fast: $(INSTALLED)  ## the tests without the slow ones, on two cores; those that measure time come last and alone
	$(PYTEST) -n 2 -m "not slow and not timing"
	$(PYTEST) -m "not slow and timing"

check: lint types test  ## what CI runs: lint, types, and every test (floors and documentation are tests)

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

floors: $(INSTALLED)  ## only the tests that hold up the floors and the house rules
	$(PYTEST) tests/test_floors.py

docs: $(INSTALLED)  ## only the tests of the documentation
	$(PYTEST) tests/test_docs.py

bench: $(INSTALLED)  ## compares with the other quantisers (in environments that it makes) and writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/ptq.py

clean:  ## removes .venv, caches and what runs left behind
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache build dist
	find src tests benchmarks -path benchmarks/.envs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
