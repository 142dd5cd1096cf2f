"""ClickMe's human maps, in every format that they are published in: read, checked, converted, and trained on."""

from ..clickme_sample import ClickMeSample
from .dataset import ClickMeDataset, open_clickme_folder
from .split_reader import SplitReader, open_split

__all__ = ["ClickMeDataset", "ClickMeSample", "SplitReader", "open_clickme_folder", "open_split"]
