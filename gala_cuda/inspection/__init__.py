"""What a network attends to, as pictures: PNG sheets and an HTML page."""

from ..models.attention_maps import attention_maps, choose_blocks, gala_blocks, input_gradient
from .sheet import overlay

__all__ = ["attention_maps", "choose_blocks", "gala_blocks", "input_gradient", "overlay"]
