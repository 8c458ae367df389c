# Development happens in .venv, with python3.11. Two more environments only run tests: .venv-python3.13, with the newest
# releases, for `make test PYTHON=python3.13`, and .venv-lowest, with the lowest that pyproject.toml allows, for
# `make test VERSIONS=lowest`. uv makes them, as pip has no way to ask for the lowest releases.
PYTHON ?= python3.11
VERSIONS ?= newest
VENV := .venv$(patsubst %,-%,$(filter-out python3.11,$(notdir $(PYTHON))))$(patsubst %,-%,$(filter lowest,$(VERSIONS)))
PY := $(VENV)/bin/python
RESOLUTION := $(if $(filter lowest,$(VERSIONS)),lowest-direct,highest)
READY := $(VENV)/.ready

export PIP_CONSTRAINT := $(CURDIR)/ci/constraints.txt
export MPLBACKEND := Agg

.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-all coverage lint format docs notebooks clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: $(READY) ## create the environment

# Under pyenv an interpreter that is installed but not selected runs only when it is named; elsewhere this has no effect.
$(READY): export PYENV_VERSION := $(patsubst python%,%,$(notdir $(PYTHON)))
$(READY): pyproject.toml ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
ifeq ($(VENV),.venv)
	$(PY) -m pip install --quiet --editable . --group test --group doc --group dev
else
	$(PY) -m pip install --quiet "uv>=0.7"
	$(PY) -m uv pip install --quiet --python $(PY) --resolution $(RESOLUTION) --editable . --group test
endif
	touch $@

demo: export OMP_NUM_THREADS := 1
demo: export NUMBA_NUM_THREADS := 1
demo: $(READY) ## simulate, fit and plot; writes into demo/
	$(PY) scripts/demo.py

# Two workers with one thread each: more threads only compete on small data. The few long tests are shared out at the end.
PYTEST := $(PY) -m pytest -n 2 --dist worksteal
test test-slow coverage: export OMP_NUM_THREADS := 1
test test-slow coverage: export NUMBA_NUM_THREADS := 1

test: $(READY) ## the quick tests, within eight minutes on two cores, and the examples of the docstrings
	$(PYTEST) -m "not slow" --doctest-modules src tests

test-slow: $(READY) ## the tests marked slow
	$(PYTEST) -m slow tests

test-all: test test-slow ## all tests

coverage: $(READY) ## all tests with line coverage
	$(PYTEST) --doctest-modules --cov --cov-report=term src tests

lint: $(READY) ## style (binding) and types (for information)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	-$(PY) -m mypy

format: $(READY) ## let ruff put things right
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(READY) ## build docs/_build/html anew; every warning is an error
	rm -rf docs/_build docs/api
	$(PY) -m sphinx -M html docs docs/_build -W --keep-going

notebooks: $(READY) ## run the tutorials again with full settings and keep their output
	$(PY) -m nbconvert --to notebook --execute --inplace tutorials/*.ipynb

clean: ## remove what was built, but not the environments
	rm -rf build demo dist docs/_build docs/api docs/tutorials .mypy_cache .pytest_cache .ruff_cache
