"""The middle of a picture, in the model's shape and size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

Size = int | tuple[int, int]  # side of a square, or (height, width)


def middle_part(image: Image.Image, size: Size) -> Image.Image:
    """Crop the centre to the shape wanted and scale it (Lanczos). `size`: side of a square, or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    given_width, given_height = image.size
    scale = min(given_width / width, given_height / height)
    crop_width, crop_height = min(given_width, round(width * scale)), min(given_height, round(height * scale))
    left, top = (given_width - crop_width) // 2, (given_height - crop_height) // 2
    part = image.crop((left, top, left + crop_width, top + crop_height))
    return part if part.size == (width, height) else part.resize((width, height), Image.Resampling.LANCZOS)


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre to a square and scale it to `size` (Lanczos)."""
    return middle_part(image, size)


def fit_image(image: Image.Image | np.ndarray | torch.Tensor, size: Size) -> torch.Tensor:
    """RGB picture of any size, PIL or (H, W, 3) uint8, to (size, size, 3) uint8, or to the (height, width) given."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ValueError(f"an image is (H, W, 3) uint8 RGB or a PIL image, got {array.dtype} {array.shape}")
        image = Image.fromarray(array)
    return torch.from_numpy(np.asarray(middle_part(image.convert("RGB"), size)).copy())
