# One command for each thing one does here. `make` lists them.
# The Python that .venv is made with: python3 where it is a supported one, else the first supported one on PATH.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	"$$python" -c '$(SUPPORTED)' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
PIP_LOCKED := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes
# Where the CPU build of torch is, if neither where pip looks nor on PyTorch's index: requirements/install_torch.py.
export TORCH_PIP TORCH_INDEX

.DEFAULT_GOAL := help
.PHONY: help setup demo up down test images fuzz check format openapi bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/installed  ## install everything into .venv

demo: .venv/installed  ## train three small models, quantize them through a local service, check every claim
	@$(BIN)/python -m local.demo

up: .venv/installed  ## start Redis, gateway and workers here, and leave them running
	@$(BIN)/python -m local.up

down: .venv/installed  ## stop what `make up` started
	@$(BIN)/python -m local.up down

test: .venv/installed  ## every test, against real Redis, Celery and HTTP
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m "not alone and not images" -n auto --dist worksteal
	@$(BIN)/pytest -m "alone and not images"

images: .venv/installed  ## build both images, run docker-compose.yml, quantize through it; the locks on two Debians
	@$(BIN)/python -m local.images
	@if [ "$$(id -u)" = 0 ] && command -v debootstrap >/dev/null; then $(BIN)/pytest -m images; \
	  else echo "Not tried on Debian's own Pythons: that wants root and debootstrap."; fi

fuzz: .venv/installed  ## half an hour of changed files for every parser in front of the sandbox; 2,000 drawn programs
	@$(BIN)/python -m tests.fuzz --minutes 30
	@FEWBIT_PROGRAMS=2000 OMP_NUM_THREADS=1 $(BIN)/pytest tests/workers/engine/programs/test_generated_programs.py

check: .venv/installed  ## lint, format, types, import rules, the OpenAPI document, known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict -p fewbit -p store -p service -p workers -p local
	@$(BIN)/lint-imports
	@$(BIN)/python -m service.openapi --check
	@$(BIN)/python -m local.audit

format: .venv/installed  ## let ruff sort imports and format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

openapi: .venv/installed  ## write openapi/openapi.json from the app
	@$(BIN)/python -m service.openapi

bench: .venv/installed  ## side by side with what one would use instead
	@$(PIP_LOCKED) -r requirements/bench.lock
	@$(BIN)/python -m benchmarks

lock:  ## write requirements/*.lock: the newest versions that pyproject.toml allows, by hash
	@$(PYTHON) requirements/lock.py --upgrade

clean: down  ## stop the stack; forget its data, caches and .venv
	@rm -rf .run .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

# --no-deps: what the locks leave out is not installed, and pip check says so.
.venv/installed: pyproject.toml requirements/torch.lock requirements/dev.lock | .venv/bin/python
	@echo "Installing into .venv (torch is large: a minute or two) ..."
	@$(BIN)/python requirements/install_torch.py
	@$(PIP_LOCKED) -r requirements/dev.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $@

# A venv whose ensurepip failed has a python and no pip: it must not be there the next time.
.venv/bin/python:
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' || { echo "Fewbit needs Python 3.11 to 3.14, and $(or $(PYTHON),what is on PATH) is none. Name one: make PYTHON=<path>"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
