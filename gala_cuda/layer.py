"""`GALA`: the attention block as an nn.Module with its parameters."""

import math

import torch
from torch import Tensor, nn

from .backends import NAMES, reference
from .backends.dtypes import DTYPES, HALVES
from .backends.interface import Weights, weight_shapes
from .backends.squash import HALFWAY, SQUASHES
from .errors import check_positive
from .functional import check_feature_map, gala, stands_for_tensor

INITS = {"half": "sigmoid", "paper": "tanh"}  # starts, each with the squash that goes with it
HALF_SPREAD = 0.1  # of the last weights of both paths, in units of the paper's start


def starts_at_0(init: str, squash: str | None) -> bool:
    """Whether the attention of x = 0 is 0 at first, as with "paper" and tanh.

    Behind a normalisation whose scale starts at 0 too, neither the one nor the other ever gets a gradient.
    """
    return init == "paper" and squash in ("tanh", None)


class GALA(nn.Module):
    """Global-and-local attention over a feature map (Linsley et al., ICLR 2019, section 3).

    Args:
        channels: C, the channels of the input.
        reduction: r; the hidden layers of both paths have R = max(1, C // r) units. The paper has 4.
        squash: "tanh" (paper) or "sigmoid" (the authors' released code). None: as ``init`` has it, which with "half" is
            "sigmoid", with "paper" "tanh".
        bias: add biases to all four projections; the paper's formulas show none. None: as ``init`` has it, which with
            "half" is True, with "paper" False.
        init: how the parameters start, "half" or "paper"; see ``reset_parameters``.
        backend: "reference", "cpu", "triton", "cuda", or None to choose automatically (see `gala_cuda.gala`).
        device, dtype: of the parameters. float32 parameters serve bfloat16 and float16 inputs too.

    Parameters are `w_shrink` [R, C], `w_expand` [C, R], `v_shrink` [R, C], `v_collapse` [R], `a` [C] and
    `m` [C]; with `bias` also `b_w_shrink` [R], `b_w_expand` [C], `b_v_shrink` [R], `b_v_collapse` [1].

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    w_shrink: nn.Parameter
    w_expand: nn.Parameter
    v_shrink: nn.Parameter
    v_collapse: nn.Parameter
    a: nn.Parameter
    m: nn.Parameter
    b_w_shrink: nn.Parameter | None
    b_w_expand: nn.Parameter | None
    b_v_shrink: nn.Parameter | None
    b_v_collapse: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        squash: str | None = None,
        bias: bool | None = None,
        *,
        init: str = "half",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_positive(channels=channels, reduction=reduction)
        if init not in INITS:
            raise ValueError(f"init is {init!r}; expected one of {', '.join(map(repr, INITS))}")
        squash = INITS[init] if squash is None else squash
        if squash not in SQUASHES:
            raise ValueError(f"squash is {squash!r}; expected one of {', '.join(map(repr, SQUASHES))}")
        if backend is not None and backend not in NAMES:
            raise ValueError(f"backend is {backend!r}; expected None or one of {', '.join(map(repr, NAMES))}")
        bias = init == "half" if bias is None else bias
        if init == "half" and squash == "tanh" and not bias:
            raise ValueError("bias is False; expected True with init='half' and tanh, whose constant 1/2 is a bias")
        self.channels, self.reduction, self.squash, self.backend = channels, reduction, squash, backend
        self.init = init
        for name, shape in weight_shapes(channels, max(1, channels // reduction))._asdict().items():
            wanted = bias or not name.startswith("b_")
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the parameters anew, as ``init`` says. The paper does not say how they start.

        "paper": He's normal initialisation before ReLUs, unit gain after them. As in the authors' code, biases are
        zero, and a and m come from a normal distribution of deviation 1 cut at 2. With tanh the attention is then about
        0 and of any sign.

        "half" makes the attention start near 1/2 everywhere: ``w_expand`` and ``v_collapse`` are a tenth of that; with
        tanh, a is 1 and the bias ``b_w_expand`` is artanh(1/2), where tanh is 1/2.
        """
        for shrink in (self.w_shrink, self.v_shrink):
            nn.init.normal_(shrink, std=math.sqrt(2 / self.channels))
        for after_relu in (self.w_expand, self.v_collapse):
            nn.init.normal_(after_relu, std=1 / math.sqrt(after_relu.shape[-1]))
        for mix in (self.a, self.m):
            nn.init.trunc_normal_(mix, a=-2.0, b=2.0)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("b_"):
                nn.init.zeros_(parameter)
        if self.init == "half":
            self._start_near_half()

    def _start_near_half(self) -> None:
        for after_relu in (self.w_expand, self.v_collapse):
            after_relu.mul_(HALF_SPREAD)
        if argument := HALFWAY[SQUASHES[self.squash]]:
            assert self.b_w_expand is not None
            self.a.fill_(1)
            self.b_w_expand.fill_(argument)

    @property
    def weights(self) -> Weights:
        """The parameters, in the order of the paper's formulas; absent biases are None."""
        own = self._parameters  # an attribute of a module takes as long as ten entries; pruned weights are attributes
        return Weights._make([own[name] if name in own else getattr(self, name) for name in Weights._fields])

    def forward(
        self, x: Tensor, residual: Tensor | None = None, return_map: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [N, C, H, W] to out of the same shape, dtype and memory format: x A, or relu(x A + residual).

        With `return_map` also map [N, H, W], the L2 norm of A over channels, differentiable. See
        `gala_cuda.gala` for dtypes, strides and errors.
        """
        if isinstance(x, Tensor) and not torch.jit.is_tracing():  # where sizes are tensors; gala checks them there
            self._check(x)
        w = self.weights
        return gala(x, *w, residual=residual, squash=self.squash, return_map=return_map, backend=self.backend)

    def attention(self, x: Tensor) -> Tensor:
        """The attention A [N, C, H, W] that multiplies x, for inspection: float32, or float64 for float64 x.

        Raises TypeError or ValueError as `forward` does.
        """
        if not stands_for_tensor(x):
            check_feature_map("x", x)
            self._check(x)
        return reference.attention(x, self.weights, SQUASHES[self.squash])

    def _check(self, x: Tensor) -> None:
        """Raises where x is not for this layer. Left to `gala` is what is wrong with x whatever the layer."""
        own = self.a
        if x.dim() == 4 and x.shape[1] != self.channels:
            raise ValueError(f"x has {x.shape[1]} channels, {tuple(x.shape)}; expected this layer's {self.channels}")
        if x.device != own.device:
            raise ValueError(f"x is on {x.device}; expected this layer's device, {own.device}")
        if x.dtype != own.dtype and x.dtype in DTYPES and not (x.dtype in HALVES and own.dtype == torch.float32):
            halves = ", bfloat16 or float16" if own.dtype == torch.float32 else ""
            raise TypeError(f"x is {x.dtype}; expected this layer's {own.dtype}{halves}")

    def extra_repr(self) -> str:
        bias = self.b_w_shrink is not None
        options = f"reduction={self.reduction}, squash={self.squash!r}, bias={bias}, init={self.init!r}"
        options += f", backend={self.backend!r}"
        return f"{self.channels}, {options}"
