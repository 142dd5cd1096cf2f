"""The strip of attention pictures for the README, cut from the recorded examples of the experiments."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .canvas import INK, PAPER

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = "benchmarks/results/experiments-2026-11-26/examples.png"
SIDE, SHOWN = 180, 120  # pixels of one picture in the recorded sheet, and in the strip
COLUMNS = {"scene": 112, "human map": 299, "GALA": 674, "GALA, taught\nby human maps": 1048}  # left edges in the sheet
ROWS = (52, 239, 426, 613, 801, 988)  # upper edges
LABELS, GAP = 152, 5


def attention() -> Image.Image:
    """All six recorded scenes, one in each column, under what people, GALA and a taught GALA look at."""
    sheet = Image.open(ROOT / EXAMPLES).convert("RGB")
    step = SHOWN + GAP
    strip = Image.new("RGB", (LABELS + step * len(ROWS), step * len(COLUMNS) + GAP), PAPER)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(19)
    for row, (name, left) in enumerate(COLUMNS.items()):
        top = GAP + row * step
        pen.multiline_text((LABELS - 12, top + SHOWN / 2), name, INK, font, anchor="rm", align="right", spacing=6)
        for column, upper in enumerate(ROWS):
            picture = sheet.crop((left, upper, left + SIDE, upper + SIDE))
            strip.paste(picture.resize((SHOWN, SHOWN)), (LABELS + column * step, top))
    return strip
