"""ClickMe's human maps (Linsley et al., ICLR 2019) as a loss to train with and as a score of a network's own maps."""

from .loss import GalaMapLoss, HarmonizationLoss
from .score import MapScore, MapScoreMeter, human_ceiling

__all__ = ["GalaMapLoss", "HarmonizationLoss", "MapScore", "MapScoreMeter", "human_ceiling"]
