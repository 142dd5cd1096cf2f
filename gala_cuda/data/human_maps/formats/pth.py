"""The .pth format: one file of torch.save per image, a dict of ``image``, ``heatmap`` and ``label``."""

import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from ...errors import UnreadableError
from ..record import MAX_BYTES, NUMBERS, Record, check_label, check_numbers, decode_image
from . import npz
from .location import UNKNOWN, RecordLocation
from .writer import Writer, heatmap_as_uint8, heatmap_or_zeros

NAMES = re.compile(r"\.pth?$")
SCALARS = ("label", *NUMBERS)
DTYPES = (torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)
MAX_PICKLE = 1 << 16  # bytes
ALLOWED = re.compile(r"torch\._utils _rebuild_tensor_v2|torch \w+Storage|collections OrderedDict")
READER_ERRORS = (*npz.READER_ERRORS, pickle.UnpicklingError, AssertionError, AttributeError, LookupError)


def recognises(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") and b"data.pkl" in head


def scan(file: Path) -> list[RecordLocation]:
    """The file as one record."""
    size = file.stat().st_size
    try:
        label = parse(file.read_bytes()).label if size <= MAX_BYTES else UNKNOWN
    except (UnreadableError, OSError):  # reading the record will say what is wrong
        label = UNKNOWN
    return [RecordLocation(0, size, label)]


def parse(data: bytes) -> Record:
    """The record of a file. Of all that the file names, only torch's rebuilding of tensors is called.

    Raises UnreadableError.
    """
    try:
        _check_safe(data)
        content = torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except READER_ERRORS as error:
        raise UnreadableError(f"no readable file of torch.save: {str(error)[:200] or type(error).__name__}") from error
    if not isinstance(content, dict) or not isinstance(content.get("image"), torch.Tensor):
        raise UnreadableError("there is no dict with a tensor image")
    heatmap = content.get("heatmap")
    if heatmap is not None and not isinstance(heatmap, torch.Tensor):
        raise UnreadableError("the map is no tensor")
    numbers = {
        name: _to_numpy(value) if isinstance(value, torch.Tensor) else value
        for name, value in content.items()
        if name in SCALARS
    }
    return Record(
        _to_numpy(content["image"]),
        None if heatmap is None else _to_numpy(heatmap),
        check_label(numbers.get("label", [])),
        check_numbers(numbers),
    )


def encode(key: str, record: Record) -> bytes:
    """A file with ``image`` uint8 [3, H, W], ``heatmap`` uint8 [1, H', W'] and ``label``."""
    stream = io.BytesIO()
    image = decode_image(record.image)
    heatmap = heatmap_as_uint8(heatmap_or_zeros(record, image.shape[1:]))
    tensors = {"image": torch.from_numpy(image), "heatmap": torch.from_numpy(heatmap)[None], "label": record.label}
    torch.save(tensors | record.numbers, stream)
    return stream.getvalue()


WRITER = Writer(encode, ".pth")


def _check_safe(data: bytes) -> None:
    """Refuses files that torch.save does not write and that could do harm or take long to load.

    These are compressed ones, those that name anything but tensors, and tuples that are used twice. Data whose checksum
    is wrong are refused too; torch.load does not check that.
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
        if code.name in ("BINGET", "LONG_BINGET") and argument in tuples:  # nested, its hash may take for ever
            raise UnreadableError("the pickle uses a tuple twice")
        if code.name not in ("BINPUT", "LONG_BINPUT"):
            last = code.name
        elif "TUPLE" in last:
            tuples.add(argument)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.numel() * tensor.element_size() > MAX_BYTES:
        raise UnreadableError(f"a tensor of shape {tuple(tensor.shape)} has more than {MAX_BYTES} bytes")
    if tensor.dtype not in DTYPES:
        raise UnreadableError(f"a tensor is {tensor.dtype}; expected whole numbers or floating point")
    return tensor.detach().numpy()
