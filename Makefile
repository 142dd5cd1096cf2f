# `make demo` and `make test` do all the set-up themselves: Python, a C++ compiler and make are enough.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.dependencies
BUILT := $(VENV)/.built
CPP = $(shell find csrc examples tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test test-fast bench gpu docs lint format hooks build wheels abi clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 11

demo: $(BUILT)  ## doctor, a training on real images, attention maps, a bench
	$(BIN)/gala-cuda demo $(ARGS)

test: $(BUILT)  ## all tests, in up to four processes; ARGS="tests/test_layer.py -k bias" are pytest's arguments
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-fast: $(BUILT)  ## the tests that take no seconds each, in a minute; they touch every module
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

bench: $(BUILT)  ## checks, then times every backend; ARGS="--help"
	$(BIN)/gala-cuda bench $(ARGS)

# With .venv where it is built; else with $(PYTHON) as it is where that has torch, without pip; else .venv is made.
gpu:  ## everything that one GPU can be measured by; a later call continues; ARGS=--dry-run on the CPU
	@if test ! -e $(BUILT) && $(PYTHON) -c "import torch" 2>/dev/null; then python="$(PYTHON)"; \
	else $(MAKE) $(BUILT) && python=$(BIN)/python; fi && $$python -m benchmarks.gpu $(ARGS)

docs: $(DEPENDENCIES)  ## the drawings, and the site in build/site
	$(BIN)/python -m tools.drawings
	$(BIN)/mkdocs build --strict

lint: $(DEPENDENCIES)  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(DEPENDENCIES)  ## what of lint can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

hooks: $(DEPENDENCIES)  ## lint before every commit, by pre-commit
	$(BIN)/pre-commit install

build: $(DEPENDENCIES)  ## compile the extension again and install the checkout, editable
	$(BIN)/pip install --no-build-isolation --no-deps -e .
	touch $(BUILT)

# First everything but the extension, whose build needs torch, then the extension with what is installed.
$(DEPENDENCIES): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	GALA_NATIVE=0 $(BIN)/pip install -e ".[dev]"
	touch $@

$(BUILT): $(DEPENDENCIES) setup.py CMakeLists.txt $(shell find cmake csrc -type f)
	$(MAKE) build

wheels:  ## a release's wheels, of PYTHONS or of Python 3.10 to 3.14, and source archive, repaired and tested, in dist/
	$(PYTHON) tools/wheels.py $(or $(PYTHONS),python3.10 python3.11 python3.12 python3.13 python3.14)

abi:  ## PYTHONS="python1 python2": one wheel under the torch of each
	tests/abi.sh $(PYTHONS)

clean:  ## what make and its commands have made
	rm -rf $(VENV) build dist runs *.egg-info gala_cuda/_C.*.so
