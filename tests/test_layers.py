"""The package's layers: modules import from their own layer and those below, in functions too, and in no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "gala_cuda"
# From the bottom up. A module belongs to the longest of these that its path starts with.
LAYERS = (
    ("version", "errors", "text", "console", "native", "_C"),
    ("backends",),
    ("operator_pair", "operator", "flops"),
    ("functional",),
    ("layer",),
    ("released",),
    ("diagnostics", "testing"),
    ("models", "timm"),
    ("data",),
    ("clickme",),
    ("networks",),
    ("training",),
    ("game",),
    ("inspection", "prediction", "hub"),
    ("bench",),
    ("demo",),
    ("cli", "__main__"),
)
# Imported where they are used, for an install may lack them: what torch itself or an extra brings.
OPTIONAL = {
    "datasets", "fsspec", "huggingface_hub", "onnxruntime", "pyarrow", "scipy", "tensorboard", "timm",
    "torch.utils.tensorboard", "triton", "wandb", "yaml",
}  # fmt: skip
# Our own modules that need what may be missing, by who imports them where they are used.
NEEDING_EXTRAS = {
    "cli": ("bench", "clickme", "console", "data", "demo", "game", "inspection", "prediction", "training"),
    "models.convert": ("models.timm_blocks", "models.torchvision_blocks"),
    "backends.triton": ("backends.triton",),
    "backends.released": ("backends.triton",),
    "bench.tune": ("bench.search",),
}


def modules():
    """Path and syntax tree of each module by its name below the package; the package's own is ""."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, ast.parse(path.read_text())


def names():
    return {"_C", *(name for name, _, _ in modules())}


def imports(name, path, tree, known):
    """(module below the package or None, full name, inside a function, line) of everything that is imported."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join(
                [*(["gala_cuda"] if node.level else []), *filter(None, base), *filter(None, [node.module])]
            )
            found = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in found:
            own = full.removeprefix("gala_cuda").removeprefix(".") if full.split(".")[0] == "gala_cuda" else None
            if own is not None and own not in known:
                own = own.rpartition(".")[0]  # a name in a module
            yield own, full, id(node) in inside, node.lineno


def layer_of(name):
    starts = [(len(start), number) for number, layer in enumerate(LAYERS) for start in layer if below(name, start)]
    return max(starts)[1]


def may_need(name, own):
    """Whether the module ``name`` may import our own module ``own`` inside a function."""
    return any(below(name, importer) and any(below(own, each) for each in needed)
               for importer, needed in NEEDING_EXTRAS.items())  # fmt: skip


def below(name, package):
    return name == package or name.startswith(f"{package}.")


def test_every_module_has_a_layer():
    for name, _, _ in modules():
        assert not name or layer_of(name) >= 0


def test_no_import_goes_up():
    known = names()
    up = [
        f"{path.relative_to(PACKAGE)}:{line} imports {full}"
        for name, path, tree in modules()
        if name
        for own, full, _, line in imports(name, path, tree, known)
        if own is not None and (not own or layer_of(own) > layer_of(name))
    ]
    assert up == []


def test_no_circle():
    known = names()
    needs = {
        name: {own for own, _, _, _ in imports(name, path, tree, known) if own and own != name}
        for name, path, tree in modules()
    }
    assert list(TopologicalSorter(needs).static_order())  # raises CycleError, which names the circle


def test_imports_inside_functions_are_of_what_may_be_missing():
    known = names()
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {full}"
        for name, path, tree in modules()
        for own, full, inside, line in imports(name, path, tree, known)
        if inside
        and not (
            any(full == each or full.startswith(f"{each}.") for each in OPTIONAL)
            if own is None
            else may_need(name, own)
        )
    ]
    assert wrong == []


def test_arrows_and_circles_are_seen(tmp_path):
    tree = ast.parse("def f():\n    from ..training.step import Stepper\nfrom . import b\n")
    found = list(imports("data.a", tmp_path / "a.py", tree, {"training.step", "data.b"}))
    assert found == [
        ("data.b", "gala_cuda.data.b", False, 3),
        ("training.step", "gala_cuda.training.step.Stepper", True, 2),
    ]
