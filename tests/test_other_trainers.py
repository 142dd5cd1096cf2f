"""Converted networks in other trainers: Lightning, accelerate, and the pieces that timm's script is made of."""

import copy
import os
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import timm.data
import timm.loss
import timm.optim
import timm.scheduler
import timm.utils
import torch
import torch.nn.functional as F
import torchvision
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import gala_cuda.timm  # noqa: F401, timm knows gala_resnet50 by it
from gala_cuda import WithMaps, convert
from gala_cuda.clickme import GalaMapLoss
from gala_cuda.data.builtin import digits
from gala_cuda.networks import Network, read_weights, rebuild

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LAYER = "layer2"
SIZE, COUNT, BATCH = 64, 96, 16
# timm starts the last scale of a block at 0, with which GALA learns little in a few steps; trained weights have others.
MAKERS = {
    "torchvision": lambda: torchvision.models.resnet18(num_classes=10),
    "timm": lambda: timm.create_model("resnet18", num_classes=10, zero_init_last=False),
}


def converted(library, seed=0):
    torch.manual_seed(seed)
    return convert(MAKERS[library](), LAYER, keep_output=True)


def from_file(library, path):
    """The network that this package makes of a checkpoint, as its commands do."""
    network = Network(
        model=f"{library}/resnet18", layers=(LAYER,), width=64, keep_output=True, stem="imagenet",
        classes=tuple("0123456789"), channels=3, size=SIZE,
    )  # fmt: skip
    weights, described = read_weights(path)
    assert described is None
    return rebuild(network, weights)


@pytest.fixture(scope="module")
def loader():
    """Batches of digits: images [N, 3, SIZE, SIZE], labels [N], and as human maps [N, 1, SIZE, SIZE] their ink."""
    data = digits(SIZE)[0]
    images, labels = data.images[:COUNT], data.labels[:COUNT]
    ink = (images - images.amin((2, 3), keepdim=True)).clamp_min(0)
    return DataLoader(TensorDataset(images.expand(-1, 3, -1, -1), labels, ink), BATCH, shuffle=False)


def logits(model, loader):
    with torch.no_grad():
        return model.eval()(next(iter(loader))[0])


def map_loss(maps, ink):
    return GalaMapLoss()(maps, ink, torch.ones(len(ink), dtype=torch.bool))


def assert_gala_moved(model, initial):
    before, after = initial.state_dict(), model.state_dict()
    gala = [name for name in before if ".attention." in name]
    assert len(gala) >= 8
    assert [name for name in gala if torch.equal(before[name], after[name])] == []
    assert all(tensor.isfinite().all() for tensor in after.values())


