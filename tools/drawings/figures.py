"""Drawings of figures: passes over memory, what is kept for the backward pass, chunks of images, measured speed."""

import json
from pathlib import Path

from .canvas import GRADIENT, INK, LARGE, MUTED, PLAIN, SAVED, SMALL, STAGE, Canvas

BENCH = "benchmarks/results/amd-epyc-zen4-2-cores-2026-11-24/bench.json"
ROOT = Path(__file__).resolve().parents[2]

# Elements that PyTorch's operations read and write, in sizes of x, at C = 1024, R = 256, 14 x 14 pixels and N = 8;
# tests/test_docs.py counts them.
EAGER = {"forward": (10.01, 7.51), "backward": (26.54, 14.02)}
# The kernels', counted by tests/test_traffic.py: read once, read again, written.
FUSED = {"forward": (1, 1, 1), "backward": (2, 2, 1)}


def passes() -> Canvas:
    """Passes over a tensor of x's size: eager, fused, and the least that is possible."""
    c = Canvas(760, 322, "Passes over tensors of x's size: eager PyTorch, the fused kernels, and the least possible")
    left, unit = 190, 12.6
    y = 34
    for direction, (read, written) in EAGER.items():
        first, again, stored = FUSED[direction]
        c.heading(20, y, direction)
        rows = (
            ("eager PyTorch", (read, 0, written), f"{read + written:.1f}"),
            ("gather, gate, scale", (first, again, stored), f"{first + again + stored}, {again} from the cache"),
            ("the least possible", (first, 0, stored), f"{first + stored}"),
        )
        for name, (from_memory, from_cache, stores), label in rows:
            y += 30
            c.text(left - 12, y + 3, name, 13, "end")
            x: float = left
            for amount, kind in ((from_memory, LARGE), (from_cache, SMALL), (stores, GRADIENT)):
                if amount:
                    c.rectangle(x, y - 11, amount * unit, 19, kind, 0)
                    x += amount * unit
            c.note(x + 8, y + 3, label)
        y += 48
    cached = "read again: from the cache where a chunk fits"
    c.legend(left, 300, (LARGE, "read from memory"), (SMALL, cached), (GRADIENT, "written"))
    return c


def saved() -> Canvas:
    """What is kept for the backward pass beyond x, to scale, and what one pixel costs."""
    c = Canvas(760, 326, "Kept for the backward pass beyond x and the parameters, to scale")
    kept = next(case["saved"] for case in _cases() if case["shape"] == [8, 1024, 14, 14])
    side, y = 84, 46
    c.heading(20, 30, "Beside x and the parameters (C = 1024, R = 256, 14 x 14 pixels, float32)")
    c.rectangle(20, y, side, side, PLAIN, 0)
    c.text(20 + side / 2, y + side / 2 + 5, "x", 14, bold=True)
    c.text(20 + side / 2, y + side + 18, "for scale", 12, colour=MUTED)
    x = 150
    for name, title, digits, gap in (
        ("eager", "eager PyTorch", 2, 320),
        ("compile", "torch.compile", 2, 150),
        ("cpu", "GALA", 3, 0),
    ):
        amount, at = kept[name], x
        while amount > 0.001:
            width = min(1, amount) * side
            c.rectangle(at, y, width, side, SAVED if name == "cpu" else LARGE, 0)
            at, amount = at + width + 4, amount - 1
        c.note(x, y + side + 18, f"{title}: {kept[name]:.{digits}f} x")
        x += gap
    c.line(20, 168, 740, 168)
    c.heading(20, 194, "One pixel, in bytes of float32")
    scale = 540 / 4096
    rows = (
        ("x", 4096, LARGE, "4096: 1024 channels"),
        ("local hidden layer", 1024, LARGE, "1024: 256 units, which autograd keeps"),
        ("relu_mask", 32, SAVED, "32: one bit for each of the 256 units, kept here instead"),
        ("s", 4, SAVED, "4: one number"),
    )
    for i, (name, count, kind, words) in enumerate(rows):
        at = 222 + 28 * i
        c.text(138, at + 3, name, 13, "end")
        width = count * scale
        c.rectangle(150, at - 10, width, 18, kind, 0)
        c.note(158 if width > 400 else 158 + width, at + 3, words)
    return c


def chunks() -> Canvas:
    """The order in which nine images are read, all at once and in chunks of three."""
    c = Canvas(760, 270, "The order in which images are read: stage by stage over the batch, and chunk by chunk")
    batch, chunk, cached = 9, 3, 4

    def order(chunk: int) -> list[tuple[str, int]]:
        firsts = range(0, batch, chunk)
        return [(stage, first + i) for first in firsts for stage in ("gather", "scale") for i in range(chunk)]

    for title, reads, y in (
        ("All nine images through gather, then all nine through scale", order(batch), 34),
        ("Three images through all stages, then the next three", order(chunk), 140),
    ):
        c.heading(20, y, title)
        for at, (stage, image) in enumerate(reads):
            recent = [i for _, i in reads[max(0, at - cached) : at]]
            x = 20 + at * 40
            c.rectangle(x, y + 14, 36, 30, SMALL if image in recent else LARGE, 3)
            c.text(x + 18, y + 34, str(image + 1), 13)
            c.text(x + 18, y + 60, stage, 11, colour=MUTED)
    cache = "image read from the cache, which holds the last four here"
    c.legend(20, 246, (LARGE, "image read from memory"), (SMALL, cache))
    return c


def speed() -> Canvas:
    """Measured speed on the CPU, batch of 8, as times of eager PyTorch's."""
    c = Canvas(560, 340, "Speed of GALA on a CPU over eager PyTorch, measured")
    cases = [case for case in _cases() if case["shape"][0] == 8]
    contestants = (("eager", "PyTorch, eager", PLAIN), ("compile", "torch.compile", LARGE), ("cpu", "gala-cuda", STAGE))
    c.text(20, 28, "Times as fast as eager PyTorch, on a CPU", 15, "start", bold=True)
    c.legend(20, 52, *((kind, words) for _, words, kind in contestants))
    unit, height = 42, 4 * 42
    for panel, direction in enumerate(("forward", "forward+backward")):
        left, base = 20 + panel * 270, 268
        for tick in range(1, 4):
            c.line(left, base - tick * unit, left + 250, base - tick * unit)
        for group, case in enumerate(cases):
            x = left + 6 + group * 62
            for i, (name, _, kind) in enumerate(contestants):
                value = case["speedup"][direction][name]["eager"]
                c.rectangle(x + 17 * i, base - value * unit, 16, value * unit, kind, 0)
            c.text(x + 42, base - value * unit - 5, f"{value:.1f}", 12, bold=True)
            _, channels, rows, columns = case["shape"]
            c.text(x + 25, base + 15, str(channels), 11, colour=MUTED)
            c.text(x + 25, base + 28, f"{rows}x{columns}", 11, colour=MUTED)
        c.line(left, base, left + 250, base, INK)
        c.text(left + 125, base - height - 12, direction.replace("+", " + "), 13, bold=True)
    run, settings = _recorded(), _recorded()["settings"]
    torch = run["environment"]["versions"]["torch"].partition("+")[0]
    c.note(20, 326, f"{settings['dtype']}, {settings['layout']}, batch of 8; {run['device']}; torch {torch}")
    return c


def _cases() -> list[dict]:
    return _recorded()["cases"]


def _recorded() -> dict:
    return json.loads((ROOT / BENCH).read_text())
