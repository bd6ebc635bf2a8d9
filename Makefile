# Everything here works on a machine that has only make and Python 3.11 or later: the first target
# that needs it makes .venv and installs into it; a changed pyproject.toml installs again.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHONS := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help demo test bench check format clean
.DELETE_ON_ERROR:

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-8s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed ## index a folder, kill -9 in the middle, go on, compare
	@$(BIN)/perdure demo

test: $(VENV)/.installed-test ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.installed-test ## measure the engine against a bare program that writes the same rows
	@$(BIN)/python bench/run.py $(ARGS)

check: $(VENV)/.installed-test ## lint, format, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright tests/typing/accepted.py
	@$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.installed-test ## rewrite the sources in the one format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis

# Candidates are run, not only looked up: a version manager's shim exists and then fails.
$(VENV)/bin/python:
	@for candidate in $(PYTHONS); do \
	    if "$$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "setting up $(VENV) with $$("$$candidate" --version)"; \
	        exec "$$candidate" -m venv --clear $(VENV); \
	    fi; \
	done; \
	echo "no Python 3.11 or later with venv found (tried: $(PYTHONS));" \
	    "install one, or name it: make PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing perdure"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing perdure and its development tools"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed
