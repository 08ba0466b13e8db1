"""New points must not stand where earlier views looked through."""

from __future__ import annotations

import torch

from spatia_model.geometry.camera import project, unproject
from spatia_model.memory.point_memory import PointMemory
from spatia_model.types import Camera


def blocks_view(
    memory: PointMemory,
    views: torch.Tensor,
    depth: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    candidates: torch.Tensor,
    margin: float = 0.05,
) -> torch.Tensor:
    """Which pixels of new depth maps would hide what the memory shows to earlier views.

    Args:
        memory: the map before the new frames.
        views: (V, 4, 4) T_world_camera of earlier views.
        depth: (T, H, W) z-depth in metres of the new frames at poses `T_world_camera` (T, 4, 4).
        candidates: (T, H, W) bool, pixels to look at; the others come back False.
        margin: share of the known depth by which a point must be nearer to count.

    Returns:
        (T, H, W) bool.
    """
    out = torch.zeros_like(candidates)
    if not len(memory) or not len(views) or not candidates.any():
        return out
    points = unproject(depth, T_world_camera, camera)[candidates]  # (N, 3)
    known = memory.project(views, camera).depth  # (V, H, W)
    uv, z = project(points, views, camera)  # (V, N, 2), (V, N)
    column, row = uv[..., 0].floor().long(), uv[..., 1].floor().long()
    inside = (z > 0.05) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    flat = (row.clamp(0, camera.height - 1) * camera.width + column.clamp(0, camera.width - 1)).to(known.device)
    behind = known.flatten(1).gather(1, flat)
    hides = inside & (behind > 0) & (z < behind * (1 - margin))
    out[candidates] = hides.any(0)
    return out
