"""GALA in a trained torchvision ResNet: the outputs are equal at first, then both are fine-tuned on handwritten digits.

The network is a small one that this script trains itself. With a download it could as well be
``torchvision.models.resnet50(weights="DEFAULT")``.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

import gala_cuda


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, in an order that does not depend on the writer: images, labels."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target))
    images = torch.from_numpy(bunch.images).float().div(16)[order, None]
    return F.interpolate(images, (32, 32)).expand(-1, 3, -1, -1), torch.from_numpy(bunch.target)[order]


def train(model: nn.Module, images: Tensor, labels: Tensor, lr: float, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True)
    model.train()
    for step in range(steps):
        batch = torch.arange(step * 64, step * 64 + 64) % len(images)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


torch.manual_seed(0)
images, labels = digits()
held_out, train_set = slice(0, 400), slice(400, None)

pretrained = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
train(pretrained, images[train_set], labels[train_set], lr=0.02, steps=25)

model = gala_cuda.convert(copy.deepcopy(pretrained), where=("layer2", "layer3"), keep_output=True)
with torch.no_grad():
    before, after = pretrained.eval()(images[held_out]), model.eval()(images[held_out])
print(f"converted: {sum(isinstance(module, gala_cuda.GALA) for module in model.modules())} layers of GALA")
print(f"largest change of an output: {(after - before).abs().max() / before.abs().max():.0e} of the largest output")
print(f"accuracy before fine-tuning: {accuracy(model, images[held_out], labels[held_out]):.1%}")
train(model, images[train_set], labels[train_set], lr=0.01, steps=25)
print(f"accuracy after fine-tuning: {accuracy(model, images[held_out], labels[held_out]):.1%}")
