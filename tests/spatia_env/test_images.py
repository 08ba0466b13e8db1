"""The door for pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatia_env.images import load_image, open_image

PHOTOS = Path(__file__).parents[2] / "../shared/cases"


def test_centre_is_cropped_and_scaled_without_aliasing():
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[:, :20], wide[:, 80:] = (255, 0, 0), (0, 0, 255)  # both sides are cropped away
    wide[::2, 20:80] = 200  # stripes finer than the result can show
    small = load_image(wide, 20)
    assert small.shape == (20, 20, 3) and small.dtype == np.uint8
    assert np.abs(small[2:-2, 2:-2].astype(int) - 100).max() <= 8
    assert load_image(wide, 200).shape == (200, 200, 3)


def test_a_picture_of_the_right_size_is_untouched(picture):
    square = picture[:64, :64]
    np.testing.assert_array_equal(load_image(square, 64), square)


def test_every_kind_of_picture_gives_the_same_view(tmp_path, picture):
    expected = load_image(picture, 32)
    png = tmp_path / "picture.png"
    Image.fromarray(picture).save(png)
    kinds = {
        "path": png,
        "string": str(png),
        "PIL": Image.fromarray(picture),
        "floats": picture.astype(np.float64) / 255,
        "floats32": (picture / np.float32(255)).astype(np.float32),
        "integers": picture.astype(np.int64),
        "opaque": np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]),
        "not contiguous": np.asfortranarray(picture),
    }
    for name, kind in kinds.items():
        np.testing.assert_array_equal(load_image(kind, 32), expected, err_msg=name)


def test_grey_pictures(picture):
    grey = picture[..., 0]
    expected = load_image(np.repeat(grey[..., None], 3, 2), 32)
    for kind in (grey, grey[..., None], Image.fromarray(grey), grey / 255.0):
        np.testing.assert_array_equal(load_image(kind, 32), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)  # 16 bits
    assert np.abs(load_image(deep, 32).astype(int) - expected).max() <= 1
    bits = grey > 128
    np.testing.assert_array_equal(load_image(bits, 32), load_image(bits.astype(np.uint8) * 255, 32))


def test_transparency_is_laid_on_white():
    clear = np.zeros((20, 20, 4), np.uint8)
    assert load_image(clear, 10).min() == 255
    half = clear.copy()
    half[..., 3] = 128
    assert np.abs(load_image(half, 10).astype(int) - 127).max() <= 1
    palette = Image.new("P", (20, 20), 0)
    palette.info["transparency"] = 0
    assert load_image(palette, 10).min() == 255


def test_exif_rotation_is_applied(tmp_path, picture):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture).save(path, exif=exif, quality=95)
    assert open_image(path).size == (picture.shape[0], picture.shape[1])
    upright = np.rot90(picture, -1)
    assert np.abs(np.asarray(open_image(path)).astype(int) - upright).mean() < 6


def test_other_modes(picture):
    for mode in ("CMYK", "YCbCr", "P", "LA", "1"):
        assert load_image(Image.fromarray(picture).convert(mode), 16).shape == (16, 16, 3)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims to be huge and holds next to nothing: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_files_that_are_no_pictures(tmp_path, picture):
    good = tmp_path / "good.jpg"
    Image.fromarray(picture).save(good)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    for number, (width, height) in enumerate([(12_000, 12_000), (60_000, 60_000)]):  # Pillow warns of one, refuses the other
        bomb = tmp_path / f"bomb{number}.png"
        bomb.write_bytes(png_of(width, height))
        with pytest.raises(ValueError, match="scale it down"):
            load_image(bomb, 32)
    tiny = tmp_path / "tiny.png"
    Image.new("RGB", (1, 1)).save(tiny)
    for path, message in (
        (cut, "save it anew"),
        (text, "save it anew"),
        (empty, "save it anew"),
        (tiny, "1 x 1 pixels.*larger"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.jpg", "does not exist.*check the path"),
    ):
        with pytest.raises(ValueError, match=message):
            load_image(path, 32)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 40, 50), np.uint8), "channels last"),
        (np.zeros((40, 50, 2), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((4, 40, 50, 3), np.uint8), r"\(H, W, 3\)"),
        (np.zeros(100, np.uint8), r"\(H, W, 3\)"),
        (np.zeros((0, 0, 3), np.uint8), "0 x 0"),
        (np.zeros((1, 400, 3), np.uint8), "400 x 1"),
        (np.full((40, 40, 3), 2.0), "0..1"),
        (np.full((40, 40, 3), -0.5), "0..1"),
        (np.full((40, 40, 3), np.nan), "NaN"),
        (np.full((40, 40, 3), np.inf), "NaN or infinite"),
        (np.full((40, 40, 3), 256), "0..255"),
        (np.full((40, 40, 3), 1j), "dtype"),
        (np.full((40, 40, 3), None), "dtype"),
        (object(), "PIL image"),
        (7, "PIL image"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(ValueError, match=message):
        load_image(array, 32)


def test_bundled_sample():
    from spatia_env.images import sample_image_path

    try:
        path = sample_image_path()
    except ValueError as error:
        pytest.skip(f"no sample in this checkout yet: {error}")
    sample = load_image(None, 128)
    assert sample.shape == (128, 128, 3) and sample.std() > 20
    assert path.stat().st_size < 2_000_000


@pytest.mark.skipif(not PHOTOS.exists(), reason="the photos of ../shared/cases are not here")
def test_real_photos():
    for path in sorted(PHOTOS.glob("*/img.jpg")):
        assert load_image(path, 128).std() > 10
