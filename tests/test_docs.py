"""The documentation: its code runs, its commands exist, its drawings and figures are those of today."""

import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser as torchrun_parser
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gala_cuda.bench.peers import Formula
from gala_cuda.cli.main import build_parser
from tools.drawings import __main__ as drawings
from tools.drawings.figures import EAGER

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SELF_CONTAINED = ("README", "docs/index", "docs/layer", "docs/convert", "docs/backends", "docs/clickme")
TOPS = ("benchmarks", "csrc", "examples", "experiments", "gala_cuda", "tests", "tools")
KINDS = ("py", "cpp", "h", "cu", "cuh")
VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "squeeze", "t",
    "transpose", "unsqueeze", "view",
}  # fmt: skip


def code(page: Path) -> str:
    """The Python blocks of a page, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.slow
@pytest.mark.parametrize("page", SELF_CONTAINED)
def test_code_of_a_page_runs(page):
    source = code(ROOT / f"{page}.md")
    assert source
    exec(compile(source, page, "exec"), {})


def test_code_of_all_pages_compiles():
    for page in PAGES:
        compile(code(page), page.name, "exec")


def commands(text: str) -> list[str]:
    """The lines of shell blocks that call gala-cuda, without their comments; continued lines joined."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", "")
    return [line for line in blocks.splitlines() if line.startswith("gala-cuda ")]


def test_commands_of_the_pages_are_understood():
    found = [line for page in (ROOT / "README.md", *PAGES) for line in commands(page.read_text())]
    assert len(found) > 20
    for line in found:
        build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_torchrun_in_training_is_understood():
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    found = re.findall(r"^(?:srun )?torchrun (.*)$", "\n".join(blocks).replace("\\\n", ""), re.MULTILINE)
    assert len(found) == 3
    for line in found:
        args = torchrun_parser().parse_args(shlex.split(line.replace('"$SLURM_NNODES"', "2")))
        assert args.training_script == "gala_cuda"
        build_parser().parse_args(args.training_script_args)


def test_flags_of_the_comparison_exist():
    """The second column of docs/compare.md is what this package has."""
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|", (ROOT / "docs/compare.md").read_text(), re.MULTILINE)
    named = {flag for ours in rows for flag in re.findall(r"`(--[\w-]+)`", ours)}
    commands = next(action for action in build_parser()._actions if isinstance(action.choices, dict)).choices
    known = {flag for name in ("train", "eval", "predict") for flag in commands[name]._option_string_actions}
    assert len(named) > 30
    assert named - known == {"--max-restarts"}  # of torchrun


def test_names_and_files_of_the_pages_exist():
    for page in (ROOT / "README.md", *PAGES):
        text = page.read_text()
        for name in re.findall(r"\bgala_cuda(?:\.\w+)+", text):
            pkgutil.resolve_name(name)
        links = re.findall(r"""(?:\]\(|src="|href=")(?!https?:|#)([^)"#]+)""", text)
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name
        paths = re.findall(r"`((?:benchmarks|csrc|docs|examples|experiments|gala_cuda|tests|tools)/[\w./-]+)`", text)
        assert [path for path in paths if not (ROOT / path).exists()] == [], page.name


def test_drawings_are_current(tmp_path):
    drawings.main(tmp_path)
    for path in tmp_path.glob("*.svg"):
        assert path.read_bytes() == (drawings.ASSETS / path.name).read_bytes(), "make docs draws it anew"


def test_tree_names_every_folder():
    tree = (ROOT / "docs" / "files.md").read_text()
    sources = (path for top in TOPS for kind in KINDS for path in (ROOT / top).rglob(f"*.{kind}"))
    folders = {path.parent.relative_to(ROOT).as_posix() for path in sources}
    assert sorted(folder for folder in folders if f"\n| `{folder}/` |" not in tree) == []


class Traffic(TorchDispatchMode):
    """Counts the elements that operations take and give. A view moves nothing, an expanded dimension counts once."""

    def __init__(self):
        super().__init__()
        self.read = self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name.split("::")[1] not in VIEWS:
            self.read += elements((args, kwargs))
            self.written += elements(out)
        return out


def elements(values) -> int:
    tensors = (t for t in tree_leaves(values) if isinstance(t, torch.Tensor))
    return sum(t.numel() // max(1, expanded(t)) for t in tensors)


def expanded(t: torch.Tensor) -> int:
    """How many times each element of t occurs in it."""
    return int(torch.tensor([size for size, stride in zip(t.shape, t.stride(), strict=True) if stride == 0]).prod())


def test_eager_passes_are_those_of_the_page():
    x = torch.randn(8, 1024, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
    layer, counted = Formula(1024, 4), {}
    with Traffic() as traffic:
        out = layer(x)
    counted["forward"] = (traffic.read / x.numel(), traffic.written / x.numel())
    grad = torch.randn_like(out)
    with Traffic() as traffic:
        out.backward(grad)
    counted["backward"] = (traffic.read / x.numel(), traffic.written / x.numel())
    for direction, passes in EAGER.items():
        assert counted[direction] == pytest.approx(passes, abs=0.01), direction
