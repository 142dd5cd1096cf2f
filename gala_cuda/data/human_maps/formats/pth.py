"""One file of torch.save for each image: a dict of ``image``, ``heatmap`` (uint8, channels first) and ``label``."""

import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from ...errors import UnreadableError
from ..record import MAX_BYTES, NUMBERS, Record, checked_label, checked_numbers
from . import npz
from .entry import UNKNOWN, Entry

NAMES = re.compile(r"\.pth?$")
SCALARS = ("label", *NUMBERS)
DTYPES = (torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)
MAX_PICKLE = 1 << 16  # bytes
ALLOWED = re.compile(r"torch\._utils _rebuild_tensor_v2|torch \w+Storage|collections OrderedDict")
BROKEN = (*npz.BROKEN, pickle.UnpicklingError, AssertionError, AttributeError, LookupError)


def recognises(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") and b"data.pkl" in head


def scan(file: Path) -> list[Entry]:
    """The file as one record."""
    size = file.stat().st_size
    try:
        label = parse(file.read_bytes()).label if size <= MAX_BYTES else UNKNOWN
    except (UnreadableError, OSError):  # for what it is, reading it says
        label = UNKNOWN
    return [Entry(0, size, label)]


def parse(data: bytes) -> Record:
    """The record of a file; it calls nothing but torch's rebuilding of tensors. Raises UnreadableError."""
    try:
        _check(data)
        found = torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except BROKEN as error:
        raise UnreadableError(f"no readable file of torch.save: {str(error)[:200] or type(error).__name__}") from error
    if not isinstance(found, dict) or not isinstance(found.get("image"), torch.Tensor):
        raise UnreadableError("there is no dict with a tensor image")
    heatmap = found.get("heatmap")
    if heatmap is not None and not isinstance(heatmap, torch.Tensor):
        raise UnreadableError("the map is no tensor")
    numbers = {name: _array(v) if isinstance(v, torch.Tensor) else v for name, v in found.items() if name in SCALARS}
    return Record(
        _array(found["image"]),
        None if heatmap is None else _array(heatmap),
        checked_label(numbers.get("label", [])),
        checked_numbers(numbers),
    )


def _check(data: bytes) -> None:
    """Refuses what torch.save does not write and could cost much: packed files, foreign names, nested shared tuples.

    And, as torch.load does not, data whose checksum differs.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in members):
            raise UnreadableError("the file is compressed; expected one of torch.save")
        if sum(info.file_size for info in members) > len(data):
            raise UnreadableError("the file announces more bytes than it has")
        pickles = [info for info in members if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise UnreadableError(f"expected one data.pkl of at most {MAX_PICKLE} bytes")
        damaged = archive.testzip()
        if damaged:
            raise UnreadableError(f"{damaged} is altered: its checksum differs")
        program = archive.read(pickles[0])
    tuples, last = set[int | None](), ""
    for code, argument, _ in pickletools.genops(program):
        if code.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not ALLOWED.fullmatch(str(argument)):
            raise UnreadableError(f"the pickle names {argument}; expected tensors and numbers")
        if code.name in ("BINGET", "LONG_BINGET") and argument in tuples:  # its hash may take for ever
            raise UnreadableError("the pickle uses a tuple twice")
        if code.name not in ("BINPUT", "LONG_BINPUT"):
            last = code.name
        elif "TUPLE" in last:
            tuples.add(argument)


def _array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.numel() * tensor.element_size() > MAX_BYTES:
        raise UnreadableError(f"a tensor of shape {tuple(tensor.shape)} has more than {MAX_BYTES} bytes")
    if tensor.dtype not in DTYPES:
        raise UnreadableError(f"a tensor is {tensor.dtype}; expected whole numbers or floating point")
    return tensor.detach().numpy()
