# Two commands set everything up from nothing:  make demo   and   make test
# Each makes .venv and installs what it needs; the second call finds the stamp and starts at once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO   ?=

# Threads that spin while they wait slow each other down on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format clean

help:
	@echo "make demo    a talking portrait, uncached and compiled, into ./synccache-demo"
	@echo "             options: make demo DEMO='--audio speech.wav --policy exact'"
	@echo "make test    ruff, mypy and all tests"
	@echo "make lint    ruff and mypy only;   make format   ruff's fixes"

install: $(STAMP)

# torch first and pinned: left to a dependency's range, pip would take the newest build with its
# gigabytes of CUDA packages. diffsynth without its dependencies: its one model file used in the
# tests needs einops and tqdm only, while the package asks for torchvision, modelscope and more.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("synccache needs Python >= 3.11; say which one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps diffsynth
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/synccache demo $(DEMO)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two processes with one thread each: on small models they are faster than one with two.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --numprocesses 2 --dist loadfile

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis synccache-demo
