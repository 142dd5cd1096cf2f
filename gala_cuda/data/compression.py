"""Recognises compressed files, so that they are not called damaged."""

import re
import zlib

_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18"),
    "zlib": re.compile(rb"[\x08\x18\x28\x38\x48\x58\x68\x78]"),
}
_UNPACKED_BY = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd", "lz4": "unlz4"}
# What compression adds to the end of a file's name.
SUFFIX = re.compile(r"\.(gz|gzip|z|zz|zlib|bz2|xz|zst|zstd|lz4)$")


def compression(head: bytes) -> str | None:
    """The compression of a file that starts with ``head``; None where it is not known to be compressed."""
    kind = next((kind for kind, magic in _MAGIC.items() if magic.match(head)), None)
    if kind == "zlib" and (int.from_bytes(head[:2], "big") % 31 or not decompress_head(head)):
        return None  # two bytes prove little; what follows has to decompress too
    return kind


def decompress_head(head: bytes) -> bytes:
    """The start of what a gzip or zlib file holds that starts with ``head``; empty for any other file."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(head, 1 << 16)
    except zlib.error:
        return b""


def advice(kind: str) -> str:
    """What to do with a file of the compression ``kind``, as the end of a sentence about it."""
    command = _UNPACKED_BY.get(kind)
    return f"is compressed by {kind}, and single records cannot be read from it; unpack it" + (
        f", as with {command}" if command else ""
    )
