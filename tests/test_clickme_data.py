"""ClickMe's files: every format is read as it was written, image and map move alike, and each sample comes once."""

import io
import os
from collections import Counter
from itertools import chain

import clickme_files as files
import numpy as np
import pytest
import torch
from PIL import Image

from gala_cuda.data.batches import Batches
from gala_cuda.data.clickme_sample import ClickMeSample
from gala_cuda.data.errors import UnreadableError
from gala_cuda.data.human_maps import augmentation, record_index
from gala_cuda.data.human_maps.dataset import open_clickme_folder
from gala_cuda.data.human_maps.map_modes import blur_map, process_map
from gala_cuda.data.human_maps.split_reader import open_split

pytestmark = pytest.mark.usefixtures("user_cache")


def contents(folder, split="train"):
    samples = open_split(folder, split)
    return [samples.read(i) for i in range(len(samples))]


def expected_content(number, kind):
    """(image, map) that a reader should give for sample ``number``."""
    if kind == "jpeg":
        example = files.jpeg_example(number)
        return tuple(np.asarray(Image.open(io.BytesIO(example[key][0]))) for key in ("image", "heatmap"))
    image, heatmap, _ = files.picture(number)
    return image, heatmap * (20 if kind == "pth" else 1)


@pytest.mark.parametrize("kind", files.KINDS)
def test_each_format_is_read_as_it_was_written(tmp_path, kind):
    for number, sample in enumerate(contents(files.write_all(tmp_path, kind))):
        image, heatmap = expected_content(number, kind)
        assert [part.dtype for part in sample] == [torch.uint8, torch.int64, torch.float32, torch.bool]
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0), image)
        np.testing.assert_array_equal(sample.heatmap[0], heatmap)
        assert (int(sample.label), bool(sample.has_map)) == (number % files.CLASSES, number != files.WITHOUT)


def test_no_clicks_means_no_map(tmp_path):
    example = files.raw_example(1) | {"click_count": (0, "int")}
    without = {key: files.raw_example(2)[key] for key in ("image", "label")}  # as in the files of the split val
    files.write_tfrecord(tmp_path / "val-00000-of-00001", [example, without])
    for sample in contents(tmp_path, "val"):
        assert not sample.has_map
        assert sample.heatmap.shape == (1, files.SIDE, files.SIDE)
        assert not sample.heatmap.any()


def test_formats_are_told_by_content_and_mix(tmp_path):
    files.write_npz(tmp_path / "train-a.npz", 0)
    (tmp_path / "train-a.npz").rename(tmp_path / "train-a.data")
    files.write_pth(tmp_path / "train-b.npz", 1)
    files.write_tfrecord(tmp_path / "train-c", [files.raw_example(2), files.jpeg_example(0)])
    (tmp_path / "train-notes.txt").write_text("not a sample")
    samples = open_split(tmp_path, "train")
    assert [samples.name(i) for i in range(4)] == ["train-a.data", "train-b.npz", "train-c#0", "train-c#1"]
    assert [int(samples.read(i).label) for i in range(4)] == samples.labels.tolist() == [0, 1, 2, 0]
    assert len(open_split(tmp_path / "train-c")) == 2


def test_a_folder_without_files_or_labels_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no ClickMe records in train/\* of .* with train as a word"):
        open_clickme_folder(tmp_path)
    with pytest.raises(ValueError, match=r"split is '../x'; expected a name"):
        open_split(tmp_path, "../x")
    for split in ("train", "val"):
        (tmp_path / f"{split}.npz").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"no record in .* has a label that can be read"):
        open_clickme_folder(tmp_path)


