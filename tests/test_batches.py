"""What every batch holds, whatever the number of workers and ranks, after interruptions and with damaged files."""

import io
from itertools import chain

import numpy as np
import pytest
import torch
from imagesets import BATCH, SIZE, TRAIN, VAL, equal, read
from PIL import Image
from sklearn.datasets import load_sample_images

from gala_cuda.data import batches
from gala_cuda.data.choices import AUGMENTS
from gala_cuda.data.errors import TooManyUnreadableError, UnreadableError
from gala_cuda.data.picture_decoding import decode_picture


@pytest.fixture
def folder(picture_folder, tmp_path):
    """A copy to damage."""
    for file in picture_folder.rglob("*.*"):
        copy = tmp_path / file.relative_to(picture_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path


def fingerprints(batches):
    """Each image as bytes, batch by batch."""
    return [[image.numpy().tobytes() for image in images] for images, _ in batches]


def flat(batches):
    return list(chain.from_iterable(fingerprints(batches)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "augment"),
    [
        pytest.param("digits", "paper", id="digits"),
        pytest.param("picture_folder", "paper", id="folder-paper"),
        pytest.param("picture_folder", "modern", id="folder-modern"),
        pytest.param("shard_folder", "randaugment", id="shards-randaugment"),
    ],
)
def test_an_epoch_is_the_same_with_workers_and_when_resumed(request, source, augment):
    source = source if source == "digits" else request.getfixturevalue(source)
    whole = list(read(source, augment=augment).train.epoch(1))
    start = len(whole) - 3
    for workers in (0, 2):
        again = read(source, workers, augment=augment).train
        assert equal(again.epoch(1, start), whole[start:])
        interrupted = again.epoch(1)
        assert equal([next(interrupted)], whole[:1])
        assert equal(again.epoch(1), whole)
    assert not equal(read(source, augment=augment).train.epoch(2), whole)


def test_augmentation_draws_from_no_global_generator(picture_folder):
    before = torch.random.get_rng_state()
    for workers in (0, 2):
        for images, labels in read(picture_folder, workers, augment="modern").train.epoch():
            assert (images.shape, images.dtype, labels.dtype) == ((BATCH, 3, SIZE, SIZE), torch.float32, torch.int64)
            break
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_each_augmentation_does_more(picture_folder):
    def epoch(augment, number=0):
        return torch.cat(
            [images for images, _ in read(picture_folder, batch_size=2, augment=augment).train.epoch(number)]
        )

    epochs = {augment: epoch(augment) for augment in AUGMENTS}
    again = {tuple(image.flatten().tolist()) for image in epoch("none", 1)}
    assert {tuple(image.flatten().tolist()) for image in epochs["none"]} == again
    erased = {name: int((images == 0).all(1).flatten(1).sum(1).gt(4).sum()) for name, images in epochs.items()}
    assert erased["paper"] == erased["none"] == 0
    assert min(erased["modern"], erased["randaugment"]) > 5  # of 200; 20 are expected


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batch_of_one_process(picture_folder, world):
    one = read(picture_folder, batch_size=2 * world).train
    ranks = [read(picture_folder, batch_size=2, rank=rank, world=world).train for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(one)}
    assert {rank.images for rank in ranks} == {one.images}
    seen = []
    for whole, *parts in zip(fingerprints(one.epoch(3)), *(fingerprints(r.epoch(3)) for r in ranks), strict=True):
        assert [len(part) for part in parts] == [2] * world
        assert sorted(chain.from_iterable(parts)) == sorted(whole)
        seen += whole
    assert len(set(seen)) == len(seen) == one.images


@pytest.mark.parametrize(("world", "batch_size"), [(1, 4), (2, 4), (4, 3)])
def test_every_test_image_is_counted_once(picture_folder, world, batch_size):
    expected = sorted(flat(read(picture_folder).test.epoch()))
    assert len(expected) == 2 * VAL
    ranks = [read(picture_folder, batch_size=batch_size, rank=rank, world=world).test for rank in range(world)]
    batches = [fingerprints(rank.epoch()) for rank in ranks]
    assert sorted(image for rank in batches for batch in rank for image in batch) == expected
    assert {len(rank) for rank in batches} == {len(ranks[0])}
    assert {rank.images for rank in ranks} == {2 * VAL}


def test_too_few_images_for_a_batch_make_one(picture_folder):
    data = read(picture_folder, batch_size=500)
    assert (len(data.train), data.train.images) == (1, 2 * TRAIN)
    half = read(picture_folder, batch_size=500, rank=1, world=2).train
    assert [len(labels) for _, labels in half.epoch()] == [TRAIN]


def damage(file, how):
    data = file.read_bytes()
    file.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"no picture at all " * 9}[how])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_named_and_replaced(folder, workers):
    clean = list(read(folder).train.epoch())
    bad = {folder / "train/china/001.jpg": "truncated", folder / "train/flower/004.png": "text"}
    for file, how in bad.items():
        damage(file, how)
    train = read(folder, workers).train
    batches = list(train.epoch())
    assert [len(labels) for _, labels in batches] == [BATCH] * len(train)
    assert {name for name, _ in train.skipped} == set(map(str, bad))
    reasons = dict(train.skipped)
    assert "truncated" in reasons[str(folder / "train/china/001.jpg")]
    assert reasons[str(folder / "train/flower/004.png")] == "no image of a known format"
    pairs = zip(flat(batches), flat(clean), strict=True)
    assert sum(a != b for a, b in pairs) == 2
    assert equal(read(folder, 2 - workers).train.epoch(0, 7), batches[7:])
    for epoch in range(1, 4):  # files that are met again are not counted again
        assert len(list(train.epoch(epoch))) == len(train)
    assert len(train.skipped) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_percent_unreadable_stop(folder, workers):
    for i, how in zip((2, 3, 5), ("truncated", "empty", "text"), strict=True):
        damage(folder / f"train/china/{i:03}.jpg", how)
    train = read(folder, workers, batch_size=2 * TRAIN).train
    with pytest.raises(
        TooManyUnreadableError, match=r"^3 of \d+ images seen, of 202 there are.* 1%.*china/00\d.jpg \("
    ):
        list(train.epoch())


