"""The log of a training for TensorBoard."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .epoch import Epoch


class TensorBoard:
    """Writes events into `folder`; nothing where that is None. Events after `step`, of a former run, are dropped.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, step: int):
        self._writer: Any = None
        if folder is not None:
            import tensorboard  # noqa: F401  torch names another package where it is missing
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step)

    def add_step(self, step: int, **values: float) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"step/{name}", value, step)

    def add_epoch(self, epoch: Epoch) -> None:
        if self._writer is not None:
            for name, value in asdict(epoch).items():
                if value is not None and name not in ("epoch", "step"):
                    self._writer.add_scalar(f"epoch/{name}", value, epoch.step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
