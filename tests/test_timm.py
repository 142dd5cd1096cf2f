"""timm's own ways with our networks: made by name, saved to a folder, loaded from it and from files."""

import pytest
import torch
from networks import images, randomized

import gala_cuda
from gala_cuda import convert

timm = pytest.importorskip("timm", reason="timm is not installed")
import gala_cuda.timm  # noqa: E402

NAMES = vars(gala_cuda.timm)["__all__"]  # timm fills it


def make(**options):
    return timm.create_model("gala_resnet18", **{"num_classes": 5, **options})


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    return randomized(make(layers=("layer2", "layer3.0"), reduction=2, keep_output=True)).eval()


def logits(model, channels=3):
    with torch.no_grad():
        return model.eval()(images(dtype=torch.float32)[:, :channels])


@torch.no_grad()
def test_timm_makes_them():
    options = {"num_classes": 7, "in_chans": 3, "drop_path_rate": 0.1}
    torch.manual_seed(0)
    model = make(layers=("layer2",), reduction=2, **options).eval()
    torch.manual_seed(0)
    expected = convert(timm.create_model("resnet18", **options), "layer2", reduction=2).eval()
    x = images(dtype=torch.float32)
    assert torch.equal(model(x), expected(x))
    assert model.forward_features(x).shape == (2, 512, 1, 1)
    assert timm.data.resolve_data_config({}, model=model)["input_size"] == (3, 224, 224)
    assert set(NAMES) == set(timm.list_models("gala_*"))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_is_timms_network_of_that_depth(name):
    with torch.device("meta"):
        plain = timm.create_model(name.removeprefix("gala_")).state_dict()
        ours = timm.create_model(name).state_dict()
    assert {key: value.shape for key, value in ours.items() if ".attention." not in key} == {
        key: value.shape for key, value in plain.items()
    }
    assert any(key.startswith("layer3.0.attention.") for key in ours)


def test_saved_to_a_folder_and_loaded_from_it(trained, tmp_path):
    timm.models.save_for_hf(trained, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(logits(loaded), logits(trained))
    assert loaded.pretrained_cfg["architecture"] == "gala_resnet18"


def test_from_a_folder_for_other_classes_and_channels(trained, tmp_path):
    timm.models.save_for_hf(trained, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2, in_chans=1)
    grey = trained.conv1.weight.sum(1, keepdim=True)
    assert torch.allclose(loaded.conv1.weight, grey)
    assert torch.equal(loaded.layer3[0].attention.w_shrink, trained.layer3[0].attention.w_shrink)
    assert logits(loaded, channels=1).shape == (2, 2)


def test_from_a_file(trained, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path)
    options = {"layers": ("layer2", "layer3.0"), "reduction": 2, "keep_output": True}
    overlay = {"file": str(path), "num_classes": 5}
    loaded = make(pretrained=True, pretrained_cfg_overlay=overlay, **options)
    assert torch.equal(logits(loaded), logits(trained))
    features = make(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **options).eval()
    with torch.no_grad():
        found = features(images(dtype=torch.float32))
    assert [feature.shape[1] for feature in found] == features.feature_info.channels() == [64, 64, 128, 256, 512]
    assert torch.equal(trained.fc(trained.global_pool(found[-1])), logits(trained))


def test_what_does_not_fit_is_refused(trained, tmp_path):
    with pytest.raises(RuntimeError, match="No pretrained weights exist for gala_resnet18"):
        make(pretrained=True)
    torch.save(timm.create_model("resnet18", num_classes=5).state_dict(), tmp_path / "plain.pth")
    torch.save(trained.state_dict(), tmp_path / "gala.pth")
    plain = {"file": str(tmp_path / "plain.pth"), "num_classes": 5}
    for classes in (5, 2):  # with 2 timm itself would leave GALA's weights random, without a word
        with pytest.raises(ValueError, match=r"pretrained weights have no layer3\.0\.attention\.w_shrink; expected"):
            make(num_classes=classes, pretrained=True, pretrained_cfg_overlay=plain)
    gala = {"file": str(tmp_path / "gala.pth"), "num_classes": 5}
    with pytest.raises(ValueError, match=r"have no layer3\.1\.attention\.w_shrink and layer2\.0\.att"):
        make(num_classes=2, pretrained=True, pretrained_cfg_overlay=gala, keep_output=True)


def test_weights_of_our_training(tmp_path):
    """Those of an "imagenet" stem and full width have timm's names and shapes, and timm's outputs."""
    ours = randomized(gala_cuda.gala_resnet26(5, "layer4"))
    torch.save(ours.state_dict(), tmp_path / "best.pth")
    overlay = {"file": str(tmp_path / "best.pth"), "num_classes": 5}
    loaded = timm.create_model(
        "gala_resnet26", num_classes=5, layers="layer4", pretrained=True, pretrained_cfg_overlay=overlay
    )
    assert torch.allclose(logits(loaded), logits(ours), rtol=1e-4, atol=1e-5)
