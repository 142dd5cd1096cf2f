"""Parts of a network that a training leaves as they are."""

from collections.abc import Sequence

from torch import nn

from .recipe import RecipeError


def freeze(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules `names` of `model`, such as "layer1" or "layer2.0"; their weights no longer require gradients.

    In evaluation mode, to which the caller brings them, the statistics of their BatchNorms stay as they are too.

    Raises:
        RecipeError: there is no such module, or nothing is left to train; then nothing is changed.
    """
    modules = dict(model.named_modules())
    if unknown := [name for name in names if not name or name not in modules]:
        own = ", ".join(name for name, _ in model.named_children())
        raise RecipeError("freeze", f"names {unknown[0]!r}; expected some of {own}, or modules inside them")
    frozen = [modules[name] for name in names]
    kept = {parameter for module in frozen for parameter in module.parameters()}
    if names and all(parameter in kept for parameter in model.parameters()):
        raise RecipeError("freeze", f"is {' '.join(names)}, which leaves nothing to train")
    for parameter in kept:
        parameter.requires_grad_(False)
    return frozen
