"""Frontier explorer: looks at the point cloud memory, and goes where seen free floor ends in the unknown.

    python agents/frontier_explorer.py --env SpatiaTruth-v0 --world 7 --steps 30 --out outputs/explorer
    python agents/frontier_explorer.py --env SpatiaNav-v0 --image yours.jpg
    spatia rollout --agent agents/frontier_explorer.py:FrontierExplorer --env SpatiaNav-v0 --episodes 4 --out outputs/rollouts

Every step: (1) the memory becomes a map of the ground, each cell free, occupied or unknown; (2) views are proposed: from here in every
direction, and from each frontier (Yamauchi, "A frontier-based approach for autonomous exploration", 1997), reached by the shortest way;
(3) the view that shows the most unknown cells per step needed wins (a greedy next best view); (4) one step is taken towards it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image
from scipy import ndimage

import spatia_env  # noqa: F401  (registers the envs)

CELL = 0.1  # metres
REACH = 12.0  # metres from the start to the edge of the map
SIGHT = 4.0  # metres a proposed view is taken to see
BODY = 0.25  # metres kept between the camera and what stands around
HEADROOM = 0.2  # metres above the eye that must be clear, too
FREE, OCCUPIED = 1, 2  # cells; 0 is unknown
RAYS = 25  # of a proposed view
HEADINGS = 24  # proposed from where it stands


class GroundMap:
    """What the memory says of the ground around the start: a square of cells in the x-z plane of the world (y points down)."""

    def __init__(self, origin: np.ndarray) -> None:
        self.size = int(2 * REACH / CELL)
        self.corner = origin[[0, 2]] - REACH
        self.looked_through = np.zeros((self.size, self.size), bool)  # cells that a view has passed over unhindered
        self.bumped = np.zeros((self.size, self.size), bool)  # cells that could not be entered
        self.cells = np.zeros((self.size, self.size), np.uint8)
        self.doubts = np.zeros((self.size, self.size), np.uint8)  # how often a cell was in view and stayed unknown

    def index(self, xz: np.ndarray) -> np.ndarray:
        """(..., 2) metres -> (..., 2) rows and columns, kept inside the map."""
        return np.clip(np.floor((xz - self.corner) / CELL).astype(int), 0, self.size - 1)

    def update(self, points: np.ndarray, pose: np.ndarray, fov: float) -> None:
        """Read the map from points (N, 3) and add what is seen from `pose` (4, 4) with a view `fov` radians wide."""
        eye = pose[:3, 3]
        below = points[points[:, 1] > eye[1] + 0.4, 1]
        counts, edges = np.histogram(below, bins=np.arange(eye[1] + 0.4, eye[1] + 3.0, 0.05))
        floor = edges[counts.argmax()] + 0.05 if counts.any() else eye[1] + 1.4  # the level with the most points
        ground = np.abs(points[:, 1] - floor) < 0.15
        tall = (points[:, 1] < floor - 0.25) & (points[:, 1] > eye[1] - HEADROOM)
        standing = self._count(points[tall]) >= 2  # a single point may be a stray
        lying = self._count(points[ground]) >= 1
        self._look(standing, lying, eye[[0, 2]], heading_of(pose), fov)
        self.cells = np.where(standing | self.bumped, OCCUPIED, np.where(lying | self.looked_through, FREE, 0)).astype(np.uint8)
        missed = self._unknown_in_view(eye[[0, 2]], heading_of(pose), fov)
        self.doubts.flat[missed] = np.minimum(self.doubts.flat[missed] + 1, 250)

    def _count(self, points: np.ndarray) -> np.ndarray:
        inside = np.all(np.abs(points[:, [0, 2]] - self.corner - REACH) < REACH, axis=1)
        cells = self.index(points[inside][:, [0, 2]])
        return np.bincount(cells[:, 0] * self.size + cells[:, 1], minlength=self.size**2).reshape(self.size, self.size)

    def _look(self, standing: np.ndarray, lying: np.ndarray, eye: np.ndarray, heading: float, fov: float) -> None:
        """Between the eye and the floor or the wall it sees nothing stands: mark that as free. So is the ground underfoot."""
        cells = self.rays(eye, heading, fov, 4 * RAYS)
        blocked = np.logical_or.accumulate(standing[cells[..., 0], cells[..., 1]], axis=1)
        seen_ahead = np.logical_or.accumulate((lying[cells[..., 0], cells[..., 1]] | blocked)[:, ::-1], axis=1)[:, ::-1]
        clear = cells[seen_ahead & ~blocked]
        self.looked_through[clear[:, 0], clear[:, 1]] = True
        near = np.indices(self.looked_through.shape).transpose(1, 2, 0) - self.index(eye)
        self.looked_through |= np.hypot(near[..., 0], near[..., 1]) * CELL < BODY + CELL

    def rays(self, eye: np.ndarray, heading: float, fov: float, count: int) -> np.ndarray:
        """(count, steps, 2) cells along rays of length `SIGHT`."""
        angles = heading + np.linspace(-fov / 2, fov / 2, count)
        reach = np.arange(CELL, SIGHT, CELL)
        return self.index(eye + reach[None, :, None] * np.stack([np.sin(angles), np.cos(angles)], -1)[:, None])

    def _unknown_in_view(self, eye: np.ndarray, heading: float, fov: float) -> np.ndarray:
        """Flat indices of the unknown cells that a view would show, were all of them free."""
        cells = self.rays(eye, heading, fov, RAYS)
        state = self.cells[cells[..., 0], cells[..., 1]]
        seen = cells[~np.logical_or.accumulate(state == OCCUPIED, axis=1) & (state == 0)]
        return np.unique(seen[:, 0] * self.size + seen[:, 1])

    def gain(self, eye: np.ndarray, heading: float, fov: float) -> int:
        """How many unknown cells a view may show; those looked at in vain three times are not hoped for again."""
        return int((self.doubts.flat[self._unknown_in_view(eye, heading, fov)] < 3).sum())

    def standable(self) -> np.ndarray:
        """(size, size) bool: free, and `BODY` away from what is occupied."""
        gap: Any = ndimage.distance_transform_edt(self.cells != OCCUPIED)
        return (self.cells == FREE) & (gap * CELL > BODY)

    def frontiers(self) -> list[np.ndarray]:
        """Groups of free cells that touch the unknown: (M, 2) each, groups of fewer than four cells left out."""
        unknown = ndimage.binary_dilation(self.cells == 0, np.ones((3, 3)))
        labels: np.ndarray = ndimage.label((self.cells == FREE) & unknown, np.ones((3, 3)))[0]  # type: ignore[index]
        groups = [np.argwhere(labels == number) for number in range(1, int(labels.max()) + 1)]
        return [group for group in groups if len(group) >= 4]

    def ways(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shortest ways over standable cells: metres to every cell (inf: none), and the cell before it (flat index, -1: none)."""
        free = self.standable()
        free[tuple(start)] = True
        length = np.full(free.shape, math.inf)
        before = np.full(free.shape, -1)
        length[tuple(start)] = 0.0
        queue = [(0.0, int(start[0]), int(start[1]))]
        while queue:
            far, row, column = heapq.heappop(queue)
            if far > length[row, column]:
                continue
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
                r, c = row + dr, column + dc
                if 0 <= r < self.size and 0 <= c < self.size and free[r, c]:
                    further = far + CELL * math.hypot(dr, dc)
                    if further < length[r, c] - 1e-9:
                        length[r, c], before[r, c] = further, row * self.size + column
                        heapq.heappush(queue, (further, r, c))
        return length, before

    def picture(self, poses: list[np.ndarray]) -> np.ndarray:
        """(size, size, 3) uint8: unknown dark, free light, occupied red, the path yellow; z points up."""
        image = np.array([(24, 26, 32), (200, 205, 210), (190, 60, 50)], np.uint8)[self.cells]
        for pose in poses:
            row, column = self.index(pose[[0, 2], 3])
            image[row, column] = (255, 196, 61)
        return np.ascontiguousarray(image.transpose(1, 0, 2)[::-1])