@pytest.mark.parametrize("augment", ["paper", "modern", "randaugment", "none"])
def test_image_and_map_are_moved_alike(tmp_path, augment):
    """An image and its map have a bright square: wherever it moves, it is in the same place in both."""
    image, heatmap = torch.zeros(3, 256, 256, dtype=torch.uint8), torch.zeros(1, 256, 256)
    image[:, 90:130, 60:110] = 255
    heatmap[:, 90:130, 60:110] = 5
    sample = ClickMeSample(image, torch.tensor(0), heatmap, torch.tensor(True))
    moved = augmentation.ClickMeTransform(
        augmentation.augmentation(augment, 224, "raw").geometric, torch.nn.Identity(), "raw"
    )  # without the changes of colours
    centres = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, _, heatmap, has_map = moved(sample)
        assert image.shape[1:] == heatmap.shape[1:] == (224, 224)
        torch.testing.assert_close(image[0] / 255, heatmap[0] / 5, rtol=0, atol=0.01)
        assert has_map == heatmap.any()
        centres.add(tuple((heatmap[0] > 2.5).nonzero().float().mean(0).tolist()))
    assert len(centres) > 8 if augment != "none" else centres == {(93.5, 68.5)}


def test_a_map_of_other_sides_follows_the_image_and_may_be_cropped_away(tmp_path):
    """The map has 4 x 8 pixels and the image 16 x 32. Only the left half of the map is bright."""
    heatmap = np.zeros((4, 8), np.float32)
    heatmap[:, :4] = 3
    np.savez(tmp_path / "train.npz", image=np.zeros((16, 32, 3), np.uint8), heatmap=heatmap, label=np.array([1]))
    sample = open_split(tmp_path, "train").read(0)
    assert (sample.image.shape, sample.heatmap.shape) == ((3, 16, 32), (1, 4, 8))
    centre = augmentation.centre_crop(14, "paper")(sample)
    assert (centre.heatmap[0, :, :5] == 1).all()
    assert (centre.heatmap[0, :, 9:] == 0).all()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        moved = augmentation.augmentation("paper", 7, "paper")(sample._replace(image=sample.image[:, ::2, ::2]))
        assert moved.has_map == moved.heatmap.any()
        seen.add(bool(moved.has_map))
    assert seen == {True, False}


def test_colours_leave_the_map_alone(tmp_path):
    files.write_all(tmp_path, "npz")
    plain, coloured = (open_clickme_folder(tmp_path, 14, augment, "raw")[0] for augment in ("none", "modern"))
    assert {True} == {bool((coloured.read(0, seed).heatmap >= 0).all()) for seed in range(9)}
    assert len({coloured.read(0, seed).image.sum().item() for seed in range(9)}) > 6
    assert torch.equal(coloured.read(0, 1).image, coloured.read(0, 1).image)
    sample = plain.read(0, 0)
    assert (sample.image.shape, sample.heatmap.shape) == ((3, 14, 14), (1, 14, 14))


def test_maps_are_processed_as_chosen():
    heatmap = torch.zeros(1, 256, 256)
    heatmap[0, 128, 100] = 8
    assert torch.equal(process_map(heatmap, "raw"), heatmap)
    assert torch.equal(process_map(heatmap, "paper"), heatmap / 8)
    weights = np.exp(-((np.arange(49) - 24) ** 2) / (2 * 28.0**2))
    expected = 8 * np.outer(weights, weights) / weights.sum() ** 2
    blurred = blur_map(heatmap, 49, 28.0)
    np.testing.assert_allclose(blurred[0, 104:153, 76:125], expected, rtol=1e-5)
    assert blurred.sum() == pytest.approx(8, rel=1e-5)
    wide = process_map(heatmap, "harmonization")
    assert wide.shape == (1, 256, 256)
    assert wide.sum() == pytest.approx(8, rel=1e-3)
    spread = (wide[0] > wide.max() / 2).nonzero()
    assert (spread.max(0).values - spread.min(0).values).tolist() == pytest.approx([40, 40], abs=2)  # 10 of 64 pixels
    for wrong in ("augment", "map_mode"):
        with pytest.raises(ValueError, match=f"{wrong} is 'x'; expected one of paper"):
            augmentation.augmentation(**{"augment": "paper", "size": 14, "map_mode": "raw"} | {wrong: "x"})


