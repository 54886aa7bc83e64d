# Every target sets up what it needs. `make help` lists them.
#   PYTHON=python3.12 make test     chooses the interpreter
#   make quickstart STEPS=2000      trains longer
SHELL := /bin/bash
VENV ?= .venv
EXTRAS ?= dev
STEPS ?=
OUT ?= runs/quickstart
# Test processes side by side.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# One stamp per set of extras and interpreter, renewed when the dependencies change.
STAMP := $(VENV)/.installed-$(subst $(eval ) ,,$(subst /,_,$(EXTRAS)-$(PYTHON)))
$(STAMP): setup.py pyproject.toml .ci/venv.sh
	@.ci/venv.sh $(VENV) $(EXTRAS)
	@touch $@

setup: $(STAMP)  ## the virtual environment in .venv

quickstart: $(STAMP)  ## trains, evaluates and samples from a 64-sub-layer Keel on the embedded corpus
	@$(VENV)/bin/python -m experiments.quickstart --output=$(OUT) $(if $(STEPS),--num_steps=$(STEPS))

lint: $(STAMP)  ## style
	@$(VENV)/bin/ruff check .

test: lint  ## the suite, without its slow part
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist=loadfile -m "not slow" tests

test-slow: $(STAMP)  ## the slow part: minutes
	$(VENV)/bin/python -m pytest -m slow tests

clean:  ## removes the virtual environment and the caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
