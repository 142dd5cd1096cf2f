"""Files of weights from other programs, damaged ones, and files that are something else by another name."""

import argparse
import json
import os
import pathlib
import random
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gala_cuda.data.preprocessing import Preprocessing
from gala_cuda.networks import weights_file
from gala_cuda.networks.errors import WeightsError
from gala_cuda.networks.loading import infer_network, read_weights, rebuild
from gala_cuda.networks.network import Network

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORK = Network("torchvision/resnet18", (), 64, False, "imagenet", ("a", "b", "c"), 3, 32)
ARGS = argparse.Namespace(model="resnet18", data_dir=pathlib.Path("pictures"), lr=np.float64(0.1))


def resnet(seed=0, library=torchvision.models):
    torch.manual_seed(seed)
    return library.resnet18(num_classes=3).eval()


def by_timm(path):
    """As timm's train.py writes it: the averaged weights are those that count."""
    model, averaged = resnet(), ModelEmaV3(resnet(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(model, optimizer, ARGS, averaged, checkpoint_dir=str(path.parent))
    saver._save(str(path), 3, metric=np.float64(71.0))
    return averaged.module


def by_torchvision(path):
    """As torchvision's references/classification/train.py --model-ema writes it."""
    model = resnet()
    averaged = AveragedModel(resnet(1), use_buffers=True)
    averaged.update_parameters(resnet(1))
    torch.save({"model": model.state_dict(), "model_ema": averaged.state_dict(), "args": ARGS, "epoch": 1}, path)
    return averaged.module


def by_lightning(path):
    """The keys of Lightning 2.6, with those of a loss beside the network's, and its own class of dict."""
    model = resnet()
    weights = {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"state_dict": OrderedDict(weights | {"criterion.weight": torch.ones(3)}), "hyper_parameters": ARGS}
    torch.save({"pytorch-lightning_version": "2.6.6", "callbacks": {}, "optimizer_states": [], **content}, path)
    return model


def with_two_networks(path):
    averaged = resnet()
    weights = {f"model.{name}": tensor for name, tensor in resnet(1).state_dict().items()}
    weights |= {f"ema_model.module.{name}": tensor for name, tensor in averaged.state_dict().items()}
    torch.save({"state_dict": weights | {"ema_model.n_averaged": torch.tensor(3)}}, path)
    return averaged


def compiled(path):
    model = resnet()
    torch.save(torch.compile(model).state_dict(), path)
    return model


def with_a_compiled_stage(path):
    model, whole = resnet(), resnet()
    whole.layer3 = torch.compile(whole.layer3)
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in whole.state_dict().items()}, path)
    return model


def compiled_around_ddp(path):
    model = resnet()
    torch.save({"model": {f"_orig_mod.module.{name}": t for name, t in model.state_dict().items()}}, path)
    return model


def before_torch_041(path):
    """A file without BatchNorm's counters, in the format of torch.save before 1.6."""
    model = resnet()
    weights = OrderedDict((n, t) for n, t in model.state_dict().items() if "num_batches_tracked" not in n)
    torch.save({"state_dict": weights, "args": ARGS}, path, _use_new_zipfile_serialization=False)
    return model


def as_safetensors_by_another_name(path):
    model = resnet()
    save_file(model.state_dict(), path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "entry"),
    [
        (by_timm, "state_dict_ema"), (by_torchvision, "model_ema"), (by_lightning, "state_dict"),
        (with_two_networks, "state_dict"), (compiled, None), (with_a_compiled_stage, None),
        (compiled_around_ddp, "model"), (before_torch_041, "state_dict"), (as_safetensors_by_another_name, None),
    ],
)  # fmt: skip
@torch.no_grad()
def test_files_of_trainings(tmp_path, write, entry):
    model, path = write(tmp_path / "c.ckpt"), tmp_path / "c.ckpt"
    file = weights_file.read(path)
    assert file.entry == entry
    network = infer_network(path, file.tensors, NETWORK.model, image_size=32)
    assert len(network.classes) == 3
    found, images = rebuild(network, file.tensors).eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(found(images), model(images))
    if write is before_torch_041:
        assert found.bn1.num_batches_tracked == 0
    fine_tuned = Network("gala_resnet18", (), 64, True, "imagenet", ("a", "b"), 3, 32).build(file.tensors)
    assert torch.equal(fine_tuned.layer2[0].conv1.weight, model.layer2[0].conv1.weight)


class Settings(dict):
    """A dict like EasyDict and Lightning's AttributeDict."""


class Listed(list):
    """An object as some configurations hold it."""


