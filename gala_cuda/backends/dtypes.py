"""The dtypes of x that the block takes, those that the GPU kernels take, and those that it adds in."""

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)  # their weights may be float32
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton and the CUDA C++ kernels


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums and statistics are float32, or float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32
