"""Files that hold no weights are named as what they are, whatever their suffix."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from gala_cuda.networks.errors import WeightsError
from gala_cuda.networks.loading import read_weights

LOOP: dict = {}
LOOP["model"] = LOOP


def zipped(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"1")

    return write


def saved(content):
    return lambda path: torch.save(content, path)


def cut(share):
    def write(path):
        torch.save(nn.Linear(30, 30).state_dict(), path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; copy or download it again"),
        (b"\x80\x02}.", "a pickle that torch.save has not written"),
        (b"\x01\x02\x03\xff", "of no known kind, or damaged"),
        (b"\n<!DOCTYPE html><html><title>404", "a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied", "an XML text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a Git LFS pointer, .* git lfs pull"),
        (json.dumps({"error": "Not Found"}).encode(), "it is JSON"),
        (b"Invalid username or password.", "it is text"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file, as Keras and TensorFlow write them"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:\xa4", "an ONNX file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", "compressed by gzip; unpack it first"),
        (b"\x89PNG\r\n\x1a\n", r"a picture \(PNG\)"),
        (pickle.dumps({"w": np.ones(3)}), "a pickle that torch.save has not written"),
        (cut(0.6), "cut short: the end of its zip archive is missing"),
        (zipped("a/data/0", "a/version"), "a zip archive that torch.save has not written"),
        (zipped("config.json", "model.weights.h5"), "a network of Keras"),
        (zipped("image.npy", "label.npy"), "NPZ"),
        (lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path), "a TorchScript program"),
        (lambda path: torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path),
         "a program of torch.export"),
        (saved(nn.Linear(2, 2)), "an object of the class torch.nn.modules.linear.Linear"),
        (saved({"model": nn.Linear(2, 2), "epoch": 3}), "entries model of the class torch.nn.modules.linear.Linear"),
        (saved({"generator": {"w": torch.ones(2)}}), "entries generator; expected"),
        (lambda path: saved({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})(path),
         "w, which is quantized"),
        (saved({"w": torch.ones(2).to_sparse()}), "w, which is sparse"),
        (saved({"w": torch.ones(2, device="meta")}), "w, which is without values"),
        (lambda path: torch.save({"w": torch.ones(2)}, path, pickle_protocol=4), "with pickle_protocol 4; expected"),
        (saved(LOOP), "damaged or cut short"),
        (saved([1, 2]), "holds no state dict, but a list"),
        (saved({}), "an empty dict"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_a_file_is_that_holds_no_weights(tmp_path, content, message, suffix):
    path = tmp_path / "w.bin"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    path = path.rename(tmp_path / f"w.{suffix}")
    with pytest.raises(WeightsError, match=message) as error:
        read_weights(path)
    assert "weights_only" not in str(error.value)
