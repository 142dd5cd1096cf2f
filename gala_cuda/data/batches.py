"""Batches of a dataset in an order that only the seed and the epoch decide, however many workers read them.

A training that was interrupted can therefore go on with the very batches that it would have seen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .clickme_sample import ClickMeSample
from .datasets import ImageDataset, derive_seed
from .errors import TooManyUnreadableError, UnreachableError, UnreadableError
from .streams import Batch, Read, StreamedDataset, StreamReader

MAX_UNREADABLE = 0.01  # fraction of the images; more end a run
MIN_SEEN = 10_000  # images to have seen before that fraction is judged, unless there are fewer
MAX_NAMED = 5  # unreadable files that a message names


@lru_cache(maxsize=2)
def shuffled_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` images in an epoch: [count] int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """How many images have each class: [classes] int64. ``labels`` are [n] int64, or [n, classes] bool."""
    return labels.sum(0) if labels.dim() == 2 else labels.bincount(minlength=classes)


class Batches:
    """One rank's batches: (images [n, channels, size, size] float32 normalised, labels [n] int64).

    Where images have any number of labels, these are [n, classes] bool.

    Of a dataset with human maps a batch is a ``ClickMeSample``, which starts with the same two. An empty batch
    is always a pair.

    The batches of all ``world`` ranks together hold the images of one process's batch of ``world`` times the size, and
    every rank has as many batches. To train, the order is new in each epoch, and what is left after the last full
    batch is left out, unless that is all there is. To test, the order is that of the files and every image comes once:
    the last batch may be smaller, and with fewer images left than ranks it is empty on some.

    With ``repeats`` above 1, an epoch is as long but has fewer images, each so many times, one copy after the other,
    and each copy augmented in its own way (Hoffer et al., 2020); the ranks get different copies.

    In training, the next readable image of the epoch takes the place of an unreadable one; in a test, and of a stream,
    it is left out. The order of a ``StreamedDataset`` is shuffled as far as that of a stream can be.

    Attributes:
        total: number of images in the dataset.
        images: number of images of an epoch, over all ranks.
        labels: of all images of the dataset, [n] int64 or [n, classes] bool.
        skipped: (file, reason) of each unreadable image that this rank has met.
    """

    def __init__(
        self,
        dataset: ImageDataset | StreamedDataset,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        *,
        train: bool,
        repeats: int = 1,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Raises ValueError for numbers out of range, and with fewer images to train on than ranks."""
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} and world is {world}; expected 0 <= rank < world")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        count, global_size = len(dataset.labels), batch_size * world
        if train and count < global_size:
            global_size = count - count % world
        if not global_size:
            raise ValueError(f"there are {count} images to train on; expected at least 1 for each of {world} processes")
        self.labels = dataset.labels
        self._count = count // global_size if train else -(-count // global_size)
        self.images = self._count * global_size if train else count
        self.total = count
        self._reader: _BatchReader | StreamReader
        if isinstance(dataset, StreamedDataset):
            self._reader = StreamReader(dataset, self._count, global_size, seed, train, rank, world)
        else:
            self._reader = _BatchReader(dataset, self._count, global_size, seed, train, repeats, rank, world)
        self._seen, self._skipped = 0, dict[str, str]()
        self._requests = _Requests()
        self._loader: DataLoader = DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # otherwise it would draw from the global one
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return self._count

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return list(self._skipped.items())

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``start`` on as if the earlier ones had been drawn.

        Only one such iterator may be in use at a time.

        Raises:
            TooManyUnreadableError: more than 1 % of the images seen cannot be read.
            UnreachableError: a server does not deliver its shards.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; expected 0 <= start <= {len(self)}, the batches of an epoch")
        return self._draw(epoch, start)

    def _draw(self, epoch: int, start: int) -> Iterator[Batch]:
        self._requests.pending = self._reader.requests(epoch, start)
        failures = 0  # in this epoch; pictures of a stream may have the same name, of others the same may fail twice
        for result in self._loader:
            if isinstance(result, UnreachableError):  # raised here: a worker's would bring its traceback as message
                raise result
            batch, gave_up, unreadable, failed = result
            self._seen += len(batch[1]) + failed
            self._skipped |= unreadable
            failures += failed if isinstance(self._reader, StreamReader) else 0
            allowed = MAX_UNREADABLE * min(len(self._reader), max(self._seen, MIN_SEEN))
            if gave_up or max(len(self._skipped), failures) > allowed:
                raise TooManyUnreadableError(self._complaint(max(len(self._skipped), failures)))
            yield batch

    def _complaint(self, count: int) -> str:
        named = ", ".join(f"{name} ({reason})" for name, reason in self.skipped[:MAX_NAMED])
        more = len(self._skipped) - MAX_NAMED
        return (
            f"{count} of {self._seen} images seen, of {len(self._reader)} there are, cannot be read; "
            f"more than {MAX_UNREADABLE:.0%} end the run: {named}" + (f", and {more} more" if more > 0 else "")
        )


