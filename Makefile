# One command for each thing one does here. `make` lists them.
PYTHON ?= python3.11
BIN := .venv/bin
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
	@$(BIN)/pytest

fuzz: .venv/installed  ## half an hour of changed files for every parser in front of the sandbox
	@$(BIN)/python -m tests.fuzz --minutes 30

check: .venv/installed  ## lint, format, types, import rules, and the committed OpenAPI document
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict -p fewbit -p store -p service -p workers -p local
	@$(BIN)/lint-imports
	@$(BIN)/python -m service.openapi --check

format: .venv/installed  ## let ruff sort imports and format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

openapi: .venv/installed  ## write openapi/openapi.json from the app
	@$(BIN)/python -m service.openapi

bench: .venv/installed  ## side by side with what one would use instead
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[bench]' -c requirements.lock
	@$(BIN)/python -m benchmarks

lock:  ## write requirements.lock from what a fresh .venv gets today (a few minutes)
	@echo "Installing the newest versions that pyproject.toml allows ..."
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv "$$fresh" \
	  && "$$fresh/bin/pip" install -qq --disable-pip-version-check $(TORCH_PIP) torch==2.13.0 \
	  && "$$fresh/bin/pip" install -qq --disable-pip-version-check -e '.[dev]' \
	  && { echo '# The versions that were tested, as constraints: pip install -c requirements.lock ...'; \
	       echo '# Written by `make lock`; local version labels are left out.'; \
	       "$$fresh/bin/pip" freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; } > requirements.lock

clean: down  ## stop the stack; forget its data, caches and .venv
	@rm -rf .run .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

# torch first and exactly: a range would let pip bring a newer build with gigabytes of CUDA.
.venv/installed: pyproject.toml requirements.lock
	@echo "Installing into .venv (torch is large: a minute or two) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(TORCH_PIP) torch==2.13.0 -c requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c requirements.lock
	@touch $@
