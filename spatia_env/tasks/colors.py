"""Telling named colours in a picture."""

from __future__ import annotations

import numpy as np

# Degrees on the colour wheel, from and to (red goes through 0), with the least saturation: wood and warm walls are pale oranges.
HUES: dict[str, tuple[float, float, float]] = {
    "red": (345.0, 15.0, 0.45),
    "orange": (15.0, 40.0, 0.62),
    "yellow": (40.0, 68.0, 0.5),
    "green": (75.0, 165.0, 0.3),
    "cyan": (165.0, 200.0, 0.35),
    "blue": (200.0, 255.0, 0.35),
    "purple": (255.0, 305.0, 0.3),
    "pink": (305.0, 345.0, 0.3),
}
DARKEST = 0.15  # of 1: below that a colour cannot be told


def color_mask(frame: np.ndarray, color: str) -> np.ndarray:
    """(H, W) bool: pixels of a frame (H, W, 3) uint8 that have a colour of `HUES`."""
    first, last, least = HUES[color]
    rgb = frame.astype(np.float64) / 255
    high, low = rgb.max(-1), rgb.min(-1)
    spread = high - low
    safe = np.where(spread > 0, spread, 1.0)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    hue = np.select(
        [high == red, high == green], [(green - blue) / safe % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    ) * 60.0  # fmt: skip
    inside = (hue >= first) & (hue < last) if first < last else (hue >= first) | (hue < last)
    return inside & (spread >= least * high) & (high >= DARKEST) & (spread > 0)


def color_share(frame: np.ndarray, color: str) -> float:
    """Share of a frame (H, W, 3) that its largest connected patch of a colour takes."""
    from scipy import ndimage

    mask = color_mask(frame, color)
    if not mask.any():
        return 0.0
    labels, _ = ndimage.label(mask, np.ones((3, 3)))  # type: ignore[misc]
    return float(np.bincount(labels.ravel())[1:].max() / mask.size)
