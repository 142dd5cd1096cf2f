"""The log of a training for TensorBoard."""

from pathlib import Path

from .epoch import Epoch


class TensorBoard:
    """Writes events into `folder`. Events after `step`, of a former run, are dropped.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int):
        import tensorboard  # noqa: F401  torch names another package where it is missing
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step)

    def add_step(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def add_epoch(self, epoch: Epoch) -> None:
        for name, value in epoch.figures().items():
            self._writer.add_scalar(f"epoch/{name}", value, epoch.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
