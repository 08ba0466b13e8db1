"""How alike two pictures are, in numpy and scipy alone."""

from __future__ import annotations

import math

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures (H, W, 3); infinite when they are equal.

    mask: (H, W) bool, the pixels that count; without any the pictures are equal.
    """
    a, b = _pair(a, b)
    if mask is not None:
        a, b = a[mask], b[mask]
    error = float(np.mean((a - b) ** 2)) if a.size else 0.0
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity in -1..1 of two uint8 pictures (H, W, 3), mean over channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): Gaussian window of
    sigma 1.5, 11 pixels wide, K1 = 0.01, K2 = 0.03; the border of 5 pixels is left out.
    """
    from scipy.ndimage import gaussian_filter

    a, b = _pair(a, b)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"the pictures are {a.shape[1]} x {a.shape[0]}; SSIM needs at least 11 pixels on each side")

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(score[5:-5, 5:-5].mean())


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"the pictures have shapes {a.shape} and {b.shape}; give two of the same (H, W, 3)")
    return a.astype(np.float64), b.astype(np.float64)
