"""The door for pictures: whatever a person has becomes a uint8 RGB array of the model's size."""

from __future__ import annotations

import warnings
from importlib import resources
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MIN_SIDE = 8  # pixels on the shorter side; below that there is nothing to grow a world from
MAX_PIXELS = 100_000_000  # a decompression bomb stays unopened
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def load_image(image: Any, size: int | tuple[int, int]) -> np.ndarray:
    """Read a picture, crop its centre to the model's shape and scale it.

    Args:
        image: a path; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 in 0..255 or float in 0..1;
            None for the bundled sample. Transparency is laid on white, EXIF rotation is applied.
        size: of the result in pixels: the side of a square, or (height, width).

    Returns:
        (size, size, 3) or (height, width, 3) uint8 RGB.

    Raises:
        ValueError: the picture is missing, unreadable, too small, too large or of a kind not listed; says how to mend it.
    """
    from spatia_model.geometry.pictures import middle_part

    return np.asarray(middle_part(open_image(image), size), dtype=np.uint8).copy()


def open_image(image: Any) -> Image.Image:
    """Read a picture as RGB in its own size. Arguments and errors as in `load_image`."""
    if image is None:
        return _to_rgb(_open_file(sample_image_path()))
    if isinstance(image, Image.Image):
        _check_size(image.size, "the picture")
        return _to_rgb(_decoded(image, "the picture"))
    if isinstance(image, (str, PathLike)):
        return _to_rgb(_open_file(Path(fspath(image)).expanduser()))
    if hasattr(image, "__array__") or isinstance(image, (list, tuple)):
        return _to_rgb(_from_array(image))
    raise ValueError(
        f"image is a {type(image).__name__}; give a path, a PIL image or an array (H, W, 3) of uint8, or None for the bundled sample"
    )


def sample_image_path() -> Path:
    """The bundled sample picture (the first by name in ``spatia_env/assets``)."""
    folder = Path(str(resources.files("spatia_env"))) / "assets"
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ValueError(f"no bundled sample picture in {folder}; reinstall spatia, or pass image= with a picture of your own")
    return found[0]


def _open_file(path: Path) -> Image.Image:
    name = f"image {str(path)!r}"
    if path.is_dir():
        raise ValueError(f"{name} is a folder; give the path of one picture in it")
    if not path.exists():
        raise ValueError(f"{name} does not exist (looked from {Path.cwd()}); check the path, or pass image=None for the bundled sample")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size speaks for it
            with Image.open(path) as picture:
                _check_size(picture.size, name)
                return _decoded(picture, name)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is larger than {MAX_PIXELS:,} pixels; scale it down first") from error
    except ValueError:
        raise
    except Exception as error:  # PIL's decoders raise many kinds for a damaged file
        detail = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be read as a picture ({detail}); open it elsewhere and save it anew as PNG or JPEG") from error


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except Exception as error:
        raise ValueError(f"{name} is damaged or cut off ({error}); save it anew as PNG or JPEG") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{name} is {width} x {height} pixels; a world needs at least {MIN_SIDE} on each side "
            "(128 or more look best): give a larger one"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} is {width} x {height} = {width * height:,} pixels, more than {MAX_PIXELS:,}; scale it down first "
            "(it is reduced to the model's size in any case)"
        )


def _from_array(image: Any) -> Image.Image:
    try:
        array = np.asarray(image)
    except Exception as error:
        raise ValueError(f"image cannot be read as an array ({error}); give (H, W, 3) uint8") from error
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        mend = "move the channels last: image.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else "give (H, W, 3)"
        raise ValueError(f"image has shape {array.shape}; accepted are (H, W), (H, W, 1), (H, W, 3) and (H, W, 4): {mend}")
    _check_size((array.shape[1], array.shape[0]), "image")
    return Image.fromarray(_as_uint8(array))


def _as_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("image holds NaN or infinite values; replace them (numpy.nan_to_num) before passing it")
        if low < 0 or high > 1:
            raise ValueError(
                f"image is {array.dtype} with values in {low:g}..{high:g}; floats must lie in 0..1: scale it, or convert to uint8"
            )
        return np.round(array * 255).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 255:
            raise ValueError(f"image is {array.dtype} with values in {low}..{high}; integers must lie in 0..255: scale it to uint8")
        return array.astype(np.uint8)
    raise ValueError(f"image has dtype {array.dtype}; give uint8 in 0..255 or float in 0..1")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit and float greys, which convert("RGB") would clip
        grey = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if grey.max() > 255 else (255.0 if grey.max() > 1 or picture.mode != "F" else 1.0)
        return Image.fromarray(np.round(np.clip(np.nan_to_num(grey) / top, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")
