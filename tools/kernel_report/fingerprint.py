"""Says whether a recorded prediction is of the kernels as they are."""

import ast
import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "gala_cuda" / "backends" / "triton"
RECORDS = ROOT / "benchmarks" / "results" / "prediction"


def fingerprint(folder: Path = KERNELS) -> str:
    """Twelve digits that change with the kernels, their plans and the table of tiles, not with their comments."""
    found = hashlib.sha256(json.dumps(json.loads((folder / "table.json").read_text()), sort_keys=True).encode())
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
        found.update(f"{path.name} {ast.dump(tree)}".encode())
    return found.hexdigest()[:12]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def outdated(folder: Path = RECORDS) -> str | None:
    """None where a record for the H200 is of these kernels, else what to do."""
    now = fingerprint()
    if any(folder.glob(f"*-H200-{now}.json")):
        return None
    return (
        f"no prediction in {folder} is of the Triton kernels as they are ({now}): "
        "`python -m tools.kernel_report.prediction --record` writes one, commit it and remove the older"
    )
