"""Which pixels of a frame are worth a place in the map, and how much each is trusted."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spatia_model.geometry.neighbours import highest_near
from spatia_model.types import Camera, Perception


def dilate(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """(T, H, W) bool, grown by `pixels` in every direction (a square)."""
    return highest_near(mask, pixels)


def edge_strength(depth: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """(T, H, W) float32: how far each pixel of a z-depth map is from lying on a plane with those `reach` pixels away,
    as a share of its depth.

    Inverse depth is linear across the image of a plane, however steep, so its second difference is zero there. At a jump it is the relative
    jump.
    """
    inverse = 1.0 / depth.clamp(min=1e-3)
    r = reach
    padded = F.pad(inverse[:, None], (r, r, r, r), mode="replicate")[:, 0]
    across = (padded[:, r:-r, 2 * r :] + padded[:, r:-r, : -2 * r] - 2 * inverse).abs()
    down = (padded[:, 2 * r :, r:-r] + padded[:, : -2 * r, r:-r] - 2 * inverse).abs()
    return torch.maximum(across, down) / inverse


def flying(depth: torch.Tensor, edge: torch.Tensor, margin: float = 0.04) -> torch.Tensor:
    """(T, H, W) bool: pixels between two surfaces, where a predictor that blurs a depth edge puts ghosts in mid-air.

    They are near an `edge` (T, H, W) bool, and clearly behind the nearest and before the farthest depth of their 5x5 neighbourhood.
    """
    nearest, farthest = -highest_near(-depth, 2), highest_near(depth, 2)
    return dilate(edge, 1) & (depth > nearest * (1 + margin)) & (depth < farthest * (1 - margin))


def landed(depth: torch.Tensor, frames: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """(T, H, W): depth whose pixels `out` (T, H, W) bool lie on a surface beside them, ring by ring inwards: on that neighbour's
    whose colour in `frames` (T, H, W, 3) uint8 is most like their own. Frames that are `out` everywhere stay as they are.
    """
    depth, colour = depth.clone(), frames.permute(0, 3, 1, 2).float()
    missing = out & ~out.flatten(1).all(1)[:, None, None]
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    while missing.any():
        t, y, x = missing.nonzero(as_tuple=True)
        best, found = torch.full(t.shape, float("inf")), depth[t, y, x]
        for dy, dx in shifts:
            v, u = y + dy, x + dx
            inside = (v >= 0) & (v < depth.shape[1]) & (u >= 0) & (u < depth.shape[2])
            v, u = v.clamp(0, depth.shape[1] - 1), u.clamp(0, depth.shape[2] - 1)
            unlike = (colour[t, :, v, u] - colour[t, :, y, x]).abs().sum(-1)
            unlike[~inside | missing[t, v, u]] = float("inf")
            found, best = torch.where(unlike < best, depth[t, v, u], found), torch.minimum(unlike, best)
        settled = best < float("inf")
        depth[t[settled], y[settled], x[settled]] = found[settled]
        missing[t[settled], y[settled], x[settled]] = False
    return depth


def flying_pixels(depth: torch.Tensor, edge_threshold: float, sky_depth: float) -> torch.Tensor:
    """(T, H, W) bool: the flying pixels of a z-depth map, all sky counting as equally far."""
    return flying(*_edges(depth, edge_threshold, sky_depth))


def _edges(depth: torch.Tensor, edge_threshold: float, sky_depth: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth with all sky equally far, and where it has edges (bool)."""
    near = depth.clamp(max=sky_depth)
    return near, edge_strength(near) > edge_threshold


def slope(depth: torch.Tensor, camera: Camera) -> torch.Tensor:
    """(T, H, W) float32: tangent of the angle between the line of sight and the surface's normal, from neighbouring depths.

    0 is face on.
    """
    fx, fy = float(camera.K[0, 0]), float(camera.K[1, 1])
    padded = F.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (0.5 * fx)
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (0.5 * fy)
    return torch.sqrt(dx * dx + dy * dy) / depth.clamp(min=1e-3)


def fusing_weight(
    perception: Perception,
    camera: Camera,
    *,
    min_confidence: float,
    dynamic_threshold: float,
    dynamic_dilation: int,
    edge_threshold: float,
    sky_depth: float,
) -> torch.Tensor:
    """(T, H, W) float32 weight with which each pixel enters the map; 0 keeps it out.

    Out are pixels that perception is not sure of, that move (and those around them), and flying pixels. Depth edges count less, as do
    surfaces seen at a grazing angle: there a small depth error shifts points far.
    """
    depth = perception.depth
    keep = (depth > 0) & (perception.confidence >= min_confidence) & ~dilate(perception.dynamic > dynamic_threshold, dynamic_dilation)
    near, edge = _edges(depth, edge_threshold, sky_depth)
    keep &= ~flying(near, edge)
    tangent = slope(near, camera)
    # 1 up to about 70 degrees from the normal, then falling
    facing = (3.0 / tangent.clamp(min=3.0)).square()
    # the colour of an edge pixel is mixed from both surfaces: a view that sees one alone shall outweigh it
    mixed = torch.where(edge, 0.25, 1.0)
    return torch.where(keep, perception.confidence * facing * mixed, torch.zeros_like(depth))
