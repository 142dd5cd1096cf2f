"""Compressed files and unsorted archives are named as such, and not called damaged."""

import bz2
import gzip
import lzma
import random
import zlib

import clickme_files as files
import pytest
from imagesets import write_shard

from gala_cuda.data import shard_index, shards
from gala_cuda.data.compression import compression
from gala_cuda.data.errors import UnreadableError
from gala_cuda.data.human_maps.split_reader import open_split

PACKED = {"gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def record(tmp_path):
    files.write_tfrecord(tmp_path / "whole", [files.raw_example(n) for n in range(3)])
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").unlink()
    return data


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gzip", "train.tfrecord.gz"),
        ("gzip", "train-00000-of-00002"),
        ("gzip", "train-shard-7"),
        ("zlib", "train.tfrecords"),
        ("zlib", "train.tfrecord.zz"),
        ("bzip2", "train-00000-of-00002.bz2"),
        ("xz", "train.tfrecord.xz"),
    ],
)
def test_compressed_records_are_told(tmp_path, kind, name):
    (tmp_path / name).write_bytes(PACKED[kind](record(tmp_path)))
    with pytest.raises(ValueError, match=rf"{name} is compressed by {kind}, .*; unpack it"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("kind", "suffix"), [("gzip", ".tar"), ("gzip", ".tar.gz"), ("gzip", ".tgz"), ("bzip2", ".tar.bz2"), ("xz", ".txz")]
)
def test_compressed_shards_are_told(tmp_path, kind, suffix):
    for split in ("train", "val"):
        file = tmp_path / f"{split}{suffix}"
        write_shard(file, {"0.png": b"", "0.cls": b"0"})
        file.write_bytes(PACKED[kind](file.read_bytes()))
    assert shard_index.is_shard_folder(tmp_path)
    for read in (shard_index.write_index, lambda place: open_split(place, "train")):
        with pytest.raises(ValueError, match=rf"train{suffix} is compressed by {kind}, .*; unpack it"):
            read(tmp_path)


def test_compression_is_told_by_what_is_in_a_file():
    for kind, packed in PACKED.items():
        assert compression(packed(bytes(999))[:512]) == kind
    assert compression(b"\x28\xb5\x2f\xfd" + bytes(99)) == "zstd"
    rng = random.Random(0)
    assert not any(compression(b"\x78\x9c" + rng.randbytes(510)) for _ in range(20))
    assert compression(b"") is compression(b"PK\3\4") is compression(files.framed(b"x")) is None


def test_an_archive_whose_keys_lie_apart_is_told(tmp_path):
    image = files.encoded(files.picture(0)[0], "PNG")
    members = {f"{i}.png": image for i in range(2)} | {f"{i}.cls": b"1" for i in range(2)}
    write_shard(tmp_path / "train.tar", members)
    samples = open_split(tmp_path, "train")
    reasons = []
    for i in range(len(samples)):
        with pytest.raises(UnreadableError) as raised:
            samples.read(i)
        reasons.append(str(raised.value))
    advice = "; expected all members of a key side by side, as in an archive of sorted names (tar --sort=name)"
    assert reasons[0] == "the key has no label (cls) beside its png" + advice
    assert reasons[2] == "the key has no image (jpg, jpeg, png) beside its cls" + advice
    write_shard(tmp_path / "val.tar", members)
    assert len(shards.open_shards(str(tmp_path))[0].labels) == 2  # without maps they may lie apart
