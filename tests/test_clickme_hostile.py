"""ClickMe's files made to do harm are refused with a reason; none of their code runs, and none takes long."""

import io
import os
import pickle
import struct
import time
import zipfile
import zlib

import clickme_files as files
import numpy as np
import pytest
import torch
from clickme_files import archived, framed, packed

from gala_cuda.data.errors import UnreadableError
from gala_cuda.data.human_maps.split_reader import open_split

TIME_LIMIT = 60.0  # seconds of CPU time for one file, a thousand times what it takes


def makes(path):
    """An object whose pickle would create ``path``."""

    class Hostile:
        def __reduce__(self):
            return open, (str(path), "w")

    return Hostile()


def shared_tuples(depth=60):
    """A pickle whose key is a tuple that holds one tuple twice, and so on: its hash would take 2**depth steps."""
    twice = b"".join(b"qcq" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))
    return b"\x80\x02}(K\x01" + twice + b"K\x01u."


def npy(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def bomb(depth=60):
    """A .pth file whose label is a list that holds one list twice, and so on: it has 2**depth numbers."""
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


def test_the_pickles_would_do_harm(tmp_path):
    pickle.loads(pickle.dumps(makes(tmp_path / "witness"), 2))
    assert (tmp_path / "witness").exists()


@pytest.mark.parametrize(("name", "content", "message"), HOSTILE, ids=[message[:30] for _, _, message in HOSTILE])
@pytest.mark.filterwarnings("ignore")
def test_hostile_files_are_named_and_execute_nothing(tmp_path, name, content, message):
    witness, file = tmp_path / "witness", tmp_path / name
    file.write_bytes(content(witness))
    start = time.process_time()
    samples = open_split(file)
    with pytest.raises(UnreadableError, match=message):
        samples.read(0)
    assert time.process_time() - start < TIME_LIMIT
    assert samples.name(0) == name
    assert not witness.exists()


def test_special_files_are_passed_over(tmp_path):
    files.write_split(tmp_path, "npz", "train", [0, 1])
    os.mkfifo(tmp_path / "train" / "pipe.npz")
    os.symlink(tmp_path / "nowhere", tmp_path / "train" / "link.npz")
    assert len(open_split(tmp_path, "train")) == 2