def heading_of(pose: np.ndarray) -> float:
    """Radians from +z towards +x (to the right), of a camera pose (4, 4)."""
    return math.atan2(pose[0, 2], pose[2, 2])


def turn_between(a: float, b: float) -> float:
    """The smaller way from heading a to b, in radians, positive to the right."""
    return (b - a + math.pi) % (2 * math.pi) - math.pi


class FrontierExplorer:
    """See the module's description. Works in Spatia-v0, SpatiaNav-v0 and SpatiaTruth-v0 (continuous or discrete)."""

    needs_world = True

    def __init__(self, env: gym.Env, seed: int = 0) -> None:
        self.world: Any = env.unwrapped
        self.rng = np.random.default_rng(seed)  # breaks ties
        self.discrete = isinstance(env.action_space, gym.spaces.Discrete)
        limits = (0.25, math.radians(15)) if self.discrete else (self.world.motion.limits[2], self.world.motion.limits[4])
        self.stride, self.turn = float(limits[0]), float(limits[1])

    def reset(self, observation: np.ndarray, info: dict[str, Any]) -> None:
        self.map = GroundMap(info["poses"][-1][:3, 3])
        self.poses: list[np.ndarray] = []
        self.walked = 0.0  # metres asked of the last step
        self.goal: tuple[np.ndarray, float] | None = None  # the view it is on its way to: place (x, z) and heading

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> Any:
        pose = info["poses"][-1]
        self._notice_bump(pose)
        self.poses.append(pose)
        fov = 2 * math.atan(info["frames"].shape[2] / 2 / info["K"][0, 0])
        self.map.update(self.world.memory.positions.cpu().numpy(), pose, fov)
        here, heading = pose[[0, 2], 3], heading_of(pose)
        direction, far = self._choose(here, heading, fov)
        off = turn_between(heading, direction)
        aligned = abs(off) <= (self.turn / 2 if self.discrete else self.turn)
        forward = min(self.stride, far) if far > 0 and aligned else 0.0
        self.walked = (self.stride if forward > CELL else 0.0) if self.discrete else forward * abs(math.cos(off))
        if self.discrete:
            return 0 if self.walked else 2 if off > 0 else 1
        camera = np.zeros(6, np.float32)
        camera[2], camera[4] = forward * math.cos(off) / self.stride, np.clip(off / self.turn, -1, 1)
        return {"camera": camera, "text": ""}

    def _choose(self, here: np.ndarray, heading: float, fov: float) -> tuple[float, float]:
        """The direction (radians) to face now, and how far to walk that way (metres; 0: only turn)."""
        length, before = self.map.ways(self.map.index(here))
        if self.goal is not None:  # a goal is kept until it is reached or nothing more is to be seen there: changing sides shows nothing
            place, facing = self.goal
            arrived = np.linalg.norm(place - here) < 2 * CELL and abs(turn_between(heading, facing)) < self.turn / 2
            lost = not np.isfinite(length[tuple(self.map.index(place))])
            if arrived or lost or self.map.gain(place, facing, fov) < 10:
                self.goal = None
        if self.goal is None:
            self.goal = self._best_view(here, heading, fov, length)
        if self.goal is None:  # with nothing left to see it looks around
            return heading + self.turn, 0.0
        place, facing = self.goal
        if np.linalg.norm(place - here) < 2 * CELL:
            return facing, 0.0
        return self._first_stretch(self.map.index(place), before, here)

    def _best_view(self, here: np.ndarray, heading: float, fov: float, length: np.ndarray) -> tuple[np.ndarray, float] | None:
        """Of the views from here and from the frontiers, the one that shows most per step."""
        views: list[tuple[float, np.ndarray, float]] = [(0.0, here, heading + 2 * math.pi / HEADINGS * k) for k in range(1, HEADINGS)]
        for group in self.map.frontiers():
            reachable = group[np.isfinite(length[group[:, 0], group[:, 1]])]
            for cell in reachable[self.rng.permutation(len(reachable))[:3]]:
                place = self.map.corner + (cell + 0.5) * CELL
                if np.linalg.norm(place - here) > 2 * CELL:
                    views.append((float(length[tuple(cell)]), place, math.atan2(*(place - here))))
        best, chosen = 0.0, None
        for metres, place, facing in views:
            gain = self.map.gain(place, facing, fov)
            worth = gain / (metres / self.stride + abs(turn_between(heading, facing)) / self.turn + 0.5)
            if gain >= 10 and worth > best:
                best, chosen = worth, (place, facing)
        return chosen

    def _first_stretch(self, goal: np.ndarray, before: np.ndarray, here: np.ndarray) -> tuple[float, float]:
        """Direction and length of the straight line to the farthest cell of the way that can be walked to directly."""
        way = [tuple(goal)]
        while before[way[-1]] >= 0:
            way.append(divmod(int(before[way[-1]]), self.map.size))
        free = self.map.standable()
        for cell in way:  # from the goal backwards
            place = self.map.corner + (np.array(cell) + 0.5) * CELL
            line = self.map.index(here + np.linspace(0, 1, 2 + int(np.linalg.norm(place - here) / CELL))[1:, None] * (place - here))
            if free[line[:, 0], line[:, 1]].all() or cell == way[max(len(way) - 4, 0)]:
                return math.atan2(*(place - here)), float(np.linalg.norm(place - here))
        return 0.0, 0.0

    def _notice_bump(self, pose: np.ndarray) -> None:
        """Having walked less than half as far as asked, take the cell ahead for occupied."""
        if self.poses and self.walked > CELL:
            was = self.poses[-1]
            if np.linalg.norm(pose[:3, 3] - was[:3, 3]) < 0.5 * self.walked:
                ahead = pose[[0, 2], 3] + (BODY + CELL) * pose[[0, 2], 2]
                self.map.bumped[tuple(self.map.index(ahead))] = True


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="SpatiaNav-v0", choices=("Spatia-v0", "SpatiaNav-v0", "SpatiaTruth-v0"))
    parser.add_argument("--image", default=None, help="the picture to start from (default: a bundled sample)")
    parser.add_argument("--world", type=int, default=None, help="SpatiaTruth-v0: the world's seed (default: drawn from --seed)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="folder for the map, the overview and a GIF (default: nothing is saved)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    arguments: dict[str, Any] = {"world": args.world} if args.env == "SpatiaTruth-v0" else {"image": args.image}
    env = gym.make(args.env, **arguments)
    agent = FrontierExplorer(env, args.seed)
    observation, info = env.reset(seed=args.seed)
    agent.reset(observation, info)
    frames, floor = [observation], []
    for step in range(args.steps):
        observation, _, terminated, truncated, info = env.step(agent.act(observation, info))
        frames.extend(info["frames"])
        floor.append(float((agent.map.cells == FREE).sum()) * CELL**2)
        x, _, z = info["poses"][-1][:3, 3]
        print(f"step {step}: at ({x:+.2f}, {z:+.2f}) m, {floor[-1]:.1f} m2 of free floor known", file=sys.stderr)
        if terminated or truncated:
            break
    way = np.array([pose[:3, 3] for pose in [*agent.poses, info["poses"][-1]]])
    found = {
        "env": args.env,
        "seed": args.seed,
        "steps": len(floor),
        "free_floor_m2": round(floor[-1], 2) if floor else 0.0,
        "walked_m": round(float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum()), 2),
        "memory_points": int(info["memory_points"]),
    }
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(agent.map.picture(agent.poses)).resize((720, 720), Image.Resampling.NEAREST).save(folder / "map.png")
        Image.fromarray(env.unwrapped.overview()).save(folder / "overview.png")  # type: ignore[attr-defined]
        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(folder / "walk.gif", save_all=True, append_images=pictures[1:], duration=125, loop=0)
    env.close()
    print(json.dumps(found) if args.json else f"{found['free_floor_m2']} m2 of free floor after {found['steps']} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
