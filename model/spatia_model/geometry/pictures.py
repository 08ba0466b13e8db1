"""The middle square of a picture, at the model's size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre to a square and scale it to `size` (Lanczos)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)


def fit_image(image: Image.Image | np.ndarray | torch.Tensor, size: int) -> torch.Tensor:
    """RGB picture of any size, PIL or (H, W, 3) uint8, to (size, size, 3) uint8."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ValueError(f"an image is (H, W, 3) uint8 RGB or a PIL image, got {array.dtype} {array.shape}")
        image = Image.fromarray(array)
    return torch.from_numpy(np.asarray(middle_square(image.convert("RGB"), size)).copy())
