"""Packs all results into one file, results.tar.gz, with a page that says where and when they were made.

The same results give the same bytes. Unpacked into a folder, they are continued by a run with that `--output`.
"""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

NAME = "results.tar.gz"
ABOUT = "about.json"
PACKED = (".json", ".png", ".txt")


def write(found: dict[str, dict[str, Any]], folder: Path) -> Path:
    """Packs the results in `folder`, whose records are `found`; returns the archive's path."""
    (folder / ABOUT).write_text(json.dumps(about(found), indent=1) + "\n")
    path = folder / NAME
    unfinished = path.with_suffix(".tmp")
    with (
        unfinished.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for member in sorted(entry for entry in folder.iterdir() if entry.suffix in PACKED):
            content = member.read_bytes()
            entry = tarfile.TarInfo(member.name)  # owned by nobody in particular, of no date
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    unfinished.replace(path)
    return path


def about(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every state of machine and software, the first and the last date, and how many steps of each part are done."""
    environments: list[dict[str, Any]] = []
    for record in found.values():
        environments += [state for state in record["environments"] if state not in environments]
    dates = sorted(
        entry["started"] for record in found.values() for entry in record["steps"].values() if "started" in entry
    )
    return {
        "environments": environments,
        "first": dates[0] if dates else None,
        "last": dates[-1] if dates else None,
        "steps": {
            part: {
                key: sum(1 for entry in record["steps"].values() if key in entry)
                for key in ("result", "failed", "left_out")
            }
            for part, record in found.items()
        },
    }
