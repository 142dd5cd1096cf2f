"""The operators of both blocks: `gala_cuda::gala`, the paper's, and `gala_cuda::released`, that of its authors' code.

The backend of `gala` is chosen inside, on real tensors, so that torch.compile never sees the choice. `released` runs on
the backend that its caller names.
"""

import torch

from . import backends
from .backends import reference, released
from .backends.dtypes import accumulation_dtype
from .backends.interface import BackwardCall, ForwardCall, Spatial, Weights
from .backends.saved import mask_words, stats_width
from .backends.squash import Squash
from .backends.stages import rows_dtype
from .operator_pair import OperatorPair

_WEIGHTS = (
    "Tensor w_shrink", "Tensor w_expand", "Tensor v_shrink", "Tensor v_collapse", "Tensor a", "Tensor m",
    "Tensor? b_w_shrink", "Tensor? b_w_expand", "Tensor? b_v_shrink", "Tensor? b_v_collapse",
)  # fmt: skip


class _Gala(OperatorPair):
    name = "gala"
    weights = _WEIGHTS
    options = ("squash",)
    saved = ("stats", "relu_mask")

    def forward(self, x, w, residual, options, return_map, save, backend):
        call = ForwardCall(x, Weights._make(w), residual, Squash(*options), return_map, save)
        return backends.select(x, backend).forward(call)

    def backward(self, grad_out, map_factor, x, w, out, saved, options, need_input, need_weights, backend):
        w = Weights._make(w)
        stats, relu_mask = saved
        squash = Squash(*options)
        call = BackwardCall(grad_out, map_factor, x, w, out, stats, relu_mask, squash, need_input, need_weights)
        return backends.select(x, backend).backward(call)

    def saved_like(self, x, w):
        n, c, height, width = x.shape
        reduced, pixels = w[0].shape[0], height * width
        stats = (n, stats_width(pixels, c, reduced)), accumulation_dtype(x.dtype)
        return stats, ((n, pixels, mask_words(reduced)), torch.int32)

    def reference(self, x, w, residual, options):
        return reference.apply(x, Weights._make(w), residual, Squash(*options))


class _Released(OperatorPair):
    name = "released"
    weights = (*_WEIGHTS, "Tensor v_spatial", "Tensor b_v_spatial")
    saved = ("stats", "hidden", "seen")

    def forward(self, x, w, residual, options, return_map, save, backend):
        outputs = released.forward(x, *_split_spatial(w), residual, return_map, backend)
        return outputs if save else (*outputs[:2], None, None, None)

    def backward(self, grad_out, map_factor, x, w, out, saved, options, need_input, need_weights, backend):
        (w, spatial), (stats, hidden, seen) = _split_spatial(w), saved
        call = released.BackwardCall(
            grad_out, map_factor, x, w, spatial, out, stats, hidden, seen, need_input, need_weights
        )
        return released.backward(call, backend)

    def saved_like(self, x, w):
        n, c, height, width = x.shape
        reduced = w[0].shape[0]
        stats = (n, stats_width(height * width, c, reduced)), accumulation_dtype(x.dtype)
        rows = (n, height, width, reduced), rows_dtype(x)
        return stats, rows, rows

    def reference(self, x, w, residual, options):
        return reference.released_apply(x, *_split_spatial(w), residual)


def _split_spatial(w) -> tuple[Weights, Spatial]:
    """(Weights, Spatial) of all weights in order."""
    return Weights._make(w[:-2]), Spatial._make(w[-2:])


gala = _Gala()
released_gala = _Released()
