"""Maps of single people beside the records of a folder, FOLDER/people/KEY.npz, for the agreement between people.

Each file is of one image: ``maps`` float32 [k, H, W], one for each of k people, and ``participants`` [k], their codes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UnreadableError
from .formats.npz import read_arrays

PEOPLE = "people"  # the folder
MAX_BYTES = 1 << 30  # of the maps of an image


def write_people(folder: Path, key: str, maps: np.ndarray, participants: Sequence[str]) -> None:
    """Writes the maps [k, H, W] that k people made of the image ``key`` below ``folder``."""
    path = folder / PEOPLE / f"{key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, maps=maps.astype(np.float32), participants=np.array(participants, np.bytes_))


def read_people(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(key, maps [k, H, W] float32 of k people) of each image in ``folder``/people, in the order of their names.

    ``human_ceiling([maps for key, maps in read_people(folder)])`` is the agreement that people reach.

    Raises:
        FileNotFoundError: there are none.
        UnreadableError: a file is damaged.
    """
    paths = sorted(Path(folder, PEOPLE).rglob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"there are no maps of single people in {Path(folder, PEOPLE)}; expected KEY.npz")
    for path in paths:
        with path.open("rb") as file:
            maps = read_arrays(file, ["maps"], MAX_BYTES).get("maps")
        if maps is None or maps.ndim != 3:
            raise UnreadableError(f"{path} has no array maps [k, H, W]")
        key = path.relative_to(Path(folder, PEOPLE)).with_suffix("").as_posix()
        yield key, torch.from_numpy(maps.astype(np.float32))
