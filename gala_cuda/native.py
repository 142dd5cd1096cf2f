"""Loads the compiled module `gala_cuda._C` and remembers why it could not."""

from types import ModuleType

module: ModuleType | None = None
why_not: str | None = None

try:
    from . import _C as module
except ImportError as error:
    if isinstance(error, ModuleNotFoundError) or "cannot import name '_C'" in str(error):
        why_not = "gala_cuda was installed without its compiled extension (no compiler, or GALA_NATIVE=0)"
    else:
        why_not = f"the compiled extension does not load: {error}"

build: dict = {} if module is None else module.build_info()  # what the extension was built with
