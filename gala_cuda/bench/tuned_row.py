"""One row of the table of tiles, before and after it was tuned; needs no Triton."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..backends.triton.config import Config

Say = Callable[[str, bool], object]  # what is being done; True where it should stay on the screen


class TileError(Exception):
    """A candidate cannot be used; the message says why."""


@dataclass
class TunedRow:
    """A row of the table before and after, and what was found on the way."""

    where: dict[str, Any]  # what the row is for, by `config.KIND`
    before: Config
    after: Config
    gains: dict[str, float] = field(default_factory=dict)  # by kernel: speed-up of its pass
    # "forward", "backward": speed-up of the pass by all of it; None where the row before does not run
    speedup: dict[str, float | None] = field(default_factory=dict)
    dropped: list[tuple[str, str, str]] = field(default_factory=list)  # kernel, tile, why it was not timed

    @property
    def name(self) -> str:
        layout = "channels_last" if self.where["channels_last"] else "nchw"
        return f"sm_{self.where['arch']}, {self.where['bytes']} bytes, {layout}, R <= {self.where['reduced']}"
