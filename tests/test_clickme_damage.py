"""ClickMe's files damaged by chance and by intent: a named error or a valid sample, and nothing else."""

import io
import os
import pickle
import random
import re
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import clickme_files as files
import crc32c
import numpy as np
import pytest
import torch
import webdataset

from gala_cuda.clickme import record
from gala_cuda.clickme.data import clickme_folder
from gala_cuda.clickme.samples import open_samples
from gala_cuda.training.sampling import Batches, TooManyUnreadable, Unreadable

MUTATIONS = 10_000
PATIENCE = 5.0  # seconds for one
LIES = [0, 1, 127, 128, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
SUFFIX = {"raw": "tfrecord", "jpeg": "tfrecord", "npz": "npz", "pth": "pth", "tar": "tar"}


def whole(kind, folder):
    """A file of two samples, or one, in the format ``kind``."""
    file = folder / f"whole-{kind}"
    if kind in ("raw", "jpeg"):
        make = files.raw_example if kind == "raw" else files.jpeg_example
        files.write_tfrecord(file, [make(0), make(1)])
    elif kind == "tar":
        with webdataset.TarWriter(str(file), mtime=0) as writer:
            writer.write(files.tar_sample(0))
            writer.write(files.tar_sample(1))
    elif kind == "npz":
        files.write_npz(folder / "whole", 0)
        return (folder / "whole.npz").read_bytes()
    else:
        stream = io.BytesIO()
        files.write_pth(stream, 0)
        return stream.getvalue()
    return file.read_bytes()


def mutated(data, rng):
    """Bits flipped, the end cut off, a stretch taken out or repeated, or a length that lies spliced in."""
    data, at = bytearray(data), rng.randrange(len(data) or 1)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.choice((1, 1, 4, 16))):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + rng.randrange(1, 40)]
        case 3:
            data[at:at] = data[at : at + rng.randrange(1, 200)]
        case 4:
            lie = rng.choice(LIES) + rng.choice((0, 0, len(data)))
            width = rng.choice((1, 2, 4, 8))
            lie = (lie % 256**width).to_bytes(width, rng.choice(("little", "big")))
            data[at : at + width] = lie
    return bytes(data)


def mutated_inside(kind, data, rng):
    """What lies behind the checksums is mutated, and the checksums are right."""
    if kind in ("raw", "jpeg"):
        (length,) = struct.unpack_from("<Q", data)
        return framed(mutated(data[12 : 12 + length], rng)) + data[16 + length :]
    if kind == "tar" and rng.randrange(2):
        return with_a_header(data, rng)
    if kind == "tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members) + ["archive/data.pkl"] * 8 * (kind == "pth"))
    members[name] = mutated(members[name], rng)
    return packed(members) if kind != "tar" else archived(members)


