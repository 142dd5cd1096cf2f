"""The backend "cpu": the C++ stages of `csrc/cpu`."""

from torch import Tensor

from .. import native
from .compiled import backward, forward  # noqa: F401
from .dtypes import DTYPES


def why_not(x: Tensor) -> str | None:
    """None where the compiled CPU kernels can run on `x`, else the reason."""
    if native.module is None:
        return native.why_not
    if x.device.type != "cpu":
        return f"x is on {x.device}, expected cpu"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, expected one of {', '.join(map(str, DTYPES))}"
    return None
