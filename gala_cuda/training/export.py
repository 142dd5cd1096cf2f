"""Exports networks for other programs, as ONNX and by torch.export, and compares each file with eager PyTorch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import GalaError
from ..models.mode import in_mode

TOLERANCE = 1e-3  # of the largest logit: float32, other kernels, whole networks
OPSET = 18
BATCH = 2  # images of the example and of the comparison


class ExportError(GalaError, RuntimeError):
    """The exported file gives other logits than the network."""


def export_onnx(model: nn.Module, channels: int, size: int, path: Path) -> float:
    """Writes `model`: images [batch, channels, size, size] float32 to logits [batch, K], any batch.

    Returns the largest deviation of onnxruntime's logits, over the largest logit, on random images in two batch sizes.
    `model` is on the CPU. It is exported in evaluation mode; its mode is restored.

    Raises:
        ExportError: the deviation is above `TOLERANCE`; the file is removed.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
    """
    import onnxruntime

    with in_mode(model, training=False), torch.no_grad():
        example = _images(BATCH, channels, size)
        batch = torch.export.Dim("batch", min=1)
        torch.onnx.export(
            model, (example,), path, dynamo=True, verbose=False, opset_version=OPSET, external_data=False,
            input_names=["images"], output_names=["logits"], dynamic_shapes=({0: batch},),
        )  # fmt: skip
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

        return _deviation(model, run, channels, size, path)


def export_program(model: nn.Module, channels: int, size: int, path: Path) -> float:
    """As `export_onnx`, with torch.export: to be loaded by `torch.export.load` after `import gala_cuda`."""
    with in_mode(model, training=False), torch.no_grad():
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(model, (_images(BATCH, channels, size),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
        return _deviation(model, torch.export.load(path).module(), channels, size, path)


FORMATS = {"onnx": export_onnx, "pt2": export_program}


def _images(count: int, channels: int, size: int) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(count))


def _deviation(model: nn.Module, run, channels: int, size: int, path: Path) -> float:
    worst = 0.0
    for count in (1, BATCH + 1):
        images = _images(count, channels, size)
        expected, found = model(images), run(images)
        worst = max(worst, ((found - expected).abs().max() / expected.abs().max()).item())
    if not worst <= TOLERANCE:
        path.unlink()
        raise ExportError(f"{path} gives other logits than the network, by {worst:.1e} of the largest; it is removed")
    return worst
