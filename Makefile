# `make demo` and `make test` work on a bare machine with Python >= 3.11; the rest needs nothing more.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Training on a CPU is faster under jemalloc, with its default settings; used where it is installed (Debian: libjemalloc2).
JEMALLOC := $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2 /usr/lib64/libjemalloc.so.2 /usr/lib/libjemalloc.so.2))
FAST = $(if $(JEMALLOC),LD_PRELOAD=$(JEMALLOC))

export TOKENIZERS_PARALLELISM = false

.PHONY: demo test fast check format bench clean

demo: $(STAMP)
	@echo "allocator: $(or $(JEMALLOC),the system's; jemalloc would be faster)"
	@$(FAST) $(BIN)/python -m mtl_re.quickstart

test: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

fast: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) fast

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Some hours on two cores; `make bench BENCH=--quick` takes minutes, `BENCH=--help` names the pieces.
bench: $(STAMP)
	$(BIN)/python -m experiments.benchmarks $(BENCH)

# The environment is made once; it is made again only when what it is made from changes.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
