# Every target sets up what it needs: a virtual environment from requirements.lock, made once.
#   make test PYTHON=python3.12     choose the interpreter (the environment is remade when it changes)
#   make test ARGS="-k gguf -x"     pass arguments on to pytest

VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
PY := $(BIN)/python

# An interpreter that is new enough: the environment's own where there is one, then `python3`,
# because that is the one the user chose.
NEW_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for p in "$(PY)" python3 python python3.14 python3.13 python3.12 python3.11; do \
  "$$p" -c "$(NEW_ENOUGH)" >/dev/null 2>&1 && { echo "$$p"; break; }; done)
endif
VERSION := $(shell "$(PYTHON)" -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>/dev/null)
CREATED := $(VENV)/created-$(VERSION).stamp
LOCKED := $(VENV)/locked-$(VERSION).stamp
INSTALLED := $(VENV)/installed-$(VERSION).stamp
NEWEST := $(VENV)/newest-$(VERSION).stamp
PIP := "$(PY)" -m pip --disable-pip-version-check --quiet --quiet

# Files stay on one worker, so that what a file compiles is compiled once.
PYTEST := "$(PY)" -m pytest -n logical --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-newest kernels archs lint format lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(INSTALLED) ## make the environment (.venv) with everything pinned

demo: $(INSTALLED) ## generate text with the bundled model and measure its perplexity
	@"$(BIN)/rfjax" demo

test: $(INSTALLED) ## run the tests
	@$(PYTEST) $(ARGS)

test-newest: $(NEWEST) ## run the tests without the lock, on the newest releases in range
	@$(PYTEST) $(ARGS)

kernels: $(INSTALLED) ## compile every kernel for AMD GPUs and write the tables of docs/kernels.md
	@JAX_PLATFORMS=cpu PYTHONPATH=tests "$(PY)" -m support.kernel_table

archs: $(INSTALLED) ## measure every architecture against llama.cpp and write docs/architectures.md
	@JAX_PLATFORMS=cpu PYTHONPATH=tests "$(PY)" -m support.arch_record $(ARGS)

lint: $(INSTALLED) ## everything CI checks besides the tests
	"$(PY)" -m ruff check
	"$(PY)" -m ruff format --check
	"$(PY)" -m pyright --pythonpath "$(PY)"
	"$(PY)" -m vulture
	"$(PY)" -m pytest -q tests/test_layering.py

format: $(INSTALLED) ## format the code and apply ruff's safe fixes
	"$(PY)" -m ruff check --fix
	"$(PY)" -m ruff format

lock: $(CREATED) ## resolve requirements.lock anew (needs a package index)
	$(PIP) install uv
	"$(PY)" -m uv pip compile --quiet --system-certs --upgrade --universal --python-version 3.11 \
	  --extra test --extra lint --custom-compile-command "make lock" \
	  --output-file requirements.lock pyproject.toml

clean: ## remove the environments and every cache
	rm -rf .venv .venv-newest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .jax_cache
	find rfjax tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Where ensurepip is missing (Debian without python3-venv), the interpreter's own pip fills in.
$(CREATED):
	@"$(PYTHON)" -c "$(NEW_ENOUGH)" 2>/dev/null || { \
	  echo "rfjax needs Python 3.11 or newer with its venv module; found: $(or $(PYTHON),none on PATH)." >&2; \
	  echo "Install one, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) with Python $(VERSION); the first time takes a minute or two."
	@if "$(PYTHON)" -c "import ensurepip" 2>/dev/null; then "$(PYTHON)" -m venv --clear "$(VENV)"; else \
	  "$(PYTHON)" -m venv --clear --without-pip "$(VENV)" && \
	  "$(PYTHON)" -m pip --quiet --quiet --python "$(PY)" install pip; fi
	@touch "$@"

$(LOCKED): $(CREATED) requirements.lock
	@$(PIP) install -r requirements.lock
	@touch "$@"

# PYTHONWARNINGS: setuptools describes at length what an editable installation is.
$(INSTALLED): $(LOCKED) pyproject.toml
	@PYTHONWARNINGS=ignore $(PIP) install --no-deps --editable .
	@touch "$@"

$(NEWEST): $(CREATED) pyproject.toml
	@PYTHONWARNINGS=ignore $(PIP) install --upgrade --editable ".[test]"
	@touch "$@"
