"""What is built and shipped: the wheel's and the sdist's files, installs without a compiler, torch symbols, versions.

Nothing here compiles the extension: the one that is installed is looked at. All builds are pure Python and use the
packages that are installed.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import gala_cuda
from gala_cuda import native

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = (".*", "__pycache__", "build", "dist", "runs", "*.egg-info", "*.so")
TOP_LEVEL = {"CMakeLists.txt", "LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.py"}
NOTICE = "built without its compiled extension"
# What torch promises to keep: the C functions of its stable ABI.
STABLE = re.compile(r"(aoti_torch|torch)_\w+")
OF_TORCH = re.compile(r"\b(at|c10|caffe2|torch)::|^(THP|aoti_|torch_|c10_)")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout in which an earlier editable build has left its extension."""
    copy = tmp_path_factory.mktemp("source") / "gala"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    (copy / "gala_cuda" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    return copy


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    demands = {"GALA_NATIVE": "1", "CXX": "/nowhere/c++"}  # which are of no concern to it
    done, (archive,) = build(source, tmp_path_factory.mktemp("sdist"), "--sdist", **demands)
    assert done.returncode == 0, done.stdout
    return archive


@pytest.fixture(scope="module")
def pure_wheel(source, tmp_path_factory):
    done, (wheel,) = build(source, tmp_path_factory.mktemp("wheel"), "--wheel", GALA_NATIVE="0")
    assert done.returncode == 0, done.stdout
    return wheel


def build(source, out, kind, **environment):
    """``python -m build`` without isolation; (the finished process, what it built)."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("GALA_NATIVE", "CXX")}
    command = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", out, source]
    done = subprocess.run(
        command, env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done, list(out.iterdir())


def files(folder, *patterns):
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}


def test_sdist_holds_every_source(source, sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert files(source, "*.py", "*.pyi", "*.cpp", "*.h", "py.typed") | TOP_LEVEL <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_holds_the_package_alone(source, pure_wheel):
    assert pure_wheel.name == f"gala_cuda-{gala_cuda.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(pure_wheel).namelist() if ".dist-info/" not in name}
    kinds = ("*.py", "*.pyi", "py.typed", "table.json", "*.html", "*.css", "*.js", "*.svg")
    assert names == {name for name in files(source, *kinds) if name.startswith("gala_cuda/")}


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["CXX", "PATH"])
def test_missing_compiler(missing, sdist, pure_wheel, tmp_path):
    """One message, and from the sdist alone the same wheel as GALA_NATIVE=0 makes."""
    shutil.unpack_archive(sdist, tmp_path)
    source, out = tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "out"
    out.mkdir()
    nowhere = str(tmp_path / "nowhere")
    done, built = build(source, out, "--wheel", **{missing: nowhere})
    assert done.returncode == 0, done.stdout
    reason = f"the C++ compiler CXX={nowhere} was not found" if missing == "CXX" else "no C++ compiler was found"
    assert done.stdout.count(NOTICE) == done.stdout.count(f"{NOTICE}: {reason}.") == 1
    assert [wheel.name for wheel in built] == [pure_wheel.name]
    assert contents(built[0]) == contents(pure_wheel)


def contents(wheel):
    archive = zipfile.ZipFile(wheel)
    return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


def test_native_build_on_demand_fails_without_compiler(source, tmp_path):
    done, built = build(source, tmp_path, "--wheel", GALA_NATIVE="1", CXX="/nowhere/c++")
    assert done.returncode != 0
    assert "GALA_NATIVE=1 asks for the compiled extension, but the C++ compiler CXX=/nowhere/c++ was" in done.stdout
    assert not built


USE = """
import sys, warnings, torch, gala_cuda
assert gala_cuda.__file__.startswith(sys.argv[1]), gala_cuda.__file__
layer, x = gala_cuda.GALA(8), torch.randn(2, 8, 3, 3, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    layer(x).square().sum().backward()
    layer(x)
assert x.grad.abs().sum() > 0
ours = [str(each.message) for each in caught if "gala_cuda" in str(each.message)]
assert len(ours) == 1 and "reference" in ours[0], ours
print(gala_cuda.doctor())
"""


@pytest.mark.slow
def test_pure_wheel_works(pure_wheel, tmp_path):
    """It installs, trains on the reference with one warning, and the doctor says why."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path,
        pure_wheel,
    ]
    subprocess.run(pip, check=True)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", USE, tmp_path],  # -S: without the import hook of an editable install
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "installed without its compiled extension" in done.stdout


@pytest.fixture
def setup_py():
    """setup.py as the build frontends import it."""
    spec = importlib.util.spec_from_file_location("gala_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_requirements(setup_py, monkeypatch):
    """A native build asks for torch only where none is installed; a pure one asks for nothing."""
    monkeypatch.delenv("GALA_NATIVE", raising=False)
    monkeypatch.setattr(setup_py, "check_toolchain", lambda: None)
    assert {re.match(r"\w+", each)[0] for each in setup_py.get_requires_for_build_wheel()} - {"cmake"} == {
        "ninja",
        "pybind11",
    }
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: iter(()))
    assert "torch>=2.10" in setup_py.get_requires_for_build_wheel()
    monkeypatch.setenv("GALA_NATIVE", "0")
    assert setup_py.get_requires_for_build_wheel() == []


def undefined_symbols(library):
    """The symbols that a shared library takes from others, demangled."""
    listing = subprocess.run(["nm", "-DC", "--undefined-only", library], capture_output=True, text=True, check=True)
    return [re.split(r"@", line.split(maxsplit=1)[1])[0] for line in listing.stdout.splitlines()]


def unstable(symbols):
    return [symbol for symbol in symbols if OF_TORCH.search(symbol) and not STABLE.fullmatch(symbol)]


needs_nm = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("nm") is None,
    reason="symbols are read by binutils' nm, on Linux",
)


@needs_nm
def test_extension_uses_the_stable_abi_alone():
    if native.module is None:
        pytest.skip(native.why_not)
    symbols = undefined_symbols(native.module.__file__)
    assert any(STABLE.fullmatch(symbol) for symbol in symbols)
    assert unstable(symbols) == []


@needs_nm
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "declaration",
    [
        "namespace at { void f(); }",
        "namespace c10 { struct f { f(); }; }",
        "namespace torch { template <class T> T f(); }",
    ],
    ids=["at", "c10", "torch"],
)
def test_unstable_symbols_are_found(declaration, tmp_path):
    space = re.search(r"namespace (\w+)", declaration)[1]
    call = f"{space}::f<int>()" if "template" in declaration else f"{space}::f()"
    source, library = tmp_path / "planted.cpp", tmp_path / "planted.so"
    source.write_text(f'{declaration} extern "C" int torch_stable(); int g() {{ {call}; return torch_stable(); }}')
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    assert len(unstable(undefined_symbols(library))) == 1


def test_one_version():
    """The version stands in the package; what is installed, the change log and the citation agree with it."""
    try:
        installed = importlib.metadata.version("gala-cuda")
    except importlib.metadata.PackageNotFoundError:
        installed = None
    assert installed in (None, gala_cuda.__version__)
    assert f"## [{gala_cuda.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {gala_cuda.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_settings_of_wheels_name_files_that_are_there():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    named = [*settings["test-sources"], *re.findall(r"tests/\S+", " ".join(settings["test-command"]))]
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []
