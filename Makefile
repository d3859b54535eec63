# Everything here needs only make and Python 3.11 or newer; `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
JAX2ONNX := $(PIP) --no-deps jax2onnx==0.17.1# why is said in requirements-onnx.txt

# Written after a complete installation, so that nothing is installed twice and an
# interrupted installation is taken up again.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_BENCH := $(VENV)/.installed-bench

.DEFAULT_GOAL := help
.PHONY: help compile-ahead demo test test-processes test-accelerator test-all test-matrix bench bench-gpu docs lint format clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(INSTALLED)  ## train, distil and prune on digits, then compare: a few minutes
	$(BIN)/python launch.py --config=configs/digits.py --workdir=runs/demo

# Two workers, each with whole files, whose tests share what is slow to make.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(INSTALLED_DEV)  ## run the tests; ARGS=... goes to pytest
	$(PYTEST) $(ARGS)

test-processes: $(INSTALLED_DEV)  ## run the long tests: several processes, kills, whole runs, the notebook
	$(PYTEST) -m processes $(ARGS)

test-accelerator: $(INSTALLED_DEV)  ## run what matters most on the devices that JAX finds
	$(BIN)/python -m pytest --noconftest -W default tests/accelerator.py $(ARGS)

test-all: $(INSTALLED_DEV)  ## run the slow tests too
	$(PYTEST) -m "slow or not slow" $(ARGS)

# The interpreters, by name or path; tests/matrix.py says more.
PYTHONS ?= python3.11 python3.12 python3.13
test-matrix:  ## run the tests on each of PYTHONS, and on the oldest and newest JAX: half an hour
	PYTHONS="$(PYTHONS)" $(PYTHON) tests/matrix.py $(ARGS)

bench: $(INSTALLED_BENCH)  ## measure speed and memory against peers: an hour
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(INSTALLED_BENCH)  ## measure attention and whole steps on the GPU that JAX finds
	$(BIN)/python -m benchmarks --sections=gpu_attention,gpu_steps --out=runs/bench/gpu.json $(ARGS)

# Compilers of their own for other devices, which install without any.
TARGET ?= gpu
compile-ahead: .venv-$(TARGET)/.installed  ## compile for a GPU that is not here, or with TARGET=tpu for TPUs: hours
	.venv-$(TARGET)/bin/python -m benchmarks.compile_ahead --target=$(TARGET) $(ARGS)

.venv-%/.installed: benchmarks/requirements-%.txt requirements.txt
	$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

docs: $(INSTALLED)  ## write docs/api.md from the docstrings
	$(BIN)/python docs/make_api.py

lint: $(INSTALLED_DEV)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED_DEV)  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and the environment, but no run
	rm -rf $(VENV) .venv-gpu .venv-tpu .venv-matrix-* .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: '$(PYTHON)' not found: install Python 3.11 or newer," \
	    "or name it with 'make PYTHON=...'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is" \
	    "$$($(PYTHON) -V 2>&1): name another with 'make PYTHON=...'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): requirements.txt | $(BIN)/pip
	@echo "installing what requirements.txt names into $(VENV)"
	@$(PIP) -r requirements.txt
	@touch $@

$(INSTALLED_DEV): requirements-dev.txt requirements-onnx.txt $(INSTALLED)
	@echo "installing what requirements-dev.txt names into $(VENV)"
	@$(PIP) -r requirements-dev.txt
	@$(JAX2ONNX)
	@touch $@

$(INSTALLED_BENCH): benchmarks/requirements.txt requirements-onnx.txt $(INSTALLED)
	@echo "installing what benchmarks/requirements.txt names into $(VENV)"
	@$(PIP) -r benchmarks/requirements.txt
	@$(JAX2ONNX)
	@touch $@
