# Every target sets itself up: a machine with Python 3.11 or newer and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-full lint format setup clean docs

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,lint,train]'
	@touch $@

demo: setup  ## make a small collection, annotate it, print how many answers are right
	$(BIN)/paliscribe demo

test: setup  ## every test that runs without a GPU
	$(BIN)/python -m pytest

test-full: setup  ## the same and what takes long: every precision, every forced path, a thousand requests
	FULL=1 $(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## regenerate the tables that come from the code
	$(BIN)/python docs/tables.py

clean:
	rm -rf $(VENV) build *.egg-info demo-output