def with_a_header(data, rng):
    """A header of a tar file mutated, or its size or kind set."""
    data = bytearray(data)
    at = rng.choice([at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"])
    header = bytearray(mutated(data[at : at + 512], rng)[:512].ljust(512, b"\0"))
    if rng.randrange(2):
        header[124:136] = rng.choice((b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 11 + b"\0", bytes(12)))
    if rng.randrange(2):
        header[156] = rng.choice(b"xgLKS157V")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at : at + 512] = header
    return bytes(data)


def framed(body, length=None):
    """A TFRecord frame, the checksums right."""
    header = struct.pack("<Q", len(body) if length is None else length)
    return header + checksum(header) + body + checksum(body)


def checksum(data):
    crc = crc32c.crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def packed(members, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def archived(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def outcomes(file):
    """Of each record of a file: the sample, checked, or why it cannot be read."""
    samples = open_samples(file)
    found = []
    for i in range(len(samples)):
        try:
            image, label, heatmap, has_map = samples.read(i)
        except Unreadable as error:
            found.append(f"{samples.name(i)}: {error}")
            continue
        assert (image.dtype, image.shape[0], heatmap.dtype) == (torch.uint8, 3, torch.float32)
        assert 0 <= label <= record.MAX_LABEL
        assert heatmap.isfinite().all()
        assert heatmap.min() >= 0
        assert has_map == heatmap.any()
        found.append(samples)
    return found


@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about what they are given
def test_mutations_end_in_a_named_error_or_a_sample(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(files, "SIDE", 8)
    data, rng, file = whole(kind, tmp_path), random.Random(kind), tmp_path / f"mutated.{SUFFIX[kind]}"
    broken, slowest = 0, 0.0
    for number in range(MUTATIONS // len(SUFFIX)):
        file.write_bytes(mutated(data, rng) if number % 2 else mutated_inside(kind, data, rng))
        start = time.monotonic()
        broken += any(isinstance(found, str) for found in outcomes(file))
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < PATIENCE
    assert broken > MUTATIONS // len(SUFFIX) // 4


def makes(path):
    """An object whose pickle would create ``path``."""

    class Hostile:
        def __reduce__(self):
            return open, (str(path), "w")

    return Hostile()


def shared_tuples(depth=60):
    """A pickle whose key is a tuple of one tuple twice, and so on: its hash would take 2**depth steps."""
    twice = b"".join(b"qcq" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))
    return b"\x80\x02}(K\x01" + twice + b"K\x01u."


def npy(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def bomb(depth=60):
    """A list of one list twice, and so on, as the label of a .pth file: it has 2**depth numbers."""
    stream, label = io.BytesIO(), [1]
    for _ in range(depth):
        label = [label, label]
    torch.save({"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "label": label}, stream)
    return stream.getvalue()


def png(width, height):
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"0"))
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def hostile_pth(witness):
    return packed({"a/data.pkl": pickle.dumps({"image": makes(witness)}, 2), "a/version": b"3\n"})


def object_array(witness):
    stream = io.BytesIO()
    np.savez(stream, image=np.array([makes(witness)], object), label=0)
    return stream.getvalue()


LARGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
HOSTILE = [
    ("x.pth", hostile_pth, "the pickle names io open; expected tensors and numbers"),
    ("x.pt", lambda witness: pickle.dumps(makes(witness), 2), "no readable file of torch.save: File is not a zip file"),
    ("x.pth", lambda _: packed({"a/data.pkl": shared_tuples(), "a/version": b"3"}), "the pickle uses a tuple twice"),
    ("x.pth", lambda _: packed({"a/data.pkl": bytes(99)}, zipfile.ZIP_DEFLATED), "the file is compressed"),
    ("x.pth", lambda _: bomb(), "the label is 2 values; expected 1 whole number"),
    ("x.npz", object_array, "an array of object; expected numbers"),
    ("x.npz", lambda _: packed({"image.npy": npy(LARGE)}), r"shape \(1099511627776,\) and uint8 has 0 bytes"),
    ("x.npz", lambda _: packed({"image.npy": bytes(33 << 20)}, zipfile.ZIP_DEFLATED), "image has 34603008 bytes; exp"),
    ("x.npz", lambda _: packed({"image.npy": npy("-" * 900 + "1")}), "no readable NPZ file"),
    ("x.tfrecord", lambda _: framed(b"", 2**63), "cut off: it announces 9223372036854775808 bytes and has 0"),
    ("x.tfrecord", lambda _: framed(b"\n\xff\xff\xff\xff\x0f"), "a field of the record is longer than the record"),
    ("x.tfrecord", lambda _: framed(b"\n" + b"\xff" * 30), "a number in the record does not end"),
    ("x.tfrecord", lambda _: framed(b"\x10\x00" * 2000), "more than 1000 fields"),
    ("x.tfrecord", lambda _: framed(b""), "the record has no image as bytes"),
    ("x.tar", lambda _: archived({"a.png": png(40_000, 3_000), "a.cls": b"1"}), "sides of 40000 and 3000; exp"),
    ("x.tar", lambda _: archived({"a.cls": b"1"}), "the key has no image"),
    ("x.tar", lambda _: archived({"a.png": b"", "a.cls": b"9" * 5000}), "expected 1 whole number"),
    ("x.tar", lambda _: archived({"a.png": b"", "a.cls": b"1", "a.json": b"[" * 4000}), "the .json of the key"),
    ("x.tar", lambda _: archived({"a.png": b"", "a.cls": b"1", "a.json": b'{"bbox": [[1], [2], 3, 4]}'}), "bbox is 4"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), HOSTILE, ids=[message[:30] for _, _, message in HOSTILE])
@pytest.mark.filterwarnings("ignore")
def test_hostile_files_are_named_and_execute_nothing(tmp_path, name, content, message):
    witness, file = tmp_path / "witness", tmp_path / name
    file.write_bytes(content(witness))
    start = time.monotonic()
    samples = open_samples(file)
    with pytest.raises(Unreadable, match=message):
        samples.read(0)
    assert time.monotonic() - start < PATIENCE
    assert samples.name(0) == name
    assert not witness.exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raw", "the record's checksum is not that of its data"),
        ("jpeg", "the record's checksum is not that of its data"),
        ("npz", "Bad CRC-32 for file 'image.npy'|while decompressing data"),
        ("pth", "archive/data/0 is altered: its checksum differs"),
    ],
)  # of a tar file only the headers have checksums
def test_an_altered_byte_of_a_picture_is_noticed(tmp_path, kind, message):
    data, file = bytearray(whole(kind, tmp_path)), tmp_path / f"altered.{SUFFIX[kind]}"
    at = {"raw": 200, "jpeg": 200, "npz": 100, "pth": data.find(files.picture(0)[0].tobytes()) + 9}
    data[at[kind]] ^= 1
    file.write_bytes(data)
    assert re.search(message, outcomes(file)[0])


def test_what_follows_a_broken_record_is_read_where_it_can_be(tmp_path):
    example = Path(tmp_path, "whole")
    files.write_tfrecord(example, [files.raw_example(0)])
    one = example.read_bytes()
    body = one[:100] + b"?" + one[101:]
    (tmp_path / "train.tfrecord").write_bytes(one + body + one + one[:8] + b"????" + one)
    samples = open_samples(tmp_path, "train")
    assert samples.labels.tolist() == [0, 0, 0, -1]
    samples.read(2)
    for number, message in ((1, "the record's checksum is not that of its data"), (3, "the rest of the file is lost")):
        with pytest.raises(Unreadable, match=message):
            samples.read(number)
        assert samples.name(number) == f"train.tfrecord#{number}"


def test_special_files_are_passed_over(tmp_path):
    files.write_split(tmp_path, "npz", "train", [0, 1])
    os.mkfifo(tmp_path / "train" / "pipe.npz")
    os.symlink(tmp_path / "nowhere", tmp_path / "train" / "link.npz")
    assert len(open_samples(tmp_path, "train")) == 2


def test_broken_records_are_counted_and_skipped_in_training(tmp_path, one_thread):
    folder = files.write_all(tmp_path, "npz", range(200), range(3))
    (folder / "train" / "0003.npz").write_bytes(b"PK\3\4")
    train, _, _ = clickme_folder(folder, 14)
    batches = Batches(train, 8, 0, 2, train=True)
    assert [len(images) for images, *_ in batches.epoch()] == [8] * 25
    assert batches.skipped == [("train/0003.npz", "no readable NPZ file: File is not a zip file")]
    for number in range(50):
        (folder / "train" / f"{number:04}.npz").write_bytes(b"")
    with pytest.raises(TooManyUnreadable, match=r"train/00\d\d.npz \(no readable NPZ file"):
        list(Batches(clickme_folder(folder, 14)[0], 8, 0, train=True).epoch())
