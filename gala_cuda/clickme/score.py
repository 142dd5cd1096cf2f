"""Scores how well a network looks where people look: rank correlations of its maps with theirs, image by image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.attention_maps import attention_maps, input_gradient

CEILING = 0.65753  # mean correlation between people, as serre-lab/Harmonization publishes it
PAIRS = 512  # images whose maps are exchanged in the permutation test
PERMUTATIONS, RESAMPLES = 9_999, 9_999
_CHUNK = 64  # images, or random draws, at a time, so that memory is bounded


@dataclass(frozen=True)
class MapScore:
    """How well maps agree with people's over a set of images.

    Linsley et al. do not define their score in detail; this definition is ours.

    Attributes:
        of: "attention" or "input gradient": which maps of the network were compared.
        rho: mean over images of Spearman's rank correlation with the human map.
        low, high: 95 % confidence interval of rho, by bootstrap over images.
        ceiling: mean correlation that people reach among each other.
        ratio: rho / ceiling; the paper's column is 100 times that.
        p: fraction of random pairings of images and human maps whose rho is as large, the true pairing included:
            one-sided. It does not become small merely because people look at the middle of every image.
        images: number of images that were compared. A constant map of the network counts with a correlation of 0.
        left_out: number of images whose human map is constant or not a number, and so has no ranks.
    """

    of: str
    rho: float
    low: float
    high: float
    ceiling: float
    ratio: float
    p: float
    images: int
    left_out: int

    @property
    def stars(self) -> str:
        """** for p < 0.01, as in the paper's table."""
        return "**" if self.p < 0.01 else ""


