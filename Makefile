# TEMPT: `make` lists the targets.
#   PYTHON=...       the interpreter that makes .venv (3.11 or newer)
#   TORCH_INDEX=URL  where pip takes torch from; without: PyTorch's own index, else what pip's settings say

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo deploy test test-slow test-faults test-containers bench bench-prepare bench-federation lint clean

# The first of these that is 3.11 or newer, else python3, which `setup` then refuses in plain words.
PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; done; echo "$$p")
TORCH_INDEX ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
STAMP := .venv/installed-in
UNFINISHED := .venv/unfinished

# The stamp holds the folder's name: an environment that was copied or moved is made anew, as it would run the old code.
ifneq ($(shell test -e $(STAMP) && test "$$(cat $(STAMP))" != "$$(pwd -P)" && echo moved),)
MOVED := yes
.PHONY: $(STAMP)
endif

# What fills .venv. pip does it, with its own settings, but for torch, which pip can't choose by the machine: on Linux the
# ordinary index has builds of several GB for GPUs. uv can, from PyTorch's index; where that does not answer within
# seconds, and where pip is told of one index alone or none, torch is what pip finds.
define FILL
set -e
shown() { # a command of pip's, with those of its lines that say how far it is
	{ "$$@" || echo failed; } | (trap '' INT; while IFS= read -r line; do # Ctrl-C ends pip, and this when pip has ended
		case "$$line" in
		failed) exit 1 ;;
		Collecting*|*Downloading*|*Building*) printf '  %s\n' "$${line#"$${line%%[! ]*}"}" ;;
		Installing*) echo '  Installing what was collected' ;;
		esac
	done)
}
uv_torch() { # torch alone: what it needs is pip's affair
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --torch-backend "$$backend" "$$@" "$$torch"
}
answers() { # whether PyTorch's index has it: tried once, within seconds
	test "$$(uname -s)" = Linux || return 1
	if $(PIP) config list 2>/dev/null | grep -Eq '\.(index-url|no-index)='; then return 1; fi
	export UV_HTTP_RETRIES="$${UV_HTTP_RETRIES:-0}" UV_HTTP_TIMEOUT="$${UV_HTTP_TIMEOUT:-10}"
	uv_torch --dry-run >/dev/null 2>&1 & probe=$$!
	{ sleep 30; kill $$probe; } >/dev/null 2>&1 & clock=$$!
	if wait $$probe; then found=0; else found=1; fi
	kill $$clock 2>/dev/null || :
	return $$found
}
torch="$$(grep '^torch==' constraints.txt)"
if nvidia-smi >/dev/null 2>&1 || test -e /proc/driver/nvidia/version; then build='its NVIDIA driver' backend=auto
else build='CPUs, as it has no NVIDIA driver' backend=cpu; fi
backend="$${UV_TORCH_BACKEND:-$$backend}"
echo 'Setting up .venv, which takes some minutes. First pip and uv:'
shown $(PIP) install --constraint constraints.txt pip uv
taken=
if test -n "$$TORCH_INDEX"; then
	echo "torch, from $$TORCH_INDEX:"
	shown $(PIP) install --index-url "$$TORCH_INDEX" "$$torch"
	taken=yes
elif (answers); then
	echo "torch for this machine ($$build), from PyTorch's index:"
	if uv_torch; then taken=yes; fi
fi
if test -z "$$taken"; then
	echo "torch, the build that pip finds (make setup TORCH_INDEX=URL takes it from another index):"
	shown $(PIP) install --constraint constraints.txt "$$torch"
fi
echo 'The other packages of constraints.txt:'
shown $(PIP) install --constraint constraints.txt --build-constraint constraints.txt --group dev --editable '.[ray,report]'
$(PIP) check >/dev/null
endef
export FILL

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with everything (minutes, once)

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'error: "$(PYTHON)" is not Python 3.11 or newer; install Python 3.11, or name one: make setup PYTHON=/path/to/python3.11' >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'error: "$(PYTHON)" has no module venv or ensurepip; install it (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 2; }
# What an interrupted one left may be half a package: it is made anew, from what pip has in its cache.
# The marks go last, as deleting may be interrupted, too.
	@if test -n "$(MOVED)"; then touch $(UNFINISHED); fi
	@if test -e $(UNFINISHED); then find .venv -mindepth 1 -maxdepth 1 ! -name unfinished ! -name .tempt -exec rm -rf {} +; fi
	@mkdir -p .venv && rm -f $(STAMP) && echo venv > .venv/.tempt && touch $(UNFINISHED)
	@"$(PYTHON)" -m venv .venv
	@TORCH_INDEX="$(TORCH_INDEX)" sh -c "$$FILL"
	@rm -f $(UNFINISHED)
	@pwd -P > $(STAMP)
	@case "$$(pwd -P)" in *' '*) echo 'note: this path has a blank, which servers of Flower (tempt server launch, flwr run) do not take' ;; esac
	@echo 'Done: $(BIN)/tempt --help'

# An unfinished one is gone on with; what can't be (status 2: other settings, another version) is made anew, as a
# finished one is.
demo: setup ## the main job on a made-up consortium (under 5 minutes)
	@if test -e runs/demo/config.json && ! test -e runs/demo/results.json; then \
		echo 'runs/demo is unfinished; going on with it'; \
		$(BIN)/tempt simulate centralized --out runs/demo --resume; status=$$?; \
		test $$status = 2 || exit $$status; \
		echo 'it is made anew'; \
	fi; \
	$(BIN)/tempt simulate centralized --out runs/demo --force

deploy: setup ## deploy/: what docker-compose.yml mounts, with three made-up hospitals
	@$(BIN)/python -m sim.deploy_folder deploy

test: setup ## the fast tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 -m 'not slow and not faults and not containers'

test-slow: setup ## the slow tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-faults: setup ## federations of real processes, some of which are killed
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m faults

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
