"""Draws where a network looks: attention over two photographs, which it was trained to tell apart by small crops."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor

from gala_cuda import gala_resnet18
from gala_cuda.inspection.sheet import overlay

CROP, STEPS = 32, 40


def crops(photographs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Crops [N, 3, CROP, CROP] at random places, and the number [N] of each one's photograph."""
    labels = torch.randint(len(photographs), (count,))
    tops = torch.randint(photographs.shape[2] - CROP, (count,)).tolist()
    lefts = torch.randint(photographs.shape[3] - CROP, (count,)).tolist()
    places = zip(labels.tolist(), tops, lefts, strict=True)
    return torch.stack([photographs[i, :, y : y + CROP, x : x + CROP] for i, y, x in places]), labels


torch.manual_seed(0)
bunch = load_sample_images()
names = [path.rpartition("/")[2] for path in bunch.filenames]
photographs = torch.stack([torch.from_numpy(image.copy()) for image in bunch.images]).permute(0, 3, 1, 2) / 127.5 - 1
photographs = F.interpolate(photographs, scale_factor=0.5, mode="area")[..., 53:266]  # squares from the middle

model = gala_resnet18(len(names), layers=("layer2", "layer3"), stem="small", width=8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=STEPS)
for _ in range(STEPS):
    images, labels = crops(photographs, 32)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

images, labels = crops(photographs, 256)
with torch.no_grad():
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    _, maps = model(photographs, return_maps=True)
print(f"crops told apart: {accuracy:.1%}")
for name, attn_map in maps.items():
    print(f"{name}: map {tuple(attn_map.shape)}, from {attn_map.min():.2f} to {attn_map.max():.2f}")
path = sys.argv[1] if len(sys.argv) > 1 else "attention.png"
figure = overlay(photographs, maps, names, "Where the network attends: dark least, bright most")
figure.savefig(path, dpi=150)
print("wrote", path)
