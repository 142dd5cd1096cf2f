"""How often each loop of a Triton kernel turns, by what it is launched with, in the order of the source."""

from collections.abc import Callable
from typing import NamedTuple

from gala_cuda.backends.triton.launch import cdiv

from .sass import Turns

Sizes = dict[str, int]  # a launch's numbers and constants by their names


class Part(NamedTuple):
    """A part of a kernel, of which each program does one."""

    name: str
    turns: Turns  # of the program that has the most to do


def parts(kernel: str, sizes: Sizes) -> list[Part]:
    """The parts of a kernel, in the order of their programs. Raises KeyError for a kernel that is not listed here."""
    found = _PARTS.get(kernel, {kernel: {}})
    return [
        Part(name, _TURNS[name](sizes | {ours: sizes[theirs] for ours, theirs in names.items()}))
        for name, names in found.items()
    ]


def _steps(sizes: Sizes, extent: str, block: str, within: str = "") -> int:
    """Blocks of an extent, or of the least of two extents."""
    most = min(sizes[extent], sizes[within]) if within else sizes[extent]
    return cdiv(most, sizes[block])


def _grad_x(sizes: Sizes) -> Turns:
    inner = () if sizes["HELD"] else (_steps(sizes, "reduced", "DEPTH"),)
    return ((_steps(sizes, "span", "CHANNELS", "channels"), inner),)


def _local_products(sizes: Sizes) -> Turns:
    return (cdiv(sizes["tiles"], sizes["splits"]),)


def _gather(sizes: Sizes) -> Turns:
    """The loop over tiles with an infinite x turns only then."""
    again = sizes["SEGMENTS"] > 1
    units = "span" if sizes["SHARED"] else "reduced"
    return ((_steps(sizes, units, "REDUCED"), (_steps(sizes, "channels", "DEPTH"),)), *((0,) if again else ()))


# the parts of the kernels that have several, with what their sizes are called there where it differs
_PARTS: dict[str, dict[str, dict[str, str]]] = {
    "expand_and_prepare": {"expand": {}, "prepare": {}},
    "finish_and_weigh": {"finish_grad_hidden": {}, "weigh_mask": {}},
    "small_grads": {
        "grad_pool": {},
        "global_grads": {"IMAGES": "GRADS_IMAGES"},
        "sums_of_channels": {"IMAGES": "GRADS_IMAGES"},
        "local_grads": {"CHANNELS": "COLS"},
    },
}
_TURNS: dict[str, Callable[[Sizes], Turns]] = {
    "prepare": lambda s: (),
    "gather": _gather,
    "shrink": lambda s: ((_steps(s, "span", "DEPTH", "channels"), (_steps(s, "most", "TOGETHER"),)),),
    "finish_hidden": lambda s: (),
    "finish_grad_hidden": lambda s: (),
    "expand": lambda s: (_steps(s, "reduced", "DEPTH"),),
    "scale": lambda s: (_steps(s, "span", "PIXELS", "pixels"),),
    "finish_map": lambda s: (s["count"],),
    "scale_backward": lambda s: (_steps(s, "span", "PIXELS", "pixels"),),
    "weigh_mask": lambda s: (s["count"], _steps(s, "words", "WORDS")),
    "grad_hidden": lambda s: (_steps(s, "span", "DEPTH", "channels"),),
    "grad_pool": lambda s: (_steps(s, "reduced", "DEPTH"),),
    "grad_x": _grad_x,
    "global_grads": lambda s: (_steps(s, "images", "IMAGES"),),
    "sums_of_channels": lambda s: (_steps(s, "images", "IMAGES"),),
    "local_products": _local_products,
    "local_grads": lambda s: (_steps(s, "channels", "CHANNELS"), *((s["SPLITS"],) if s["BIAS"] else ())),
}
