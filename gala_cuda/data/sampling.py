"""Batches that depend on seed, epoch and place alone: on no number of workers, and on no interruption."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .clickme_sample import ClickMeSample
from .errors import TooManyUnreadableError, UnreachableError, UnreadableError

LIMIT = 0.01  # share of unreadable images that ends a run
ENOUGH = 10_000  # images to have seen before that share is judged, unless there are fewer
NAMED = 5  # unreadable files in a message
Batch = tuple[Tensor, Tensor] | ClickMeSample  # images [n, channels, size, size], labels [n], and perhaps maps


class Images(Protocol):
    """A numbered set of images."""

    labels: Tensor  # [n] int64
    shape: tuple[int, int, int]  # of an image

    def name(self, index: int) -> str: ...

    def prepare(self, indices: list[int]) -> None:
        """Says which are read next."""

    def read(self, index: int, seed: int) -> Tensor | ClickMeSample:
        """The image, float32 and normalised, in all cases or in none with its map; ``seed`` decides its augmentation.

        Raises UnreadableError, UnreachableError.
        """


def seed_of(*parts: int) -> int:
    """A seed of 63 bits for a tuple of whole numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` images in an epoch: [count] int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(seed, epoch)))


class Batches:
    """One rank's batches: (images [n, channels, size, size] float32 normalised, labels [n] int64).

    Of a source with human maps a batch is a :class:`ClickMeSample`, which starts with the same two, unless it is empty.

    The batches of all ``world`` ranks together hold the images of one process's batch of ``world`` times the size, and
    every rank has as many batches. To train, the order is new in each epoch, and what is left after the last full
    batch is left out, unless that is all there is. To test, the order is that of the files and every image comes once:
    the last batch may be smaller, and with fewer images left than ranks it is empty on some.

    An unreadable image of a training gives its place to the next readable one of the epoch; in a test it is left out.

    Attributes:
        total: images there are.
        images: of an epoch, over all ranks.
        labels: of all images of the source, [n] int64.
        skipped: (file, why) of each unreadable image that this rank has met.
    """

    def __init__(
        self,
        source: Images,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        *,
        train: bool,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Raises ValueError for numbers out of range, and with fewer images to train on than ranks."""
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} and world is {world}; expected 0 <= rank < world")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        count, together = len(source.labels), batch_size * world
        if train and count < together:
            together = count - count % world
        if not together:
            raise ValueError(f"there are {count} images to train on; expected at least 1 for each of {world} processes")
        self.labels = source.labels
        self._count = count // together if train else -(-count // together)
        self.images = self._count * together if train else count
        self.total = count
        self._reader = _Reader(source, together, seed, train, rank, world)
        self._seen, self._skipped = 0, dict[str, str]()
        self._requests = _Requests()
        self._loader: DataLoader = DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            collate_fn=_as_read,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # or else the global one would be drawn from
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return self._count

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return list(self._skipped.items())

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``start`` on as if the earlier ones had been drawn. One at a time.

        Raises:
            TooManyUnreadableError: more than 1 % of the images seen cannot be read.
            UnreachableError: a server does not give its shards.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; expected 0 <= start <= {len(self)}, the batches of an epoch")
        return self._draw(epoch, start)

    def _draw(self, epoch: int, start: int) -> Iterator[Batch]:
        self._requests.pending = [(epoch, batch) for batch in range(start, len(self))]
        for read in self._loader:
            if isinstance(read, UnreachableError):  # raised here, a worker's has no traceback for a message
                raise read
            batch, gave_up, unreadable = read
            self._seen += len(batch[1]) + len(unreadable)
            self._skipped |= unreadable
            allowed = LIMIT * min(len(self._reader), max(self._seen, ENOUGH))
            if gave_up or len(self._skipped) > allowed:
                raise TooManyUnreadableError(self._complaint())
            yield batch

    def _complaint(self) -> str:
        first = ", ".join(f"{name} ({why})" for name, why in self.skipped[:NAMED])
        more = len(self._skipped) - NAMED
        return (
            f"{len(self._skipped)} of {self._seen} images seen, of {len(self._reader)} there are, cannot be read; "
            f"more than {LIMIT:.0%} end the run: {first}" + (f", and {more} more" if more > 0 else "")
        )


@dataclass
class _Requests:
    """The sampler: which (epoch, batch) the workers read next."""

    pending: list[tuple[int, int]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pending)

    def __len__(self) -> int:
        return len(self.pending)


@dataclass(frozen=True)
class _Reader(Dataset):
    """(epoch, batch) -> (the batch, whether it gave up, {file: why it is unreadable}).

    Or UnreachableError.
    """

    source: Images
    together: int  # images of a batch of all ranks
    seed: int
    train: bool
    rank: int
    world: int

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, request: tuple[int, int]) -> tuple[Batch, bool, dict[str, str]] | UnreachableError:
        try:
            return self._batch(*request)
        except UnreachableError as error:
            return error

    def _batch(self, epoch: int, batch: int) -> tuple[Batch, bool, dict[str, str]]:
        order = shuffled(len(self), self.seed, epoch) if self.train else torch.arange(len(self))
        places = range(batch * self.together, min((batch + 1) * self.together, len(self)))[self.rank :: self.world]
        samples, indices, failed = list[Tensor | ClickMeSample](), [], dict[int, str]()
        self.source.prepare([int(order[place]) for place in places])
        for place in places:
            seed = seed_of(self.seed, epoch, int(order[place]))
            for index, sample in self._readable(order, place, seed, failed):
                samples.append(sample)
                indices.append(index)
        unreadable = {self.source.name(index): why for index, why in failed.items()}
        gave_up = self.train and len(samples) < len(places)
        return _stacked(samples, self.source.labels[indices], self.source.shape), gave_up, unreadable

    def _readable(
        self, order: Tensor, place: int, seed: int, failed: dict[int, str]
    ) -> Iterator[tuple[int, Tensor | ClickMeSample]]:
        """(index, image) at ``place``, or after it; nothing in a test, or after too many that ``failed``."""
        for step in range(len(self) if self.train else 1):
            index = int(order[(place + step) % len(self)])
            if index in failed:
                continue
            try:
                sample = self.source.read(index, seed)
            except UnreadableError as error:
                failed[index] = str(error)
                if len(failed) > LIMIT * min(len(self), ENOUGH):
                    return
            else:
                yield index, sample
                return


def _stacked(samples: list[Tensor | ClickMeSample], labels: Tensor, shape: tuple[int, int, int]) -> Batch:
    """What was read of images of one ``shape``, as a batch."""
    if samples and isinstance(samples[0], ClickMeSample):
        images, _, heatmaps, has_map = map(torch.stack, zip(*samples, strict=True))
        return ClickMeSample(images, labels, heatmaps, has_map)
    return torch.stack(samples) if samples else torch.empty(0, *shape), labels  # type: ignore[arg-type]


def _as_read(batch: Any) -> Any:
    return batch
