"""Classes by their names: what weights know of them against what is in the data."""

from collections.abc import Sequence


def unnamed(count: int) -> tuple[str, ...]:
    """The classes of weights that name none."""
    return tuple(f"class {number}" for number in range(count))


def places(classes: Sequence[str], known: Sequence[str]) -> tuple[list[int], str | None]:
    """(the place of each of ``classes`` in ``known``, by name; what a user is to be told about that, if anything).

    Where one of both has numbers, or nothing, for want of names, only the counts are compared.

    Raises:
        ValueError: some are not in ``known``, are there twice, or the counts differ where there are no names.
    """
    if list(classes) == list(known):
        return list(range(len(known))), None
    if _nameless(known, classes) or _nameless(classes, known):
        if len(classes) != len(known):
            raise ValueError(f"has {len(classes)} classes; expected {len(known)}, as the network has")
        return list(range(len(known))), "names are known on one side only, so classes are taken in their order"
    if twice := sorted({name for name in known if list(known).count(name) > 1}):
        raise ValueError(f"has other classes than the network, which has {_some(twice)} twice")
    place = {name: number for number, name in enumerate(known)}
    if unknown := [name for name in classes if name not in place]:
        raise ValueError(f"has classes that the network does not know, {_some(unknown)}; it knows {_some(known)}")
    what = "they are in another order" if len(classes) == len(known) else f"{len(classes)} of {len(known)} are there"
    return [place[name] for name in classes], f"classes are matched by name: {what}"


def _nameless(these: Sequence[str], others: Sequence[str]) -> bool:
    """Whether ``these`` are unnamed, or numbers from 0 where no other is a number."""
    numbers = list(these) == list(map(str, range(len(these))))
    return list(these) == list(unnamed(len(these))) or (numbers and not any(name.isdecimal() for name in others))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