def identified(batches):
    """The label and the sum of the map of each image in some batches, by which samples are told apart."""
    return [
        (int(label), round(float(heatmap.sum()), 3))
        for _, labels, heatmaps, _ in batches
        for label, heatmap in zip(labels, heatmaps, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "tar"])
def test_workers_and_ranks_give_each_sample_once(tmp_path, kind, one_thread):
    files.write_all(tmp_path, kind, range(12), range(11))
    train, val, classes = open_clickme_folder(tmp_path, 14, "none", "raw")
    assert (classes, train.shape) == (("0", "1", "2"), (3, 14, 14))
    once = Counter((int(val.labels[i]), round(float(val.read(i, 0).heatmap.sum()), 3)) for i in range(11))
    for workers, world in ((0, 1), (2, 1), (2, 2)):
        ranks = [Batches(val, 3, 0, workers, train=False, rank=rank, world=world) for rank in range(world)]
        read = Counter(chain.from_iterable(identified(rank.epoch()) for rank in ranks))
        assert read == once
        assert not any(rank.skipped for rank in ranks)
    batch = next(iter(Batches(train, 4, 0, 2, train=True).epoch()))
    assert isinstance(batch, ClickMeSample)
    assert (batch.image.dtype, batch.heatmap.shape) == (torch.float32, (4, 1, 14, 14))


def test_the_index_is_kept_and_renewed(tmp_path, monkeypatch):
    folder = files.write_all(tmp_path / "data", "npz")
    kept = folder / ".gala-clickme-train.npz"
    first = contents(folder)
    assert kept.is_file()
    built, build = [], record_index.build_index
    monkeypatch.setattr(record_index, "build_index", lambda *given: built.append(given) or build(*given))
    assert len(contents(folder)) == len(first)
    assert not built  # it was read
    whole = kept.read_bytes()
    for damaged in (whole[:-40], b"", whole[:900] + bytes([whole[900] ^ 1]) + whole[901:]):
        kept.write_bytes(damaged)
        assert len(contents(folder)) == len(first)
        assert kept.read_bytes() == whole
    assert len(built) == 3
    files.write_npz(folder / "train" / "0000.npz", 2)
    assert open_split(folder, "train").labels[0] == 2
    (folder / "train" / "0001.npz").unlink()
    assert len(contents(folder)) == len(first) - 1
    assert len(built) == 5
    monkeypatch.setattr(record_index, "VERSION", b"another")
    open_split(folder, "train")
    assert len(built) == 6


@pytest.mark.parametrize("column", ["file_of", "offset", "length", "label", "formats", "files"])
def test_an_index_that_lies_is_built_anew(tmp_path, column):
    folder = files.write_all(tmp_path, "tar")
    true = open_split(folder, "train").labels
    kept = folder / ".gala-clickme-train.npz"
    with np.load(kept) as found:
        columns = dict(found)
    wrong = np.array([b"../secret", b"b"]) if column == "files" else np.full_like(columns[column], -7)
    np.savez(kept, **columns | {column: wrong})
    assert torch.equal(open_split(folder, "train").labels, true)


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(tmp_path, monkeypatch):
    folder = files.write_all(tmp_path / "data", "raw")
    monkeypatch.setattr(
        record_index, "_index_paths", lambda folder, split: (tmp_path / "data" / "train-00000-of-00002" / "x", kept)
    )
    kept = tmp_path / "cache" / "kept.npz"
    assert len(contents(folder)) == files.COUNT
    assert kept.is_file()
    kept.unlink()
    os.symlink("/proc/none", kept.parent / "blocked")
    kept = kept.parent / "blocked" / "kept.npz"
    assert len(contents(folder)) == files.COUNT


def test_a_label_outside_the_classes_is_unreadable(tmp_path):
    files.write_all(tmp_path, "npz")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    train, _, classes = open_clickme_folder(tmp_path, 14)
    assert classes == ("cat", "dog")
    train.read(1, 0)
    with pytest.raises(UnreadableError, match="the label is 2; expected 0 to 1"):
        train.read(2, 0)
