"""Pictures that come one after the other, in batches: decoded by workers, in an order that only the seed decides."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from .clickme_sample import ClickMeSample
from .datasets import derive_seed, seeded
from .errors import UnreachableError, UnreadableError
from .hf_rows import content, name_of
from .picture_decoding import decode_picture

Batch = tuple[Tensor, Tensor] | ClickMeSample  # images [n, channels, size, size], labels [n], and perhaps human maps
# An epoch, the number of its first image, and the images of a rank: (number in the epoch, where its bytes are, label).
Request = tuple[int, list[tuple[int, Any, Tensor]]]


class Read(NamedTuple):
    """What a worker read: a batch, whether it gave up, {picture: why unreadable}, and how many of these there are."""

    batch: Batch
    gave_up: bool
    unreadable: dict[str, str]
    failed: int


class Stream(Protocol):
    """Pictures one after the other, as ``StreamedPictures``."""

    labels: Tensor  # of all, in no particular order: [n] int64, or [n, classes] bool

    def rows(self, seed: int | None) -> Iterator[tuple[Any, Tensor]]: ...


class StreamedDataset:
    """Images [channels, size, size] of a stream of pictures."""

    def __init__(self, stream: Stream, transform: v2.Transform, size: int, channels: int = 3) -> None:
        self.stream, self.transform = stream, transform
        self.labels, self.shape = stream.labels, (channels, size, size)

    def read(self, place: Any, seed: int) -> Tensor:
        """The image whose bytes are at ``place``. Raises UnreadableError."""
        try:
            data = content(place)
        except OSError as error:
            raise UnreadableError(str(error)) from error
        picture = decode_picture(data, self.shape[0])
        with seeded(seed):
            return self.transform(picture)


@dataclass(frozen=True)
class StreamReader(Dataset):
    """The DataLoader's dataset: a request to what was read."""

    images: StreamedDataset
    batches: int  # of an epoch
    global_size: int  # images of a batch of all ranks
    seed: int
    train: bool
    rank: int
    world: int

    def __len__(self) -> int:
        return len(self.images.labels)

    def requests(self, epoch: int, start: int) -> Iterator[Request]:
        """What the batches of an epoch are made of, from number ``start`` on.

        Every rank goes through the whole stream, and through what comes before ``start``, without decoding it.

        Raises:
            UnreachableError: the stream ends too early.
        """
        stream = self.images.stream.rows(derive_seed(self.seed, epoch) if self.train else None)
        rows = islice(enumerate(stream), start * self.global_size, None)
        for number in range(start, self.batches):
            wanted = min(self.global_size, len(self) - number * self.global_size)
            found = list(islice(rows, wanted))
            if len(found) < wanted:
                raise UnreachableError(f"the stream ended in batch {number + 1} of {self.batches}; was it changed?")
            yield epoch, [(position, *row) for position, row in found[self.rank :: self.world]]

    def __getitem__(self, request: Request) -> Read:
        epoch, rows = request
        images, labels, failed = list[Tensor](), list[Tensor](), dict[str, str]()
        for position, place, label in rows:
            try:
                images.append(self.images.read(place, derive_seed(self.seed, epoch, position)))
            except UnreadableError as error:
                failed[name_of(place)] = str(error)
            else:
                labels.append(label)
        if not images:
            empty = torch.empty(0, *self.images.shape), self.images.labels[:0]
            return Read(empty, self.train and bool(rows), failed, len(rows))
        return Read((torch.stack(images), torch.stack(labels)), False, failed, len(rows) - len(images))
