"""Rows of data sets of Hugging Face's library datasets as pictures: by their numbers, or one after the other.

Their pictures' bytes are decoded here, as all other pictures are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .errors import UnreachableError, UnreadableError
from .picture_files import check_size, read_file

BUFFER = 10_000  # rows of a stream that are shuffled at a time


class RowPictures:
    """The pictures of a split that is on this machine, by the numbers of their rows."""

    def __init__(self, rows: Any, image: str, split: str, labels: Tensor, classes: tuple[str, ...]) -> None:
        import datasets

        self._rows = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._image, self._split, self.labels, self.classes = image, split, labels, classes
        self._numbers = torch.arange(len(labels))

    def take(self, chosen: Tensor) -> "RowPictures":
        """Those of the pictures for which ``chosen`` [n] bool is True."""
        taken = object.__new__(RowPictures)
        taken.__dict__ |= self.__dict__
        taken._numbers, taken.labels = self._numbers[chosen], self.labels[chosen]
        return taken

    def name(self, index: int) -> str:
        return f"{self._split}#{int(self._numbers[index])}"

    def below(self, index: int) -> str:
        """What ``hold_out`` knows the picture by."""
        return self.name(index)

    def load(self, index: int) -> bytes:
        return content(self._rows[int(self._numbers[index])][self._image])

    def prepare(self, indices: list[int]) -> None:
        pass


class StreamedPictures:
    """The pictures of a split one after the other, all of which are known by their labels alone."""

    def __init__(self, rows: Any, image: str, label: str, labels: Tensor, coder: "Coder") -> None:
        import datasets

        self._rows = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
        self._image, self._label, self._coder, self.labels = image, label, coder, labels

    def rows(self, seed: int | None) -> Iterator[tuple[Any, Tensor]]:
        """(where the picture's bytes are, its label or labels) one by one, shuffled by ``seed`` where there is one.

        Shards are shuffled, and ``BUFFER`` rows at a time. Raises UnreachableError where a server fails.
        """
        rows = self._rows if seed is None else self._rows.shuffle(seed=seed, buffer_size=BUFFER)
        try:
            for row in rows:
                yield row[self._image], self._coder([row[self._label]])[0]
        except OSError as error:
            raise UnreachableError(f"the stream ends: {error}") from error


def content(image: dict[str, Any] | None) -> bytes:
    """The bytes of a picture file, of a row whose column of images is not decoded. Raises OSError, UnreadableError."""
    data, path = (image or {}).get("bytes"), (image or {}).get("path")
    if data is not None:
        check_size(len(data))
        return data
    if path is None:
        raise UnreadableError("the row has no picture")
    if "://" not in path:
        return read_file(path)
    import fsspec

    with fsspec.open(path, "rb") as file:  # on a server, or inside an archive
        return file.read()


def name_of(image: dict[str, Any] | None) -> str:
    """A name of a row's picture, the same wherever in a stream it comes: its path, and a digest of its bytes."""
    data, path = (image or {}).get("bytes"), (image or {}).get("path") or "picture"
    return path if data is None else f"{path}, digest {hashlib.blake2b(data, digest_size=4).hexdigest()}"


class Coder:
    """Labels of ``source`` as numbers of ``classes``, which they are already where the library has ``named`` these."""

    def __init__(self, source: str, classes: tuple[str, ...], named: bool, multi_label: bool) -> None:
        self._source, self._classes, self._named, self._multi_label = source, classes, named, multi_label
        self._number_of = {name: number for number, name in enumerate(classes)}

    def __call__(self, entries: Sequence[Any]) -> Tensor:
        """[n] int64, or [n, classes] bool. Raises ValueError where there are none, or rows without a label."""
        if not entries:
            raise ValueError(f"{self._source} has a split without rows; expected some")
        numbers = [[self._number(label) for label in listed(entry)] for entry in entries]
        if not self._multi_label:
            if not all(numbers):
                self._refuse()
            return torch.tensor([own[0] for own in numbers])
        labels = torch.zeros(len(numbers), len(self._classes), dtype=torch.bool)
        for row, own in zip(labels, numbers, strict=True):
            row[own] = True
        return labels

    def _number(self, label: Any) -> int:
        found = label if self._named else self._number_of.get(str(label), -1)
        if not 0 <= found < len(self._classes):
            self._refuse()
        return found

    def _refuse(self) -> NoReturn:
        raise ValueError(f"{self._source} has rows without a label; expected one of {len(self._classes)} classes")


def listed(entry: Any) -> list[Any]:
    """The labels of a row: none where there is nothing."""
    return entry if isinstance(entry, list) else [] if entry is None else [entry]
