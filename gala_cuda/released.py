"""`ReleasedGALA`: the attention block as the authors' released code has it, which is not quite the paper's."""

import torch
from torch import Tensor, nn

from . import operator
from .backends import reference, requested
from .backends.interface import Spatial
from .backends.released import choose
from .functional import check_feature_map, exporting_to_onnx
from .layer import GALA

KERNEL = 5  # sides of the further convolution in the local path


class ReleasedGALA(GALA):
    """Global-and-local attention by the code that its authors released for the paper (gala_tpu).

    With p = mean over H, W of x, and ** a 5x5 convolution of stride 1 with zeros around:

        g = relu(w_expand . relu(w_shrink . p + b_w_shrink) + b_w_expand)                                  [N, C]
        s = v_collapse . relu(v_spatial ** relu(v_shrink * x + b_v_shrink) + b_v_spatial) + b_v_collapse   [N, H, W]
        A = sigmoid(a (g + s) + m (g s))                                                                   [N, C, H, W]
        out = x A,  or with a residual  relu(x A + residual)                                               [N, C, H, W]

    So it differs from `GALA` in the squash, in the biases, in the ReLU on g, and in the convolution that lets the local
    path see its neighbours. That convolution is most of its cost: 25 R² multiplications for each pixel, where `GALA`
    has C R + R. With the paper's C = 1024 and R = 256 on 14 x 14 pixels these are 321 million beside 52 million, and
    1.64 million weights beside 0.79 million. PyTorch's library computes it; the backends "cpu" and "triton" fuse the
    passes over x before and behind it. "reference" is PyTorch's operations throughout. On a CPU in float32 the
    convolution alone is about three quarters of the fused time, and the operations take 1.1 to 1.3 times as long.

    Args:
        channels, reduction, device, dtype: as of `GALA`.
        backend: "reference", "cpu", "triton", or None, which takes "cpu" where that runs, else "reference": no GPU has
            run the Triton form yet.

    Parameters are those of `GALA` with biases, and `v_spatial` [R, R, 5, 5] and `b_v_spatial` [R]. They start as with
    ``init="paper"``: He's normal initialisation before ReLUs, biases of 0, a and m from a normal distribution of
    deviation 1 cut at 2. In the authors' training they are left out of the weight decay.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    v_spatial: nn.Parameter
    b_v_spatial: nn.Parameter

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            channels, reduction, "sigmoid", True, init="paper", backend=backend, device=device, dtype=dtype
        )
        reduced = len(self.v_collapse)
        spatial = self.v_shrink.new_empty(reduced, reduced, KERNEL, KERNEL)
        # as the library's convolution reads it: else it is laid out anew in each call, longer than an image takes
        self.v_spatial = nn.Parameter(spatial.to(memory_format=torch.channels_last))
        self.b_v_spatial = nn.Parameter(self.v_shrink.new_empty(reduced))
        self._reset_spatial()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        super().reset_parameters()
        if "v_spatial" in self._parameters:  # not yet while `GALA` is made
            self._reset_spatial()

    @torch.no_grad()
    def _reset_spatial(self) -> None:
        nn.init.kaiming_normal_(self.v_spatial, nonlinearity="relu")
        nn.init.zeros_(self.b_v_spatial)

    @property
    def spatial(self) -> Spatial:
        """The 5x5 convolution's parameters."""
        return Spatial(self.v_spatial, self.b_v_spatial)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, return_map: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As of `GALA`: x [N, C, H, W] to out of the same shape, dtype and memory format, and perhaps map [N, H, W].

        Raises TypeError or ValueError where x or the residual is not for this layer.
        """
        self._check_input(x)
        if residual is not None:
            check_feature_map("residual", residual)
            if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
                raise ValueError(
                    f"residual is {residual.dtype}, {tuple(residual.shape)}, on {residual.device}; expected x's, "
                    f"{x.dtype}, {tuple(x.shape)}, on {x.device}"
                )
        name = choose(x, requested(self.backend))
        if name == "reference" or exporting_to_onnx():
            out, attn_map = reference.released_apply(x, self.weights, self.spatial, residual)
        else:
            out, attn_map, *_ = operator.released_gala(
                x, *self.weights, *self.spatial, residual, return_map, False, name
            )
        return (out, attn_map) if return_map else out

    def attention(self, x: Tensor) -> Tensor:
        """The attention A [N, C, H, W] that multiplies x: float32, or float64 for float64 x."""
        self._check_input(x)
        return reference.released_attention(x, self.weights, self.spatial)

    def _check_input(self, x: Tensor) -> None:
        check_feature_map("x", x)
        self._check(x)

    def extra_repr(self) -> str:
        return f"{self.channels}, reduction={self.reduction}"
