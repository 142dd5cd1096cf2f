#!/usr/bin/env bash
# One wheel, every torch: builds the wheel with the first Python, installs it beside each Python's torch, runs the tests.
#   tests/abi.sh PYTHON... [-- TEST...]     a TEST such as tests/test_operator.py
# Each PYTHON has torch >= 2.10, numpy and pytest, all are of one Python version; the first also has what
# `pip install --no-build-isolation` needs: setuptools, ninja, pybind11, cmake.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
pythons=()
while (($#)) && [[ $1 != -- ]]; do pythons+=("$(command -v "$1")"); shift; done
shift || true
tests=("${@:-tests/test_operator.py}")
((${#pythons[@]})) || { grep '^#  ' "$0"; exit 2; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
GALA_NATIVE=1 "${pythons[0]}" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$scratch" "$root"
wheel=("$scratch"/*.whl)
echo "built $(basename "$wheel") with torch $("${pythons[0]}" -c 'import torch; print(torch.__version__)')"

mkdir "$scratch/sources"  # without the package, so that the tests import the installed one
cp -r "$root/pyproject.toml" "$root/tests" "$scratch/sources"
cd "$scratch/sources"
for python in "${pythons[@]}"; do
  target=$(mktemp -d -p "$scratch")
  "$python" -m pip install --quiet --no-deps --no-index --target "$target" "$wheel"
  export PYTHONPATH=$target  # before a gala_cuda that the environment has
  "$python" -c 'import gala_cuda, os, torch; print("torch", torch.__version__, gala_cuda.native.module.build_info())
assert gala_cuda.native.module.__file__.startswith(os.environ["PYTHONPATH"]), gala_cuda.native.module.__file__'
  "$python" -m pytest -q -p no:cacheprovider "${tests[@]}"
done