def test_unreadable_test_images_are_left_out(folder, monkeypatch):
    damage(folder / "val/china/003.jpg", "truncated")
    with pytest.raises(TooManyUnreadableError, match="1 of 8 images seen, of 14 there are"):
        list(read(folder).test.epoch())
    monkeypatch.setattr(batches, "MAX_UNREADABLE", 0.1)
    test = read(folder).test
    assert [len(labels) for _, labels in test.epoch()] == [7, 6]
    assert [name for name, _ in test.skipped] == [str(folder / "val/china/003.jpg")]


def test_the_share_is_judged_within_the_epoch_once_enough_were_seen(folder, monkeypatch):
    for i in (2, 3, 5):
        damage(folder / f"train/china/{i:03}.jpg", "truncated")
    monkeypatch.setattr(batches, "MIN_SEEN", 10)
    with pytest.raises(TooManyUnreadableError, match=r"^\d of \d\d images seen, of 202 there are"):
        list(read(folder).train.epoch())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about TIFF tags
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_raise_what_is_expected(form):
    picture, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(load_sample_images().images[0][200:260, 200:280]).save(picture, form)
    failures = 0
    for _ in range(100):
        data = np.frombuffer(picture.getvalue(), np.uint8).copy()
        data[rng.integers(0, 200, 4)] = rng.choice([0, 127, 255], 4)
        try:
            decode_picture(data.tobytes())
        except UnreadableError:
            failures += 1
    assert failures > 10


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_upper_eight(form):
    grey, file = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32), io.BytesIO()
    Image.fromarray(grey).save(file, form)
    rgb = np.asarray(decode_picture(file.getvalue()))
    assert np.array_equal(rgb, np.repeat((grey >> 8)[..., None], 3, 2))


def test_synthetic():
    data = read("synthetic:40")
    assert (data.channels, data.size, len(data.classes), data.train.images, data.test.images) == (3, SIZE, 1000, 40, 4)
    images = torch.cat([images for images, _ in data.train.epoch()])
    assert images.unique(dim=0).shape == (40, 3, SIZE, SIZE)
    assert equal(read("synthetic:40", 2).train.epoch(1, 2), list(data.train.epoch(1))[2:])
    with pytest.raises(ValueError, match=r"builtin:synthetic:0 was given; expected builtin:synthetic:N"):
        read("synthetic:0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "cutout"}, "augment is 'cutout'; expected one of paper, modern"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world": 2}, "rank is 2 and world is 2"),
        ({"rank": 0, "world": 300}, "202 images to train on; expected at least 1 for each of 300 processes"),
    ],
)
def test_numbers_out_of_range_are_named(picture_folder, options, message):
    with pytest.raises(ValueError, match=message):
        read(picture_folder, **options)


def test_a_start_beyond_the_epoch_is_named(picture_folder):
    with pytest.raises(ValueError, match="start is 26; expected 0 <= start <= 25"):
        read(picture_folder).train.epoch(0, 26)
    assert list(read(picture_folder).train.epoch(0, 25)) == []
