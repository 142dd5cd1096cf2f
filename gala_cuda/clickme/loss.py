"""Losses that teach a network to look where people look: on attention maps, and on input gradients."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = {"paper": 6.0, "gala_tpu": 1e-5, "harmonization": 1.0}  # λ of each loss
MODES = ("paper", "gala_tpu")
LEVELS = 5  # of the pyramid of HarmonizationLoss
_BLUR, _SIGMA = 49, 28.0  # pixels, of gala_tpu


class GalaMapLoss(nn.Module):
    """The distance of attention maps from human maps, weight Σ_l ‖R_l/‖R_l‖₂ - A_l/‖A_l‖₂‖₂, and its released variant.

    Linsley et al., ICLR 2019, equation of the loss L_T without L_C. A_l [H, W] is the L2 norm over channels of layer
    l's attention, as ``return_maps`` gives it, and R_l the human map resized to it. That the norm makes the map, and
    that the resizing is bicubic, is believed and not confirmed; here it is antialiased.

    ``mode="gala_tpu"`` is the authors' released code instead: the human map is blurred (49x49, sigma 28: a point that
    scipy's gaussian_filter spread within the square) and resized bilinearly with its corners aligned, Q_l is the mean
    over channels of the attention's square, A_l²/C; both are divided by sqrt(max(Σ over pixels, 1e-12)), and the loss
    is weight times the mean over layers of 0.5 Σ over pixels of (R_l - Q_l)². That code sums over the images of a
    device where this takes the mean: its weight has to be multiplied by their number for the same gradients. Unlike the
    paper's, this loss depends on the human map's scale, and on its size, in whose pixels the blur is given.

    Per image the loss is as above; over a batch it is the mean over **all** images, those without a map adding 0, as
    the cross-entropy's mean. So parts and processes of a batch add up to the batch.

    Args:
        mode: "paper" or "gala_tpu".
        weight: λ; 6 for "paper", 1e-5 for "gala_tpu" unless given.
        channels: C of the attention, of all layers or of each; for "gala_tpu", whose 1/C does not cancel.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    kernel: Tensor

    def __init__(self, mode: str = "paper", weight: float | None = None, channels: int | Sequence[int] | None = None):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {', '.join(map(repr, MODES))}")
        self.mode, self.weight = mode, _weight(weight, WEIGHTS[mode])
        self.channels = (channels,) if isinstance(channels, int) else tuple(channels or ())
        if mode == "gala_tpu":
            if not self.channels or any(not isinstance(c, int) or c < 1 for c in self.channels):
                raise ValueError(
                    f"channels is {channels!r}; expected the attention's channels, at least 1, for {mode!r}"
                )
            self.register_buffer("kernel", _blur_kernel(), persistent=False)

    def forward(self, maps: Sequence[Tensor] | Mapping[str, Tensor], heatmap: Tensor, has_map: Tensor) -> Tensor:
        """weight times the mean of ``per_image``: a scalar."""
        return self.weight * self.per_image(maps, heatmap, has_map).mean()

    def per_image(self, maps: Sequence[Tensor] | Mapping[str, Tensor], heatmap: Tensor, has_map: Tensor) -> Tensor:
        """Each image's loss before the weight: [N], float32 (float64 of float64 maps); 0 where there is no map.

        Args:
            maps: of each layer [N, H, W], in a list or by name; gradients flow to them, exactly 0 without a human map.
            heatmap: [N, 1, H', W'], the human maps; where ``has_map`` is False anything, NaN included.
            has_map: [N] bool.

        Raises:
            ValueError: a shape, dtype or length does not fit; the message names the argument.
        """
        layers = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
        _check(layers, heatmap, has_map)
        channels = self.channels * len(layers) if len(self.channels) == 1 else self.channels
        if self.mode == "gala_tpu" and len(channels) != len(layers):
            raise ValueError(f"maps has {len(layers)} layers; expected {len(channels)}, as channels has")
        human = torch.where(has_map[:, None, None, None], heatmap, 0.0)
        if self.mode == "gala_tpu":
            human = self._blurred(human)
        resized: dict[torch.Size, Tensor] = {}
        distances = []
        for layer, attn_map in enumerate(layers):
            size = attn_map.shape[1:]
            if size not in resized:
                resized[size] = self._resized(human, size)
            attn_map = torch.where(has_map[:, None, None], attn_map, 1.0).to(
                torch.promote_types(attn_map.dtype, torch.float32)
            )
            target = resized[size].to(attn_map.dtype)
            if self.mode == "paper":
                distances.append(torch.linalg.vector_norm(_unit(target) - _unit(attn_map), dim=(1, 2)))
            else:
                difference = _over_root(target) - _over_root(attn_map.square() / channels[layer])
                distances.append(0.5 * difference.square().sum((1, 2)))
        summed = torch.stack(distances).sum(0) if self.mode == "paper" else torch.stack(distances).mean(0)
        return torch.where(has_map, summed, 0.0)

    def _blurred(self, human: Tensor) -> Tensor:
        kernel = self.kernel.to(human)
        down = F.conv2d(human, kernel.view(1, 1, -1, 1), padding=(_BLUR // 2, 0))
        return F.conv2d(down, kernel.view(1, 1, 1, -1), padding=(0, _BLUR // 2))

    def _resized(self, human: Tensor, size: torch.Size) -> Tensor:
        """[N, 1, H', W'] to [N, H, W]."""
        if self.mode == "paper":
            return F.interpolate(human, size, mode="bicubic", antialias=True)[:, 0]
        return F.interpolate(human, size, mode="bilinear", align_corners=True)[:, 0]

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, weight={self.weight}"


class HarmonizationLoss(nn.Module):
    """The distance of input gradients from human maps, for any network; it needs double backward.

    Fel et al., "Harmonizing the object recognition strategies of deep neural networks with humans", NeurIPS 2022, as in
    their released code: with g the mean over colours of the gradient of the true class's logit by the image, φ the
    human map, and z(h) = relu((h - μ) / (d + 1e-5)) with mean μ and population deviation d of an image,

        φ̃ = z(φ) / (max z(φ) + 1e-6) · (max z(g) + 1e-6)        no gradient through the maximum of z(g)
        loss = weight · mean over i < 5, images, pixels of (P_i z(g) - P_i φ̃)²

    where P_i is i times a binomial blur of 5x5 with stride 2, zeros around the map. Images without a map count as 0.
    In training mode BatchNorm couples the images: g then also has their influence on each other, as in that code.

    Args:
        weight: λ, 1 unless given.

    Raises:
        ValueError: ``weight`` is out of range.
    """

    kernel: Tensor

    def __init__(self, weight: float | None = None):
        super().__init__()
        self.weight = _weight(weight, WEIGHTS["harmonization"])
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("kernel", row[:, None] * row, persistent=False)

    def forward(self, logits: Tensor, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor) -> Tensor:
        """weight times the mean of ``per_image``: a scalar."""
        return self.weight * self.per_image(logits, images, labels, heatmap, has_map).mean()

    def per_image(self, logits: Tensor, images: Tensor, labels: Tensor, heatmap: Tensor, has_map: Tensor) -> Tensor:
        """Each image's loss before the weight: [N], float32 (float64 of float64 images); 0 where there is no map.

        Args:
            logits: [N, K], computed from ``images``.
            images: [N, C, H, W], which require gradients.
            labels: [N] int64.
            heatmap: [N, 1, H', W'], resized bilinearly to the images where it differs; anything without a map.
            has_map: [N] bool.

        Raises:
            ValueError: a shape or dtype does not fit, or ``images`` require no gradients; the message names it.
        """
        if images.dim() != 4 or not images.requires_grad:
            raise ValueError(
                f"images is {_described(images)} and requires_grad is {images.requires_grad}; "
                "expected [N, C, H, W] that requires gradients, before the network is called"
            )
        for name, tensor, dims in (("logits", logits, 2), ("labels", labels, 1)):
            if tensor.dim() != dims or len(tensor) != len(images):
                raise ValueError(f"{name} is {_described(tensor)}; expected {dims} dimensions, the first {len(images)}")
        _check([images[:, 0]], heatmap, has_map)
        there = has_map[:, None, None]
        chosen = logits.gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, images, create_graph=True)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).mean(1)  # [N, H, W]
        human = torch.where(has_map[:, None, None, None], heatmap, 0.0).to(gradient.dtype)
        if human.shape[2:] != gradient.shape[1:]:
            human = F.interpolate(human, gradient.shape[1:], mode="bilinear", antialias=True)
        ours, theirs = _standardised(torch.where(there, gradient, 0.0)), _standardised(human[:, 0])
        largest = ours.detach().amax((1, 2), keepdim=True) + 1e-6
        theirs = theirs / (theirs.amax((1, 2), keepdim=True) + 1e-6) * largest
        difference = torch.where(there, ours - theirs, 0.0)[:, None]  # P_i is linear
        levels = [difference.square().mean((1, 2, 3))]
        for _ in range(LEVELS - 1):
            difference = self._halved(difference)
            levels.append(difference.square().mean((1, 2, 3)))
        return torch.stack(levels).mean(0)

    def _halved(self, x: Tensor) -> Tensor:
        """Blurred at every second pixel of [N, 1, H, W]; of an odd number of zeros around x, more come after it."""
        height, width = x.shape[2:]
        down, right = (4 - (side + 1) % 2 for side in (height, width))
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.kernel.to(x)[None, None], stride=2)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def _weight(given: float | None, default: float) -> float:
    weight = default if given is None else given
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight is {weight}; expected a number of at least 0")
    return float(weight)


def _check(maps: list[Tensor], heatmap: Tensor, has_map: Tensor) -> None:
    if not maps:
        raise ValueError("maps is empty; expected at least one [N, H, W]")
    images = len(maps[0]) if maps[0].dim() else 0
    for attn_map in maps:
        if attn_map.dim() != 3 or len(attn_map) != images or not attn_map.is_floating_point():
            raise ValueError(f"maps has {_described(attn_map)}; expected floating-point [N, H, W], N as of the first")
    if heatmap.dim() != 4 or heatmap.shape[:2] != (images, 1) or not heatmap.is_floating_point():
        raise ValueError(f"heatmap is {_described(heatmap)}; expected floating-point [{images}, 1, H', W']")
    if has_map.shape != (images,) or has_map.dtype != torch.bool:
        raise ValueError(f"has_map is {_described(has_map)}; expected bool [{images}]")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _unit(x: Tensor) -> Tensor:
    """x [N, H, W] over its L2 norm; 0 where that is 0, its gradient finite."""
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


def _over_root(x: Tensor) -> Tensor:
    """x [N, H, W] over the root of its sum."""
    return x / x.sum((1, 2), keepdim=True).clamp_min(1e-12).sqrt()


def _standardised(h: Tensor) -> Tensor:
    """z(h) of h [N, H, W]; 0, its gradient finite, where h is constant."""
    centred = h - h.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2), keepdim=True)
    deviation = torch.where(variance == 0, 0.0, torch.where(variance == 0, 1.0, variance).sqrt())
    return F.relu(centred / (deviation + 1e-5))


def _blur_kernel() -> Tensor:
    """[49] float64: the released code's blur is the product of this along both sides."""
    from scipy.ndimage import gaussian_filter1d

    point = torch.zeros(_BLUR, dtype=torch.float64)
    point[_BLUR // 2] = 1
    return torch.from_numpy(gaussian_filter1d(point.numpy(), _SIGMA))
