# make run       sets up .venv, then trains the quickstart experiment (ARGS="--config.seed=1" adds overrides)
# make test      sets up .venv, then lint and the tests that are not slow
# make test-all  every test
# make mutants   which of many small faults in the source the tests notice (ARGS="--only=future_kl" for some of them)
# make lint      ruff alone
# make setup     only .venv; JAX="jax[tpu]" or JAX="jax[cuda12]" picks the accelerator, and is remembered
# make lock      requirements_lock.txt, which Bazel reads, anew: the versions that .venv has
# make clean     removes .venv and caches; runs/ stays
#
# PYTHON=/path/to/python names the interpreter that .venv is made from; it must be 3.12 or newer.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: setup run test test-all mutants lint lock clean FORCE

BIN := .venv/bin
STAMP := .venv/.installed
REQUIREMENTS := requirements.txt requirements-test.txt
EXPERIMENT ?= experiments/quickstart.py
WORKERS ?= 2
ARGS ?=

# The stamp holds the JAX variant that was installed, so a plain `make run` on a TPU host stays on jax[tpu].
INSTALLED := $(shell cat $(STAMP) 2>/dev/null)
JAX ?= $(or $(INSTALLED),jax)
ifneq ($(JAX),$(INSTALLED))
$(STAMP): FORCE
endif

# A candidate counts only if it really runs: a name on PATH may be a shim for a version that is not there.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))

$(STAMP): $(REQUIREMENTS)
	@if ! $(BIN)/python -c '$(USABLE)' 2>/dev/null; then \
	  found=; for python in "$(PYTHON)" python3.12 python3.13 python3; do \
	    if [ -n "$$python" ] && "$$python" -c '$(USABLE)' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'No Python 3.12 or newer with venv was found; install one, or name it: make PYTHON=/path/to/python3.12' >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$found"; \
	  "$$found" -m venv --clear .venv || exit 1; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(REQUIREMENTS:%=-r %) '$(JAX)'
	@echo '$(JAX)' > $@

setup: $(STAMP)

run: $(STAMP)
	$(BIN)/python launch/run.py --config=$(EXPERIMENT) $(ARGS)

test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not slow' $(ARGS)

test-all: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

lock: $(STAMP)
	$(BIN)/python tests/lock.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