class MapScoreMeter:
    """Collects the correlations of a network's maps with people's batch by batch, and scores them.

    A network's map is the mean over layers of its attention maps, or with ``saliency`` the norm over colours of the
    gradient of the true class's logit with respect to the image; it is resized to the human map.

    Args:
        saliency: compare input gradients.
        every: one of so many images is kept for the random pairings of ``score``; 0 keeps none.
    """

    def __init__(self, saliency: bool = False, every: int = 0):
        self.saliency, self.every, self.left_out = saliency, every, 0
        self._count = 0
        self._rho: list[Tensor] = []
        self._ranks: list[tuple[Tensor, Tensor]] = []  # ours and theirs, standardised: [n, P] float32 each

    def compute_maps(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(logits [N, K], maps [N, h, w] to compare) of a network in evaluation mode."""
        if self.saliency:
            return model(images), [input_gradient(model, images, labels)]
        logits, maps = attention_maps(model, images)
        return logits, list(maps.values())

    def add(self, maps: Sequence[Tensor], heatmap: Tensor, has_map: Tensor) -> None:
        """Adds a batch: each layer's ``maps`` [N, h, w] and human maps [N, 1, H, W], where ``has_map`` [N] is True."""
        heatmap, has_map = (tensor.to(maps[0].device) for tensor in (heatmap, has_map))
        compared = [attn_map[has_map] for attn_map in maps]
        chunks = zip(heatmap[has_map].split(_CHUNK), *(attn_map.split(_CHUNK) for attn_map in compared), strict=True)
        for human, *ours in chunks:
            self._add(mean_over_layers(ours, human.shape[2:]).flatten(1), human.flatten(1))

    def _add(self, ours: Tensor, theirs: Tensor) -> None:
        """[n, P] each."""
        ours, theirs = standardised_ranks(ours), standardised_ranks(theirs)
        ranked = ~theirs[:, 0].isnan()
        ours, theirs = ours[ranked].nan_to_num(0.0), theirs[ranked]
        self.left_out += int((~ranked).sum())
        self._rho.append((ours * theirs).sum(1).cpu())
        if self.every:
            kept = slice(-self._count % self.every, None, self.every)
            self._ranks.append((ours[kept].float().cpu(), theirs[kept].float().cpu()))
        self._count += len(ours)

    @property
    def rho(self) -> Tensor:
        """The correlation of each image: [images] float64, on the CPU."""
        return torch.cat([torch.empty(0, dtype=torch.float64), *self._rho])

    def score(self, ceiling: float = CEILING, seed: int = 0) -> MapScore:
        """The score of all that was added; ``seed`` decides the random draws.

        Raises:
            ValueError: there are no human maps to compare with, or ``ceiling`` is out of range.
        """
        if not 0 < ceiling <= 1:
            raise ValueError(f"ceiling is {ceiling}; expected 0 < ceiling <= 1")
        rho, generator = self.rho, torch.Generator().manual_seed(seed)
        if not len(rho) or not self._ranks:
            raise ValueError(f"there are no human maps to compare with; {self.left_out} are constant")
        ours, theirs = (torch.cat(parts) for parts in zip(*self._ranks, strict=True))
        low, high = bootstrap_interval(rho, generator)
        mean = rho.mean().item()
        p = permutation_p(ours @ theirs.T, generator)
        of = "input gradient" if self.saliency else "attention"
        return MapScore(of, mean, low, high, ceiling, mean / ceiling, p, len(rho), self.left_out)


def bootstrap_interval(rho: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the mean of as many values drawn from ``rho`` [n] with replacement."""
    count = len(rho)
    drawn = (torch.randint(count, (number, count), generator=generator) for number in _chunks(RESAMPLES))
    means = torch.cat([rho[indices].mean(1) for indices in drawn])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def permutation_p(correlations: Tensor, generator: torch.Generator) -> float:
    """The one-sided p value of the diagonal's mean, of ``correlations`` [n, n] between all maps and all human maps."""
    correlations, count = correlations.double(), len(correlations)
    observed, as_large = correlations.diagonal().mean(), 0
    for number in _chunks(PERMUTATIONS):
        orders = torch.rand(number, count, generator=generator).argsort(1)
        means = correlations[torch.arange(count), orders].mean(1)
        as_large += int((means >= observed - 1e-12).sum())  # except for rounding
    return (as_large + 1) / (PERMUTATIONS + 1)


def _chunks(draws: int) -> list[int]:
    """``draws`` split into chunks."""
    return [min(_CHUNK, draws - done) for done in range(0, draws, _CHUNK)]


def human_ceiling(participants: Iterable[Tensor], splits: int = 10, seed: int = 0) -> float:
    """The mean split-half correlation between people, over images and ``splits`` random halvings of each.

    The correlation is Spearman's between the mean maps of both halves, without a correction for the halves' size.

    Args:
        participants: for each image the maps [k, H, W] of k people; images of fewer than 2 are passed over.

    Raises:
        ValueError: no image has two maps that are not constant.
    """
    generator, correlations = torch.Generator().manual_seed(seed), []
    for maps in participants:
        if len(maps) < 2:
            continue
        for _ in range(splits):
            order = torch.randperm(len(maps), generator=generator)
            halves = [maps[half].mean(0).flatten()[None] for half in order.tensor_split(2)]
            correlations.append(spearman(*halves))
    rho = torch.cat(correlations).nanmean().item() if correlations else float("nan")
    if rho != rho:
        raise ValueError("participants has no image with two maps that are not constant")
    return rho


def mean_over_layers(maps: Sequence[Tensor] | Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
    """The mean over layers of their maps [N, h, w], resized bilinearly to ``size``: [N, H, W]."""
    layers = list(maps.values()) if isinstance(maps, Mapping) else maps
    resized = [F.interpolate(attn_map[:, None], tuple(size), mode="bilinear")[:, 0] for attn_map in layers]
    return torch.stack(resized).mean(0)


def ranks(x: Tensor) -> Tensor:
    """The rank of each value within its row, from 1; equal values get their mean rank. [N, P] float64."""
    ordered, order = x.sort(dim=1)
    positions = torch.arange(x.shape[1], device=x.device).expand_as(order)
    differs, edge = ordered[:, 1:] != ordered[:, :-1], order.new_ones(len(x), 1, dtype=torch.bool)
    first = positions.where(torch.cat([edge, differs], 1), 0).cummax(1).values
    last = positions.where(torch.cat([differs, edge], 1), x.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(x, dtype=torch.float64).scatter_(1, order, (first + last).double() / 2 + 1)


def standardised_ranks(x: Tensor) -> Tensor:
    """The ranks of each row, centred and divided by their L2 norm; NaN where the row is constant or holds a NaN.

    The dot product of two such rows is Spearman's rank correlation. [N, P] float64.
    """
    centred = ranks(x) - (x.shape[1] + 1) / 2
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    undefined = (norm == 0) | x.isnan().any(1, keepdim=True)
    return torch.where(undefined, torch.nan, centred / norm)


def spearman(ours: Tensor, theirs: Tensor) -> Tensor:
    """Spearman's rank correlation of each row of ``ours`` [N, P] with the same row of ``theirs``: [N] float64.

    NaN where either row is constant, and so has no ranks, or holds a NaN.
    """
    return (standardised_ranks(ours) * standardised_ranks(theirs)).sum(1)
