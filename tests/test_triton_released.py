"""The released code's block's own Triton kernels, compiled for every architecture."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
ROOT = Path(__file__).resolve().parents[1]


def test_they_compile_for_every_architecture_without_spills_and_use_tensor_cores():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.kernel_report.released_report"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "72 kernels, 0 faults" in done.stdout
    for arch, units in ((80, "HMMA"), (86, "HMMA"), (90, "HGMMA"), (100, "tcgen05"), (120, "HMMA")):
        _, _, of_arch = done.stdout.partition(f"sm_{arch} (")
        for dtype in ("bfloat16", "float16"):
            assert re.search(rf"gather_hidden .*{dtype} channels_last.* \d+ {units} ", of_arch.partition("sm_")[0])
