"""Picture files of every format and mode keep their contrast or are refused, and damaged ones raise one error only."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from sklearn.datasets import load_sample_image

from gala_cuda.data import picture_decoding, preprocessing
from gala_cuda.data.augmentation import augmentation, centre_crop
from gala_cuda.data.choices import AUGMENTS
from gala_cuda.data.errors import UnreadableError
from gala_cuda.data.picture_decoding import decode_picture
from gala_cuda.data.picture_files import EXTENSIONS
from gala_cuda.data.picture_modes import to_eight_bits

RAMP = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg")[200:224, 200:232])
GREY, PALETTE = PHOTOGRAPH.convert("L"), PHOTOGRAPH.convert("P")
DEEP = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)


def saved(picture, form, **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def tiff(array):
    return saved(Image.fromarray(array), "TIFF")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(RAMP, np.rint(RAMP * 255), id="float-0-to-1"),
        pytest.param(RAMP * 65535, np.rint(RAMP * 255), id="float-0-to-65535"),
        pytest.param(RAMP * 4095, np.rint(RAMP * 255), id="float-0-to-4095"),
        pytest.param(RAMP * 3, np.rint(RAMP * 255), id="float-0-to-3"),
        pytest.param(RAMP / 64, np.rint(RAMP * 255), id="float-0-to-a-64th"),
        pytest.param(np.rint(RAMP * 100), np.rint(RAMP * 100), id="float-of-whole-numbers"),
        pytest.param((RAMP * 255).astype(np.int32), (RAMP * 255).astype(int), id="int32-0-to-255"),
        pytest.param((RAMP * 65535).astype(np.int32), (RAMP * 65535).astype(int) // 256, id="int32-0-to-65535"),
        pytest.param((RAMP * 65535).astype(np.uint16), (RAMP * 65535).astype(int) // 256, id="uint16-0-to-65535"),
        pytest.param((RAMP * 4095).astype(np.uint16), (RAMP * 4095).astype(int) // 16, id="uint16-of-12-bits"),
        pytest.param((RAMP * 200).astype(np.uint16), (RAMP * 200).astype(int), id="uint16-0-to-200"),
        pytest.param((RAMP * 16).astype(np.int32), np.rint((RAMP * 16).astype(int) * 255 / 31), id="int32-0-to-16"),
        pytest.param((RAMP > 0.5).astype(np.uint16), (RAMP > 0.5) * 255, id="uint16-0-and-1"),
        pytest.param((RAMP * 65535).astype(">u2"), (RAMP * 65535).astype(int) // 256, id="big-endian"),
        pytest.param(np.zeros((8, 8), np.float32), np.zeros((8, 8)), id="black"),
    ],
)
def test_grey_of_any_range_keeps_its_contrast(array, expected):
    for rgb in (np.asarray(decode_picture(tiff(array))), to_eight_bits(array)[..., None].repeat(3, 2)):
        np.testing.assert_allclose(rgb, np.repeat(expected[..., None], 3, 2), atol=array.dtype.kind == "f")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RAMP - 0.5, "values from -0.5 to 0.5; expected 0 to 65535"),
        (RAMP * 1e6, "values from 0 to 1e"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "values from nan to nan"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "values from 0 to inf"),
        ((RAMP * 3000 - 1024).astype(np.int32), "values from -1024 to"),
    ],
)
def test_values_of_no_known_range_are_refused_by_name(array, message):
    with pytest.raises(UnreadableError, match=message):
        decode_picture(tiff(array))


def deep_png(colours):
    """A PNG with 16 bits per channel of uint16 [H, W, 3], which Pillow does not write."""
    height, width, _ = colours.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_colours_of_sixteen_bits_keep_their_upper_eight_or_are_refused():
    colours = np.asarray(PHOTOGRAPH).astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_picture(deep_png(colours)), PHOTOGRAPH)
    with pytest.raises(UnreadableError, match="16 bits a channel and no value above 8191"):
        decode_picture(deep_png(colours // 16))


def half_clear(mode):
    """A picture of two pixels: one black and opaque, the other red, or grey, and transparent."""
    if mode in ("RGBA", "LA"):
        colours = [(0, 0, 0, 255), (255, 0, 0, 0)] if mode == "RGBA" else [(0, 255), (90, 0)]
        picture = Image.new(mode, (2, 1))
        picture.putdata(colours)
        return saved(picture, "PNG")
    picture = Image.new(mode, (2, 1))
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 0), (255, 0, 0) if mode == "RGB" else 1)
    return saved(picture, "PNG", transparency=(255, 0, 0) if mode == "RGB" else 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_is_white(mode):
    assert [decode_picture(half_clear(mode)).getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def lab():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return saved(ImageCms.applyTransform(PHOTOGRAPH, to_lab), "TIFF")


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        pytest.param(saved(PHOTOGRAPH.convert("CMYK"), "TIFF"), 1, id="CMYK"),
        pytest.param(saved(PHOTOGRAPH.convert("CMYK"), "JPEG", quality=95, subsampling=0), 10, id="CMYK-inverted"),
        pytest.param(saved(PHOTOGRAPH.convert("YCbCr"), "TIFF"), 3, id="YCbCr"),
        pytest.param(lab(), 6, id="LAB"),
        pytest.param(saved(PHOTOGRAPH.quantize(256), "GIF"), 20, id="palette"),
    ],
)
def test_other_modes_show_the_same_picture(data, tolerance):
    shown, expected = (np.asarray(picture).astype(int) for picture in (decode_picture(data), PHOTOGRAPH))
    assert abs(shown - expected).mean() < tolerance


def test_black_and_white_and_the_first_of_several_frames():
    two = saved(GREY.convert("1"), "TIFF", compression="group4")
    assert set(np.unique(decode_picture(two))) == {0, 255}
    for form in ("GIF", "TIFF", "PNG", "WEBP"):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
        assert np.asarray(decode_picture(saved(frames[0], form, save_all=True, append_images=frames[1:]))).max() < 9


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_as_their_exif_data_say(form):
    """A picture that is bright at the upper left, as a camera stores it when held in each of eight ways."""
    upright = Image.new("L", (48, 32))
    upright.paste(255, (0, 0, 24, 16))
    stored = {1: upright, 3: upright.rotate(180), 6: upright.rotate(90, expand=True)}
    stored[8] = upright.rotate(-90, expand=True)
    stored[2] = upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stored[4] = upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    stored[5] = upright.transpose(Image.Transpose.TRANSPOSE)
    stored[7] = upright.transpose(Image.Transpose.TRANSVERSE)
    for orientation, picture in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        shown = np.asarray(decode_picture(saved(picture.convert("RGB"), form, exif=exif)))[..., 0]
        assert abs(shown.astype(int) - np.asarray(upright)).mean() < 3, orientation


def test_damaged_exif_data_leave_the_picture_as_it_lies(recwarn):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(saved(PHOTOGRAPH, "JPEG", exif=exif))
    at = data.index(b"Exif\0\0") + 6
    data[at + 4 : at + 24] = b"\xff" * 20
    assert decode_picture(bytes(data)).size == PHOTOGRAPH.size
    assert not recwarn.list


def test_every_format_that_can_be_decoded_is_read_by_its_name():
    expected = ".jpg .jpeg .jfif .jpe .gif .avif .jp2 .webp .tif .tiff .bmp .ppm .mpo .ico .tga .psd .dds .qoi"
    without = set() if features.check("avif") else {".avif"}
    assert set(expected.split()) - without <= EXTENSIONS
    assert not EXTENSIONS & {".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".eps", ".ps", ".pdf", ".txt"}
    with pytest.raises(UnreadableError, match="no image of a known format"):
        decode_picture(saved(PHOTOGRAPH, "EPS"))  # Ghostscript is not called


def png_header(width, height):
    whole = saved(Image.new("1", (1, 1)), "PNG")
    chunk = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


@pytest.mark.parametrize("sides", [(10_000, 10_000), (100_000, 100_000), (1, 60_000_000)])
def test_a_picture_too_large_is_refused_before_it_is_decoded(sides, recwarn):
    with pytest.raises(UnreadableError, match=r"100000000|10000 x 10000|10000000000|1 x 60000000"):
        decode_picture(png_header(*sides))
    assert not recwarn.list


@pytest.mark.parametrize("sides", [(1, 30_000), (30_000, 1), (1, 1), (2, 65)])
def test_a_narrow_picture_takes_no_more_memory_than_others(sides):
    """Scaled whole, the first would have 256 x 7,680,000 pixels."""
    picture = decode_picture(saved(Image.new("L", sides, 200), "PNG"))
    white = (200 / 255 - torch.tensor(preprocessing.IMAGENET_MEAN)) / torch.tensor(preprocessing.IMAGENET_STD)
    for transform in (centre_crop(224), *(augmentation(name, 224) for name in AUGMENTS)):
        assert transform(picture).shape == (3, 224, 224)
    torch.testing.assert_close(centre_crop(224)(picture)[:, 100, 100], white)
    longest = preprocessing.IMAGENET.resize(224)(picture).size
    assert max(longest) <= 256 * preprocessing.MAX_ASPECT


SEEDS = {
    **{f"tiff-{kind}": saved(PHOTOGRAPH, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "tiff_deflate")},
    **{form: saved(PHOTOGRAPH, form) for form in ("PNG", "WEBP", "JPEG", "JPEG2000", "BMP", "TGA", "SGI", "PCX")},
    **{f"{form}-palette": saved(PALETTE, form) for form in ("GIF", "PNG", "BMP")},
    **{f"{form}-16": saved(DEEP, form) for form in ("TIFF", "PNG")},
    **{form: saved(PHOTOGRAPH.resize((32, 32)), form) for form in ("ICO", "ICNS", "DDS", "MPO")},
    "SPIDER": saved(GREY, "SPIDER"),
    **({"AVIF": saved(PHOTOGRAPH, "AVIF")} if features.check("avif") else {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_picture_is_unreadable_whatever_its_decoder_raises(name, recwarn):
    rng, unreadable = random.Random(name), 0
    for _ in range(20):
        data = bytearray(SEEDS[name])
        for _ in range(rng.choice((1, 2, 4))):
            data[rng.randrange(min(len(data), 400))] = rng.choice((0, 1, 2, 128, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(1, len(data)) :]
        try:
            assert decode_picture(bytes(data)).mode == "RGB"
        except UnreadableError as error:
            unreadable += bool(str(error))
    assert unreadable
    assert not recwarn.list


@pytest.mark.parametrize(
    "error", [KeyError(259), struct.error("short"), MemoryError(), RuntimeError("AVIF"), TypeError()]
)
def test_what_a_plug_in_raises_is_a_reason(monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(picture_decoding.Image, "open", fails)
    with pytest.raises(UnreadableError, match=rf"^its decoder fails: {type(error).__name__}"):
        decode_picture(b"")
