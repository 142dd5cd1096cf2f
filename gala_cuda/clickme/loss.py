"""Losses that teach a network to look where people look: on attention maps, and on input gradients."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = {"paper": 6.0, "gala_tpu": 1e-5, "harmonization": 1.0}  # λ, the default weight of each loss
MODES = ("paper", "gala_tpu")
LEVELS = 5  # of the pyramid of HarmonizationLoss
_BLUR_SIZE, _BLUR_SIGMA = 49, 28.0  # pixels, of gala_tpu


class GalaMapLoss(nn.Module):
    """The distance of attention maps from human maps, weight Σ_l ‖R_l/‖R_l‖₂ - A_l/‖A_l‖₂‖₂, and its released variant.

    Linsley et al., ICLR 2019: the loss L_T without its part L_C. A_l [H, W] is the L2 norm over channels of layer l's
    attention, as ``return_maps`` gives it, and R_l is the human map resized to it. That maps are made by the norm, and
    that human maps are resized bicubically, is believed and not confirmed; here the resizing is antialiased.

    ``mode="gala_tpu"`` follows the authors' released code instead. The human map is blurred (a square of 49x49 that
    scipy's gaussian_filter with sigma 28 makes of a point) and resized bilinearly with aligned corners. Q_l is the mean
    over channels of the squared attention, A_l²/C. Both are divided by sqrt(max(Σ over pixels, 1e-12)), and the loss
    is weight times the mean over layers of 0.5 Σ over pixels of (R_l - Q_l)². That code sums over the images of a
    device where this takes the mean: for the same gradients, multiply its weight by their number. Unlike the paper's,
    this loss depends on the human map's scale, and on its size, because the blur is given in pixels of the map.

    The above is the loss of one image. Over a batch it is the mean over **all** images, where those without a map count
    as 0, like the mean of the cross-entropy. So the losses of parts of a batch, in any process, add up to the batch's.

    Args:
        mode: "paper" or "gala_tpu".
        weight: λ; 6 for "paper", 1e-5 for "gala_tpu" unless given.
        channels: C of the attention, of all layers or of each; needed for "gala_tpu" alone, where 1/C does not cancel.

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
        """``weight`` times the mean of ``per_image``: a scalar."""
        return self.weight * self.per_image(maps, heatmap, has_map).mean()

    def per_image(self, maps: Sequence[Tensor] | Mapping[str, Tensor], heatmap: Tensor, has_map: Tensor) -> Tensor:
        """Each image's loss before ``weight``: [N], float32 (float64 of float64 maps); 0 where there is no map.

        Args:
            maps: [N, H, W] of each layer, in a list or by name. Gradients are exactly 0 where there is no human map.
            heatmap: [N, 1, H', W'], the human maps; where ``has_map`` is False the values do not matter, even NaN.
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
            human = self._blur(human)
        resized: dict[torch.Size, Tensor] = {}
        distances = []
        for layer, attn_map in enumerate(layers):
            size = attn_map.shape[1:]
            if size not in resized:
                resized[size] = self._resize(human, size)
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

    def _blur(self, human: Tensor) -> Tensor:
        kernel = self.kernel.to(human)
        down = F.conv2d(human, kernel.view(1, 1, -1, 1), padding=(_BLUR_SIZE // 2, 0))
        return F.conv2d(down, kernel.view(1, 1, 1, -1), padding=(0, _BLUR_SIZE // 2))

    def _resize(self, human: Tensor, size: torch.Size) -> Tensor:
        """[N, 1, H', W'] to [N, H, W]."""
        if self.mode == "paper":
            return F.interpolate(human, size, mode="bicubic", antialias=True)[:, 0]
        return F.interpolate(human, size, mode="bilinear", align_corners=True)[:, 0]

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, weight={self.weight}"


class HarmonizationLoss(nn.Module):
    """The distance of input gradients from human maps, for any network. Its gradient differentiates twice.

    Fel et al., "Harmonizing the object recognition strategies of deep neural networks with humans", NeurIPS 2022, as in
    their released code: with g the mean over colours of the gradient of the true class's logit by the image, φ the
    human map, and z(h) = relu((h - μ) / (d + 1e-5)) with mean μ and population deviation d of an image,

        φ̃ = z(φ) / (max z(φ) + 1e-6) · (max z(g) + 1e-6)        no gradient through the maximum of z(g)
        loss = weight · mean over i < 5, images, pixels of (P_i z(g) - P_i φ̃)²

    where P_i applies i times a binomial blur of 5x5 pixels with stride 2, with zeros around the map. Images without a
    map count as 0. In training mode BatchNorm couples the images: g then also holds their influence on one another, as
    in that code.

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
            images: [N, C, H, W], requiring gradients.
            labels: [N] int64.
            heatmap: [N, 1, H', W'], resized bilinearly if the images have another size; any values without a map.
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
        is_mapped = has_map[:, None, None]
        true_logits = logits.gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(true_logits, images, create_graph=True)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).mean(1)  # [N, H, W]
        human = torch.where(has_map[:, None, None, None], heatmap, 0.0).to(gradient.dtype)
        if human.shape[2:] != gradient.shape[1:]:
            human = F.interpolate(human, gradient.shape[1:], mode="bilinear", antialias=True)
        ours, theirs = _rectified_z_score(torch.where(is_mapped, gradient, 0.0)), _rectified_z_score(human[:, 0])
        largest = ours.detach().amax((1, 2), keepdim=True) + 1e-6
        theirs = theirs / (theirs.amax((1, 2), keepdim=True) + 1e-6) * largest
        difference = torch.where(is_mapped, ours - theirs, 0.0)[:, None]  # P_i is linear
        levels = [difference.square().mean((1, 2, 3))]
        for _ in range(LEVELS - 1):
            difference = self._blur_and_halve(difference)
            levels.append(difference.square().mean((1, 2, 3)))
        return torch.stack(levels).mean(0)

    def _blur_and_halve(self, x: Tensor) -> Tensor:
        """x [N, 1, H, W] blurred at every second pixel. Of an odd number of zeros around x, one more comes after it."""
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
    """x [N, H, W] divided by its L2 norm; where that is 0, 0 with a finite gradient."""
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


def _over_root(x: Tensor) -> Tensor:
    """x [N, H, W] divided by the square root of its sum."""
    return x / x.sum((1, 2), keepdim=True).clamp_min(1e-12).sqrt()


def _rectified_z_score(h: Tensor) -> Tensor:
    """z(h) of h [N, H, W]; where h is constant, 0 with a finite gradient."""
    centred = h - h.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2), keepdim=True)
    deviation = torch.where(variance == 0, 0.0, torch.where(variance == 0, 1.0, variance).sqrt())
    return F.relu(centred / (deviation + 1e-5))


def _blur_kernel() -> Tensor:
    """[49] float64: the released code's blur is the product of this kernel along both sides."""
    from scipy.ndimage import gaussian_filter1d

    point = torch.zeros(_BLUR_SIZE, dtype=torch.float64)
    point[_BLUR_SIZE // 2] = 1
    return torch.from_numpy(gaussian_filter1d(point.numpy(), _BLUR_SIGMA))
