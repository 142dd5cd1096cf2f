"""`gala-cuda clickme collect`: makes a folder to train on of the rounds that people have played."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GalaError
from .arguments import count, not_negative, share_below_1, whole
from .extras import extra

if TYPE_CHECKING:
    from ..game.export import Collected
    from ..game.quality import Filters
    from ..game.store import Store

HELP = "Make human maps of a game's rounds: a folder that train --clickme reads."


def add_arguments(parser: argparse.ArgumentParser, kinds: tuple[str, ...]) -> None:
    """``kinds`` are the formats that can be written."""
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="the study's folder, with images/[SPLIT/]CLASS/*")
    add("maps", type=Path, metavar="MAPS", help="new folder, whole in the end or not there at all")
    add("--database", metavar="URL", help="where the rounds are (default: STUDY/game.sqlite)")
    add("--to", choices=kinds, default="webdataset", help="format to write (default: %(default)s, tar shards)")
    add("--per-shard", type=count, default=1000, metavar="N", help="samples per TFRecord or tar file "
        "(default: %(default)s)")  # fmt: skip
    add("--val-share", type=share_below_1, default=0.2, metavar="SHARE", help="of each class to hold out for val where "
        "the study has no images/val (default: %(default)s)")  # fmt: skip
    add("--seed", type=whole, default=0, metavar="N", help="decides which images are held out (default: %(default)s)")
    maps = parser.add_argument_group("maps").add_argument
    maps("--box", type=count, default=18, metavar="PIXELS", help="side of the square that a bubble adds to "
        "(default: %(default)s)")  # fmt: skip
    maps("--blur", type=not_negative, default=0.0, metavar="PIXELS", help="standard deviation of a Gaussian (default: "
        "none)")  # fmt: skip
    maps("--min-people", type=count, default=1, metavar="N", help="images that fewer people painted have no map "
        "(default: %(default)s)")  # fmt: skip
    maps("--only-mapped", action="store_true", help="leave out images without a map, which otherwise train the "
        "classification")  # fmt: skip
    rounds = parser.add_argument_group("rounds that count").add_argument
    rounds("--outcomes", nargs="+", choices=("recognised", "timeout", "skip", "interrupted"), metavar="OUTCOME",
        default=["recognised", "timeout"], help="recognised, timeout, skip, interrupted (default: the first "
        "two)")  # fmt: skip
    rounds("--min-bubbles", type=count, default=1, metavar="N", help="least number of a round's bubbles (default: "
        "%(default)s)")  # fmt: skip
    rounds("--untimed", action="store_true", help="also those played without the clock")
    rounds("--repeats", action="store_true", help="also those of an image that the person had before")
    rounds("--exclude", nargs="+", default=[], metavar="CODE", help="leave out these participants too, beside those "
        "that the admin's page excludes")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """1 where images were left out."""
    with extra("game"):
        from ..console import PlainConsole, numbered
        from ..game.database import database_of
        from ..game.export import FileOptions, collect
        from ..game.maps import MapOptions
        from ..game.store import Store
    store = Store(args.database or database_of(args.study), create=False)
    try:
        filters, rounds = _filters(args, store), list(store.rounds())
    finally:
        store.close()
    try:
        collected = collect(
            args.study / "images", args.maps, rounds, numbered, filters,
            MapOptions(args.box, args.blur, args.min_people, args.only_mapped),
            FileOptions(args.to, args.per_shard, args.val_share, args.seed),
        )  # fmt: skip
    except (FileNotFoundError, FileExistsError) as error:
        raise argparse.ArgumentError(None, f"argument STUDY or MAPS: {error}") from error
    except (OSError, ValueError) as error:
        raise GalaError(str(error)) from error
    console = PlainConsole()
    for line in _told(collected, args.maps):
        console.print_line(line)
    return int(bool(collected.left_out))


def _filters(args: argparse.Namespace, store: "Store") -> "Filters":
    """The rounds that count by the flags and by what the admin's page excludes."""
    from ..game.quality import Filters

    people, images = store.excluded()
    unknown = sorted(set(args.exclude) - {person.code for person in store.participants()})
    if unknown:
        raise argparse.ArgumentError(
            None, f"argument --exclude: {', '.join(unknown)}: no participant of {store.where}; expected their codes"
        )
    return Filters(
        tuple(args.outcomes), args.min_bubbles, people.union(args.exclude), images, args.untimed, args.repeats
    )


def _told(collected: "Collected", maps: Path) -> list[str]:
    """What was collected, line by line."""
    reasons = [f"{number:,}: {reason}" for reason, number in collected.uncounted.items()]
    splits = ", ".join(f"{split} {number:,}" for split, number in collected.images.items())
    lines = [
        f"rounds: {collected.counted:,} of {collected.rounds:,} count, of {collected.people:,} people",
        *(f"  left out {reason}" for reason in reasons),
        f"images: {splits}; {collected.mapped:,} with a map",
    ]
    if collected.undivided:
        lines.append(f"in train as a whole, too few to hold some out: {', '.join(collected.undivided)}")
    if collected.ceiling is not None:
        lines.append(
            f"ceiling: people agree by {collected.ceiling:.3f} on {collected.shared:,} images that several painted; "
            f"for eval: --ceiling {collected.ceiling:.3f}"
        )
    else:
        lines.append("ceiling: none, for no image was painted by two people")
    lines += [f"left out: {name}: {reason}" for name, reason in collected.left_out]
    return [*lines, f"written: {sum(collected.images.values()):,} images to {maps.resolve()}"]
