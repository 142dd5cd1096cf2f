"""Builds the package: setuptools for the Python part, CMake for the extension ``gala_cuda._C``.

The environment variable GALA_NATIVE decides: 0 leaves the extension out, 1 makes its absence an error; unset builds it
where a C++ compiler, Python's headers and torch's are found, else says what is missing and goes on without it. A build
that starts and fails is an error either way. GALA_CUDA (AUTO, ON, OFF) and GALA_CUDA_ARCHITECTURES reach CMake, which
knows what they mean.

This file is also the PEP 517 backend: setuptools', plus the requirements of a native build, which a pure-Python build
does not fetch. Of torch it needs headers only, and by the stable ABI those of any torch >= 2.10 serve: one that is
already installed is used even from an isolated build.
"""

import importlib.metadata
import os
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, build_meta, setup
from setuptools.build_meta import (  # noqa: F401  the backend's other hooks
    build_editable,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
TORCH = (2, 10)  # the oldest whose headers serve; CMakeLists.txt targets its stable ABI
CMAKE = (3, 21)
PASSED_ON = ("GALA_CUDA", "GALA_CUDA_ARCHITECTURES")  # environment variables that are CMake's options too
PATH = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])  # a venv need not be activated


class MissingError(Exception):
    """What a native build would need."""


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    try:
        if choice() == "0":
            return []
        check_toolchain()
    except MissingError:
        return []
    requirements = ["ninja", "pybind11>=2.13"]
    if cmake() is None:
        requirements.append(f"cmake>={dotted(CMAKE)}")
    try:
        torch_folder()
    except MissingError:
        requirements.append(f"torch>={dotted(TORCH)}")
    return requirements


get_requires_for_build_editable = get_requires_for_build_wheel


def build_sdist(sdist_directory: str, config_settings: dict | None = None) -> str:
    os.environ["GALA_NATIVE"] = "0"  # the archive is the same whatever will be built from it, and needs no compiler
    return build_meta.build_sdist(sdist_directory, config_settings)


def choice() -> str:
    value = os.environ.get("GALA_NATIVE", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"GALA_NATIVE is {value!r}; expected 0 (pure Python), 1 (native or an error), or unset")
    return value


def why_not_native() -> str | None:
    """None where the extension is to be built, else the reason. Raises SystemExit where GALA_NATIVE=1 is refused."""
    if choice() == "0":
        return "GALA_NATIVE=0"
    try:
        check_toolchain()
        torch_folder()
    except MissingError as missing:
        if choice() == "1":
            raise SystemExit(f"gala-cuda: GALA_NATIVE=1 asks for the compiled extension, but {missing}") from missing
        return str(missing)
    return None


def check_toolchain() -> None:
    """Raise MissingError unless there are a C++ compiler and Python's headers."""
    if sys.platform == "win32":
        raise MissingError("it does not build on Windows")
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    if not any(map(shutil.which, named or ("c++", "g++", "clang++"))):
        raise MissingError(f"the C++ compiler CXX={named[0]} was not found" if named else "no C++ compiler was found")
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise MissingError(f"Python.h was not found in {include} (Debian's package python3-dev)")


def torch_folder() -> Path:
    """The folder of a torch whose headers serve, here or behind build isolation. Raise MissingError without one."""
    paths = [*sys.path, *site.getsitepackages(), site.getusersitepackages()]
    found = next(iter(importlib.metadata.distributions(name="torch", path=paths)), None)
    if found is None:
        raise MissingError(f"torch >= {dotted(TORCH)}, whose headers it needs, is not installed here")
    if tuple(map(int, found.version.split(".")[:2])) < TORCH:
        raise MissingError(f"torch {found.version} is installed here, and it needs headers of torch >= {dotted(TORCH)}")
    return Path(str(found.locate_file("torch")))


def cmake() -> str | None:
    """A cmake that is new enough and runs: on PATH may be one whose Python package build isolation hides."""
    program = shutil.which("cmake", path=PATH)
    if program is None:
        return None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if answer.returncode or tuple(map(int, answer.stdout.split()[2].split(".")[:2])) < CMAKE:
        return None
    return program


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


class BuildPython(build_py):
    def run(self) -> None:
        if reason := why_not_native():
            self.announce(
                f"gala-cuda: built without its compiled extension: {reason}. It works, but slower: on the reference "
                "backend. To have the extension, supply what is missing and install again.",
                level=30,
            )
            if self.editable_mode:  # where an earlier build has left its extension in the source tree
                for extension in (ROOT / "gala_cuda").glob("_C.*.so"):
                    extension.unlink()
        super().run()


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.build_temp) / "cmake"
        shutil.rmtree(folder, ignore_errors=True)  # CMake's cache would keep an earlier compiler, its flags and tools
        program, ninja = cmake(), shutil.which("ninja", path=PATH)
        if program is None or ninja is None:
            raise CompileError(
                f"cmake >= {dotted(CMAKE)} or ninja was not found; `pip install cmake ninja` provides them"
            )
        configure = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-D{name}={os.environ[name]}" for name in PASSED_ON if os.environ.get(name)]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(cores())
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        try:
            for step in (
                ["-S", ROOT, "-B", folder, *configure, f"-DGALA_TORCH={torch_folder()}"],
                ["--build", folder, "--parallel", jobs],
                ["--install", folder, "--prefix", target],
            ):
                subprocess.run([program, *step], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(
                "the compiled extension does not build, see above; GALA_NATIVE=0 installs gala-cuda without it"
            ) from error


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    setup(
        ext_modules=[] if why_not_native() else [Extension("gala_cuda._C", sources=[])],
        cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
    )
