"""Says what a file is that holds no weights, by its first bytes or by the names in its zip archive."""

import zipfile
from pathlib import Path

HEAD = 512  # bytes that a file is recognised by
RETRY = "copy or download it again"
_TORCH_PICKLE = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # torch.save's magic number before 1.6
# First bytes of a file, and what it is.
_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch that with git lfs pull",
    b"\x89HDF\r\n": "an HDF5 file, as Keras and TensorFlow write them; expected weights of PyTorch",
    b"\x93NUMPY": "an array of NumPy; expected weights of PyTorch",
    b"GGUF": "a GGUF file; expected weights of PyTorch",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"%PDF": "a PDF document",
}
_ONNX = "an ONNX file; expected weights of PyTorch"
# Name in a zip archive, and what the archive is.
_MEMBERS = {
    "constants.pkl": "a TorchScript program; expected weights, as torch.save(torch.jit.load(FILE).state_dict(), ...) "
    "writes them",
    "archive_format": "a program of torch.export; expected weights, as torch.save(model.state_dict(), ...) writes them",
    "model.weights.h5": "a network of Keras; expected weights of PyTorch",
}


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors files do: with the length of a header, which is JSON."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40


def why_no_weights(path: Path) -> str | None:
    """What the file is, as the end of "it is ...", if it holds no weights; None where it may hold some.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return f"empty; {RETRY}"
    if is_safetensors(head):
        return None
    if head.startswith(b"PK"):
        return _describe_zip(path)
    if head.startswith(b"\x80"):
        return None if head.startswith(_TORCH_PICKLE) else f"a pickle that torch.save has not written, or cut; {RETRY}"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file; expected weights of PyTorch"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if path.suffix == ".onnx" or (head[0] == 8 and head[2:3] == b"\x12" and head[4 : 4 + head[3]].isascii()):
        return _ONNX  # ir_version, then the producer's name
    return _describe_text(head)


def _describe_zip(path: Path) -> str | None:
    try:
        if not zipfile.is_zipfile(path):
            return f"cut short: the end of its zip archive is missing; {RETRY}"
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2]: name for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        return f"a damaged zip archive ({error}); {RETRY}"
    for name, kind in _MEMBERS.items():
        if name in names:
            return kind
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy's arrays (NPZ); expected weights of PyTorch"
    if "data.pkl" not in names:
        return "a zip archive that torch.save has not written; unpack it first"
    return None


def _describe_text(head: bytes) -> str:
    """What kind of text a file is, if it is text."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return "a web page (HTML), as servers send in place of a file; download it from the file's own address"
    if start.startswith(b"<?xml"):
        return "an XML text, as servers send for an error; download it again"
    if start.startswith((b"{", b"[")):
        return "JSON; expected weights of PyTorch"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "text; expected weights of PyTorch"
    return f"of no known kind, or damaged; {RETRY}"
