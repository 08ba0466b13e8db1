"""How the camera really moved between two pictures: direct alignment of RGB-D, with no learned part.

The first picture's pixels are put into space with known depth and moved until their colours agree with the second picture
(Gauss-Newton on colour differences with Tukey's weights, from blurred to sharp, as in Steinbruecker et al., "Real-Time Visual
Odometry from Dense RGB-D Images", 2011). Many starts on the blurred pictures (the asked motion is one of them, standing still
another, a fan of turns the others) keep it from believing what it was told. Depth is the ground truth's, so nothing of the model
under test takes part but its pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from spatia_model.evaluation.metrics import blur
from spatia_model.geometry import se3
from spatia_model.geometry.camera import pixel_rays, project, unproject
from spatia_model.types import Camera, GroundTruth

LEVELS = ((4.0, 4, 12), (2.0, 2, 10), (0.8, 1, 10))  # blur (pixels), stride, iterations
KEPT = (4, 1, 1)  # candidates that go on after each level
CUTOFF = 0.25  # colour difference (of 1) beyond which Tukey's weight is 0, on the sharp level
LEAST_POINTS = 0.15  # share of the picture that must be usable
REACH = 1.0  # metres that a candidate may move from its start


@dataclass(frozen=True)
class Motion:
    """An estimated relative pose."""

    T_target_source: torch.Tensor  # (4, 4) float64
    agreement: float  # share of usable points in view whose colours agree within half the cutoff
    overlap: float  # share of usable points that fall into the second picture


def estimate_motion(
    source: torch.Tensor,
    depth: torch.Tensor,
    target: torch.Tensor,
    camera: Camera,
    asked: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> Motion | None:
    """Relative pose of two pictures.

    Args:
        source, target: (H, W, 3) uint8.
        depth: (H, W) z-depth of `source` in metres; 0 where unknown.
        asked: (4, 4) T_target_source to start from, among others; None: no guess.
        mask: (H, W) bool, pixels of `source` that may be used (static, true).

    Returns:
        The motion, or None where too little of the picture is usable or in view of both.
    """
    usable = depth > 0 if mask is None else mask & (depth > 0)
    # pixels at depth edges mix two surfaces
    usable &= _flat(depth)
    if float(usable.float().mean()) < LEAST_POINTS:
        return None
    asked = torch.eye(4, dtype=torch.float64) if asked is None else asked.double()
    T = _starts(asked)
    pictures = torch.stack([source, target]).permute(0, 3, 1, 2).float() / 255
    points_all = depth.float()[..., None] * pixel_rays(camera)
    for (sigma, stride, rounds), keep in zip(LEVELS, KEPT, strict=True):
        smooth = blur(pictures, sigma)
        rows, columns = torch.meshgrid(*(torch.arange(stride // 2, n, stride) for n in depth.shape), indexing="ij")
        chosen = usable[rows, columns]
        rows, columns = rows[chosen], columns[chosen]
        level = _Level(points_all[rows, columns], smooth[0][:, rows, columns], smooth[1], camera, CUTOFF / (1 + sigma / 4))
        T, cost = level.solve(T, rounds)
        T = T[torch.argsort(cost, stable=True)[:keep]]
    agreement, overlap = level.quality(T)
    if overlap < 0.25:
        return None
    return Motion(T[0], agreement, overlap)


def motion_errors(T_estimated: torch.Tensor, T_asked: torch.Tensor) -> tuple[float, float]:
    """Angle in degrees and distance in metres between two relative poses (4, 4)."""
    off = se3.inverse(T_asked.double()) @ T_estimated.double()
    return math.degrees(float(se3.rotation_angle(off))), float(off[:3, 3].norm())


def seen_in(truth: GroundTruth, path: torch.Tensor, first: GroundTruth, T_world_first: torch.Tensor, camera: Camera) -> torch.Tensor:
    """(T, H, W) bool: static pixels whose surface a picture `first` (one frame, from `T_world_first` (4, 4)) showed too.

    Decided by the true depths alone: the pixel's point falls on a static pixel of `first` at its depth, within 3 % and 3 cm.
    """
    points = unproject(truth.depth, path, camera)
    uv, z = project(points.reshape(-1, 3), T_world_first[None], camera)
    u, v = (uv[0] // 1).long().unbind(-1)
    inside = (z[0] > 0.05) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    u, v = u.clamp(0, camera.width - 1), v.clamp(0, camera.height - 1)
    there = first.depth[0][v, u]
    same = ((z[0] - there).abs() < 0.03 * there + 0.03) & ~first.dynamic[0][v, u]
    return (inside & same).reshape(truth.depth.shape) & ~truth.dynamic


def _flat(depth: torch.Tensor) -> torch.Tensor:
    """(H, W) bool: pixels that lie on no depth edge (inverse depth is linear on planes)."""
    inverse = F.pad(1 / depth.clamp(min=1e-3)[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    here = inverse[1:-1, 1:-1]
    across = (inverse[1:-1, 2:] + inverse[1:-1, :-2] - 2 * here).abs()
    down = (inverse[2:, 1:-1] + inverse[:-2, 1:-1] - 2 * here).abs()
    return torch.maximum(across, down) < 0.1 * here


def _starts(asked: torch.Tensor) -> torch.Tensor:
    """(B, 4, 4) candidates: shares of the asked motion with turns added, and turns alone."""
    twist = se3.log(asked)
    turns = torch.zeros(0, 6, dtype=torch.float64)
    for yaw in (-12, -6, 0, 6, 12):
        turns = torch.cat([turns, torch.tensor([[0, 0, 0, 0, math.radians(yaw), 0]], dtype=torch.float64)])
    shares = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    near = (se3.exp(turns)[:, None] @ se3.exp(shares[:, None] * twist)[None]).reshape(-1, 4, 4)
    wide = [[0, 0, 0, math.radians(p), math.radians(y), 0] for y in (-36, -28, -20, 20, 28, 36) for p in (0,)]
    wide += [[0, 0, 0, math.radians(p), math.radians(y), 0] for y in (-14, 0, 14) for p in (-12, 12)]
    return torch.cat([asked[None], near, se3.exp(torch.tensor(wide, dtype=torch.float64))])


class _Level:
    """One resolution: points (N, 3) with colours (3, N), and the picture (3, H, W) they are compared with."""

    def __init__(self, points: torch.Tensor, colors: torch.Tensor, picture: torch.Tensor, camera: Camera, cutoff: float):
        self.points, self.colors, self.camera, self.cutoff = points, colors, camera, cutoff
        dx, dy = torch.zeros_like(picture), torch.zeros_like(picture)
        dx[:, :, 1:-1] = (picture[:, :, 2:] - picture[:, :, :-2]) / 2
        dy[:, 1:-1] = (picture[:, 2:] - picture[:, :-2]) / 2
        self.stack = torch.cat([picture, dx, dy])  # (9, H, W)

    def _look(self, T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Moved points (B, N, 3), colours and gradients there (B, 9, N), and which are in view (B, N)."""
        K, w, h = self.camera.K.float(), self.camera.width, self.camera.height
        p = se3.transform_points(T, self.points.expand(len(T), -1, -1))
        z = p[..., 2].clamp(min=0.05)
        u = p[..., 0] / z * K[0, 0] + K[0, 2]
        v = p[..., 1] / z * K[1, 1] + K[1, 2]
        inside = (p[..., 2] > 0.05) & (u > 1) & (u < w - 1) & (v > 1) & (v < h - 1)
        grid = torch.stack([u / w * 2 - 1, v / h * 2 - 1], -1).clamp(-2, 2)[:, :, None]
        seen = F.grid_sample(self.stack.expand(len(T), -1, -1, -1), grid, align_corners=False, padding_mode="border")
        return p, seen[..., 0], inside

    def _weights(self, residual: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Tukey's weights (B, N) of residuals (B, 3, N)."""
        size = residual.square().mean(1) / self.cutoff**2
        return (1 - size).clamp(min=0).square() * inside

    def _cost(self, residual: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """(B,) mean Tukey loss in 0..1; a point out of view costs a little, so that looking away does not pay."""
        size = (residual.square().mean(1) / self.cutoff**2).clamp(max=1)
        loss = 1 - (1 - size) ** 3
        return torch.where(inside, loss, torch.full_like(loss, 0.15)).mean(1)

    def solve(self, T: torch.Tensor, rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Levenberg-Marquardt from every candidate (B, 4, 4): the refined candidates and their costs (B,)."""
        K = self.camera.K.float()
        start = T
        damping = torch.full((len(T),), 1e-3, dtype=torch.float64)
        p, seen, inside = self._look(T)
        residual = seen[:, :3] - self.colors
        cost = self._cost(residual, inside)
        for _ in range(rounds):
            z = p[..., 2].clamp(min=0.05)
            gx, gy = seen[:, 3:6] * (K[0, 0] / z)[:, None], seen[:, 6:9] * (K[1, 1] / z)[:, None]  # (B, 3, N)
            gz = -(gx * (p[..., 0] / z)[:, None] + gy * (p[..., 1] / z)[:, None])
            g = torch.stack([gx, gy, gz], -1)  # (B, 3, N, 3): by the point's place
            J = torch.cat([g, torch.linalg.cross(p[:, None].expand_as(g), g, dim=-1)], -1)  # exp(twist) moves p by t + w x p
            weight = self._weights(residual, inside)
            WJ = J * weight[:, None, :, None]
            flat = J.flatten(1, 2)
            H = (WJ.flatten(1, 2).transpose(1, 2) @ flat).double()
            b = (WJ.flatten(1, 2).transpose(1, 2) @ residual.flatten(1, 2)[..., None])[..., 0].double()
            diagonal = torch.diag_embed(H.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-9)
            step = -torch.linalg.solve(H + diagonal, b)
            trial = se3.exp(step) @ T
            off = se3.inverse(start) @ trial
            sane = (off[:, :3, 3].norm(dim=-1) < REACH) & (se3.rotation_angle(off) < math.radians(45))
            p2, seen2, inside2 = self._look(trial)
            residual2 = seen2[:, :3] - self.colors
            cost2 = self._cost(residual2, inside2)
            better = (cost2 < cost) & sane
            damping = torch.where(better, damping * 0.3, damping * 5).clamp(1e-6, 1e3)
            T = torch.where(better[:, None, None], trial, T)
            p, cost = torch.where(better[:, None, None], p2, p), torch.where(better, cost2, cost)
            seen, inside = torch.where(better[:, None, None], seen2, seen), torch.where(better[:, None], inside2, inside)
            residual = torch.where(better[:, None, None], residual2, residual)
        return T, cost

    def quality(self, T: torch.Tensor) -> tuple[float, float]:
        """Agreement and overlap of the first candidate."""
        _, seen, inside = self._look(T[:1])
        size = (seen[:, :3] - self.colors).square().mean(1).sqrt()
        agree = (size < self.cutoff / 2) & inside
        return float(agree.sum() / inside.sum().clamp(min=1)), float(inside.float().mean())
