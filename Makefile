# One virtual environment per interpreter: .venv for python3.11, .venv-python3.13 for `make test PYTHON=python3.13`.
PYTHON ?= python3.11
VENV := $(if $(filter python3.11,$(notdir $(PYTHON))),.venv,.venv-$(notdir $(PYTHON)))
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

export PIP_CONSTRAINT := $(CURDIR)/ci/constraints.txt
export MPLBACKEND := Agg

.DELETE_ON_ERROR:
.PHONY: help setup demo test coverage lint format docs notebooks clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

setup: $(READY) ## create the environment

# Under pyenv an interpreter that is installed but not selected runs only when it is named; elsewhere this has no effect.
$(READY): export PYENV_VERSION := $(patsubst python%,%,$(notdir $(PYTHON)))
$(READY): pyproject.toml ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --editable . --group test --group doc --group dev
	touch $@

demo: export OMP_NUM_THREADS := 1
demo: export NUMBA_NUM_THREADS := 1
demo: $(READY) ## simulate, fit and plot; writes into demo/
	$(PY) scripts/demo.py

# Two workers with one thread each: more threads only compete on small data. The few long tests are shared out at the end.
test: export OMP_NUM_THREADS := 1
test: export NUMBA_NUM_THREADS := 1
test: $(READY) ## all tests, and the examples of the docstrings
	$(PY) -m pytest -n 2 --dist worksteal --doctest-modules src tests

coverage: export OMP_NUM_THREADS := 1
coverage: export NUMBA_NUM_THREADS := 1
coverage: $(READY) ## the same with line coverage
	$(PY) -m pytest -n 2 --dist worksteal --doctest-modules --cov --cov-report=term src tests

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
