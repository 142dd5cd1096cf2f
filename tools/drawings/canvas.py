"""A sheet to draw on that becomes an SVG file: boxes, arrows, bars and text, on a light ground for either theme."""

from collections.abc import Sequence
from html import escape

INK, MUTED, PAPER, RULE = "#22303c", "#5c6b78", "#fcfbf8", "#d9d5cc"
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
ARROWHEAD = 7

Kind = tuple[str, str]  # fill and outline of what a box stands for
LARGE = ("#d3e3f5", "#3b6ea8")  # a tensor as large as x
SMALL = ("#e4f0e1", "#4f8a4c")  # a tensor with one number for each pixel, or for each channel
SAVED = ("#fdeecb", "#c98411")  # a small tensor that is kept for the backward pass
GRADIENT = ("#f7ddd8", "#b4493c")  # a gradient
STAGE = ("#33475b", "#33475b")  # what computes
PLAIN = ("#eceae4", "#9b968a")


class Canvas:
    """Collects shapes; `svg` is the finished file. Coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []

    def rectangle(self, x: float, y: float, width: float, height: float, kind: Kind, radius: int = 5) -> None:
        """A rectangle with the fill and outline of `kind`."""
        fill, stroke = kind
        self._shapes.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}" '
            f'rx="{radius}" fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 13,
        anchor: str = "middle",
        colour: str = INK,
        bold: bool = False,
    ) -> None:
        """One line of text with its baseline at y; `anchor` is start, middle or end."""
        style = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"' + (' font-weight="bold"' if bold else "")
        self._shapes.append(f'<text x="{_number(x)}" y="{_number(y)}" {style}>{escape(text)}</text>')

    def heading(self, x: float, y: float, text: str) -> None:
        """A bold line of text that begins at x."""
        self.text(x, y, text, 13, "start", bold=True)

    def note(self, x: float, y: float, text: str) -> None:
        """A small grey line of text that begins at x."""
        self.text(x, y, text, 12, "start", MUTED)

    def box(self, x: float, y: float, width: float, height: float, lines: str | Sequence[str], kind: Kind) -> None:
        """A rectangle with lines of text in its middle, the first one bold."""
        self.rectangle(x, y, width, height, kind)
        lines = [lines] if isinstance(lines, str) else lines
        colour = "#ffffff" if kind is STAGE else INK
        step, first = 16, y + height / 2 + 5 - 8 * (len(lines) - 1)
        for i, line in enumerate(lines):
            self.text(x + width / 2, first + i * step, line, 12 if i else 13, colour=colour, bold=i == 0)

    def arrow(self, *points: tuple[float, float], colour: str = MUTED, dashed: bool = False) -> None:
        """A line through the points with a head at its end."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length * ARROWHEAD, (y1 - y0) / length * ARROWHEAD
        line = [*points[:-1], (x1 - dx, y1 - dy)]
        head = [(x1, y1), (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2)]
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._shapes.append(
            f'<polyline points="{_points(line)}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
            f'<polygon points="{_points(head)}" fill="{colour}"/>'
        )

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str = RULE) -> None:
        """A thin line without a head."""
        self._shapes.append(
            f'<line x1="{_number(x0)}" y1="{_number(y0)}" x2="{_number(x1)}" y2="{_number(y1)}" stroke="{colour}"/>'
        )

    def legend(self, x: float, y: float, *entries: tuple[Kind, str]) -> None:
        """A row of small squares with words beside them."""
        for kind, words in entries:
            self.rectangle(x, y - 11, 13, 13, kind, 2)
            self.note(x + 19, y, words)
            x += 44 + 6 * len(words)

    def svg(self) -> str:
        """The file's text."""
        body = "\n".join(self._shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="{FONT}">\n<title>{escape(self.title)}</title>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="10" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
