"""ClickMe's files with random damage give a named error or a valid sample, and nothing else."""

import io
import random
import re
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import clickme_files as files
import pytest
import torch
import webdataset

from gala_cuda.data.batches import Batches
from gala_cuda.data.errors import TooManyUnreadableError, UnreadableError
from gala_cuda.data.human_maps import record
from gala_cuda.data.human_maps.dataset import open_clickme_folder
from gala_cuda.data.human_maps.split_reader import open_split

MUTATIONS = 10_000
TIME_LIMIT = 60.0  # seconds of CPU time for one file, a thousand times what it takes
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
    """``data`` with bits flipped, the end cut off, a part taken out or repeated, or a wrong length written into it."""
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
    """``data`` with a mutation under its checksums, which are made right again."""
    if kind in ("raw", "jpeg"):
        (length,) = struct.unpack_from("<Q", data)
        return files.framed(mutated(data[12 : 12 + length], rng)) + data[16 + length :]
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
    return files.packed(members) if kind != "tar" else files.archived(members)


def with_a_header(data, rng):
    """A tar file with one header mutated, or with the size or the kind in it replaced."""
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


def outcomes(file):
    """For each record of a file the sample, checked, or the reason why it cannot be read."""
    try:
        samples = open_split(file)
    except FileNotFoundError as error:  # what is left looks like an empty file
        return [str(error)]
    found = []
    for i in range(len(samples)):
        try:
            image, label, heatmap, has_map = samples.read(i)
        except UnreadableError as error:
            found.append(f"{samples.name(i)}: {error}")
            continue
        assert (image.dtype, image.shape[0], heatmap.dtype) == (torch.uint8, 3, torch.float32)
        assert 0 <= label <= record.MAX_LABEL
        assert heatmap.isfinite().all()
        assert heatmap.min() >= 0
        assert has_map == heatmap.any()
        found.append(samples)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.filterwarnings("ignore")  # the libraries warn about what they are given
def test_mutations_end_in_a_named_error_or_a_sample(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(files, "SIDE", 8)
    data, rng, file = whole(kind, tmp_path), random.Random(kind), tmp_path / f"mutated.{SUFFIX[kind]}"
    broken, slowest = 0, 0.0
    for number in range(MUTATIONS // len(SUFFIX)):
        file.write_bytes(mutated(data, rng) if number % 2 else mutated_inside(kind, data, rng))
        start = time.process_time()
        broken += any(isinstance(found, str) for found in outcomes(file))
        slowest = max(slowest, time.process_time() - start)
    assert slowest < TIME_LIMIT
    assert broken > MUTATIONS // len(SUFFIX) // 4


@pytest.mark.slow
def test_a_mutated_index_is_never_trusted(tmp_path):
    folder, rng = files.write_all(tmp_path, "tar"), random.Random(0)
    true = open_split(folder, "train").labels
    kept = folder / ".gala-clickme-train.npz"
    data = kept.read_bytes()
    for _ in range(300):
        kept.write_bytes(mutated(data, rng))
        samples = open_split(folder, "train")
        assert torch.equal(samples.labels, true)
        samples.read(1)


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
    middle = len(one) // 2  # of the image, in whatever order the fields were written
    body = one[:middle] + bytes([one[middle] ^ 1]) + one[middle + 1 :]
    (tmp_path / "train.tfrecord").write_bytes(one + body + one + one[:8] + b"????" + one)
    samples = open_split(tmp_path, "train")
    assert samples.labels.tolist() == [0, 0, 0, -1]
    samples.read(2)
    for number, message in ((1, "the record's checksum is not that of its data"), (3, "the rest of the file is lost")):
        with pytest.raises(UnreadableError, match=message):
            samples.read(number)
        assert samples.name(number) == f"train.tfrecord#{number}"


def test_broken_records_are_counted_and_skipped_in_training(tmp_path, one_thread):
    folder = files.write_all(tmp_path, "npz", range(200), range(3))
    (folder / "train" / "0003.npz").write_bytes(b"PK\3\4")
    train, _, _ = open_clickme_folder(folder, 14)
    batches = Batches(train, 8, 0, 2, train=True)
    assert [len(images) for images, *_ in batches.epoch()] == [8] * 25
    assert batches.skipped == [("train/0003.npz", "no readable NPZ file: File is not a zip file")]
    for number in range(50):
        (folder / "train" / f"{number:04}.npz").write_bytes(b"")
    with pytest.raises(TooManyUnreadableError, match=r"train/00\d\d.npz \(no readable NPZ file"):
        list(Batches(open_clickme_folder(folder, 14)[0], 8, 0, train=True).epoch())
