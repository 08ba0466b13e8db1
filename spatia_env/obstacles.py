"""Obstacles: a camera has a body, and what is solid stops it or lets it slide along.

The body is an upright cylinder of `radius` around the camera, from `ABOVE` it to `BELOW` it. In a generated world the memory's points
are what is known to be solid; in a true one the true surfaces are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from spatia_model.memory.entities import Entities
    from spatia_model.memory.point_memory import PointMemory

MODES = ("block", "slide")
RADIUS = 0.2  # metres
ABOVE, BELOW = 0.1, 0.7  # metres of the body above and below the camera
LAYERS = 4  # the body's height is looked at in so many layers: a floor that touches the feet does not hide a wall
EVIDENCE = 2.0  # summed confidence of points (a large point counts for its area) from which something is there
INSIDE = 0.06  # metres: whoever stands as deep in something may walk out of it in any direction
NEARER = 0.01  # metres: a smaller approach is rounding


class Solid(Protocol):
    """What a body bumps into."""

    def hit(self, position: np.ndarray, start: np.ndarray) -> np.ndarray | None:
        """None when a body that stood at `start` (3,) may be at `position` (3,); else the level direction (3,) away from what is there,
        of unit length, or zeros where there is none."""
        ...


def check_obstacles(obstacles: Any, radius: Any) -> None:
    """Raise ValueError unless these are an env's arguments `obstacles` and `body_radius`."""
    if obstacles is not None and obstacles not in MODES:
        raise ValueError(f"obstacles is {obstacles!r}; choose one of {list(MODES)}, or None to walk through everything")
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 < radius <= 2:
        raise ValueError(f"body_radius is {radius!r}; give metres above 0 and at most 2")


def walk(path: torch.Tensor, T_world_start: torch.Tensor, solid: Solid, mode: str) -> tuple[torch.Tensor, bool]:
    """The path a body can take of the one it was asked to, and whether it hit something.

    Args:
        path: T_world_camera (T, 4, 4) as asked.
        T_world_start: (4, 4) where the camera stands.
        solid: what is there.
        mode: "block" stands still where it is stopped, for the rest of the path; "slide" keeps what leads along the obstacle. The
            camera turns as asked in both.
    """
    asked = path[:, :3, 3].numpy()
    start = T_world_start[:3, 3].numpy().astype(np.float64)
    stand, before, places, hit_any = start.copy(), start, [], False
    for place in asked:
        move, before = place - before, place
        free, hit = _moved(stand, move, start, solid, mode) if move.any() else (stand, False)
        hit_any |= hit
        if hit and mode == "block":
            places += [stand] * (len(asked) - len(places))
            break
        stand = free
        places.append(stand)
    if not hit_any:
        return path, False
    path = path.clone()
    path[:, :3, 3] = path.new_tensor(np.stack(places))
    return path, True


def _moved(stand: np.ndarray, move: np.ndarray, start: np.ndarray, solid: Solid, mode: str) -> tuple[np.ndarray, bool]:
    """Where a body comes that moves from `stand`, and whether it hit something."""
    away = solid.hit(stand + move, start)
    if away is None:
        return stand + move, False
    if mode == "block":
        return stand, True
    level = move * (1.0, 0.0, 1.0)
    if move[1] and level.any():  # along a floor or a ceiling
        move, away = level, solid.hit(stand + level, start)
        if away is None:
            return stand + move, True
    for _ in range(2):  # along one wall, then along both of a corner
        move = move - min(0.0, float(move @ away)) * away
        if float(np.linalg.norm(move)) < 1e-4:
            break
        away = solid.hit(stand + move, start)
        if away is None:
            return stand + move, True
    return stand, True


