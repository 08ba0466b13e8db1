"""Plain numpy versions of what the Warp kernels do: slow, short, written from the definitions."""

from __future__ import annotations

import numpy as np

from spatia_model.worlds.shapes import BOX, LYING_CYLINDER, SPHERE
from spatia_model.worlds.world import Tables


def body_distance(kind: int, p: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Signed distance of points (N, 3) in the body's frame."""
    if kind == SPHERE:
        return np.linalg.norm(p, axis=-1) - half[0]
    if kind == BOX:
        q = np.abs(p) - half
        return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)
    across, along = ((1, 2), 0) if kind == LYING_CYLINDER else ((0, 2), 1)
    radius = half[across[0]]
    q = np.stack((np.hypot(p[:, across[0]], p[:, across[1]]) - radius, np.abs(p[:, along]) - half[along]), -1)
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)


def static_sdf(tables: Tables, points: np.ndarray) -> np.ndarray:
    """Signed distance of points (N, 3) to the union of all bodies, no groups and no short cuts."""
    best = np.full(len(points), np.inf)
    for (cx, cy, cz, kind), (hx, hy, hz, cos), (sin, *_), _ in tables.prims.astype(np.float64):
        p = points - np.array([cx, cy, cz])
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])  # body to world
        best = np.minimum(best, body_distance(int(kind), p @ turn, np.array([hx, hy, hz])))
    return best


def march(tables: Tables, origin: np.ndarray, directions: np.ndarray, far: float) -> np.ndarray:
    """Distance along each direction (N, 3) (not normalised) to the first surface, by sphere tracing; `far` where there is none."""
    length = np.linalg.norm(directions, axis=-1)
    t = np.zeros(len(directions))
    for _ in range(400):
        t += static_sdf(tables, origin + directions * t[:, None]) / length
        t = np.minimum(t, far)
    return t
