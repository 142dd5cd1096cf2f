"""The plain structs of `csrc/gala.h` for ctypes, field by field."""

from ctypes import Structure, c_bool, c_int, c_int64, c_void_p

from torch import Tensor

from gala_cuda.backends.interface import Weights
from gala_cuda.backends.layout import pixel_stride


class Shape(Structure):
    _fields_ = [(name, c_int64) for name in ("images", "channels", "pixels", "reduced")]


class FeatureMap(Structure):
    _fields_ = [("data", c_void_p), *((name, c_int64) for name in ("image_stride", "channel_stride", "pixel_stride"))]

    @classmethod
    def of(cls, t: Tensor | None) -> "FeatureMap":
        """Of t [N, C, H, W] through whose pixels one stride steps."""
        return cls() if t is None else cls(t.data_ptr(), t.stride(0), t.stride(1), pixel_stride(t))


class WeightPointers(Structure):
    _fields_ = [(name, c_void_p) for name in Weights._fields]

    @classmethod
    def of(cls, w: Weights) -> "WeightPointers":
        return cls(*(None if t is None else t.data_ptr() for t in w))


class Parallel(Structure):
    _fields_ = [("run", c_void_p), ("threads", c_int64)]


class Problem(Structure):
    _fields_ = [
        ("shape", Shape),
        ("dtype", c_int),
        ("squash", c_int64),
        ("channels_last", c_bool),
        ("weights", WeightPointers),
        ("parallel", Parallel),
    ]


class Forward(Structure):
    _fields_ = [
        *((name, FeatureMap) for name in ("x", "residual", "out")),
        *((name, c_void_p) for name in ("map", "stats", "relu_mask")),
    ]


class Backward(Structure):
    _fields_ = [
        *((name, FeatureMap) for name in ("x", "grad_out", "out")),
        *((name, c_void_p) for name in ("map_factor", "stats", "relu_mask")),
        *((name, FeatureMap) for name in ("grad_x", "grad_residual")),
        ("grads", WeightPointers),
    ]


class Execution(Structure):
    _fields_ = [("stream", c_void_p), ("workspace", c_void_p), ("tf32", c_bool)]