class MemoryObstacles:
    """The points of a memory around a place, as something solid.

    Args:
        memory: the map.
        centre: (3,) metres, the place.
        reach: metres around it that will be asked for.
        radius: of the body, metres.
        entities: what moves, where it is when the step begins; as solid as the rest.
    """

    def __init__(self, memory: PointMemory, centre: np.ndarray, reach: float, radius: float, entities: Entities | None = None) -> None:
        self.radius = radius
        low = centre - reach - radius
        high = centre + reach + radius
        low[1], high[1] = centre[1] - reach - ABOVE, centre[1] + reach + BELOW
        points = memory.positions.cpu()
        bounds = points.new_tensor(np.stack([low, high]))
        near = ((points > bounds[0]) & (points < bounds[1])).all(1)
        self.points = points[near].numpy().astype(np.float64)
        self.half = memory.radii.cpu()[near].numpy().astype(np.float64) / 2
        size = self.half * 2 / memory.voxel_size
        self.weight = np.minimum(memory.confidence.cpu()[near].numpy(), 1.0) * size**2
        if entities is not None and len(entities):
            half = entities.radii.numpy().astype(np.float64) / 2
            self.points = np.concatenate([self.points, entities.positions.numpy().astype(np.float64)])
            self.half, self.weight = np.append(self.half, half), np.append(self.weight, (half * 2 / memory.voxel_size) ** 2)
        self._starts: dict[bytes, list[float]] = {}

    def hit(self, position: np.ndarray, start: np.ndarray) -> np.ndarray | None:
        if not len(self.points):
            return None
        known = self._starts.get(start.tobytes())
        if known is None:
            known = self._starts[start.tobytes()] = [gap for gap, _ in self._layers(start)]
        push, touched = np.zeros(3), False
        for (gap, away), before in zip(self._layers(position), known, strict=True):
            if gap < self.radius and before > INSIDE and gap < before - NEARER:
                push, touched = push + away * (self.radius - gap), True
        if not touched:
            return None
        length = float(np.linalg.norm(push))
        return push / length if length > 1e-9 else push

    def _layers(self, position: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """For every layer of the body: metres (level) to what is there, and the level direction away from it."""
        offset = position - self.points
        level = offset[:, (0, 2)]
        distance = np.maximum(np.hypot(level[:, 0], level[:, 1]) - self.half, 0.0)
        close = np.nonzero(distance < 2 * self.radius)[0]  # INSIDE and approaches need no more
        close = close[np.argsort(distance[close], kind="stable")]
        heights = np.linspace(-ABOVE, BELOW, LAYERS + 1)
        drop = -offset[close, 1]  # metres below the camera
        found = []
        for top, bottom in zip(heights, heights[1:], strict=False):
            rows = close[(drop + self.half[close] > top) & (drop - self.half[close] < bottom)]
            evidence = np.cumsum(self.weight[rows])
            last = int(np.searchsorted(evidence, EVIDENCE))
            if last >= len(rows):
                found.append((np.inf, np.zeros(3)))
                continue
            depth = self.weight[rows] * np.maximum(self.radius - distance[rows], 0.0)  # of every point in the body
            away = np.zeros(3)
            away[[0, 2]] = (depth[:, None] * level[rows]).sum(0)
            length = float(np.linalg.norm(away))
            found.append((float(distance[rows[last]]), away / length if length > 1e-9 else away))
        return found


class WorldObstacles:
    """The surfaces of a true world (`spatia_model.worlds.World`) and its bounds, as something solid."""

    STEP = 0.02  # metres over which the direction away is felt for

    def __init__(self, world: Any, radius: float) -> None:
        self.world, self.radius = world, radius
        self._free: dict[bytes, bool] = {}

    def hit(self, position: np.ndarray, start: np.ndarray) -> np.ndarray | None:
        import torch

        if self._is_free(position) or not self._is_free(start):  # whoever stands in a wall may walk out of it
            return None
        column = np.stack([position, *(position + self.STEP * np.array(d) for d in ((1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1)))])
        low = -(self.radius + 0.05)
        shares = np.linspace(0, 1, 5)
        body = np.repeat(column[:, None], 5, 1)  # (5 places, 5 heights, 3): the body as `World.is_free` sees it
        body[..., 1] += np.maximum(low - column[:, None, 1], 0) * shares
        distance = self.world.static_sdf(torch.from_numpy(body.reshape(-1, 3)).float()).reshape(5, 5).min(1).values.numpy()
        plan = self.world.plan
        edges = np.minimum(plan.width / 2 - np.abs(column[:, 0]), plan.depth / 2 - np.abs(column[:, 2]))
        clear = np.minimum(distance, np.maximum(edges, -1.0))
        away = np.array([clear[1] - clear[2], 0.0, clear[3] - clear[4]])
        length = float(np.linalg.norm(away))
        return away / length if length > 1e-6 else np.zeros(3)

    def _is_free(self, position: np.ndarray) -> bool:
        import torch

        key = position.tobytes()
        if key not in self._free:
            self._free[key] = bool(torch.as_tensor(self.world.is_free(torch.from_numpy(position)[None], self.radius)).all())
        return self._free[key]
