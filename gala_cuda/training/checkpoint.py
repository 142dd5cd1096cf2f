"""Saves and loads checkpoints. Each is a folder that a crash leaves whole or not at all; damage is found in loading."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import GalaError

FORMAT = "gala_cuda checkpoint 2"
_WEIGHTS, _STATE, _RECIPE, _MANIFEST = "weights.safetensors", "state.pt", "recipe.yaml", "checkpoint.json"


class CheckpointError(GalaError, RuntimeError):
    """A checkpoint cannot be written or read; the message names file and reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` steps: the `weights` of the network, and the `state` of everything else."""

    path: Path
    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The folders step-00000123 in `folder`, of which the `keep` newest stay.

    One holds weights.safetensors, state.pt (loaded with `weights_only=True`), recipe.yaml, and checkpoint.json with
    the digests of the others. It is written under another name, flushed to the disk, and renamed: a process that is
    killed leaves all of it or nothing.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """The folders, oldest first, also of checkpoints that are damaged."""
        found = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def clear(self) -> None:
        """Removes all of them, and what a killed process left behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, step: int, weights: bytes, state: dict[str, Any], recipe: str) -> Path:
        """Writes a checkpoint of `weights`, as `as_bytes` gives them, then removes those beyond `keep`.

        Raises:
            CheckpointError: the disk is full, the folder read-only, ...; earlier checkpoints are as they were.
        """
        path = self.folder / f"step-{step:08d}"
        draft = self.folder / f".{path.name}.draft"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        files = {_WEIGHTS: weights, _STATE: buffer.getvalue(), _RECIPE: recipe.encode()}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = {"format": FORMAT, "step": step, "sha256": digests}
        files[_MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            for name, content in files.items():
                _write(draft / name, content)
            _flush(draft)
            if path.exists():
                shutil.rmtree(path)
            draft.rename(path)
            _flush(self.folder)
        except KeyboardInterrupt:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            kept = self.paths()
            last = f"the last one is {kept[-1]}" if kept else "there is no earlier one"
            raise CheckpointError(f"cannot write the checkpoint {path}: {_why(error)}; {last}") from error
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """(the newest checkpoint that is whole, why newer ones are refused); (None, []) where there are none at all.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
        """
        refused: list[str] = []
        for path in reversed(self.paths()):
            try:
                return read(path), refused
            except CheckpointError as error:
                refused.append(str(error))
        if refused:
            raise CheckpointError(f"{self.folder} holds no usable checkpoint: {'; '.join(refused)}")
        return None, []


def read(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`, with tensors on the CPU, after a check of its files against their digests.

    Raises:
        CheckpointError: it is truncated, altered, or not one of ours.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CheckpointError(f"{path} is refused: {_MANIFEST} does not say {FORMAT!r}")
        contents = {name: (path / name).read_bytes() for name in manifest["sha256"]}
    except OSError as error:
        raise CheckpointError(f"{path} is refused: {Path(error.filename or path).name}: {_why(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is refused: {_MANIFEST} is no JSON") from error
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
            raise CheckpointError(f"{path} is refused: {name} is truncated or altered, its digest differs")
    state = torch.load(io.BytesIO(contents[_STATE]), map_location="cpu", weights_only=True)
    return Checkpoint(path, manifest["step"], safetensors.torch.load(contents[_WEIGHTS]), state)


def as_bytes(weights: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """`weights` in the safetensors format."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, metadata)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is afterwards the old one or the new one, whatever happens.

    Raises:
        CheckpointError: the disk is full, the folder read-only, ...
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        _write(draft, content)
        draft.replace(path)
        _flush(path.parent)
    except KeyboardInterrupt:
        draft.unlink(missing_ok=True)
        raise
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {_why(error)}") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Flushes the names of the files in `folder` to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


def _why(error: OSError) -> str:
    return error.strerror or str(error)
