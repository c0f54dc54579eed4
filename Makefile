# `make help` lists the targets. Set-up runs by itself when needed, and again when the files it reads have changed.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
KIND   := $(if $(CUDA),cuda,cpu)
STAMP  := .venv/.set-up-$(KIND)
RUN    := .venv/bin/python
# Each file whole in one of two processes, those with engines first (tests/conftest.py): what waits for an engine to start leaves a
# core to the others.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder
# Tests without engines wait for processes that they start, but take little memory.
check: PARALLEL = -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help quickstart check test static bench chaos setup constraints clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(STAMP)  ## the main job: teach a small policy sums of handwritten digits; ARGS="--steps 10" passes options on
	@$(RUN) -m recipes.digit_sums --resume auto $(ARGS)

check: static  ## imports, lint, format, types, and the tests that need no engine and no long time: less than 3 minutes on two cores
	@$(RUN) -m pytest $(PARALLEL) -m 'not engine and not slow and not gpu' $(ARGS)

test: static  ## the same with all tests; ARGS="-k sapo" passes options on to pytest, PARALLEL= runs one at a time
	@$(RUN) -m pytest $(PARALLEL) $(ARGS)

static: $(STAMP)
	@$(RUN) setup/check_imports.py & imports=$$!; \
	 $(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy && wait $$imports

bench: $(STAMP)  ## run every script in bench/; each prints a table and writes JSON
	@set -e; for script in bench/*.py; do $(RUN) -m bench.$$(basename $$script .py) $(ARGS); done

chaos: $(STAMP)  ## bring 100 random faults upon a real run, and compare it with an undisturbed one: 40 minutes on two cores
	@$(RUN) -m bench.chaos $(ARGS)

setup: $(STAMP)  ## create .venv and install; CUDA=1 for NVIDIA GPUs, PYTHON=... for another Python

$(STAMP): pyproject.toml constraints.txt $(wildcard setup/*.py)
	@$(PYTHON) setup/create_environment.py $(if $(CUDA),--cuda)

constraints:  ## resolve all dependencies anew and pin them in constraints.txt
	@$(PYTHON) setup/create_environment.py --upgrade

clean:  ## remove .venv, caches and build products; runs/ stays
	@rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
