"""Writes real pictures as a folder of classes and as tar shards, and reads them back."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from gala_cuda.data import folders
from gala_cuda.data.load import load

TRAIN, VAL = 101, 7  # of each class, so that 2 unreadable ones of 202 are not more than 1 %
SIZE, BATCH, SEED = 16, 8, 5


def write_folder(place):
    """Crops from scikit-learn's two photographs, as JPEG and PNG."""
    rng = np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        for split, count in (("train", TRAIN), ("val", VAL)):
            folder = place / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                y, x = rng.integers(0, 380), rng.integers(0, 580)
                crop = Image.fromarray(photograph[y : y + 40, x : x + 52])
                crop.save(folder / f"{i:03}.{'png' if i % 4 == 0 else 'jpg'}")
    return place


def write_shards(folder, place):
    """The pictures of ``folder`` in the same order, 50 per shard."""
    for split in ("train", "val"):
        files = sorted((folder / split).rglob("*.*"))
        for first in range(0, len(files), 50):
            members = {}
            for file in files[first : first + 50]:
                key = f"{file.parent.name}-{file.stem}"
                members[key + file.suffix] = file.read_bytes()
                members[f"{key}.cls"] = str(("china", "flower").index(file.parent.name)).encode()
            write_shard(place / f"set-{split}-{first // 50:03}.tar", members)
    (place / folders.CLASSES).write_text("china\nflower\n")
    return place


def write_shard(file, members):
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def read(source, workers=0, batch_size=BATCH, **options):
    return load(str(source), batch_size, SEED, SIZE, workers, **options)


def equal(these, those):
    """Whether two iterables of batches are equal, bit for bit."""
    these, those = list(these), list(those)
    return len(these) == len(those) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(these, those, strict=True)
    )
