# sparvar: `make help` lists the targets. Needs Python >= 3.10 and make; everything else goes into .venv.
# Every install passes constraints.txt: an unpinned torch may pull several gigabytes of CUDA libraries.

PYTHON ?= python3
VENV ?= .venv
# More words for pip, e.g. an index with CPU builds of torch:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# More words for pytest, e.g. make test PYTEST_ARGS="-k plan".
PYTEST_ARGS ?=
# Processes that share the test files; each has its part of the cores.
TEST_WORKERS ?= 2
DEMO_OUT ?= demo-output
DATA ?= data/landscapes
OUT ?= train-output
BENCH_OUT ?= bench-output

BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all lint format docs train bench clean

help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo ## Generate images dense and sparse, compare them; results go to demo-output.
	$(BIN)/sparvar demo --out $(DEMO_OUT)

PYTEST := $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev lint ## Run the linters, the type checker and the fast tests: some minutes.
	$(PYTEST) -m "not slow" --durations=15 $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev ## Run the slow tests: whole searches, compilation ahead of time, kills.
	$(PYTEST) -m slow --durations=30 $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev lint ## Run the linters, the type checker and every test.
	$(PYTEST) --durations=30 $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## Run ruff (rules and format) and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Rewrite the sources in the project's format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## Build the documentation's site in build/site; a broken link fails. Needs Python 3.11.
	$(BIN)/python docs/build_site.py

# By default glibc gives every large tensor back to the system and faults it in again at each step; these settings
# keep the memory in the process.
train: $(VENV)/.installed-demo ## Train the shipped model again: make train DATA=photos OUT=folder.
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=500000000 \
		$(BIN)/python -m sparvar.zoo.training --data $(DATA) --out $(OUT)

bench: $(VENV)/.installed-dev ## Run the benchmarks; results go to bench-output as JSON.
	mkdir -p $(BENCH_OUT)
	$(BIN)/sparvar bench ops --json $(BENCH_OUT)/ops.json
	$(BIN)/sparvar bench generate --json $(BENCH_OUT)/generate.json

clean: ## Remove the environment, caches and outputs of make demo and make bench (train-output stays).
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks build dist sparvar.egg-info
	rm -rf $(DEMO_OUT) $(BENCH_OUT)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "make: $(PYTHON) must be Python 3.10 or later, got $$($(PYTHON) -V 2>&1); pass PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

# A stamp newer than the pins means the environment is up to date, so a second `make demo` starts at once.
# A failed install leaves no stamp.
$(VENV)/.installed-%: $(PINS) | $(BIN)/python
	@echo "Installing sparvar[$*] into $(VENV) (once; some minutes)"
	$(BIN)/python -m pip install -q --disable-pip-version-check --prefer-binary $(PIP_ARGS) -c constraints.txt -e '.[$*]'
	@touch $@