@dataclass
class _Requests:
    """The DataLoader's sampler: what the workers read next."""

    pending: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pending)


@dataclass(frozen=True)
class _BatchReader(Dataset):
    """The DataLoader's dataset: a request (epoch, batch) to what was read; UnreachableError is returned, not raised."""

    images: ImageDataset
    batches: int  # of an epoch
    global_size: int  # images of a batch of all ranks
    seed: int
    train: bool
    repeats: int
    rank: int
    world: int

    def __len__(self) -> int:
        return len(self.images.labels)

    def requests(self, epoch: int, start: int) -> list[tuple[int, int]]:
        """(epoch, batch) for the batches of an epoch from number ``start`` on."""
        return [(epoch, batch) for batch in range(start, self.batches)]

    def __getitem__(self, request: tuple[int, int]) -> Read | UnreachableError:
        try:
            return self._batch(*request)
        except UnreachableError as error:
            return error

    def _batch(self, epoch: int, batch: int) -> Read:
        order = self._order(epoch)
        end = min((batch + 1) * self.global_size, len(self))
        positions = range(batch * self.global_size, end)[self.rank :: self.world]
        samples, indices, failed = list[Tensor | ClickMeSample](), [], dict[int, str]()
        self.images.prepare([int(order[position]) for position in positions])
        for position in positions:
            copy = position % self.repeats
            seed = derive_seed(self.seed, epoch, int(order[position]), *([copy] if copy else []))
            for index, sample in self._first_readable(order, position, seed, failed):
                samples.append(sample)
                indices.append(index)
        unreadable = {self.images.name(index): reason for index, reason in failed.items()}
        gave_up = self.train and len(samples) < len(positions)
        return Read(_stack(samples, self.images.labels[indices], self.images.shape), gave_up, unreadable, len(failed))

    def _order(self, epoch: int) -> Tensor:
        """The numbers of the images of an epoch, in their order: [n] int64."""
        if not self.train:
            return torch.arange(len(self))
        order = shuffled_order(len(self), self.seed, epoch)
        return order if self.repeats == 1 else order.repeat_interleave(self.repeats)[: len(self)]

    def _first_readable(
        self, order: Tensor, position: int, seed: int, failed: dict[int, str]
    ) -> Iterator[tuple[int, Tensor | ClickMeSample]]:
        """(index, image) at ``position`` or, in training, the next; nothing after too many that ``failed``."""
        for step in range(len(self) if self.train else 1):
            index = int(order[(position + step) % len(self)])
            if index in failed:
                continue
            try:
                sample = self.images.read(index, seed)
            except UnreadableError as error:
                failed[index] = str(error)
                if len(failed) > MAX_UNREADABLE * min(len(self), MIN_SEEN):
                    return
            else:
                yield index, sample
                return


def _stack(samples: list[Tensor | ClickMeSample], labels: Tensor, shape: tuple[int, int, int]) -> Batch:
    """The batch of images, each of ``shape``, or of images with human maps."""
    if samples and isinstance(samples[0], ClickMeSample):
        images, _, heatmaps, has_map = map(torch.stack, zip(*samples, strict=True))
        return ClickMeSample(images, labels, heatmaps, has_map)
    return torch.stack(samples) if samples else torch.empty(0, *shape), labels  # type: ignore[arg-type]


def _unchanged(batch: Any) -> Any:
    return batch
