"""Opens data sets of Hugging Face's library datasets: saved by it, of files or of the Hub, whole or as a stream."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SettingError
from .choices import DATASETS, Columns
from .folders import canonical_split
from .hf_rows import Coder, RowPictures, StreamedPictures, listed
from .hold_out import hold_out
from .table import IMAGE_COLUMNS, LABEL_COLUMNS, in_order

Classes = tuple[str, ...]


class _Split(NamedTuple):
    rows: Any
    image: str
    label: str
    labels: list[Any]
    feature: Any  # of a label


def is_of_datasets(source: str) -> bool:
    """Whether a source of images is one of the library datasets."""
    return source.startswith(DATASETS)


def open_datasets(
    source: str,
    columns: Columns,
    tell: Callable[[str], object],
    val_share: float | None,
    seed: int,
    stream: bool,
) -> tuple[Any, Any, Classes]:
    """(train, val, names of the classes) of "datasets:WHAT": ``RowPictures`` or, as a stream, ``StreamedPictures``.

    WHAT is a folder of ``save_to_disk``, or what ``datasets.load_dataset`` takes: a folder of Parquet or other files,
    the name of a data set on the Hub, NAME or NAME:CONFIG. Without a split val, ``val_share`` and ``seed`` decide, as
    for ``hold_out``; else the split test takes its place.

    Raises:
        FileNotFoundError: there is none such.
        ValueError: columns or splits are missing, or rows without a label.
        SettingError: datasets is not installed, or a setting does not go with it.
    """
    if stream and val_share is not None:
        raise SettingError(("val_share", "stream"), f"val_share is {val_share}; expected none with a stream")
    found = {canonical_split(name): rows for name, rows in _load(source, stream).items()}
    whole = val_share is not None and len(found) == 1
    if whole:
        found = {"train": next(iter(found.values()))}
    if "val" not in found and "test" in found and val_share is None:
        tell(f"tested on the split test of {source}, which has no val")
        found["val"] = found["test"]
    wanted = ["train"] if val_share is not None else ["train", "val"]
    for name in wanted:
        if name not in found:
            raise ValueError(f"{source} has the splits {', '.join(found)}; expected {name}, or val_share")
    if val_share is not None and "val" in found:
        raise SettingError(
            ("val_share",), f"val_share is {val_share}, and {source} has a split val; expected one of them"
        )
    splits = {name: _columns_of(source, found[name], columns) for name in wanted}
    classes = _classes(source, list(splits.values()))
    pictures: list[Any] = []
    for name, split in splits.items():
        named = getattr(split.feature, "names", None) is not None
        coder = Coder(source, classes, named, columns.multi_label)
        labels = coder(split.labels)
        if stream:
            pictures.append(StreamedPictures(split.rows, split.image, split.label, labels, coder))
        else:
            pictures.append(RowPictures(split.rows, split.image, name, labels, classes))
    if val_share is None:
        return pictures[0], pictures[1], classes
    held_out = hold_out(pictures[0], val_share, seed)
    return pictures[0].take(~held_out), pictures[0].take(held_out), classes


def _load(source: str, stream: bool) -> dict[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise SettingError(
            ("data",), f"{source} needs the package datasets; pip install 'gala-cuda[datasets]'"
        ) from error
    what = source.removeprefix(DATASETS)
    saved = Path(what) / "dataset_dict.json", Path(what) / "state.json"
    try:
        if any(file.exists() for file in saved):
            found = datasets.load_from_disk(what)
            if stream:
                raise SettingError(
                    ("stream",), f"stream is True, and {what} is a folder of save_to_disk; expected False"
                )
        else:
            name, _, config = (what, "", "") if Path(what).exists() else what.partition(":")
            found = datasets.load_dataset(name, config or None, streaming=stream)
    except (datasets.exceptions.DatasetsError, OSError) as error:
        raise FileNotFoundError(f"{source} cannot be opened: {_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise ValueError(f"{source} cannot be opened: {_line(error)}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _columns_of(source: str, rows: Any, columns: Columns) -> _Split:
    """The columns of images and of labels, the labels themselves, and what they are."""
    import datasets

    features = rows.features
    if features is None:
        raise ValueError(f"{source} does not say which columns it has; expected a data set that does")
    for given, setting in ((columns.image, "image_column"), (columns.label, "label_column")):
        if given is not None and given not in features:
            raise SettingError((setting,), f"{setting} is {given!r}, and {source} has {', '.join(features)}")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image = columns.image or next((name for name in IMAGE_COLUMNS if name in images), None) or next(iter(images), None)
    kinds = [name for name, feature in features.items() if isinstance(_of(feature), datasets.ClassLabel)]
    usual = [name for name in features if name.lower() in LABEL_COLUMNS]
    label = columns.label or next((name for name in usual if name in kinds), None) or next(iter([*kinds, *usual]), None)
    for name, what, setting in ((image, "pictures", "image_column"), (label, "labels", "label_column")):
        if name is None:
            named = ", ".join(features)
            raise SettingError(("data", setting), f"{source} has the columns {named}; expected one of {what}")
    assert image is not None
    assert label is not None
    if not isinstance(features[image], datasets.Image):
        raise SettingError(("image_column",), f"image_column is {image!r}, which holds no pictures in {source}")
    several = _of(features[label]) is not features[label]
    if several != columns.multi_label:
        raise SettingError(
            ("multi_label", "data"), f"multi_label is {columns.multi_label}, and {label} of {source} has "
            f"{'any number of labels' if several else 'one label'} for each picture",
        )  # fmt: skip
    if isinstance(rows, datasets.IterableDataset):
        labels = [row[label] for row in rows.select_columns([label])]
    else:
        labels = rows.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
    return _Split(rows, image, label, labels, _of(features[label]))


def _of(feature: Any) -> Any:
    """The feature of a label: that of the entries where it is a list of them."""
    return getattr(feature, "feature", feature)


def _classes(source: str, splits: Sequence[_Split]) -> Classes:
    """The names that the library has for the classes, else the labels themselves."""
    if names := getattr(splits[0].feature, "names", None):
        return tuple(names)
    parts = [{str(label) for entry in split.labels for label in listed(entry)} for split in splits]
    if new := sorted(set[str]().union(*parts) - parts[0]):
        raise ValueError(f"{source} has classes without pictures to train on: {', '.join(new)}; expected some of each")
    return tuple(sorted(parts[0], key=in_order))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
