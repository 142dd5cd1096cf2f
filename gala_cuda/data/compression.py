"""Files that are whole but compressed, told from damaged ones."""

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
# What such files' names end with, beside that of their content.
SUFFIX = re.compile(r"\.(gz|gzip|z|zz|zlib|bz2|xz|zst|zstd|lz4)$")


def compression(head: bytes) -> str | None:
    """By what a file that starts with ``head`` is compressed, None where it is not known to be."""
    kind = next((kind for kind, magic in _MAGIC.items() if magic.match(head)), None)
    if kind == "zlib" and (int.from_bytes(head[:2], "big") % 31 or not inside(head)):
        return None  # two bytes say little; what follows has to make sense
    return kind


def inside(head: bytes) -> bytes:
    """What a file of gzip or zlib that starts with ``head`` starts with when it is unpacked; empty of any other."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(head, 1 << 16)
    except zlib.error:
        return b""


def advice(kind: str) -> str:
    """What to do with a file of that compression, as the end of a sentence."""
    command = _UNPACKED_BY.get(kind)
    return f"is compressed by {kind}, and single records cannot be read from it; unpack it" + (
        f", as with {command}" if command else ""
    )
