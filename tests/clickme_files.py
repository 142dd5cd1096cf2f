"""Writes ClickMe's files in each public format, with other libraries than the package reads them with."""

import io
import struct
import tarfile
import zipfile

import crc32c
import numpy as np
import torch
import webdataset
from PIL import Image
from tfrecord.writer import TFRecordWriter

SIDE, COUNT, CLASSES = 16, 6, 3
WITHOUT = 4  # the number of the sample without a map


def picture(number):
    """An image [SIDE, SIDE, 3] uint8, a map [SIDE, SIDE] float32 with one bright spot, a label."""
    rng = np.random.default_rng(number)
    image = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((SIDE // 2, SIDE // 2, 1))).astype(np.uint8)
    heatmap = np.zeros((SIDE, SIDE), np.float32)
    if number != WITHOUT:
        y, x = rng.integers(1, SIDE - 1, 2)
        heatmap[y - 1 : y + 2, x - 1 : x + 2] = 3
        heatmap[y, x] = 9
    return image, heatmap, number % CLASSES


def encoded(array, kind):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, quality=95)
    return stream.getvalue()


def raw_example(number, scale=1 / 255):
    """The features of a raw TFRecord, as the library tfrecord takes them."""
    image, heatmap, label = picture(number)
    return {
        "image": ((image * np.float32(scale)).astype("<f4").tobytes(), "byte"),
        "heatmap": (heatmap.astype("<f4").tobytes(), "byte"),
        "label": (label, "int"),
        "click_count": (0 if number == WITHOUT else 7 + number, "int"),
        "bbox": ([1, 2, 3, 300], "int"),
    }


def jpeg_example(number):
    """The features of a TFRecord of JPEG files."""
    image, heatmap, label = picture(number)
    grey = (heatmap * 20).astype(np.uint8)
    return {
        "image": (encoded(image, "JPEG"), "byte"),
        "heatmap": (encoded(grey, "JPEG"), "byte"),
        "label": (label, "int"),
    }


def write_tfrecord(file, examples):
    writer = TFRecordWriter(str(file))
    for example in examples:
        writer.write(example)
    writer.close()


def write_npz(file, number, **more):
    image, heatmap, label = picture(number)
    np.savez_compressed(file, image=image, heatmap=heatmap.astype(np.float64), label=label, **more)


def write_pth(file, number, batched=False):
    image, heatmap, label = picture(number)
    image = torch.from_numpy(image).permute(2, 0, 1)
    heatmap = (torch.from_numpy(heatmap) * 20).to(torch.uint8)[None]
    if batched:  # as in the first published files
        image, heatmap, label = image[None], heatmap[None], torch.tensor([[label]], dtype=torch.int32)
    torch.save({"image": image, "heatmap": heatmap, "label": label}, file)


def tar_sample(number):
    """A sample as the library webdataset takes it."""
    image, heatmap, label = picture(number)
    clicks = {"click_count": 0 if number == WITHOUT else 2}
    sample = {"png": encoded(image, "PNG"), "heatmap.npy": heatmap, "cls": label, "json": clicks}
    return {"__key__": f"{number:04}"} | sample


def write_split(folder, kind, split, numbers):
    """Writes the samples ``numbers`` in the format ``kind``, in files as they are published."""
    folder.mkdir(parents=True, exist_ok=True)
    half = len(numbers) // 2
    if kind in ("raw", "raw255", "jpeg"):
        make = {"raw": raw_example, "raw255": lambda n: raw_example(n, 1), "jpeg": jpeg_example}[kind]
        names = [f"{split}-{i}.tfrecords" if kind == "jpeg" else f"{split}-0000{i}-of-00002" for i in range(2)]
        for name, part in zip(names, (numbers[:half], numbers[half:]), strict=True):
            write_tfrecord(folder / name, map(make, part))
    elif kind == "tar":
        for i, part in enumerate((numbers[:half], numbers[half:])):
            with webdataset.TarWriter(str(folder / f"{split}-{i:06}.tar")) as writer:
                for number in part:
                    writer.write(tar_sample(number))
    else:
        (folder / split).mkdir()
        for number in numbers:
            if kind == "npz":
                write_npz(folder / split / f"{number:04}.npz", number)
            else:
                write_pth(folder / split / f"{number:04}.pth", number, batched=number % 2 == 1)
    return folder


KINDS = ("raw", "raw255", "jpeg", "npz", "pth", "tar")


def write_all(folder, kind, train=range(COUNT), val=range(2)):
    write_split(folder, kind, "train", list(train))
    return write_split(folder, kind, "val", list(val))


def framed(body, length=None):
    """A TFRecord frame with right checksums."""
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
