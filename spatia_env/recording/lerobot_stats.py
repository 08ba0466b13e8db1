"""Statistics of LeRobot datasets: per episode, and merged over all.

The keys, shapes and the rule of merging (weighted means of quantiles among them) are those of ``lerobot/datasets/compute_stats.py``
(0.4). Quantiles within an episode are exact here, and pictures are counted whole instead of sampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, np.ndarray]


class ImageCounts:
    """Counts of the 256 values of each channel: every statistic of a video, exactly, in 6 KB."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), np.int64)
        self.frames = 0

    def add(self, frame: np.ndarray) -> None:
        """One frame (H, W, 3) uint8."""
        for channel in range(3):
            self.counts[channel] += np.bincount(frame[..., channel].reshape(-1), minlength=256)
        self.frames += 1

    def stats(self) -> Stats:
        """Values in [0, 1], each (3, 1, 1); `count` is the number of frames."""
        levels = np.arange(256) / 255
        share = self.counts / self.counts.sum(1, keepdims=True)
        mean = share @ levels
        found = {
            "min": np.array([levels[row.nonzero()[0][0]] for row in self.counts]),
            "max": np.array([levels[row.nonzero()[0][-1]] for row in self.counts]),
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        }
        below = np.cumsum(share, 1)
        for name, q in QUANTILES.items():
            found[name] = np.array([levels[min(255, int(np.searchsorted(row, q - 1e-12)))] for row in below])
        return {name: value.reshape(3, 1, 1) for name, value in found.items()} | {"count": np.array([self.frames])}


def vector_stats(values: np.ndarray) -> Stats:
    """Of a column (N,) or (N, D); each (1,) or (D,)."""
    rows = values.reshape(len(values), -1)
    numbers = rows.astype(np.float64)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": numbers.mean(0), "std": numbers.std(0), "count": np.array([len(rows)])}
    return found | {name: np.quantile(numbers, q, axis=0) for name, q in QUANTILES.items()}


def merged(a: Stats | None, b: Stats) -> Stats:
    """Statistics of two parts taken together."""
    if a is None:
        return b
    count_a, count_b = float(a["count"][0]), float(b["count"][0])
    total = count_a + count_b
    mean = (a["mean"] * count_a + b["mean"] * count_b) / total
    variance = sum((part["std"] ** 2 + (part["mean"] - mean) ** 2) * count for part, count in ((a, count_a), (b, count_b))) / total
    found = {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": a["count"] + b["count"],
    }
    return found | {name: (a[name] * count_a + b[name] * count_b) / total for name in QUANTILES}


def to_lists(stats: dict[str, Stats]) -> dict[str, dict[str, Any]]:
    return {key: {name: value.tolist() for name, value in found.items()} for key, found in stats.items()}


def to_arrays(stats: dict[str, dict[str, Any]]) -> dict[str, Stats]:
    return {key: {name: np.asarray(value) for name, value in found.items()} for key, found in stats.items()}
