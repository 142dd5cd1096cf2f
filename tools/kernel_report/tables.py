"""The tables of both kernel reports, on the terminal and in Markdown."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

WORDS = ("kernel", "tensor cores", "says", "set by")  # the columns that hold words; all others hold numbers
Sections = dict[str, list[tuple[str, ...]]]  # the lines of each table, by its title


def number_range(numbers: Iterable[int]) -> str:
    """The number that all are, or the least and the largest."""
    numbers = list(numbers)
    least, most = min(numbers), max(numbers)
    return str(most) if least == most else f"{least}-{most}"


def show(sections: Sections, columns: tuple[str, ...], faults: list[str], total: str, console: Console) -> None:
    """Prints the tables, each fault, and `total`."""
    for title, lines in sections.items():
        table = Table(title=title, title_justify="left")
        for column in columns:
            words = column in WORDS
            table.add_column(column, justify="left" if words else "right", no_wrap=words)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for fault in faults:
        console.print(fault, style="red", highlight=False, markup=False, soft_wrap=True)
    console.print(total, style="red" if faults else "green")


def write(path: Path, paragraphs: list[str], sections: Sections, columns: tuple[str, ...], faults: list[str]) -> None:
    """Writes a Markdown file: the paragraphs, of which the first is the heading, the tables, the faults."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = list(paragraphs) + [markdown(title, columns, lines) for title, lines in sections.items()]
    text.append("\n".join(["## Faults\n", *([f"- {fault}" for fault in faults] or ["None."])]))
    path.write_text("\n\n".join(text) + "\n")


def markdown(title: str, columns: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """A table with its heading."""
    rule = "|".join(":--" if column in WORDS else "--:" for column in columns)
    head = [f"## {title}\n", f"|{'|'.join(columns)}|", f"|{rule}|"]
    return "\n".join([*head, *(f"|{'|'.join(line)}|" for line in lines)])
