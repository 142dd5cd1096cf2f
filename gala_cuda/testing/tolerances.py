"""The largest allowed errors against float64, all derived from the epsilon of the dtypes involved."""

import math

import torch

from ..backends.dtypes import accumulation_dtype

SAFETY = 4
NORM_ROUNDINGS = 0.6  # of x's dtype, in units of its epsilon
NORM_SUMS = 80  # in units of the accumulation dtype's epsilon


def tolerance(result: torch.dtype, dtype: torch.dtype, terms: int, rounded_operands: int = 0) -> float:
    """The largest allowed error of one element of a result, relative to the result's scale.

    Half an epsilon of the result's dtype is the rounding of the result itself. A sum of `terms` numbers of random
    sign, added one after the other, carries a relative error of about eps sqrt(terms) / 5 of the accumulation dtype;
    some five such sums feed each gradient, and SAFETY = 4 standard deviations cover the largest of many elements. For
    float64 x that counts twice, since the float64 it is compared with errs as much. At 256 terms: float64 2.9e-14,
    float32 7.7e-6, bfloat16 3.9e-3, float16 5.0e-4.

    Args:
        result: The dtype of the result.
        dtype: The dtype of x.
        terms: The length of the longest sum, max(C, N H W).
        rounded_operands: How many operands of a product are rounded to x's dtype first, as tensor cores take them; each
            adds half of that epsilon.
    """
    sums = SAFETY * _sources(dtype) * _accumulated(dtype) * math.sqrt(terms)
    return torch.finfo(result).eps / 2 + sums + rounded_operands * torch.finfo(dtype).eps / 2


def norm_tolerance(dtype: torch.dtype) -> float:
    """The largest allowed error of a whole result of a backend, in the L2 norm, relative to the norm of the result.

    For problems of any size: in a norm the errors of sums average out. Rounding to x's dtype errs by at most 0.29 eps
    in the mean square; the result's own rounding and that of two operands of a product on tensor cores make 0.5 eps.
    Float32 9.6e-6, bfloat16 4.7e-3, float16 6.0e-4, and float64, whose sums count twice as in `tolerance`, 3.6e-14.
    """
    sixteen_bits = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    return NORM_ROUNDINGS * sixteen_bits + NORM_SUMS * _sources(dtype) * _accumulated(dtype)


def _accumulated(dtype: torch.dtype) -> float:
    return torch.finfo(accumulation_dtype(dtype)).eps


def _sources(dtype: torch.dtype) -> int:
    """How many of the two results that are compared err by a sum in the accumulation dtype."""
    return 2 if dtype == torch.float64 else 1
