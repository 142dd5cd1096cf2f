"""A plain PyTorch loop that teaches a network where to look: cross-entropy and the distance of its attention from maps.

Each picture holds a digit to name and another one to ignore. Maps made up here mark the first, as people's maps of
ClickMe mark what matters in a photograph; half of the pictures have none.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from gala_cuda import gala_resnet18
from gala_cuda.clickme import GalaMapLoss


def pictures(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [N, 1, 32, 32] of a bright digit and a dim one, the bright one's label [N] and map [N, 1, 32, 32]."""
    bunch = load_digits()
    digits = F.interpolate(torch.from_numpy(bunch.images)[:, None].float().div(16), (16, 16))
    chosen, other = torch.randint(len(digits), (2, count))
    images, maps = torch.zeros(2, count, 1, 32, 32)
    for i, (left, top) in enumerate(torch.randint(17, (count, 2)).tolist()):
        images[i, :, 16 - top : 32 - top, 16 - left : 32 - left] = 0.5 * digits[other[i]]
        images[i, :, top : top + 16, left : left + 16] = digits[chosen[i]]
        maps[i, :, top : top + 16, left : left + 16] = digits[chosen[i]]
    return images, torch.from_numpy(bunch.target)[chosen], F.avg_pool2d(maps, 5, stride=1, padding=2)


def train(weight: float) -> str:
    """Trains a network for one epoch; its accuracy, and its distance from the maps, on pictures it has not seen."""
    torch.manual_seed(0)
    images, labels, maps = pictures(2048)
    has_map = torch.rand(len(images)) < 0.5
    # The paper's start: its attention moves far within one epoch, where the default would take several.
    model = gala_resnet18(10, layers=("layer2", "layer3"), in_channels=1, stem="small", width=8, init="paper")
    map_loss = GalaMapLoss(weight=weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    batches = torch.randperm(len(images)).split(32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=len(batches))
    for batch in batches:
        logits, attention = model(images[batch], return_maps=True)
        loss = F.cross_entropy(logits, labels[batch]) + map_loss(attention, maps[batch], has_map[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    images, labels, maps = pictures(256)
    with torch.no_grad():
        logits, attention = model.eval()(images, return_maps=True)
        distance = GalaMapLoss(weight=1.0)(attention, maps, torch.ones(256, dtype=torch.bool))
    accuracy = (logits.argmax(1) == labels).float().mean()
    return f"accuracy {accuracy:.1%}, distance of the attention from the maps {distance:.2f}"


print("without maps:", train(weight=0))
print("with maps:", train(weight=1))
