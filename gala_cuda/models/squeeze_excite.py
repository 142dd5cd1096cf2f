"""``SqueezeExcite``: channel attention after Hu et al., the baseline GALA is compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_positive


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, section 3):

        z = mean over H, W of x            A = sigmoid(W_2 . relu(W_1 . z))            out = x A

    Args:
        channels: C, the channels of the input.
        reduction: r; the hidden layer has max(1, C // r) units. The paper has 16.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_positive(channels=channels, reduction=reduction)
        reduced = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, reduced, device=device, dtype=dtype)
        self.fc2 = nn.Linear(reduced, channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] to out of the same shape."""
        attention = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))  # [N, C]
        return x * attention[:, :, None, None]