class Classifier(pl.LightningModule):
    """As a user writes it."""

    def __init__(self, network):
        super().__init__()
        self.network, self.dtypes = network, set()

    def training_step(self, batch, index):
        loss = self.loss(*batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def loss(self, images, labels, ink):
        scores = self.network(images)
        self.dtypes.add(scores.dtype)
        return F.cross_entropy(scores, labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class ByMapsAlone(Classifier):
    def __init__(self, network):
        super().__init__(WithMaps(network))

    def loss(self, images, labels, ink):
        _, maps = self.network(images, return_maps=True)
        return map_loss(maps, ink)


def fit(module, loader, folder, precision):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, precision=precision, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    assert trainer.callback_metrics["loss"].isfinite()
    return trainer.checkpoint_callback.best_model_path


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("library", MAKERS)
def test_lightning(library, precision, loader, tmp_path):
    network = converted(library)
    initial = copy.deepcopy(network)
    module = Classifier(network)
    checkpoint = fit(module, loader, tmp_path, precision)
    assert module.dtypes == {torch.bfloat16 if precision == "bf16-mixed" else torch.float32}
    assert_gala_moved(network, initial)
    expected = logits(network, loader)
    assert not torch.equal(expected, logits(initial, loader))
    again = Classifier.load_from_checkpoint(checkpoint, network=converted(library, seed=1))
    assert torch.equal(logits(again.network, loader), expected)
    assert torch.equal(logits(from_file(library, checkpoint), loader), expected)


@pytest.mark.parametrize("library", MAKERS)
def test_lightning_with_the_map_loss(library, loader, tmp_path):
    """Of the maps alone, so that what moved GALA came through them: what lies behind them stays."""
    network = converted(library)
    initial = copy.deepcopy(network)
    checkpoint = fit(ByMapsAlone(network), loader, tmp_path, "bf16-mixed")
    assert_gala_moved(network, initial)
    pairs = zip(network.named_parameters(), initial.parameters(), strict=True)
    moved = {name.partition(".")[0] for (name, after), before in pairs if not torch.equal(after, before)}
    assert moved == {"conv1", "bn1", "layer1", "layer2"}
    expected = logits(network, loader)
    again = ByMapsAlone.load_from_checkpoint(checkpoint, network=converted(library, seed=1))
    assert torch.equal(logits(again.network, loader), expected)
    assert torch.equal(logits(from_file(library, checkpoint), loader), expected)


@pytest.mark.parametrize("library", MAKERS)
def test_accelerate(library, loader, tmp_path):
    """In bfloat16 alone: a process has one Accelerator's precision."""
    network = converted(library)
    initial = copy.deepcopy(network)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model, optimizer, batches = accelerator.prepare(
        WithMaps(network), torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9), loader
    )
    dtypes = set()
    network.fc.register_forward_hook(lambda layer, args, output: dtypes.add(output.dtype))
    for images, labels, ink in batches:
        with accelerator.accumulate(model):
            scores, maps = model(images, return_maps=True)
            loss = F.cross_entropy(scores, labels) + map_loss(maps, ink)
            assert loss.isfinite()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert dtypes == {torch.bfloat16}
    assert_gala_moved(network, initial)
    accelerator.save_state(str(tmp_path))
    expected = logits(network, loader)
    assert torch.equal(logits(from_file(library, tmp_path / "model.safetensors"), loader), expected)

    again = Accelerator(cpu=True, mixed_precision="bf16")
    other = converted(library, seed=1)
    again.prepare(WithMaps(other), torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9))
    again.load_state(str(tmp_path))
    assert torch.equal(logits(other, loader), expected)


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of noise, of 12 pictures each."""
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(0, 128, (72, 80, 3), np.uint8) + (128 if name == "light" else 0)
            Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_timms_pieces(pictures, tmp_path):
    """What timm's train.py calls; itself it is not in timm's package."""
    torch.manual_seed(0)
    model = timm.create_model("gala_resnet50", num_classes=2, layers=("layer3",), zero_init_last=False)
    initial = copy.deepcopy(model)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    cpu = torch.device("cpu")
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(pictures), is_training=True), input_size=(3, SIZE, SIZE), batch_size=8,
        is_training=True, re_prob=0.2, num_workers=0, persistent_workers=False, pin_memory=False, device=cpu,
    )  # fmt: skip
    schedule, epochs = timm.scheduler.create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=1, updates_per_epoch=len(loader), step_on_epochs=False
    )
    averaged = timm.utils.ModelEmaV3(model, decay=0.5)
    criterion, step = timm.loss.LabelSmoothingCrossEntropy(), 0
    assert epochs == 1
    model.train()
    for images, labels in loader:
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(model(images), labels)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        averaged.update(model, step=step)
        schedule.step_update(step)
    assert step == 3
    assert_gala_moved(model, initial)
    saver = timm.utils.CheckpointSaver(
        model, optimizer, Namespace(model="gala_resnet50"), averaged, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=1.0)

    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    path = tmp_path / "last.pth.tar"
    loaded = timm.create_model("gala_resnet50", num_classes=2, layers=("layer3",))
    with torch.no_grad():
        for use_ema, expected in ((False, model), (True, averaged.module)):
            timm.models.load_checkpoint(loaded, str(path), use_ema=use_ema)
            assert torch.equal(loaded.eval()(images), expected.eval()(images))
        assert not torch.equal(model(images), averaged.module(images))
    weights, _ = read_weights(path)  # of the averaged network
    loaded.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(loaded(images), averaged.module(images))


@pytest.mark.skipif("TIMM_TRAIN" not in os.environ, reason="TIMM_TRAIN names no train.py of timm, which no package has")
def test_timms_script(pictures, tmp_path):
    (pictures.parent / "data").mkdir()
    for share in ("train", "validation"):
        (pictures.parent / "data" / share).symlink_to(pictures)
    command = [
        sys.executable, os.path.abspath(os.environ["TIMM_TRAIN"]), "--device-modules", "gala_cuda.timm",
        "--model", "gala_resnet50",
        "--model-kwargs", "layers=('layer3',)", "zero_init_last=False",
        "--data-dir", "data", "--num-classes", "2", "--img-size", str(SIZE),
        "--batch-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu", "--amp", "--amp-dtype", "bfloat16",
        "--lr", "0.01", "--warmup-epochs", "0", "--output", "runs", "--experiment", "gala",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights, _ = read_weights(tmp_path / "runs" / "gala" / "last.pth.tar")
    torch.manual_seed(42)  # the script's
    initial = timm.create_model("gala_resnet50", num_classes=2, layers=("layer3",), zero_init_last=False)
    model = copy.deepcopy(initial)
    model.load_state_dict(weights)
    assert_gala_moved(model, initial)
