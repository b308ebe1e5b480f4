# TEMPT: `make` lists the targets.
#   PYTHON=...       the interpreter that makes .venv (3.11 or newer)
#   TORCH_INDEX=URL  where pip takes torch from, instead of its own settings

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo deploy test test-slow test-faults test-containers bench bench-prepare bench-federation lint clean

# The first of these that is 3.11 or newer, else python3, which `setup` then refuses in plain words.
PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; done; echo "$$p")
TORCH_INDEX ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
STAMP := .venv/installed-in

# The stamp holds the folder's name: an environment that was copied or moved is made anew, as it would run the old code.
ifneq ($(shell test -e $(STAMP) && test "$$(cat $(STAMP))" != "$$(pwd -P)" && echo moved),)
MOVED := yes
.PHONY: $(STAMP)
endif

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with everything (minutes, once)

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'error: "$(PYTHON)" is not Python 3.11 or newer; install Python 3.11, or name one: make setup PYTHON=/path/to/python3.11' >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'error: "$(PYTHON)" has no module venv or ensurepip; install it (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 2; }
	@echo 'Setting up .venv: torch and the other packages of constraints.txt; this takes some minutes.'
	@"$(PYTHON)" -m venv $(if $(MOVED),--clear) .venv
	@echo venv > .venv/.tempt
	@$(PIP) install --constraint constraints.txt pip
# torch first and alone: only it may come from another index, whose other packages need not be the pinned ones.
	@$(PIP) install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)",--constraint constraints.txt) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --constraint constraints.txt --build-constraint constraints.txt --group dev --editable '.[ray,report]'
	@$(PIP) check >/dev/null
	@pwd -P > $(STAMP)
	@case "$$(pwd -P)" in *' '*) echo 'note: this path has a blank, which servers of Flower (tempt server launch, flwr run) do not take' ;; esac
	@echo 'Done: $(BIN)/tempt --help'

demo: setup ## the main job on a made-up consortium (under 5 minutes)
	@$(BIN)/tempt simulate centralized --out runs/demo --force

deploy: setup ## deploy/: what docker-compose.yml mounts, with three made-up hospitals
	@$(BIN)/python -m sim.deploy_folder deploy

test: setup ## the fast tests
	@$(BIN)/python -m pytest -m 'not slow and not faults and not containers'

test-slow: setup ## the slow tests
	@$(BIN)/python -m pytest -m slow

test-faults: setup ## federations of real processes, some of which are killed
	@$(BIN)/python -m pytest -m faults

test-containers: setup ## docker-compose.yml for real, with podman; as root
	@TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python -m pytest -m containers

bench: setup ## records a second, against the plain way and the machine
	@$(BIN)/python -m sim.bench

bench-prepare: setup ## `tempt prepare` on tables of the full eICU's size
	@$(BIN)/python -m tests.hospital_client.full_size

bench-federation: setup ## what a federation adds to its local training
	@$(BIN)/python -m sim.bench_federation

lint: setup ## ruff, mypy, import-linter, codespell
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell

clean: ## remove .venv and the caches; runs stay
	@if test -e .venv && ! test -e .venv/.tempt && ! test -e $(STAMP); then \
		echo 'error: .venv: make setup did not make it; move it away, or remove it yourself' >&2; exit 2; fi
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
