"""Writes predictions as CSV, as JSON lines or as Parquet, whichever the name of the file says."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import GalaError
from . import SUFFIXES
from .predict import Prediction

GROUP = 1024  # rows of a row group of Parquet
DIGITS = 6  # after the point, of numbers
Rows = Iterator[dict[str, Any]]


class TableError(GalaError, RuntimeError):
    """The table cannot be written; the message says why."""


def write(predictions: Iterable[Prediction], path: Path, top: int, maps: bool) -> None:
    """Writes `predictions` of `top` classes each to `path`, which is there in the end, whole, or as it was before.

    Its suffix is one of SUFFIXES. A row has `image`, `labels` and `probabilities` (lists; in CSV `label`,
    `probability`, `label_2`, `probability_2` and so on), with `maps` also `attention` [H][W] (in CSV as JSON), and
    `error`, which is empty where the picture was read. Bytes of names that are no UTF-8 are written as escapes.

    Raises:
        TableError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            WRITERS[path.suffix.lower()]((_row(each, maps) for each in predictions), draft, top, maps)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise TableError(f"cannot write {path}: {error.strerror}") from error


def _write_csv(rows: Rows, path: Path, top: int, maps: bool) -> None:
    numbers = ["", *(f"_{place}" for place in range(2, top + 1))]
    answers = [f"{name}{number}" for number in numbers for name in ("label", "probability")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *answers, *(["attention"] if maps else []), "error"])
        for row in rows:
            found = [value for pair in zip(row["labels"], row["probabilities"], strict=True) for value in pair]
            attention = [json.dumps(row["attention"]) if row["attention"] else ""] if maps else []
            writer.writerow([row["image"], *found, *[""] * (2 * top - len(found)), *attention, row["error"] or ""])


def _write_jsonl(rows: Rows, path: Path, top: int, maps: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _write_parquet(rows: Rows, path: Path, top: int, maps: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float64())
    attention = {"attention": pa.list_(numbers)} if maps else {}
    kinds = {"image": pa.string(), "labels": pa.list_(pa.string()), "probabilities": numbers, **attention}
    schema = pa.schema({**kinds, "error": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _row(prediction: Prediction, maps: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image": prediction.image.encode("utf-8", "backslashreplace").decode(),
        "labels": list(prediction.labels),
        "probabilities": [round(probability, DIGITS) for probability in prediction.probabilities],
    }
    if maps:
        lines = [] if prediction.attention is None else prediction.attention.tolist()
        row["attention"] = [[round(x, DIGITS) for x in line] for line in lines] or None
    return row | {"error": prediction.error}


WRITERS = dict(zip(SUFFIXES, (_write_csv, _write_jsonl, _write_parquet), strict=True))
