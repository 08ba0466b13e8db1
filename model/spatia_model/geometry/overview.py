"""A picture of the memory from above, with the path walked: what `env.render` shows beside the agent's own view."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw

_BACKGROUND = (17, 19, 24)
_GRID = (30, 33, 41)
_PATH = (255, 196, 61)
_OLD_PATH = (176, 126, 40)
_HEAD_ROOM = 0.5  # metres above the camera from which the cloud is cut away (ceilings, lamps, sky)
_REACH = 20.0  # metres from the path beyond which nothing is drawn


class Cloud(Protocol):
    """What is drawn: anything with positions, colours, confidence and radii, such as a PointMemory."""

    @property
    def positions(self) -> torch.Tensor: ...
    @property
    def colors(self) -> torch.Tensor: ...
    @property
    def confidence(self) -> torch.Tensor: ...
    @property
    def radii(self) -> torch.Tensor: ...


def top_view(
    cloud: Cloud,
    T_world_camera: torch.Tensor,
    size: int | tuple[int, int] = 256,
    *,
    fov_x: float = 1.309,
    min_confidence: float = 0.0,
) -> np.ndarray:
    """(H, W, 3) uint8: the cloud from above, the path on it, and where the camera looks now.

    T_world_camera (T, 4, 4), oldest pose first, T >= 1; the last is the current one. +y of the world is down; x runs to the right in the
    picture, z up. size: pixels, one number or (height, width); fov_x: the drawn view cone's angle in radians. Everything above the
    camera's head is cut
    away.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 16 or width < 16:
        raise ValueError(f"size = {size}; expected at least 16 pixels a side")
    poses = T_world_camera.detach().cpu().double().numpy()
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
        raise ValueError(f"T_world_camera has shape {poses.shape}; expected (T, 4, 4) with at least one pose")
    points, colors, radii = _below_ceiling(cloud, poses, min_confidence)
    centre, scale = _window(points, poses, height, width)
    image = _ground(points, colors, radii, centre, scale, height, width)

    draw_scale = 2  # lines are drawn larger and scaled down: PIL does not smooth them
    picture = Image.fromarray(image).resize((width * draw_scale, height * draw_scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture, "RGBA")

    def place(xz: np.ndarray) -> list[tuple[float, float]]:
        u = (xz[..., 0] - centre[0]) * scale + width / 2
        v = height / 2 - (xz[..., 1] - centre[1]) * scale
        return [(float(a) * draw_scale, float(b) * draw_scale) for a, b in zip(np.ravel(u), np.ravel(v), strict=True)]

    track = place(poses[:, [0, 2], 3])
    unit = max(min(height, width) / 256, 0.7) * draw_scale
    if len(track) > 1:
        draw.line(track, fill=(0, 0, 0, 150), width=round(4 * unit), joint="curve")
        recent = max(len(track) - 48, 0)
        draw.line(track[: recent + 1] or track[:1], fill=(*_OLD_PATH, 230), width=max(round(1.8 * unit), 1), joint="curve")
        draw.line(track[recent:], fill=(*_PATH, 255), width=max(round(1.8 * unit), 1), joint="curve")
    x, y = track[-1]
    forward = poses[-1][:3, 2]
    heading = float(np.arctan2(-forward[2], forward[0]))  # picture angle, y down
    reach = 26 * unit
    left, right = np.degrees(heading - fov_x / 2), np.degrees(heading + fov_x / 2)
    for share, alpha in ((1.0, 34), (0.7, 44), (0.4, 60)):
        r = reach * share
        draw.pieslice([x - r, y - r, x + r, y + r], left, right, fill=(*_PATH, alpha))
    dot = 3.6 * unit
    draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=(255, 255, 255, 255), outline=(20, 20, 20, 255), width=max(round(unit), 1))
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _below_ceiling(cloud: Cloud, poses: np.ndarray, min_confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    positions = cloud.positions.detach().cpu().numpy()
    eyes = poses[:, :3, 3]
    low, high = eyes.min(0) - _REACH, eyes.max(0) + _REACH
    keep = (cloud.confidence.detach().cpu().numpy() >= min_confidence) & (positions[:, 1] > eyes[:, 1].min() - _HEAD_ROOM)
    keep &= ((positions[:, [0, 2]] >= low[[0, 2]]) & (positions[:, [0, 2]] <= high[[0, 2]])).all(1)
    return positions[keep], cloud.colors.detach().cpu().numpy()[keep], cloud.radii.detach().cpu().numpy()[keep]


def _window(points: np.ndarray, poses: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float]:
    """The ground point (x, z) in the picture's middle and the scale in pixels per metre: all of the path, and nearly all of the cloud."""
    path = poses[:, [0, 2], 3]
    low, high = path.min(0) - 1.0, path.max(0) + 1.0
    if len(points):
        # a few far points seen through a window must not make the room tiny
        flat = points[:, [0, 2]]
        low, high = np.minimum(low, np.percentile(flat, 1.5, axis=0)), np.maximum(high, np.percentile(flat, 98.5, axis=0))
    extent = np.maximum(high - low, 2.0) * 1.08
    return (low + high) / 2, float(min(width / extent[0], height / extent[1]))


def _ground(
    points: np.ndarray, colors: np.ndarray, radii: np.ndarray, centre: np.ndarray, scale: float, height: int, width: int
) -> np.ndarray:
    """The cloud seen straight down: the highest point wins a pixel, walls and furniture stand out by a shade of their height."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = _BACKGROUND
    _metre_grid(image, centre, scale)
    if not len(points):
        return image.astype(np.uint8)
    u = np.floor((points[:, 0] - centre[0]) * scale + width / 2).astype(np.int64)
    v = np.floor(height / 2 - (points[:, 2] - centre[1]) * scale).astype(np.int64)
    # highest last, so that it overwrites; a stable order keeps the picture the same in every run
    order = np.argsort(-points[:, 1], kind="stable")
    u, v, tint, level = u[order], v[order], colors[order].astype(np.float32), points[order, 1]
    floor = float(np.percentile(points[:, 1], 98))
    top = np.full((height, width), np.nan, np.float32)
    half = np.clip(np.floor(radii[order] * scale * 0.6), 0, 8).astype(np.int64)  # coarse points are drawn larger: no gaps far off
    for reach in np.unique(half)[::-1]:
        mine = half == reach
        for du in range(-reach, reach + 1):
            for dv in range(-reach, reach + 1):
                x, y = u[mine] + du, v[mine] + dv
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                x, y, z, c = x[inside], y[inside], level[mine][inside], tint[mine][inside]
                known = top[y, x]
                better = np.isnan(known) | (z < known)
                image[y[better], x[better]] = c[better]
                top[y[better], x[better]] = z[better]
    _close_pinholes(image, top)
    return _shaded(image, top, floor, scale)


def _metre_grid(image: np.ndarray, centre: np.ndarray, scale: float) -> None:
    height, width = image.shape[:2]
    if scale < 4:
        return
    x0, z0 = centre[0] - width / 2 / scale, centre[1] - height / 2 / scale
    for metre in range(int(np.ceil(x0)), int(x0 + width / scale) + 1):
        image[:, min(max(int((metre - x0) * scale), 0), width - 1)] = _GRID
    for metre in range(int(np.ceil(z0)), int(z0 + height / scale) + 1):
        image[min(max(height - 1 - int((metre - z0) * scale), 0), height - 1)] = _GRID


def _close_pinholes(image: np.ndarray, top: np.ndarray) -> None:
    """Empty pixels with at least five filled neighbours take their mean."""
    for _ in range(2):
        filled = ~np.isnan(top)
        padded = np.pad(filled, 1)
        count = sum(padded[1 + dy : 1 + dy + top.shape[0], 1 + dx : 1 + dx + top.shape[1]] for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        holes = np.argwhere(~filled & (np.asarray(count) >= 5))
        for y, x in holes:
            window = (slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2))
            near = filled[window]
            image[y, x] = image[window][near].mean(0)
            top[y, x] = top[window][near].mean()


def _shaded(image: np.ndarray, top: np.ndarray, floor: float, scale: float) -> np.ndarray:
    """A soft light from the upper left over the height field, and a slight lift for what stands high."""
    known = ~np.isnan(top)
    height = np.where(known, np.clip(floor - top, 0, 3.0), 0.0)  # metres above the floor
    padded = np.pad(height, 1, mode="edge")
    slope = (padded[2:, 2:] - padded[:-2, :-2]) * min(scale, 40.0) / 40.0
    light = 1.0 + np.clip(slope, -1, 1) * 0.18 + np.clip(height, 0, 2) * 0.05
    shaded = np.where(known[..., None], np.clip(image * light[..., None] * 1.05, 0, 255), image)
    return shaded.round().astype(np.uint8)
