"""`doctor` in each state an installation can be in."""

import importlib.metadata
import json

import pytest
import torch

import gala_cuda
from gala_cuda import backends, native


def cpu(report):
    return next(device for device in report.devices if device.name == "cpu")


def test_reports_versions_devices_and_every_backend():
    report = gala_cuda.doctor()
    assert report.versions["gala_cuda"] == gala_cuda.__version__
    assert report.versions["torch"].startswith(torch.__version__)
    assert len(report.devices) == 1 + torch.cuda.device_count()
    for device in report.devices:
        assert tuple(device.backends) == backends.NAMES
        assert device.backends[device.automatic] is None
    assert f"{torch.get_num_threads()} threads" in cpu(report).description
    for name in backends.NAMES:
        assert name in str(report)


@pytest.mark.skipif(native.module is None, reason=str(native.why_not))
def test_reports_the_build():
    report = gala_cuda.doctor()
    assert report.build == native.module.build_info()
    assert report.build_problem is None
    assert report.instruction_set in str(report)
    assert all(str(key) in str(report) for key in report.build)
    assert cpu(report).automatic == "cpu"


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why_not", "the compiled extension does not load: undefined symbol")
    report = gala_cuda.doctor()
    assert report.build is None
    assert report.instruction_set is None
    assert cpu(report).automatic == "reference"
    assert cpu(report).backends["cpu"] == native.why_not
    assert str(report).count("undefined symbol") == 3  # of the extension, of the cpu and the cuda backend


@pytest.mark.parametrize(
    ("origin", "wheel"),
    [
        pytest.param(None, "cp312-cp312-manylinux_2_28_x86_64, 2.5 MB", id="wheel"),
        pytest.param('{"url": "file:///gala_cuda.whl"}', "cp312-cp312-manylinux_2_28_x86_64, 2.5 MB", id="local-wheel"),
        pytest.param('{"dir_info": {"editable": true}}', "cp312-cp312-manylinux_2_28_x86_64, editable", id="editable"),
    ],
)
def test_says_which_wheel_is_installed(origin, wheel, tmp_path, monkeypatch):
    folder = tmp_path / "gala_cuda-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.4\nName: gala-cuda\nVersion: 9\n")
    (folder / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp312-cp312-manylinux_2_28_x86_64\n")
    (folder / "RECORD").write_text("gala_cuda/_C.so,,\ngala_cuda/gone.py,,\n")
    if origin:
        (folder / "direct_url.json").write_text(origin)
    (tmp_path / "gala_cuda").mkdir()
    (tmp_path / "gala_cuda" / "_C.so").write_bytes(bytes(2_500_000))
    monkeypatch.syspath_prepend(tmp_path)
    report = gala_cuda.doctor()
    assert report.wheel == wheel
    assert wheel in str(report)


def test_says_that_nothing_is_installed(monkeypatch):
    def distribution(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    report = gala_cuda.doctor()
    assert report.wheel is None
    assert "the package is not installed" in str(report)


@pytest.mark.parametrize(
    ("name", "automatic", "problem"),
    [
        pytest.param("reference", "reference", None, id="runs"),
        pytest.param("cuda", None, backends.why_not("cuda", torch.empty(1, 1, 1, 1)), id="does-not-run"),
        pytest.param("fastest", None, "GALA_BACKEND is 'fastest'", id="unknown"),
        pytest.param("", None, None, id="empty"),
    ],
)
def test_says_what_the_environment_asks_for(monkeypatch, name, automatic, problem):
    monkeypatch.setenv("GALA_BACKEND", name)
    report = gala_cuda.doctor()
    device = cpu(report)
    assert report.gala_backend == (name or None)
    if name:
        assert device.automatic == automatic
    if problem is None:
        assert device.problem is None
    else:
        assert problem in device.problem
        assert f"none: {device.problem}" in str(report)


def test_says_what_is_chosen_on_request_only(monkeypatch):
    monkeypatch.setattr(backends.cuda, "why_not", lambda x: None)
    text = str(gala_cuda.doctor())
    assert f"usable where it is asked for by name: {backends.ON_REQUEST['cuda']}" in text


def test_is_plain_data():
    report = gala_cuda.doctor()
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["versions"] == report.versions
    assert [device["name"] for device in plain["devices"]] == [device.name for device in report.devices]
