"""Surroundings: what is taken to lie where nobody has looked, made of the first picture.

A generator of eight million parameters can draw what the memory shows it, not a room it has never seen: left alone with a
hole it paints a smear, and the next clip goes on from the smear. So the first picture is mirrored at its own sides, again
and again until the circle is closed. The mirrored copies stand in space as the picture does: walls meet in corners, the floor
goes on, and everything has depth. Floor and ceiling nearer than the picture shows them are their own textures, reflected.

These points are a guess. They never enter the map: what the map has no points for is drawn from them, the generator is
shown the result, and what it makes of it is remembered like anything else. The paper has no such part; it leaves unseen
places to five billion parameters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from spatia_model.geometry import se3
from spatia_model.geometry.camera import unproject
from spatia_model.geometry.neighbours import opened
from spatia_model.memory.point_memory import PointMemory
from spatia_model.types import Camera, Projection

STEEPEST = math.radians(40)  # pitch beyond which a picture's sides are no upright planes to mirror it at
NARROWEST = math.radians(8)  # half the mirrored part: below, copies would be slivers
LEVEL = 0.85  # cosine from which a normal is called upright
LEAST = 0.01  # share of the picture that a floor or a ceiling takes
BIN, OUTER = 0.05, 0.5  # metres; the farthest peak with this share of the best one's pixels wins: a floor under a table
TEXEL, REACH = 0.05, 8.0  # metres: of the floor's texture, and how far it goes
OVERLAP = math.radians(10)  # by which both ways around pass the back, so that no gap opens there when the camera moves
THICK = 0.06  # share of its height within which a point lies on the floor


def surroundings_of(
    frame: torch.Tensor,
    depth: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    voxel_size: float,
    T_level_world: torch.Tensor | None = None,
) -> PointMemory:
    """Points all around a first picture.

    Args:
        frame: (H, W, 3) uint8.
        depth: (H, W) float32 metres, z-depth.
        T_world_camera: (4, 4), +y of the world is down.
        voxel_size: metres, as the map's.
        T_level_world: (4, 4), where +y of the world is not down: turns it so.

    Returns:
        A map of its own; empty for a picture that looks steeply up or down.
    """
    empty = PointMemory.empty(voxel_size)
    if T_level_world is not None:
        T_world_camera = T_level_world @ T_world_camera
    pose, centre = T_world_camera[None], T_world_camera[:3, 3].float()
    ahead = T_world_camera[:3, 2].float()
    if abs(float(ahead[1])) > math.sin(STEEPEST):
        return empty
    points = unproject(depth[None], pose, camera)[0] - centre  # (H, W, 3)
    heading = math.atan2(float(ahead[0]), float(ahead[2]))
    azimuth = _wrapped(torch.atan2(points[..., 0], points[..., 2]) - heading)
    half = min(float(azimuth[:, -1].min()), -float(azimuth[:, 0].max()))
    if half < NARROWEST:
        return empty
    chosen = azimuth.abs() <= half
    p, a, c = points[chosen], azimuth[chosen], frame[chosen]
    pixel = depth[chosen] * (2.0 / float(camera.K[0, 0] + camera.K[1, 1]))
    r, places, colors, sizes = p[:, [0, 2]].norm(dim=1), [], [], []
    for number in range(1, math.ceil((math.pi + OVERLAP) / (2 * half)) + 1):
        for side in (1, -1):
            to = side * number * 2 * half + (-1) ** number * a
            inside = to.abs() <= math.pi + OVERLAP
            turned = to[inside] + heading
            places.append(torch.stack([r[inside] * turned.sin(), p[inside, 1], r[inside] * turned.cos()], 1))
            colors.append(c[inside])
            sizes.append(pixel[inside])
    everything = torch.cat([points.reshape(-1, 3), *places]), torch.cat([frame.reshape(-1, 3), *colors])
    for sign in (1.0, -1.0):
        height = _height(points, sign)
        if height is not None:
            spots, hues = _carpet(*everything, sign * height)
            places.append(spots)
            colors.append(hues)
            sizes.append(torch.full((len(spots),), TEXEL))
    spots, hues, wide = torch.cat(places) + centre, torch.cat(colors), torch.cat(sizes)
    if T_level_world is not None:
        spots = se3.transform_points(se3.inverse(T_level_world), spots.double()).float()
    return empty.fuse(spots, hues, torch.ones(len(spots)), 0, wide)


def completed(
    projection: Projection, surroundings: PointMemory, T_world_camera: torch.Tensor, camera: Camera, threads: int = 1
) -> Projection:
    """The projection of the map along a path (T, 4, 4), with its holes showing the surroundings.

    `index` stays -1 there. Holes thinner than three pixels are left: what lies beside them fills them better.
    """
    holes = ~projection.mask
    holes &= opened(holes.float()) > 0
    rows = holes.flatten(1).any(1).nonzero()[:, 0]
    if not len(rows) or not len(surroundings):
        return projection
    behind = surroundings.project(T_world_camera[rows], camera, threads=threads)
    drawn = torch.zeros_like(holes)
    drawn[rows] = holes[rows] & behind.mask
    rgb, depth = projection.rgb.clone(), projection.depth.clone()
    rgb[drawn], depth[drawn] = behind.rgb[drawn[rows]], behind.depth[drawn[rows]]
    return Projection(rgb, depth, projection.mask | drawn, projection.index)


def _wrapped(angle: torch.Tensor) -> torch.Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _height(points: torch.Tensor, sign: float) -> float | None:
    """How far below (sign +1) or above (-1) the camera the floor or the ceiling of points (H, W, 3) is; None where there is none."""
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    normals = F.normalize(torch.linalg.cross(across, down), dim=-1)
    y = sign * points[1:-1, 1:-1, 1]
    y = y[(normals[..., 1].abs() > LEVEL) & (y > 0.2) & (y < REACH)]
    counts = torch.bincount((y / BIN).long(), minlength=int(REACH / BIN) + 1).float()
    support = F.conv1d(counts[None, None], torch.ones(1, 1, 5), padding=2)[0, 0]
    best = float(support.max())
    if best < LEAST * points[..., 0].numel():
        return None
    peak = (support == F.max_pool1d(support[None, None], 9, 1, 4)[0, 0]) & (support >= OUTER * best)
    at = (int(peak.nonzero().max()) + 0.5) * BIN
    return float(y[(y - at).abs() < 3 * BIN].median())


def _carpet(points: torch.Tensor, colors: torch.Tensor, height: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The floor (height > 0) or ceiling where none of the points (N, 3) about the camera lie on it: places (M, 3) and colours (M, 3).

    Its texture is reflected at the border of what is known. In every direction it goes as far as it is known to.
    """
    near = (points[:, 1] - height).abs() < THICK * abs(height)
    flat, size = points[near][:, [0, 2]], int(2 * REACH / TEXEL)
    cells = ((flat + REACH) / TEXEL).long()
    inside = ((cells >= 0) & (cells < size)).all(1)
    cells, flat, hues = cells[inside], flat[inside], colors[near][inside]
    if not len(cells):
        return torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8)
    number = cells[:, 0] * size + cells[:, 1]
    count = torch.zeros(size * size).index_add_(0, number, torch.ones(len(number)))
    total = torch.zeros(size * size, 3).index_add_(0, number, hues.float())
    known = (count > 0).view(size, size).numpy()
    reach = torch.zeros(360).scatter_reduce_(0, _degree(flat), flat.norm(dim=1), "amax")
    lost = torch.from_numpy(~known).nonzero()
    spots = (lost + 0.5) * TEXEL - REACH
    wanted = spots.norm(dim=1) < reach[_degree(spots)]
    lost, spots = lost[wanted], spots[wanted]
    source = torch.from_numpy(reflected(known, lost.numpy()))
    hues = (total / count.clamp(min=1)[:, None])[source[:, 0] * size + source[:, 1]].round().to(torch.uint8)
    return torch.stack([spots[:, 0], torch.full((len(spots),), height), spots[:, 1]], 1), hues


def _degree(flat: torch.Tensor) -> torch.Tensor:
    """Azimuths of places (N, 2), in whole degrees."""
    return torch.rad2deg(torch.atan2(flat[:, 0], flat[:, 1])).long() % 360


def reflected(known: np.ndarray, at: np.ndarray, times: int = 4) -> np.ndarray:
    """Known places (N, 2) that stand for places `at` (N, 2): the same where known, else reflected at the border of what is known.

    known: (A, B) bool, somewhere True. A reflection that does not land on a known place is reflected again, `times` at most; then
    the border itself stands for it.
    """
    border = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    limit = np.array(known.shape) - 1
    for _ in range(times):
        lost = ~known[at[:, 0], at[:, 1]]
        at = np.where(lost[:, None], (2 * border[:, at[:, 0], at[:, 1]].T - at).clip(0, limit), at)
    return border[:, at[:, 0], at[:, 1]].T
