# Two commands for a newcomer: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= $(or $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done),python3)
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt
PYTEST_ARGS ?=
FAULTS_ARGS ?=
# The build of PyTorch: cpu on Linux where no NVIDIA GPU is seen, since the other one brings gigabytes of CUDA.
TORCH ?= $(shell if [ "$$(uname -s)" = Linux ] && ! nvidia-smi -L 2>/dev/null | grep -q GPU && ! [ -e /dev/nvidia0 ]; \
	then echo cpu; else echo default; fi)
# A process for each processor, and one thread in each: more would only wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(nproc) --maxprocesses 4

TORCH_PIN = $$(grep '^torch==' constraints.txt)
TORCH_default = $(PIP) $(TORCH_PIN)
TORCH_cpu = $(PIP) --no-deps $(TORCH_PIN)+cpu 2>/dev/null \
	|| $(PIP) --no-deps --index-url https://download.pytorch.org/whl/cpu $(TORCH_PIN)+cpu \
	|| { echo 'The CPU build of PyTorch cannot be fetched; the default build is taken.' >&2; $(TORCH_default); }

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults check bench audit fuzz screenshots format clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.setup ## .venv with Tunesmith, every extra and the pinned versions; running it again reuses it
	@:

demo: .venv/.default ## a fine-tuned model in a few minutes, judged on held-out rows against its base
	$(BIN)/tunesmith demo

test: .venv/.setup-test ## every test; PYTEST_ARGS="-k name" chooses some
	$(PYTEST) $(PYTEST_ARGS)

faults: .venv/.setup-test ## what kills, signals, full disks and damage lose, as a table; FAULTS_ARGS="kill" chooses rows
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(FAULTS_ARGS)

check: .venv/.setup-dev ## lint, format, types, import contracts and the fast tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

bench: .venv/.setup-dev ## Tunesmith beside other trainers; QUICK=1 takes under 12 minutes, BENCH_ARGS is passed on
	$(BIN)/python bench/peers.py $(if $(QUICK),--quick) $(BENCH_ARGS)

audit: .venv/.setup-dev .venv-audit/.ready ## known holes of the pinned versions, and the licences; exit code 4: nobody answered
	$(BIN)/python docs/audit.py

fuzz: .venv/.setup-test ## ten minutes of torn inputs for each reader; SECONDS=60 is shorter, a crash is kept as a seed of the tests
	$(PIP) atheris || echo 'atheris has no build for this Python and system: hypothesis works alone.'
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600)

screenshots: .venv/.setup ## the pictures of docs/watching.md, from a run of examples/lora.yaml
	$(BIN)/python docs/screenshots.py

format: .venv/.setup-dev ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove .venv and the caches, never a run
	rm -rf .venv .venv-audit .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The auditor has an environment of its own, so that it adds nothing to what it audits.
.venv-audit/.ready: .venv/.python
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --disable-pip-version-check -qq 'pip-audit>=2.9'
	@touch $@

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Tunesmith needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -1)." >&2; \
		echo "Name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch first and alone, so that its pin, not another package's range, decides which build is taken. The CPU build is
# taken from your own package index if that has it, else from PyTorch's.
.venv/.torch: constraints.txt .venv/.python
	@echo 'Installing the pinned dependencies into .venv; the first time takes some minutes.'
	$(TORCH_$(TORCH))
	@touch $@

.venv/.default: pyproject.toml .venv/.torch
	$(PIP) -e .
	@touch $@

.venv/.setup: .venv/.default
	$(PIP) -e '.[all]'
	@touch $@

.venv/.setup-test: .venv/.setup
	$(PIP) -e '.[test]'
	@touch $@

.venv/.setup-dev: .venv/.setup-test
	$(PIP) -e '.[dev]'
	@touch $@
