"""What a network cannot take is refused before a training writes anything."""

import pytest
import torch
from torch import nn

from gala_cuda.cli.main import main
from gala_cuda.networks.errors import NetworkError
from gala_cuda.networks.network import Network
from gala_cuda.training.recipe import Recipe, RecipeError
from gala_cuda.training.trial import check, check_training

pytestmark = pytest.mark.usefixtures("one_thread")


def network(model="resnet18", size=32, stem="imagenet"):
    return Network(model, (), 8, False, stem, ("a", "b"), 3, size)


@pytest.mark.parametrize("model", ["resnet18", "timm/resnet18", "torchvision/resnet18"])
def test_parts_of_one_image_are_refused_where_batchnorm_would_see_one_pixel(model):
    built = network(model).build()
    check_training(built, network(model), Recipe(), 2)
    for recipe, name, message in (
        (
            Recipe(batch_size=1),
            "batch_size",
            f"is 1, and so a micro-batch of one image; {model} needs at least 2",
        ),
        (Recipe(batch_size=4, accumulate=4), "accumulate", "accumulate is 4 with batch_size 4"),
        (Recipe(data="pets"), "data", "data pets has one image to train on for each process"),
        (Recipe(clickme="maps"), "clickme", "clickme maps has one image"),
    ):
        with pytest.raises(RecipeError, match=message) as error:
            check_training(built, network(model), recipe, 1)
        assert error.value.names[0] == name
    check_training(network(model, 64).build(), network(model, 64), Recipe(batch_size=1), 1)


def test_a_trial_leaves_no_trace():
    built = nn.Sequential(network().build(), nn.Dropout()).eval()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_training(built, network(), Recipe(), 2)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())
    assert not built.training


class Several(nn.Module):
    """Gives what `outputs` says."""

    def __init__(self, outputs, always):
        super().__init__()
        self.outputs, self.always = outputs, always

    def forward(self, x):
        logits = torch.zeros(len(x), 2)
        return self.outputs(logits) if self.training or self.always else logits


@pytest.mark.parametrize(
    ("outputs", "always", "message"),
    [
        (lambda logits: (logits, logits), False, r"gives a tuple in training; expected logits \[2, 2\]"),
        (lambda logits: {"out": logits}, True, r"gives a dict; expected logits \[1, 2\]"),
        (lambda logits: logits[..., None], True, r"gives \[1, 2, 1\]; expected"),
    ],
)
def test_other_outputs_than_logits_are_refused(outputs, always, message):
    with pytest.raises(NetworkError, match=message) as error:
        check_training(Several(outputs, always), network(), Recipe(), 2)
    assert error.value.names[0] == "model"


def test_a_size_that_a_network_cannot_take_is_refused():
    built = network("torchvision/alexnet", 64).build()
    with pytest.raises(NetworkError, match="torchvision/alexnet takes no images of 16 x 16 pixels: ") as error:
        check(built, network("torchvision/alexnet", 16))
    assert error.value.names[0] == "image_size"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model torchvision/resnet18 --batch-size 1 --image-size 32", "argument --batch-size: batch_size is 1"),
        ("--model torchvision/resnet18 --batch-size 2 --accumulate 2 --image-size 32", "argument --accumulate: "),
        ("--model torchvision/alexnet --image-size 16", "argument --image-size: torchvision/alexnet takes no"),
        ("--model torchvision/vit_b_32 --image-size 50", "argument --image-size: torchvision/vit_b_32 cannot be built"),
    ],
)
def test_the_flag_is_named_and_nothing_is_written(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        main(["train", "--data", "synthetic:8", *flags.split(), "--device", "cpu", "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
