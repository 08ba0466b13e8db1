"""Pinhole cameras: intrinsics, pixel rays, projection and its inverse.

Pixel (u, v) has its centre at (u + 0.5, v + 0.5), so a centred principal point is (width / 2, height / 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from spatia_model.geometry import se3
from spatia_model.types import Camera


def _check_size(width: int, height: int) -> None:
    if int(width) != width or int(height) != height or width < 1 or height < 1:
        raise ValueError(f"image size {width}x{height}; expected whole numbers of at least 1 pixel")


def camera_from_fov(fov_x: float, width: int, height: int) -> Camera:
    """A centred camera with square pixels. `fov_x` is the full horizontal angle in radians, in (0, pi)."""
    _check_size(width, height)
    if not 0 < fov_x < math.pi:
        raise ValueError(f"fov_x = {fov_x} rad; expected 0 < fov_x < pi. For degrees use math.radians(...)")
    focal = width / 2 / math.tan(fov_x / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, int(width), int(height))


def normalised_intrinsics(camera: Camera) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) as shares of the image's width and height, as RealEstate10K's files hold them."""
    K, w, h = camera.K, camera.width, camera.height
    return float(K[0, 0]) / w, float(K[1, 1]) / h, float(K[0, 2]) / w, float(K[1, 2]) / h


def camera_from_normalised(values: Sequence[float], width: int, height: int) -> Camera:
    """Inverse of `normalised_intrinsics` for an image of `width` x `height` pixels."""
    _check_size(width, height)
    if len(values) != 4 or not all(math.isfinite(v) for v in values) or values[0] <= 0 or values[1] <= 0:
        raise ValueError(f"intrinsics {tuple(values)}; expected four finite numbers (fx, fy, cx, cy) divided by the image size, fx, fy > 0")
    fx, fy, cx, cy = (float(v) for v in values)
    K = torch.tensor([[fx * width, 0, cx * width], [0, fy * height, cy * height], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, int(width), int(height))


def resize(camera: Camera, width: int, height: int) -> Camera:
    """The same view at another resolution."""
    return camera_from_normalised(normalised_intrinsics(camera), width, height)


def pixel_rays(camera: Camera, device: torch.device | str | None = None) -> torch.Tensor:
    """(H, W, 3) float32 directions through the pixel centres, in the camera's frame, with z = 1 (not unit length)."""
    K = camera.K
    u = (torch.arange(camera.width, dtype=torch.float64) + 0.5 - float(K[0, 2])) / float(K[0, 0])
    v = (torch.arange(camera.height, dtype=torch.float64) + 0.5 - float(K[1, 2])) / float(K[1, 1])
    rays = torch.stack([u.expand(camera.height, -1), v[:, None].expand(-1, camera.width), torch.ones(camera.height, camera.width)], -1)
    return rays.float().to(device or camera.K.device)


def check_path(T_world_camera: torch.Tensor) -> None:
    if T_world_camera.ndim != 3 or T_world_camera.shape[-2:] != (4, 4):
        raise ValueError(f"T_world_camera has shape {tuple(T_world_camera.shape)}; expected (T, 4, 4), one camera-to-world pose per frame")


def unproject(depth: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera) -> torch.Tensor:
    """World points (T, H, W, 3) float32 of z-depth (T, H, W) seen from poses (T, 4, 4). Depth 0 gives the camera's centre."""
    check_path(T_world_camera)
    expected = (T_world_camera.shape[0], camera.height, camera.width)
    if tuple(depth.shape) != expected:
        raise ValueError(f"depth has shape {tuple(depth.shape)}; expected {expected}: one depth per pixel of every pose")
    rays = pixel_rays(camera, depth.device)
    T = T_world_camera.to(depth.device, torch.float32)
    points = depth.float()[..., None] * rays  # (T, H, W, 3) camera frame
    return (points.reshape(T.shape[0], -1, 3) @ T[:, :3, :3].transpose(1, 2) + T[:, None, :3, 3]).reshape(points.shape)


def project(points_world: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels uv (T, N, 2) and z-depths z (T, N) of world points (N, 3).

    Where z <= 0 the point is behind the camera and uv means nothing.
    """
    check_path(T_world_camera)
    if points_world.ndim != 2 or points_world.shape[-1] != 3:
        raise ValueError(f"points have shape {tuple(points_world.shape)}; expected (N, 3)")
    T_camera_world = se3.inverse(T_world_camera).to(points_world.device)
    points = se3.transform_points(T_camera_world, points_world)  # (T, N, 3)
    z = points[..., 2]
    K = camera.K.to(points.device, points.dtype)
    safe = torch.where(z.abs() < 1e-9, torch.full_like(z, 1e-9), z)
    uv = points[..., :2] / safe[..., None] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
    return uv, z
