# Every target sets up what it needs. `make help` lists them.
#   PYTHON=python3.12 make test     chooses the interpreter
#   EXTRAS=tpu make setup           or cuda, gcs: what the machine needs beside the core
#   make quickstart STEPS=1000      trains longer
#   TORCH="torch --index-url URL" make test-torch    PyTorch for its tests from another place
SHELL := /bin/bash
VENV ?= .venv
# With the CUDA compiler: 6 GB that nothing but the slow tests marked `cuda` needs.
CUDA_VENV ?= .venv-cuda
EXTRAS ?=
STEPS ?=
OUT ?= runs/quickstart
# What slow tests need and `make test` does not: lm-evaluation-harness, which brings no PyTorch.
SLOW_EXTRAS := eval
comma := ,
# Test processes side by side.
JOBS ?= 2
# For pytest, as in EXTRA_OPTIONS="--exitfirst --durations=20".
EXTRA_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-cuda quickstart test test-slow test-torch test-cuda lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## the virtual environment in .venv; quick if it is there
	@.ci/venv.sh $(VENV) "$(EXTRAS)"

setup-cuda:  ## the same with the CUDA compiler, in .venv-cuda: 6 GB, no GPU is needed
	@.ci/venv.sh $(CUDA_VENV) plan-cuda

quickstart: setup  ## trains, evaluates and samples from a 64-sub-layer Keel on the embedded corpus
	@$(VENV)/bin/python -m experiments.quickstart --output=$(OUT) $(if $(STEPS),--num_steps=$(STEPS))

lint: setup  ## style, formatting and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

test: lint  ## the suite, without its slow part
	@$(VENV)/bin/python -m keel_jax.runtime.versions
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist=loadfile -m "not slow" $(EXTRA_OPTIONS) tests

# Besides its own extras it installs those that slow tests alone need.
test-slow: override EXTRAS := $(if $(EXTRAS),$(EXTRAS)$(comma))$(SLOW_EXTRAS)
test-slow: setup  ## the slow part: minutes
	@$(VENV)/bin/python -m keel_jax.runtime.versions
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist=loadfile -m "slow and not torch and not cuda" $(EXTRA_OPTIONS) tests

test-torch: setup  ## slow tests with PyTorch, which it installs: for CPUs alone where it can
	@.ci/torch.sh $(VENV)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist=loadfile -m torch $(EXTRA_OPTIONS) tests

test-cuda: setup-cuda  ## slow tests with the CUDA compiler
	@$(CUDA_VENV)/bin/python -m keel_jax.runtime.versions
	$(CUDA_VENV)/bin/python -m pytest -n $(JOBS) --dist=loadfile -m cuda $(EXTRA_OPTIONS) tests

clean:  ## removes the virtual environments and the caches; runs/ stays
	rm -rf $(VENV) $(CUDA_VENV) .venv-newest .pytest_cache .ruff_cache *.egg-info
