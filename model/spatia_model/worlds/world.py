"""A ground-truth world: a seeded place that any camera can look at."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from spatia_model.geometry.warp_runtime import wp
from spatia_model.types import Camera, GroundTruth
from spatia_model.worlds import captions
from spatia_model.worlds.courtyards import build_courtyard
from spatia_model.worlds.kernel import FAR, distance_kernel, render_kernel
from spatia_model.worlds.layout import Plan
from spatia_model.worlds.movers import MOTIONS, Mover
from spatia_model.worlds.placing import place_mover, swing_frame
from spatia_model.worlds.rooms import build_room
from spatia_model.worlds.scene import Scene, Thing

KINDS = ("room", "courtyard")
MOVING = 1 << 20  # identities from here on belong to movers
EDGE = 0.05  # colour step between neighbours, of 1, from which a pixel is supersampled


@dataclass(frozen=True)
class Tables:
    """The static place as numbers, on the CPU (see `tracing.py`)."""

    prims: np.ndarray
    groups: np.ndarray
    mats: np.ndarray
    env: np.ndarray
    parts: np.ndarray


class World:
    """A procedural place with 0-3 moving things. The same seed gives the same world; nothing in it changes.

    The floor is y = 0, y points down, so eyes are at y = -1.4 or so. Lengths are metres, times are seconds.
    Depth at the sky is `FAR` (50 m). Seeds: training below 1,000,000, validation below 2,000,000, tests below 3,000,000.
    """

    def __init__(self, seed: int, plan: Plan, tables: Tables, things: tuple[Thing, ...], movers: tuple[Mover, ...]) -> None:
        self.seed = seed
        self.kind = plan.kind
        self.plan = plan
        self.things = things
        self.movers = movers
        self.tables = tables
        self._device_tables: dict[str, dict[str, wp.array]] = {}
        self._free_cells: torch.Tensor | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_device_tables": {}}

    def __repr__(self) -> str:
        return f"World(seed={self.seed}, kind={self.kind!r}, movers={len(self.movers)})"

    @staticmethod
    def generate(seed: int, kind: str | None = None, movers: int | None = None) -> World:
        """Draw the world of a seed. `kind` is "room" or "courtyard", `movers` 0-3; None leaves them to the seed.

        `movers` is how many are tried for; a cramped place may hold fewer.
        """
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be a whole number >= 0, got {seed!r}")
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS} or None, got {kind!r}")
        if movers is not None and movers not in (0, 1, 2, 3):
            raise ValueError(f"movers must be 0, 1, 2, 3 or None, got {movers!r}")
        for attempt in range(20):
            rng = np.random.default_rng([int(seed), attempt])
            drawn_kind = "room" if rng.random() < 0.65 else "courtyard"
            drawn_movers = int(rng.choice([0, 1, 1, 1, 2, 2, 3]))
            world = World._draw(int(seed), rng, kind or drawn_kind, drawn_movers if movers is None else movers)
            if len(world.free_cells()) * 0.04 >= 4.0:  # at least four square metres to walk on
                return world
        raise RuntimeError(f"no walkable world for seed {seed} in 20 attempts; use another seed")

    @staticmethod
    def _draw(seed: int, rng: np.random.Generator, kind: str, count: int) -> World:
        scene, plan = build_room(rng) if kind == "room" else build_courtyard(rng)
        found: list[Mover] = []
        colors = [str(c) for c in rng.permutation(list(captions.MOVER_COLORS))]
        for color in colors[:count]:
            probe = World._assemble(seed, scene, plan, ())
            mover = place_mover(rng, probe.static_sdf, plan, str(rng.choice(MOTIONS, p=[0.4, 0.25, 0.2, 0.15])), color, found)
            if mover is None:
                continue
            if mover.motion == "swing" and kind == "courtyard":
                scene.add(swing_frame(rng, mover), mover.anchor[0], mover.anchor[2], -mover.heading)
            found.append(mover)
        return World._assemble(seed, scene, plan, tuple(found))

    @staticmethod
    def _assemble(seed: int, scene: Scene, plan: Plan, movers: tuple[Mover, ...]) -> World:
        rows: list = []
        for i, mover in enumerate(movers):
            rows += mover.parts(scene.materials, i)
        parts = np.array(rows, np.float32).reshape(-1, 3, 4)
        return World(seed, plan, Tables(**scene.tables(), parts=parts), tuple(scene.things), movers)

    # -- pictures

    def render(
        self,
        T_world_camera: torch.Tensor,
        camera: Camera,
        times: torch.Tensor,
        supersample: int = 2,
        device: str | torch.device = "cpu",
        threads: int | None = None,
    ) -> GroundTruth:
        """What a camera sees: poses (T, 4, 4) and seconds (T,) to rgb (T, H, W, 3) uint8, z-depth (T, H, W) and dynamic (T, H, W).

        Depth and dynamic are those of the ray through the pixel's centre. Colours are the mean of supersample^2 rays where a pixel
        differs from a neighbour, else the centre ray's. Same numbers for any number of threads (CPU frames are split over them).
        """
        rgb, depth, ident = self._trace(T_world_camera, camera, times, supersample, device, threads)
        return GroundTruth(rgb=rgb, depth=depth, dynamic=ident >= MOVING)

    def identities(self, T_world_camera: torch.Tensor, camera: Camera, times: torch.Tensor) -> torch.Tensor:
        """(T, H, W) int32: -1 sky, i for `things[i]`, MOVING + i for `movers[i]`."""
        ident = self._trace(T_world_camera, camera, times, 1, "cpu", 1)[2]
        group = torch.from_numpy(np.append(self.tables.prims[:, 2, 3], -1).astype(np.int32))
        return torch.where(ident >= MOVING, ident, group[torch.where(ident >= MOVING, 0, ident // 8 - 1)])

    def _trace(
        self,
        T_world_camera: torch.Tensor,
        camera: Camera,
        times: torch.Tensor,
        supersample: int,
        device: str | torch.device,
        threads: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        poses = torch.as_tensor(T_world_camera)
        times = torch.as_tensor(times)
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not bool(torch.isfinite(poses).all()):
            raise ValueError(f"T_world_camera must be finite and (T, 4, 4), got {tuple(poses.shape)}; add a leading axis to a single pose")
        if times.shape != poses.shape[:1] or not bool(torch.isfinite(times).all()):
            raise ValueError(f"times must be finite seconds of shape ({len(poses)},), one per pose, got {tuple(times.shape)}")
        if not 1 <= supersample <= 8:
            raise ValueError(f"supersample must be 1 to 8 rays per side of a pixel, got {supersample}")
        device = torch.device(device)
        count, high, wide = len(poses), camera.height, camera.width
        rgb = torch.empty((count, high, wide, 3), dtype=torch.uint8, device=device)
        depth = torch.empty((count, high, wide), dtype=torch.float32, device=device)
        ident = torch.empty((count, high, wide), dtype=torch.int32, device=device)
        color = torch.empty((count, high, wide, 3), dtype=torch.float32, device=device)
        light = torch.zeros((count, high, wide, 2, 3), dtype=torch.float32, device=device)
        if count == 0:
            return rgb, depth, ident
        where, turn = self._mover_poses(times)
        tables = self._on_device(device)
        k = camera.K.double()
        name = str(wp.device_from_torch(device))
        intrinsics = wp.vec4(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))
        head = [
            wp.from_torch(poses.to(device, torch.float32).contiguous(), dtype=wp.mat44),
            intrinsics,
            tables["prims"],
            tables["groups"],
            wp.array(self._orders(poses, camera), dtype=int, ndim=2, device=name),
            tables["mats"],
            tables["env"],
            tables["parts"],
            wp.array(where, dtype=wp.vec3, ndim=2, device=name),
            wp.array(turn, dtype=wp.quat, ndim=2, device=name),
            EDGE,
            wp.from_torch(color, dtype=wp.vec3),
            wp.from_torch(light, dtype=wp.vec3),
            wp.from_torch(ident),
            wp.from_torch(depth),
            wp.from_torch(rgb),
        ]

        def work(first: int, frames: int) -> None:
            wp.launch(render_kernel, dim=(frames, high, wide), inputs=[first, 0, *head], device=name)
            if supersample > 1:
                wp.launch(render_kernel, dim=(frames, high, wide), inputs=[first, supersample, *head], device=name)

        if device.type == "cuda":
            work(0, count)
            wp.synchronize_device(name)
            return rgb, depth, ident
        threads = min(torch.get_num_threads(), 2) if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if threads == 1 or count == 1:
            work(0, count)
        else:
            wp.load_module(render_kernel.module, device=name)
            share = [(i * count) // threads for i in range(threads + 1)]
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda i: work(share[i], share[i + 1] - share[i]) if share[i + 1] > share[i] else None, range(threads)))
        return rgb, depth, ident

    def _orders(self, poses: torch.Tensor, camera: Camera) -> np.ndarray:
        """Which groups every frame may see, near ones first: (T + 1, 1 + G) int32, counts in front; the last row lists all groups."""
        groups = self.tables.groups.astype(np.float64)
        T = poses.double().cpu().numpy()
        k = camera.K.double().numpy()
        left, right = -k[0, 2] / k[0, 0], (camera.width - k[0, 2]) / k[0, 0]
        top, bottom = -k[1, 2] / k[1, 1], (camera.height - k[1, 2]) / k[1, 1]
        planes = np.array([[1, 0, -left], [-1, 0, right], [0, 1, -top], [0, -1, bottom], [0, 0, 1.0]])  # inwards, in the camera
        normals = np.einsum("tij,pj->tpi", T[:, :3, :3], planes)
        centre, half = (groups[:, 0, :3] + groups[:, 1, :3]) / 2, (groups[:, 1, :3] - groups[:, 0, :3]) / 2
        offset = centre[None] - T[:, None, :3, 3]  # (T, G, 3)
        inside = np.einsum("tpi,tgi->tpg", normals, offset) + np.einsum("tpi,gi->tpg", np.abs(normals), half)
        seen = (inside > -1e-3).all(1)
        gap = np.linalg.norm(np.maximum(np.abs(offset) - half, 0), axis=-1)
        rank = np.argsort(np.where(seen, gap, np.inf), axis=1, kind="stable")
        out = np.zeros((len(T) + 1, 1 + len(groups)), np.int32)
        out[:-1, 0], out[:-1, 1:] = seen.sum(1), rank
        out[-1, 0], out[-1, 1:] = len(groups), np.arange(len(groups))
        return out

    def _mover_poses(self, times: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        places, turns = [], []
        for mover in self.movers:
            place, turn = mover.poses(times.cpu())
            places.append(place)
            turns.append(turn)
        if not places:
            return np.zeros((len(times), 0, 3), np.float32), np.zeros((len(times), 0, 4), np.float32)
        return torch.cat(places, 1).numpy(), torch.cat(turns, 1).numpy()

    def _on_device(self, device: torch.device) -> dict[str, wp.array]:
        name = str(wp.device_from_torch(device))
        if name not in self._device_tables:
            t = self.tables
            self._device_tables[name] = {
                "prims": wp.array(t.prims, dtype=wp.vec4, ndim=2, device=name),
                "groups": wp.array(t.groups, dtype=wp.vec4, ndim=2, device=name),
                "mats": wp.array(t.mats, dtype=wp.vec4, ndim=2, device=name),
                "env": wp.array(t.env, dtype=wp.vec4, ndim=1, device=name),
                "parts": wp.array(t.parts, dtype=wp.vec4, ndim=2, device=name),
            }
        return self._device_tables[name]

    # -- space

    def static_sdf(self, points: torch.Tensor, limit: float = 100.0) -> torch.Tensor:
        """(N, 3) world points to signed metres (N,) to the nearest static body, negative inside one; `limit` caps it."""
        points = torch.as_tensor(points)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points must be (N, 3), got {tuple(points.shape)}")
        device = points.device
        out = torch.empty(len(points), dtype=torch.float32, device=device)
        if len(points) == 0:
            return out
        tables = self._on_device(device)
        name = str(wp.device_from_torch(device))
        wp.launch(
            distance_kernel,
            dim=len(points),
            device=name,
            inputs=[
                wp.from_torch(points.float().contiguous(), dtype=wp.vec3),
                float(limit),
                tables["prims"],
                tables["groups"],
                wp.from_torch(out),
            ],
        )
        return out

    def static_distance(self, points: torch.Tensor) -> torch.Tensor:
        """(N, 3) world points to metres (N,) >= 0 to the nearest static surface (what moves does not count)."""
        return self.static_sdf(points).abs()

    def is_free(self, positions: torch.Tensor, radius: float = 0.3) -> torch.Tensor:
        """(N, 3) camera positions to bool (N,): inside the place, and nothing static within `radius` of it or of the body below it."""
        positions = torch.as_tensor(positions)
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise ValueError(f"positions must be (N, 3), got {tuple(positions.shape)}")
        if not radius > 0:
            raise ValueError(f"radius must be positive metres, got {radius}")
        p = positions.float()
        low = -(radius + 0.05)
        steps = torch.linspace(0, 1, 5, device=p.device)
        column = p[:, None].repeat(1, 5, 1)
        column[..., 1] = p[:, None, 1] + (low - p[:, None, 1]).clamp(min=0) * steps
        clear = (self.static_sdf(column.reshape(-1, 3), limit=radius + 0.01).reshape(-1, 5) > radius).all(1)
        inside = (
            (p[:, 0].abs() < self.plan.width / 2) & (p[:, 2].abs() < self.plan.depth / 2) & (p[:, 1] > -self.plan.height) & (p[:, 1] < 0)
        )
        return clear & inside & torch.isfinite(p).all(1)

    def free_cells(self) -> torch.Tensor:
        """(M, 2) x, z of the 0.2 m grid cells of the largest connected area where a camera 0.35 m wide can stand."""
        if self._free_cells is None:
            nx, nz = int(self.plan.width / 0.2), int(self.plan.depth / 0.2)
            xs = (torch.arange(nx) - (nx - 1) / 2) * 0.2
            zs = (torch.arange(nz) - (nz - 1) / 2) * 0.2
            gx, gz = torch.meshgrid(xs, zs, indexing="ij")
            at = torch.stack((gx, torch.full_like(gx, -1.4), gz), -1).reshape(-1, 3)
            free = self.is_free(at, 0.35).reshape(nx, nz).numpy()
            label = largest_area(free)
            self._free_cells = torch.stack((gx, gz), -1)[torch.from_numpy(label)]
        return self._free_cells

    def start_pose(self, rng: np.random.Generator) -> torch.Tensor:
        """A good first view: (4, 4) float64 T_world_camera, level, in free space, looking at something, often at a mover."""
        from spatia_model.worlds.trajectories import pose_from  # imported here: trajectories need worlds

        cells = self.free_cells()
        camera = Camera(torch.tensor([[20.85, 0, 16], [0, 20.85, 16], [0, 0, 1]], dtype=torch.float64), 32, 32)
        poses = []
        for _ in range(12):
            x, z = cells[int(rng.integers(len(cells)))].tolist()
            height = float(rng.uniform(1.2, 1.6))
            poses.append(
                pose_from(
                    x, -min(height, self.plan.height - 0.5), z, float(rng.uniform(-math.pi, math.pi)), float(rng.normal(-0.06, 0.06)), 0.0
                )
            )
        stack = torch.stack(poses)
        truth = self._trace(stack, camera, torch.zeros(12), 1, "cpu", 1)
        depth = truth[1].reshape(12, -1)
        score = depth.clamp(max=6.0).mean(1) * 0.4 - 3.0 * (depth < 0.8).float().mean(1)
        if rng.random() < 0.65:
            score = score + 2.0 * (truth[2] >= MOVING).float().mean((1, 2)).mul(60).clamp(max=1.0)
        score = score + torch.from_numpy(rng.gumbel(0, 0.3, 12))
        return stack[int(score.argmax())]

    # -- words

    def caption(self) -> str:
        """The whole world in a sentence or two, lower case."""
        return captions.world_caption(self)

    def describe(self, T_world_camera: torch.Tensor, camera: Camera, times: torch.Tensor) -> str:
        """Caption of a window: the place, how what is in view moves as seen from the first camera, and what comes into view."""
        return captions.window_caption(self, T_world_camera, camera, times)

    def with_motion(self, mover_index: int, direction: int | str) -> World:
        """The same world, the same at time 0, in which one mover goes otherwise afterwards.

        `direction`: 1 as generated, -1 the other way, 0 at rest; or "reverse" and "still", from what it does now.
        """
        if not 0 <= mover_index < len(self.movers):
            raise ValueError(f"mover_index must be below {len(self.movers)}, the number of movers of this world, got {mover_index}")
        mover = self.movers[mover_index]
        signs = {1: 1.0, -1: -1.0, 0: 0.0, "reverse": -mover.sign, "still": 0.0}
        if direction not in signs:
            raise ValueError(f'direction must be 1, -1, 0, "reverse" or "still", got {direction!r}')
        movers = list(self.movers)
        movers[mover_index] = replace(mover, sign=signs[direction])
        return World(self.seed, self.plan, self.tables, self.things, tuple(movers))


def largest_area(free: np.ndarray) -> np.ndarray:
    """The largest 4-connected True area of a boolean grid."""
    best = np.zeros_like(free)
    left = free.copy()
    while left.sum() > best.sum():
        area = np.zeros_like(free)
        area[tuple(np.argwhere(left)[0])] = True
        size = 0
        while area.sum() != size:
            size = int(area.sum())
            grown = area.copy()
            grown[1:] |= area[:-1]
            grown[:-1] |= area[1:]
            grown[:, 1:] |= area[:, :-1]
            grown[:, :-1] |= area[:, 1:]
            area = grown & left
        left &= ~area
        if area.sum() > best.sum():
            best = area
    return best


__all__ = ["FAR", "KINDS", "MOVING", "World"]
