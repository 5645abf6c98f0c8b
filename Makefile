# Everything runs from a virtual environment in .venv that these targets make and keep up to date.
# Needed on the machine: Python 3.11 or newer, and make.
#
#   make demo             fit Old Faithful with 64 restarts for k = 1 to 9, into demo-output/
#   make test             the test suite, in float32 and with JAX's x64 mode on
#   make test-slow        the long tests, which `make test` leaves out
#   make lint             ruff (lint and format) and pyright
#   make gpu-bench        on a machine with a GPU: the kernels' tests there, then cases A to I
#   make gpu-tune CASE=A  there: times tiles of that case's kernel
#
# PYTHON chooses the interpreter:  make test PYTHON=python3.12
# PYTEST_ARGS goes to pytest:      make test PYTEST_ARGS="-k io -x"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-float32 test-float64 test-slow lint format bench gpu-bench gpu-tune gpu-gmvae clean
# Two installs into one environment at once would spoil it.
.NOTPARALLEL:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# ---- the environment ----

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gmmjax needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": name a newer one, as in make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp for each set of extras, so that a second run installs nothing until pyproject.toml changes.
$(VENV)/.stamp-%: pyproject.toml $(VENV)/.stamp-venv
	@echo "Installing gmmjax[$*] into $(VENV) (the first time takes a few minutes) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

# ---- what one runs ----

demo: $(VENV)/.stamp-cli
	$(BIN)/gmmjax fit faithful -k 1:9 --restarts 64 --out demo-output

test: test-float32 test-float64

test-float32: $(VENV)/.stamp-test
	JAX_ENABLE_X64=0 $(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-float64: $(VENV)/.stamp-test
	JAX_ENABLE_X64=1 $(PYTEST) -m 'not slow and not own_dtype' $(PYTEST_ARGS)

test-slow: $(VENV)/.stamp-test
	JAX_ENABLE_X64=0 $(PYTEST) -m slow $(PYTEST_ARGS)
	JAX_ENABLE_X64=1 $(PYTEST) -m 'slow and not own_dtype' $(PYTEST_ARGS)

# The type checker reads the optional libraries' types, so `test` is installed too.
lint: $(VENV)/.stamp-test $(VENV)/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.stamp-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-test
	$(BIN)/python -m benchmarks memory
	$(BIN)/python -m benchmarks versus_scikit_learn

gpu-bench: $(VENV)/.stamp-test $(VENV)/.stamp-gpu
	XLA_FLAGS= $(BIN)/python -m pytest -m gpu tests/test_kernels.py
	SCIPY_ARRAY_API=1 $(BIN)/python -m benchmarks gpu --json gpu-bench.json

# Times tiles of one case's kernel:  make gpu-tune CASE=A
CASE ?= A
gpu-tune: $(VENV)/.stamp-test $(VENV)/.stamp-gpu
	$(BIN)/python -m benchmarks gpu --tune $(CASE)

# MNIST and Fashion-MNIST by the Gaussian-mixture VAE, ten seeds in one program; a GPU is used if there is one.
gpu-gmvae: $(VENV)/.stamp-test
	@if command -v nvidia-smi >/dev/null; then $(BIN)/python -m pip install --quiet --editable ".[gpu]"; fi
	bash benchmarks/get_mnist.sh
	$(BIN)/python -m benchmarks gmvae_mnist --only clustering purity speed
	$(BIN)/python -m benchmarks gmvae_mnist --only likelihood --hidden 500 500 --epochs 500 50 --batch 128
	bash benchmarks/get_mnist.sh --fashion
	$(BIN)/python -m benchmarks gmvae_mnist --data data/fashion-mnist --family full --only clustering purity

clean:
	rm -rf $(VENV) demo-output build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
