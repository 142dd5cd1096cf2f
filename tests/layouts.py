"""The layouts of `tests/cpp/layouts.json`, which `tests/cpp/cute_layouts.cpp` took from CuTe."""

import json
from functools import cache
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "cpp" / "layouts.json"


@cache
def table() -> dict[str, list]:
    return json.loads(FILE.read_text())


def places(name: str) -> np.ndarray:
    """[threads, values]: where each thread has each value; the exclusive or of the places of the indices' bits."""
    of_threads, of_values = (_of_bits(places) for places in table()[name])
    return of_threads[:, None] ^ of_values


def _of_bits(bits: list[int]) -> np.ndarray:
    index = np.arange(2 ** len(bits))
    return np.bitwise_xor.reduce([(index >> i & 1) * place for i, place in enumerate(bits)])