def test_settings_of_any_class_do_not_matter(tmp_path):
    content = {"state_dict": {"w": torch.ones(2)}, "args": ARGS, "config": Settings(lr=0.1, more=Settings())}
    for new in (True, False):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        assert read_weights(tmp_path / "w.pth")[0].keys() == {"w"}
    torch.save(content | {"config": Listed([1])}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds objects of .*test_weights_file\.Listed.* which are not loaded"):
        read_weights(tmp_path / "w.pth")


def test_several_networks_none_of_which_is_averaged_are_refused(tmp_path):
    weights = {f"{who}.{name}": t for who in ("student", "teacher") for name, t in resnet().state_dict().items()}
    with pytest.raises(WeightsError, match=r"several networks, student\., teacher\.; expected one"):
        rebuild(NETWORK, weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("torchvision/squeezenet1_1", 3),  # its last layer is a convolution
        ("torchvision/mnasnet0_5", 3),  # it asks for versions, which a file of plain tensors has not
        ("torchvision/resnet18", 3), ("resnet18", 3), ("timm/resnet18", 1),
        ("timm/vit_tiny_patch16_224", 3),  # in the file the last layer is not last
    ],
)  # fmt: skip
def test_stem_and_head_are_found_in_any_order(tmp_path, model, channels):
    expected = Network(model, (), 64, False, "imagenet", tuple("0123456"), channels, 224)
    weights = expected.build().state_dict()
    for order in (sorted(weights), sorted(weights, reverse=True)):
        found = infer_network(tmp_path / "w", {name: weights[name] for name in order}, model)
        assert (len(found.classes), found.channels, found.size) == (7, channels, 224)
        assert found.model == model
    rebuild(found, weights)


def test_published_names_that_differ_from_the_networks(tmp_path):
    """The published densenet121-a639ec97.pth has denselayer1.norm.1; GoogLeNet's file has auxiliary classifiers."""
    densenet = torchvision.models.densenet121(num_classes=3)
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): t
           for name, t in densenet.state_dict().items()}  # fmt: skip
    assert old.keys() != densenet.state_dict().keys()
    found = rebuild(infer_network(tmp_path, old, "torchvision/densenet121", image_size=32), old)
    assert torch.equal(found.classifier.weight, densenet.classifier.weight)
    googlenet = torchvision.models.googlenet(num_classes=3, init_weights=False, aux_logits=True)
    found = rebuild(infer_network(tmp_path, w := googlenet.state_dict(), "torchvision/googlenet"), w)
    assert torch.equal(found.fc.weight, googlenet.fc.weight)
    assert found.transform_input


class Runs:
    """An object that would create a file if it were unpickled."""

    def __init__(self, call, argument):
        self.call, self.argument = call, argument

    def __reduce__(self):
        return self.call, (self.argument,)


def test_no_code_of_a_file_runs(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "x.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "more": Runs(eval, f"open({str(trace)!r}, 'w')")}, path)
    assert read_weights(path)[0].keys() == {"w"}
    torch.save({"state_dict": {"w": torch.ones(2)}, "more": Runs(os.mkdir, str(trace))}, path)
    with pytest.raises(WeightsError, match=f"it holds objects of {os.name}.mkdir, which are not loaded"):
        read_weights(path)
    assert not trace.exists()


def test_damaged_files_raise_nothing_else(tmp_path):
    """Random damage; a thousand times as many cases were tried by hand."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3))
    content = {"state_dict": model.state_dict(), "args": ARGS, "epoch": 3}
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors", NETWORK.metadata())
    rng, refused = random.Random(0), 0
    for file in ("new.pth", "old.pth", "w.safetensors"):
        whole = (tmp_path / file).read_bytes()
        assert len(read_weights(tmp_path / file)[0]) == 9
        for i in range(80):
            damaged = bytearray(whole)
            if i % 4:
                for _ in range(rng.choice((1, 3, 20))):
                    damaged[rng.randrange(len(damaged) // (1 + i % 2))] = rng.randrange(256)
            else:
                del damaged[rng.randrange(len(damaged)) :]
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                read_weights(tmp_path / "damaged")
            except WeightsError:
                refused += 1
    assert 120 < refused < 240


def test_a_description_of_another_version_is_refused(tmp_path):
    for change in ({"depth": 3}, {"width": "wide"}, {"how": {"mean": [1]}}, {"classes": [1, 2]}):
        values = json.loads(NETWORK.metadata()["gala_cuda"]) | change
        save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors", {"gala_cuda": json.dumps(values)})
        with pytest.raises(WeightsError, match="does not describe its network as this version does"):
            read_weights(tmp_path / "w.safetensors")


def test_the_description_keeps_its_names():
    """Files by earlier versions are opened, and they open ours."""
    written = (
        '{"model": "timm/resnet18", "layers": ["layer3"], "width": 64, "keep_output": true, "stem": "imagenet", '
        '"classes": ["a", "b"], "channels": 3, "size": 32, "how": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], '
        '"interpolation": "bicubic", "crop": [1, 1], "squash": true}}'
    )
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", (1, 1), True)
    network = Network("timm/resnet18", ("layer3",), 64, True, "imagenet", ("a", "b"), 3, 32, preprocessing)
    assert Network.from_metadata({"gala_cuda": written}, "w.safetensors") == network
    assert network.metadata() == {"gala_cuda": written}
    half = replace(network, init="half", keep_output=False)
    assert Network.from_metadata(half.metadata(), "w.safetensors") == half
