"""Surfaces continued beyond where they are known: inverse depth is affine in pixels on any plane, whatever the camera."""

from __future__ import annotations

import torch
import torch.nn.functional as F

NEAREST, FARTHEST = 0.1, 60.0  # metres: planes are not continued beyond
LEAST = 6.0  # cells of 2x2 pixels around a place that a plane is fitted to, at least
STEADY = 0.05  # of the cells' spread, added to it: few cells in a row do not tilt a plane


def continued(depth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Depth (T, H, W) where `mask` (T, H, W) bool knows it; elsewhere that of planes fitted to what is known nearest; metres.

    Fits are least squares of inverse depth over ever larger cells (moments in a pyramid), each place taking the smallest cell that holds
    enough. A guess for somebody who looks: at the edge between two surfaces it is a mix of both. Frames without anything known are 0.
    """
    if bool(mask.all()):
        return depth
    t, h, w = depth.shape
    pad = (0, -w % 2, 0, -h % 2)
    inverse = F.pad(torch.where(mask, 1 / depth.clamp(min=NEAREST), 0.0), pad).unsqueeze(1)
    known = F.pad(mask.float(), pad).unsqueeze(1)
    weight = F.avg_pool2d(known, 2)
    value = F.avg_pool2d(inverse, 2) / weight.clamp(min=1e-6)
    v, u = torch.meshgrid(torch.linspace(-1, 1, weight.shape[-2]), torch.linspace(-1, 1, weight.shape[-1]), indexing="ij")
    u, v = u.to(weight).expand_as(weight), v.to(weight).expand_as(weight)
    one = torch.ones_like(u)
    moments = torch.cat([m * weight for m in (one, u, v, u * u, u * v, v * v, value, u * value, v * value)], 1)
    plane = torch.zeros(t, 3, *weight.shape[-2:], dtype=weight.dtype, device=weight.device)
    open_ = torch.ones_like(weight, dtype=torch.bool)
    while bool(open_.any()):
        around = F.avg_pool2d(moments, 3, 1, 1, count_include_pad=False) * 9
        fits = (around[:, :1] >= LEAST).float()
        fine = F.interpolate(torch.cat([_fit(around) * fits, fits], 1), size=plane.shape[-2:], mode="bilinear")
        take = open_ & (fine[:, 3:] > 0.5)
        plane = torch.where(take, fine[:, :3] / fine[:, 3:].clamp(min=0.5), plane)
        open_ = open_ & ~take
        if min(moments.shape[-2:]) < 2:
            break
        moments = F.avg_pool2d(F.pad(moments, (0, moments.shape[-1] % 2, 0, moments.shape[-2] % 2)), 2) * 4
    sums = moments.sum((2, 3), keepdim=True)
    mean = torch.cat([sums[:, 6:7] / sums[:, :1].clamp(min=1e-6), torch.zeros_like(sums[:, :2])], 1)
    plane = torch.where(open_, mean, plane)  # too little is known for a plane
    guess = (plane * torch.cat([one, u, v], 1)).sum(1, keepdim=True).clamp(1 / FARTHEST, 1 / NEAREST)
    guess = F.interpolate(guess, size=(h + pad[3], w + pad[1]), mode="bilinear")[:, 0, :h, :w]
    some = mask.flatten(1).any(1)[:, None, None]
    return torch.where(mask, depth, torch.where(some, 1 / guess, 0.0))


def _fit(moments: torch.Tensor) -> torch.Tensor:
    """Weighted least squares planes a + b u + c v of moments (T, 9, h, w): (T, 3, h, w)."""
    n, su, sv, suu, suv, svv, sz, suz, svz = moments.unbind(1)
    n = n.clamp(min=1e-6)
    mu, mv, mz = su / n, sv / n, sz / n
    uu, uv, vv = suu / n - mu * mu, suv / n - mu * mv, svv / n - mv * mv
    uz, vz = suz / n - mu * mz, svz / n - mv * mz
    ridge = STEADY * (uu + vv) + 1e-6
    uu, vv = uu + ridge, vv + ridge
    det = uu * vv - uv * uv
    b, c = (vv * uz - uv * vz) / det, (uu * vz - uv * uz) / det
    return torch.stack([mz - b * mu - c * mv, b, c], 1)
