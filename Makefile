# `make demo` and `make test` do all the set-up themselves: Python, a C++ compiler and make are enough.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.dependencies
BUILT := $(VENV)/.built
CPP = $(shell find csrc examples tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test bench gpu docs lint format build abi clean

demo: $(BUILT)  ## doctor, a training on real images, attention maps, a bench
	$(BIN)/gala-cuda demo $(ARGS)

test: $(BUILT)
	$(BIN)/python -m pytest $(ARGS)

bench: $(BUILT)
	$(BIN)/gala-cuda bench $(ARGS)

# With .venv where it is built; else with $(PYTHON) as it is where that has torch, without pip; else .venv is made.
gpu:  ## everything that one NVIDIA GPU can be measured by, in parts that a later call continues; --dry-run on the CPU
	@if test ! -e $(BUILT) && $(PYTHON) -c "import torch" 2>/dev/null; then python="$(PYTHON)"; \
	else $(MAKE) $(BUILT) && python=$(BIN)/python; fi && $$python -m benchmarks.gpu $(ARGS)

docs: $(DEPENDENCIES)  ## the drawings, and the site in build/site
	$(BIN)/python -m tools.drawings
	$(BIN)/mkdocs build --strict

lint: $(DEPENDENCIES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(DEPENDENCIES)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

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

abi:  ## PYTHONS="python1 python2": one wheel under the torch of each
	tests/abi.sh $(PYTHONS)

clean:
	rm -rf $(VENV) build dist runs *.egg-info gala_cuda/_C.*.so
