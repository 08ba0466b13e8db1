"""Finding a moving thing in a picture by its colour.

Movers are saturated and each has its own colour. A pixel has the mover's colour when its chroma (colour less its mean over the channels)
points within `ANGLE` of the mover's and is at least `LEAST_CHROMA` as strong, so a pale mixture of mover and background does not pass, nor
does furniture, whose colours are muted. The mover's colour is taken from true frames, as lit there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

ANGLE = math.radians(14)
LEAST_CHROMA = 0.6
AREA = (1 / 3, 3.0)  # a blob's area as a share of the true one


@dataclass(frozen=True)
class Look:
    """How a mover looks in a true frame."""

    chroma: np.ndarray  # (3,) direction times strength, of values in 0..1
    area: int  # pixels of its colour
    place: np.ndarray  # (2,) x, y of their centre


def chroma(frame: torch.Tensor) -> np.ndarray:
    """(H, W, 3) uint8 to (H, W, 3) float: colour less its mean over the channels."""
    rgb = frame.cpu().numpy().astype(np.float64) / 255
    return rgb - rgb.mean(-1, keepdims=True)


def look(frame: torch.Tensor, mask: torch.Tensor) -> Look | None:
    """The mover's look in a true frame (H, W, 3) where `mask` (H, W) bool shows it; None if nothing of it is to be seen."""
    pixels = mask.cpu().numpy()
    if not pixels.any():
        return None
    values = chroma(frame)
    own = values[pixels]
    strong = own[np.linalg.norm(own, axis=-1) >= np.median(np.linalg.norm(own, axis=-1))]
    reference = np.median(strong, axis=0)
    alike = passes(values, reference) & pixels
    if not alike.any():
        return None
    return Look(reference, int(alike.sum()), _centre(alike))


def passes(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of chroma (H, W, 3) that have the reference's colour."""
    strength = np.linalg.norm(reference)
    size = np.linalg.norm(values, axis=-1)
    along = values @ reference / max(float(strength), 1e-9)
    return (size >= LEAST_CHROMA * strength) & (along >= math.cos(ANGLE) * size)


def blobs(frame: torch.Tensor, sought: Look) -> list[tuple[int, np.ndarray]]:
    """Areas and centres (x, y) of the connected patches of the mover's colour with about its size, largest first."""
    from scipy import ndimage

    found = passes(chroma(frame), sought.chroma)
    if not found.any():
        return []
    joined = ndimage.binary_closing(np.pad(found, 1), np.ones((3, 3)))[1:-1, 1:-1] | found
    labels, count = ndimage.label(joined, np.ones((3, 3)))  # type: ignore[misc]
    result = []
    for i in range(1, count + 1):
        patch = (labels == i) & found
        area = int(patch.sum())
        if max(4, AREA[0] * sought.area) <= area <= AREA[1] * sought.area:
            result.append((area, _centre(patch)))
    return sorted(result, key=lambda blob: -blob[0])


def found_near(frame: torch.Tensor, sought: Look, pixels: float = 10.0) -> bool:
    """Whether the mover is within `pixels` of its true place."""
    return any(float(np.linalg.norm(centre - sought.place)) <= pixels for _, centre in blobs(frame, sought))


def _centre(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array([x.mean() + 0.5, y.mean() + 0.5])
