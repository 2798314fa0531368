# One command for each thing one does here. `make` lists them.
PYTHON ?= python3.11
BIN := .venv/bin
PIP_LOCKED := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes
# Where pip finds the CPU build of torch when the default index has only the CUDA one, e.g. an --extra-index-url.
TORCH_PIP ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo up down test fuzz check format openapi bench lock clean

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
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m "not alone" -n auto --dist worksteal
	@$(BIN)/pytest -m alone

fuzz: .venv/installed  ## half an hour of changed files for every parser in front of the sandbox
	@$(BIN)/python -m tests.fuzz --minutes 30

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

lock:  ## write requirements/*.lock: the newest versions that pyproject.toml allows, by hash (ten minutes)
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv "$$fresh" \
	  && "$$fresh/bin/pip" install -qq --disable-pip-version-check -U pip pip-tools==7.6.2 \
	  && lock() { name=$$1; shift; echo "requirements/$$name.lock ..."; \
	       "$$fresh/bin/pip-compile" --quiet --generate-hashes --strip-extras --no-annotate --no-header \
	         $(TORCH_PIP) --no-emit-index-url --no-emit-find-links --no-allow-unsafe --unsafe-package torch --unsafe-package fewbit \
	         -o "requirements/$$name.lock" "$$@" pyproject.toml && sed -i '/^#/d; /^$$/d' "requirements/$$name.lock"; } \
	  && lock dev --upgrade --extra dev \
	  && lock bench -c requirements/dev.lock --extra dev --extra bench \
	  && lock gateway -c requirements/dev.lock --extra service \
	  && lock worker -c requirements/dev.lock --extra workers

clean: down  ## stop the stack; forget its data, caches and .venv
	@rm -rf .run .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

# torch is locked apart, to its CPU builds; --no-deps: what the locks leave out is not installed, and pip check says so.
.venv/installed: pyproject.toml requirements/torch.lock requirements/dev.lock
	@echo "Installing into .venv (torch is large: a minute or two) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP_LOCKED) $(TORCH_PIP) -r requirements/torch.lock || { echo "No CPU build of torch where pip looks: only those are installed (requirements/torch.lock). Name the index that has them: make TORCH_PIP=\"--extra-index-url <address>\""; exit 1; }
	@$(PIP_LOCKED) -r requirements/dev.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $@
