"""Writes the documentation's drawings to docs/assets: `python -m tools.drawings`. Same input, same bytes."""

import sys
from pathlib import Path

from . import figures, pictures, stages

ASSETS = Path(__file__).resolve().parents[2] / "docs" / "assets"
DRAWINGS = {
    "block": stages.block,
    "forward": stages.forward,
    "backward": stages.backward,
    "sums": stages.sums,
    "passes": figures.passes,
    "saved": figures.saved,
    "chunks": figures.chunks,
    "speed": figures.speed,
}


def main(folder: Path = ASSETS) -> None:
    """Writes every drawing into `folder`."""
    for name, draw in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(draw().svg())
    pictures.attention().save(folder / "attention.jpg", quality=88)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
