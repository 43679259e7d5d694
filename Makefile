# Every target sets itself up: a machine with Python 3.11 or newer and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Exact versions of all packages; `make test LOCK=` takes the newest that pyproject.toml allows.
LOCK ?= infra/constraints.txt
# Compiled once, by all cores: where PYTHONDONTWRITEBYTECODE is set, every process would compile what it imports.
INSTALL = -m pip install --quiet --no-compile --editable '.[test,lint,train]' $(if $(LOCK),--constraint $(LOCK))
# Two processes, a file in one of them.
TWO = -n 2 --dist loadfile
SLOWEST = --durations=15 --durations-min=5
# Tests without Ray in the background, and those with it, which do not wait for them (Ray gives its workers a niceness
# of 15); the output of the former comes last.
define lanes
mkdir -p build; status=0; \
	nice -n 19 $(BIN)/python -m pytest $(TWO) $(SLOWEST) -m "$(1)" > build/without-ray.log 2>&1 & others=$$!; \
	trap "kill $$others" INT TERM; \
	RAY_worker_niceness=0 $(BIN)/python -m pytest $(SLOWEST) -m "$(2)" $(3) || status=1; \
	wait $$others || status=1; \
	cat build/without-ray.log; exit $$status
endef

.DEFAULT_GOAL := help
.PHONY: help demo test quick test-long test-full lint format setup lock clean docs

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## an environment with the versions of the lock

$(VENV)/.installed: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL)
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some files are for other versions of Python
	@touch $@

demo: setup  ## make a small collection, annotate it, print how many answers are right
	$(BIN)/paliscribe demo

quick: setup  ## tests without Ray, browser and long computation: under two minutes
	$(BIN)/python -m pytest $(TWO) -m "not cluster and not slow"

test: setup  ## the tests that need no GPU and minutes: those with Ray, and beside them, with less priority, the others in two processes
	@$(call lanes,not cluster,cluster,tests/front)

test-long: setup  ## tests that start clusters again and again or compute for half a minute; PART=1/3: a third of them
	@export LONG=1 PART=$(or $(PART),1/1); $(call lanes,long and not cluster,long and cluster)

test-full: setup  ## all tests, and what takes hours: all paths of the CPU libraries, all precisions, full sizes
	FULL=1 $(BIN)/python -m pytest

lint: setup  ## ruff, mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: setup  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## regenerate the tables that come from the code
	$(BIN)/python docs/tables.py

lock:  ## write the lock anew: the newest versions that pyproject.toml allows; then `make test`
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --editable '.[test,lint,train]' packaging
	build/lock/bin/python infra/lock.py && rm -rf build/lock

clean:  ## remove what was built and installed
	rm -rf $(VENV) build *.egg-info pipeline/*.egg-info demo-output
