"""A pool of still pictures and pans over them, made once per run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spatia_model.training.leaves import dead_leaves
from spatia_model.worlds.pictures import random_picture


class PicturePool:
    """`size` procedural pictures of `side` pixels, cached in `path` (training seeds, so < 1,000,000).

    A third are dead leaves over coloured noise, the others what `worlds.pictures` draws.
    """

    def __init__(self, path: Path, size: int = 1500, side: int = 192, seed: int = 500_000):
        if path.exists():
            self.pictures = np.load(path, mmap_mode="r")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = np.stack([_picture(seed, i, side) for i in range(size)])
            temporary = path.with_suffix(".partial.npy")
            np.save(temporary, pictures)
            temporary.replace(path)
            self.pictures = pictures

    def still(self, rng: np.random.Generator, crop: int) -> np.ndarray:
        """A random crop (crop, crop, 3) uint8."""
        picture = self.pictures[rng.integers(len(self.pictures))]
        y, x = rng.integers(0, picture.shape[0] - crop + 1, 2)
        return np.asarray(picture[y : y + crop, x : x + crop])

    def pan(self, rng: np.random.Generator, frames: int, crop: int) -> np.ndarray:
        """(frames, crop, crop, 3): a slow zoom, turn and pan over one picture, sampled bilinearly."""
        picture = np.asarray(self.pictures[rng.integers(len(self.pictures))], np.float32)
        side = picture.shape[0]
        zoom = np.exp(np.linspace(0, rng.normal(0, 0.08), frames)) * rng.uniform(0.7, 1.1)
        angle = np.linspace(0, rng.normal(0, 0.12), frames) + rng.uniform(-0.3, 0.3)
        centre = side / 2 + rng.uniform(-0.15, 0.15, 2) * side + np.linspace(0, 1, frames)[:, None] * rng.normal(0, 12, 2)
        grid = np.arange(crop) - (crop - 1) / 2
        yy, xx = np.meshgrid(grid, grid, indexing="ij")
        out = np.empty((frames, crop, crop, 3), np.uint8)
        for t in range(frames):
            c, s = np.cos(angle[t]) * zoom[t], np.sin(angle[t]) * zoom[t]
            y = np.clip(centre[t, 0] + s * xx + c * yy, 0, side - 1.001)
            x = np.clip(centre[t, 1] + c * xx - s * yy, 0, side - 1.001)
            y0, x0 = y.astype(int), x.astype(int)
            fy, fx = (y - y0)[..., None], (x - x0)[..., None]
            top = picture[y0, x0] * (1 - fx) + picture[y0, x0 + 1] * fx
            bottom = picture[y0 + 1, x0] * (1 - fx) + picture[y0 + 1, x0 + 1] * fx
            out[t] = top * (1 - fy) + bottom * fy
        return out


def _picture(seed: int, index: int, side: int) -> np.ndarray:
    if index % 3 == 0:
        return dead_leaves(np.random.default_rng([seed, index // 3]), side)
    return random_picture(seed + index, side)
