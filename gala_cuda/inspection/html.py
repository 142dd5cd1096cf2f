"""An HTML page of images with maps over them, in one file that needs no others."""

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from ..text import printable
from .sheet import to_unit_range

_PALETTE = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
_START = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>
  :root {{ color-scheme: light dark; --opacity: 0.65; font: 14px/1.4 system-ui, sans-serif; }}
  body {{ margin: 2rem auto; width: max-content; max-width: 96vw; }}
  h1 {{ font-size: 1.3rem; }}
  main {{ overflow-x: auto; }}
  th {{ font-weight: normal; }}
  tbody th {{ max-width: 18rem; padding-right: 1rem; text-align: right; overflow-wrap: anywhere; }}
  td {{ padding: 2px; }}
  td div {{ width: 160px; height: 160px; background: var(--picture) center / 100% 100%; }}
  td img {{ width: 100%; height: 100%; opacity: var(--opacity); display: block; }}
</style>
<h1>{heading}</h1>
<p>Each map spans the colours, dark to bright, from its own least to its greatest value.</p>
<label>maps over the images
<input type="range" min="0" max="1" step="0.05" value="0.65"
  oninput="document.documentElement.style.setProperty('--opacity', this.value)"></label>
<main>
<table>
<thead><tr><th></th>{columns}</tr></thead>
<tbody>
"""
END = "</tbody>\n</table>\n</main>\n</html>\n"


def start(heading: str, columns: Iterable[str]) -> str:
    """The page up to its first row; ``columns`` are the titles of the maps."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in ("image", *columns))
    return _START.format(heading=escape(printable(heading)), columns=cells)


def row(image: Tensor, maps: Mapping[str, Tensor], title: str) -> str:
    """The row of ``image`` [C, H, W], drawn as on the sheet, and of its ``maps``, each [H', W'], by their titles.

    The cell of a map that is all NaN stays empty. ``title`` may have several lines.
    """
    lines = [escape(line) for line in printable(title).splitlines()]
    pixels = (to_unit_range(image[None])[0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    picture = _data_url(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))
    cells = [f'<td><div role="img" aria-label="{", ".join(lines)}"></div></td>']
    for name, attn_map in maps.items():
        inner = f'<div><img alt="{escape(name)}" src="{_data_url(_colour(attn_map))}"></div>'
        cells.append(f"<td>{'' if attn_map.isnan().all() else inner}</td>")
    heading = "<br>".join(lines)
    return f'<tr style="--picture: url({picture})"><th scope="row">{heading}</th>{"".join(cells)}</tr>\n'


def _colour(attn_map: Tensor) -> Image.Image:
    levels = (to_unit_range(attn_map[None])[0].nan_to_num().cpu().numpy() * 255).round().astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(_PALETTE.tobytes())
    return picture


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
