# Every target makes what it needs: a virtual environment in .venv, and the packages of
# pyproject.toml from the package index. pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) hold,
# e.g. to take a CPU build of torch for `make parity`.

PYTHON ?= python3
BIN := .venv/bin
# Two test files at a time: half of the time is compiling, which takes one core.
PYTEST_AT_A_TIME ?= --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all parity check format docs bench matrix dist clean
.DELETE_ON_ERROR:

help:
	@echo "make setup    install everything but torch into .venv"
	@echo "make demo     the paper in miniature: small trained encoders, offline -> runs/demo"
	@echo "make test     the fast tests (no torch; real speech if SPEECHSIM_SPEECH names a folder)"
	@echo "make test-all all tests but those with torch"
	@echo "make parity   the comparisons with torch transformers"
	@echo "make check    format, lint, types and who may import whom"
	@echo "make format   rewrite the sources as check wants them"
	@echo "make docs     the documentation with its API pages -> build/docs"
	@echo "make bench    time and memory of the whole job on the speech that SPEECHSIM_SPEECH names"
	@echo "make matrix   all tests on Colab's, the default and the newest libraries"
	@echo "make dist     the source distribution, and the wheel that is built from it -> dist"
	@echo "make clean    remove the virtual environments"

setup: .venv/.demo .venv/.test .venv/.dev

demo: .venv/.demo
	$(BIN)/python -m experiments.demo --workdir=runs/demo

test: .venv/.test
	$(BIN)/python -m pytest $(PYTEST_AT_A_TIME)

test-slow: .venv/.test
	$(BIN)/python -m pytest $(PYTEST_AT_A_TIME) -m "slow and not parity"

test-all: test test-slow

parity: .venv/.parity .venv/.test
	$(BIN)/python -m pytest $(PYTEST_AT_A_TIME) -m parity tests

check: .venv/.dev .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

bench: .venv/.demo
	$(BIN)/python -m experiments.benchmark --what=memory

dist: .venv/.dev
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf .venv .venv-colab .venv-default .venv-newest

# A stamp is made last, so whatever was interrupted is done again.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python " \
	  + sys.version.split()[0] + "; 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.demo .venv/.test .venv/.parity .venv/.dev .venv/.docs: .venv/.%: .venv/.made pyproject.toml
	@echo "installing .[$*] into .venv (the first time takes a minute or more)"
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

# --- matrix: each set of requirements/ in an environment of its own ---

# The first Python among these versions that runs, on the PATH or under pyenv; else nothing.
find_python = $(shell for version in $(1); do \
    for python in python$$version \
      $$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version".*/bin/python 2>/dev/null); do \
      $$python -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)' \
        2>/dev/null && exit; \
    done; \
  done)

PYTHON_COLAB ?= $(call find_python,3.13 3.12 3)
PYTHON_DEFAULT ?= $(call find_python,3.11)
PYTHON_NEWEST ?= $(call find_python,3.14 3.13 3.12 3)
MATRIX_PYTEST ?= -q

matrix: matrix-colab matrix-default matrix-newest

.PHONY: matrix-colab matrix-default matrix-newest
matrix-colab: python = $(PYTHON_COLAB)
matrix-default: python = $(PYTHON_DEFAULT)
matrix-newest: python = $(PYTHON_NEWEST)

matrix-colab matrix-default matrix-newest: matrix-%:
	@set -e; python="$(python)"; venv=.venv-$*; pins=requirements/$*.txt; \
	if [ -z "$$python" ]; then \
	  echo "matrix $*: SKIPPED, no Python found for it; make matrix PYTHON_$(shell \
	    echo $* | tr a-z A-Z)=/path/to/python"; \
	  exit; \
	fi; \
	if ! [ $$venv/.test -nt pyproject.toml ] || ! [ $$venv/.test -nt $$pins ]; then \
	  echo "matrix $*: installing .[test] with $$pins into $$venv"; \
	  "$$python" -m venv --clear $$venv; \
	  $$venv/bin/python -m pip install --quiet --editable '.[test]' --constraint $$pins; \
	  touch $$venv/.test; \
	fi; \
	$$venv/bin/python -c 'import platform, jax, flax, numpy; print("matrix $*: Python", \
	  platform.python_version(), "jax", jax.__version__, "flax", flax.__version__, \
	  "numpy", numpy.__version__)'; \
	$$venv/bin/python -m pytest $(PYTEST_AT_A_TIME) -m "not parity" $(MATRIX_PYTEST)
