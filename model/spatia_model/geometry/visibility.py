"""What a camera sees of a set of points, and how much two views share."""

from __future__ import annotations

import torch

from spatia_model.geometry import se3
from spatia_model.geometry.camera import check_path
from spatia_model.types import Camera, Projection

_PIECE = 1 << 18  # points compared at a time; float32 counts them exactly


def visible_points(projection: Projection, point_count: int) -> torch.Tensor:
    """(T, N) bool: True where point n is in front at one pixel at least of frame t. `point_count` is the N that was projected."""
    index = projection.index.reshape(projection.index.shape[0], -1).long()  # (T, H*W)
    highest = int(index.max()) if index.numel() else -1
    if highest >= point_count:
        raise ValueError(
            f"the projection shows point {highest}, but point_count is {point_count}; give the size of the memory that was projected"
        )
    seen = torch.zeros(index.shape[0], point_count + 1, dtype=torch.bool, device=index.device)
    seen.scatter_(1, torch.where(index < 0, point_count, index), True)
    return seen[:, :point_count]


def overlap_counts(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(A, B) int64: how many points views `a` (A, N) bool and `b` (B, N) bool have in common."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"masks have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (A, N) and (B, N) over the same points")
    counts = torch.zeros(len(a), len(b), dtype=torch.int64, device=a.device)
    for start in range(0, a.shape[1], _PIECE):  # hundreds of views of millions of points would be gigabytes as numbers
        part = slice(start, start + _PIECE)
        counts += (a[:, part].float() @ b[:, part].float().T).long()
    return counts


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(A, B) float64 intersection over union of the point sets that views `a` (A, N) and `b` (B, N) see; 0 where both are empty."""
    common = overlap_counts(a, b).double()
    union = a.sum(1).double()[:, None] + b.sum(1).double()[None] - common
    return common / union.clamp(min=1)


def sets_iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two sorted sets of int64 keys (duplicates not allowed); 0 where both are empty."""
    if not len(a) or not len(b):
        return 0.0
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    place = torch.searchsorted(large, small).clamp(max=len(large) - 1)
    common = int((large[place] == small).sum())
    return common / (len(a) + len(b) - common)


def frontmost_points(points: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera, tolerance: float = 1e-6) -> torch.Tensor:
    """(T, N) bool: True where point n is the nearest of all that fall into its pixel in view t. The release's notion of "seen".

    points (N, 3) metres; a point falls into exactly one pixel, however near it is, so a near surface does not hide what lies behind it
    between its points. `tolerance`: metres of depth within which two points are equally near.
    """
    check_path(T_world_camera)
    seen = torch.zeros(len(T_world_camera), len(points), dtype=torch.bool, device=points.device)
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    for view, T_camera_world in enumerate(se3.inverse(T_world_camera).to(points.device, torch.float32)):
        local = points.float() @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
        z = local[:, 2]
        safe = z.clamp(min=torch.finfo(torch.float32).eps)
        u, v = (fx * (local[:, 0] / safe) + cx).floor(), (fy * (local[:, 1] / safe) + cy).floor()
        rows = ((z > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)).nonzero()[:, 0]
        pixel = (v[rows] * camera.width + u[rows]).long()
        nearest = torch.full((camera.height * camera.width,), torch.inf, device=points.device)
        nearest.scatter_reduce_(0, pixel, z[rows], "amin")
        seen[view, rows] = z[rows] <= nearest[pixel] + tolerance
    return seen
