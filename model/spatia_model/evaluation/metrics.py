"""Picture figures used in training, evaluation and the demo. Frames are compared in [0, 1] unless said otherwise."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F


def psnr(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None, span: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB of same-shaped tensors whose range is `span` (2 for [-1, 1], 255 for uint8).

    `mask` (broadcastable) selects the entries that count; without any, the result is NaN.
    """
    error = (a.float() - b.float()).square()
    if mask is not None:
        mask = mask.expand_as(error)
        if not mask.any():
            return math.nan
        error = error[mask]
    return -10 * math.log10(float(error.mean()) / span**2 + 1e-10)


def gradient_energy(x: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Mean squared difference to the right and lower neighbour over the last two dimensions of x.

    `mask` (broadcastable to x) selects pixels; both ends of a difference must be in it. NaN where none are.
    """
    dx, dy = x.float().diff(dim=-1).square(), x.float().diff(dim=-2).square()
    if mask is None:
        return float(dx.mean() + dy.mean())
    mask = mask.expand_as(x)
    mx, my = mask[..., 1:] & mask[..., :-1], mask[..., 1:, :] & mask[..., :-1, :]
    if not mx.any() or not my.any():
        return math.nan
    return float(dx[mx].mean() + dy[my].mean())


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two uint8 pictures (H, W, 3) or stacks (T, H, W, 3): scikit-image's, Gaussian weights."""
    from skimage.metrics import structural_similarity

    a, b = (x if x.ndim == 4 else x.unsqueeze(0) for x in (a, b))
    options = {"channel_axis": -1, "data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    measure: Any = structural_similarity  # it returns a tuple only when asked to
    values = [measure(x.cpu().numpy(), y.cpu().numpy(), **options) for x, y in zip(a, b, strict=True)]
    return float(sum(values) / len(values))


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (N, C, H, W)."""
    radius = max(1, int(3 * sigma))
    k = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=x.dtype) / sigma) ** 2)
    k = (k / k.sum()).to(x.device)
    c = x.shape[1]
    x = F.pad(x, (radius,) * 4, mode="reflect")
    x = F.conv2d(x, k.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
    return F.conv2d(x, k.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
