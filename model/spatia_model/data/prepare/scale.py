"""The scale between a perceiver's depth and a video's poses, when the poses' unit is arbitrary (RealEstate10K)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from spatia_model.data.prepare.footage import fit_frames, fit_maps
from spatia_model.geometry import se3
from spatia_model.geometry.camera import camera_from_normalised, unproject
from spatia_model.geometry.rendering import splat

SIDE = 96  # pixels of the longer side at which views are compared
MIN_COVERAGE = 0.3
MIN_GAIN = 1.15  # the best scale must explain the other views so many times better than the middling one


def find_scale(
    frame: torch.Tensor,
    depth: torch.Tensor,
    pose: torch.Tensor,
    others: torch.Tensor,
    other_poses: torch.Tensor,
    intrinsics: tuple[float, ...],
    span: float = 60.0,
) -> float | None:
    """Units of depth per unit of the poses: what to multiply the poses' translations by, so that the frame's points land where the other
    views show them. None when the views cannot tell.

    Args:
        frame: (H, W, 3) uint8 with depth (H, W), 0 where a pixel is not to be used; seen from pose (4, 4).
        others: (n, H, W, 3) uint8 seen from other_poses (n, 4, 4). They must show parallax: a camera that only turns tells no scale.
        intrinsics: fx fy cx cy, normalised.
        span: scales from 1/span to span times the guess are tried; the guess brings the median depth to 20 baselines.
    """
    h, w = frame.shape[:2]
    factor = SIDE / max(h, w)
    size = (max(8, round(h * factor)), max(8, round(w * factor)))
    camera = camera_from_normalised(intrinsics, size[1], size[0])
    small = fit_frames(frame[None], *size)
    wanted = _smooth(fit_frames(others, *size))
    near = fit_maps(depth[None], *size)
    used = near[0] > 0
    baseline = float((other_poses[:, :3, 3] - pose[:3, 3]).norm(dim=1).max())
    if int(used.sum()) < 100 or baseline <= 1e-9:
        return None
    T_frame_other = se3.inverse(pose.double()) @ other_poses.double()
    points = unproject(near, torch.eye(4, dtype=torch.float64)[None], camera)[0][used]
    colors = small[0][used]
    radius = near[0][used] / float(camera.K[0, 0])
    guess = math.log(float(near[0][used].median()) / (20 * baseline))

    def error(log_scale: float) -> float:
        path = T_frame_other.clone()
        path[:, :3, 3] *= math.exp(log_scale)
        shown = splat(points, colors, path, camera, radius)
        if float(shown.mask.float().mean()) < MIN_COVERAGE:
            return math.inf
        return float((_smooth(shown.rgb) - wanted).abs().mean(-1)[shown.mask].clamp(max=60).mean())

    grid = torch.linspace(guess - math.log(span), guess + math.log(span), 33).tolist()
    errors = [error(g) for g in grid]
    finite = sorted(e for e in errors if math.isfinite(e))
    if len(finite) < 5 or finite[len(finite) // 2] < MIN_GAIN * finite[0]:
        return None
    best, step = grid[errors.index(finite[0])], grid[1] - grid[0]
    for _ in range(4):  # ever finer around the best
        step /= 2.5
        best = min((best + k * step for k in (-2, -1, 0, 1, 2)), key=error)
    return math.exp(best)


def _smooth(frames: torch.Tensor) -> torch.Tensor:
    """(n, H, W, 3) uint8 to float32, blurred a little: a pixel's width of error must not count."""
    x = frames.permute(0, 3, 1, 2).float()
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1).permute(0, 2, 3, 1)
