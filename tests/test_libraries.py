"""Networks of timm and torchvision are built, and their pictures preprocessed, as the libraries do."""

import pytest
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images

from gala_cuda.data.augmentation import centre_crop
from gala_cuda.data.preprocessing import Preprocessing
from gala_cuda.models.narrow_convs import NarrowConv2d
from gala_cuda.networks.errors import NetworkError
from gala_cuda.networks.libraries import build, published_preprocessing

PHOTOGRAPHS = [Image.fromarray(pixels) for pixels in load_sample_images().images]


def of_timm(name, **given):
    config = timm.data.resolve_data_config(given, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return timm.data.create_transform(**config)


@pytest.mark.parametrize(
    ("model", "size", "file", "expected"),
    [
        pytest.param("torchvision/resnet50", None, None,
                     lambda: torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms(), id="torchvision"),
        pytest.param("torchvision/resnet50", None, "resnet50-0676ba61.pth",
                     lambda: torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms(), id="torchvision-file"),
        pytest.param("torchvision/efficientnet_b1", None, None,  # bicubic, 240 of 255
                     lambda: torchvision.models.EfficientNet_B1_Weights.DEFAULT.transforms(), id="torchvision-bicubic"),
        pytest.param("torchvision/resnet18", 32, None,
                     lambda: torchvision.models.ResNet18_Weights.DEFAULT.transforms(crop_size=32, resize_size=36),
                     id="torchvision-size"),
        pytest.param("timm/resnet50", None, None, lambda: of_timm("resnet50"), id="timm"),
        pytest.param("timm/resnet50.tv_in1k", None, None, lambda: of_timm("resnet50.tv_in1k"), id="timm-tag"),
        pytest.param("timm/resnet50", 384, None, lambda: of_timm("resnet50", input_size=(3, 384, 384)), id="timm-size"),
        pytest.param("timm/vit_base_patch16_224", None, None,  # mean 0.5
                     lambda: of_timm("vit_base_patch16_224"), id="timm-mean"),
        pytest.param("timm/tf_efficientnetv2_b3", None, None,
                     lambda: of_timm("tf_efficientnetv2_b3"), id="timm-squash"),
        pytest.param("timm/volo_d4_448", None, None, lambda: of_timm("volo_d4_448"), id="timm-border"),
    ],
)  # fmt: skip
def test_pictures_are_prepared_as_the_library_does(model, size, file, expected):
    found_size, preprocessing = published_preprocessing(model, size, file)
    for picture in PHOTOGRAPHS:
        wanted = expected()(picture)
        assert wanted.shape == (3, found_size, found_size)
        torch.testing.assert_close(centre_crop(found_size, preprocessing)(picture), wanted, rtol=0, atol=1e-5)


def test_a_preparation_is_told():
    for model, pixels, numbers in (
        (
            "timm/tf_efficientnetv2_b3",
            "240 x 240 pixels, both sides scaled to 266",
            "mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        ),
        ("timm/resnet18", "224 x 224 pixels, the shorter side scaled to 235", "mean 0.485 0.456 0.406, std 0.229 "),
    ):
        size, preprocessing = published_preprocessing(model, None)
        assert preprocessing.describe(size).startswith(f"{pixels} (bicubic); {numbers}")


def test_a_configuration_that_cannot_be_followed_is_refused():
    with pytest.raises(NetworkError, match="1024 x 768 pixels; expected a square"):
        published_preprocessing("timm/vit_base_patch16_sapiens2", None)
    with pytest.raises(NetworkError, match="there is no 'timm/resnet19'"):
        published_preprocessing("timm/resnet19", None)
    for values, message in (
        ({"mean": (0.5,)}, "mean is"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"crop": (0, 8)}, "crop is"),
        ({"interpolation": "linear"}, "interpolation is 'linear'; expected one of nearest"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing(**values)


@pytest.mark.parametrize(
    ("model", "size"), [("torchvision/vit_b_32", 64), ("timm/vit_tiny_patch16_224", 32), ("timm/resnet18", 32)]
)
def test_networks_are_built_for_their_images(model, size):
    with torch.no_grad():
        assert build(model, 3, 3, size).eval()(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_what_cannot_be_built_is_refused():
    for model, size, name in (("torchvision/vit_b_32", 50, "image_size"), ("torchvision/resnet18", 32, "model")):
        with pytest.raises(NetworkError) as error:
            build(model, 3, 1 if name == "model" else 3, size)
        assert error.value.names[0] == name


@pytest.mark.parametrize("model", ["torchvision/googlenet", "torchvision/inception_v3"])
def test_logits_are_the_only_output_in_training(model):
    with torch.device("meta"):
        logits = build(model, 3, 3, 96).train()(torch.zeros(2, 3, 96, 96))
    assert logits.shape == (2, 3)


def test_their_narrow_convolutions_do_not_damage_memory():
    """The first layer of RepVGG, MobileOne and FastViT has a 1x1 convolution of stride 2 of the image's channels."""
    narrow = [
        name for name, module in build("timm/repvgg_a0", 3, 3, 32).named_modules() if type(module) is NarrowConv2d
    ]
    assert narrow == ["stem.conv_1x1.conv"]
