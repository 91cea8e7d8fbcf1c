SHELL := bash
# One command is enough on a fresh machine with Python 3.11 or newer and make: every target installs what it needs.
#
#   PYTHON      the interpreter that .venv is made with
#   PIP_FLAGS   options for pip install, such as an index that has a CPU-only or another CUDA build of torch

PYTHON ?= python3
PIP_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.installed-dev
DEMO := $(VENV)/.installed-demo
# A demo needs fewer packages than development, which includes them: take what is there already.
DEMO_OR_DEV := $(if $(wildcard $(DEV)),$(DEV),$(DEMO))

BUILT := build/types

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint types bench performance resources clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(DEMO_OR_DEV) ## finetune a small language model by RL, with uniform prompts and with ours, and compare
	$(BIN)/bayes-prompt demo $(ARGS)

test: lint ## check style and types, then run the tests (the slow ones apart)
	$(BIN)/pytest

test-all: lint ## the same with the slow tests
	$(BIN)/pytest -m ""

lint: $(DEV) ## check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

# kernels/ is bayes_prompt.kernels only once it is installed, so types are checked on the built package. Its paths are
# then written as they are in the repository. build/lib goes first: setuptools would ship modules deleted since.
types: $(DEV)
	@rm -rf $(BUILT) build/lib build/bdist.*
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-compile --target $(BUILT) .
	@set -o pipefail; cd $(BUILT) && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p bayes_prompt 2>&1 | sed 's#^bayes_prompt/kernels/#kernels/#'

# First what is compared must agree: no time is told while a test is red.
bench: $(DEV) ## run the benchmarks
	$(BIN)/pytest benchmarks
	$(BIN)/pytest benchmarks --benchmark-only $(ARGS)

performance: $(DEV) ## write the tables and plots of docs/performance.md from benchmarks/results
	$(BIN)/python -m bayes_prompt.bench.report benchmarks/results --docs docs

# By way of another file: what a failure leaves half written must not replace the table.
resources: $(DEV) ## write docs/kernel_resources.md: registers, spills and shared memory of every kernel
	@mkdir -p build docs
	env -u TRITON_INTERPRET $(BIN)/python -m bayes_prompt.kernels.ahead_of_time --markdown > build/kernel_resources.md
	mv build/kernel_resources.md docs/kernel_resources.md

clean: ## remove what these commands made here (the demo keeps its warm starts in the user's cache folder)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks bayes-prompt-demo \
		bayes-prompt-bench
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed; \
	$(PYTHON) is {sys.version.split()[0]}. Name another one: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(DEV) $(DEMO): $(VENV)/.installed-%: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e '.[$*]'
	@touch $@
