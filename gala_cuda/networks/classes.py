"""Matches classes by name: those that a network knows against those in the data."""

from collections.abc import Sequence


def placeholder_names(count: int) -> tuple[str, ...]:
    """Names for the classes of weights that name none."""
    return tuple(f"class {number}" for number in range(count))


def match_classes(classes: Sequence[str], known: Sequence[str]) -> tuple[list[int], str | None]:
    """(the number in ``known`` of each of ``classes``, a note for the user or None), matched by name.

    Where one side has only numbers or placeholders for names, the counts are compared and the order is kept.

    Raises:
        ValueError: some are not in ``known``, are there twice, or the counts differ where there are no names.
    """
    if list(classes) == list(known):
        return list(range(len(known))), None
    if _are_nameless(known, classes) or _are_nameless(classes, known):
        if len(classes) != len(known):
            raise ValueError(f"has {len(classes)} classes; expected {len(known)}, as the network has")
        return list(range(len(known))), "names are known on one side only, so classes are taken in their order"
    if twice := sorted({name for name in known if list(known).count(name) > 1}):
        raise ValueError(f"has other classes than the network, which has {_listed(twice)} twice")
    number_of = {name: number for number, name in enumerate(known)}
    if unknown := [name for name in classes if name not in number_of]:
        raise ValueError(f"has classes that the network does not know, {_listed(unknown)}; it knows {_listed(known)}")
    what = "they are in another order" if len(classes) == len(known) else f"{len(classes)} of {len(known)} are there"
    return [number_of[name] for name in classes], f"classes are matched by name: {what}"


def _are_nameless(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether ``names`` are placeholders, or are numbers from 0 while none of ``others`` is a number."""
    numbers = list(names) == list(map(str, range(len(names))))
    if list(names) == list(placeholder_names(len(names))):
        return True
    return numbers and not any(name.isdecimal() for name in others)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
