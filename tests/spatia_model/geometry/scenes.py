"""Small analytic scenes for the tests of geometry and memory."""

from __future__ import annotations

import math

import torch

from spatia_model.geometry import camera as cameras
from spatia_model.geometry import se3
from spatia_model.types import Camera


def small_camera(width: int = 32, height: int = 24) -> Camera:
    return cameras.camera_from_fov(math.radians(75), width, height)


def poses(count: int, seed: int = 2_000_000, size: float = 0.2) -> torch.Tensor:
    """(count, 4, 4) poses near the origin."""
    generator = torch.Generator().manual_seed(seed)
    return se3.exp(size * torch.randn(count, 6, generator=generator, dtype=torch.float64))


def plane_depth(T_world_camera: torch.Tensor, camera: Camera, distance: float) -> torch.Tensor:
    """(T, H, W) z-depth of the plane z = distance of the world."""
    rays = cameras.pixel_rays(camera).double()  # (H, W, 3)
    along = torch.einsum("hwc,tc->thw", rays, T_world_camera[:, 2, :3])
    return ((distance - T_world_camera[:, 2, 3])[:, None, None] / along).float()


def paint(points: torch.Tensor) -> torch.Tensor:
    """A smooth colour (..., 3) uint8 at world points (..., 3). Channels have waves of different directions: no shift looks like another."""
    waves = torch.tensor([[3.0, 0.7, 1.0], [-0.8, 2.6, 2.0], [1.9, -2.2, 1.5]])
    value = torch.sin(points @ waves.T + torch.tensor([0.0, 2.1, 4.2])) + 0.5 * torch.sin(points @ waves.flip(0).T * 1.7)
    return (127.5 + 80 * value).round().to(torch.uint8)


def wall(distance: float, camera: Camera, T_world_camera: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (T, H, W, 3) uint8 and depth (T, H, W) of a painted wall."""
    depth = plane_depth(T_world_camera, camera, distance)
    return paint(cameras.unproject(depth, T_world_camera, camera)), depth
