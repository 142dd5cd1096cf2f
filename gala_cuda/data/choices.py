"""The names of the built-in sets, told from folders of the same names, and those of the augmentations."""

from pathlib import Path

PREFIX = "builtin:"
DIGITS, SYNTHETIC = f"{PREFIX}digits", f"{PREFIX}synthetic"
AUGMENTS = ("paper", "modern", "randaugment", "none")


def located(source: str) -> str:
    """Where images come from, without doubt: a built-in set as "builtin:NAME", a folder of such a name as "./NAME".

    "digits", "synthetic" and "synthetic:N" are short for the built-in sets where there is no folder of that name. Any
    other source is as it was given.
    """
    if f"{PREFIX}{source.partition(':')[0]}" not in (DIGITS, SYNTHETIC):
        return source
    return f"./{source}" if Path(source).is_dir() else f"{PREFIX}{source}"
