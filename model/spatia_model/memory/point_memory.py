"""The map: static points in a sparse voxel grid, as an immutable value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from spatia_model.geometry import se3
from spatia_model.geometry.culling import Chunks, visible_chunks
from spatia_model.geometry.neighbours import highest_near
from spatia_model.geometry.rendering import SplatStyle, launcher, look_through, splat
from spatia_model.memory import voxel_keys
from spatia_model.types import Camera, Projection

MAX_CONFIDENCE = 8.0  # evidence saturates here, so that an old point can still be updated and carved
MAX_POINTS = 400_000
_GONE = 0.05  # confidence at which a carved point goes


@dataclass(frozen=True)
class PointMemory:
    """Static points of the world, one per voxel, sorted by key. Every operation returns a new memory.

    Voxels have levels (see `voxel_keys`): a point seen from far gets a voxel as large as its pixel was, so that the sky and far walls
    take few points and near things keep their detail. A point's radius when drawn is its voxel's side.
    """

    voxel_size: float  # metres, side of the finest voxel
    keys: torch.Tensor  # (N,) int64, ascending, unique
    positions: torch.Tensor  # (N, 3) float32, metres, world
    colors: torch.Tensor  # (N, 3) uint8
    confidence: torch.Tensor  # (N,) float32, evidence gathered: about the number of confident views, at most MAX_CONFIDENCE
    last_seen: torch.Tensor  # (N,) int32, step of the last fuse that touched the point
    max_points: int = MAX_POINTS

    @staticmethod
    def empty(voxel_size: float = 0.03, device: torch.device | str = "cpu", max_points: int = MAX_POINTS) -> PointMemory:
        """A memory of nothing. `voxel_size` in metres; `max_points` bounds its size for good."""
        if not 0 < voxel_size < float("inf"):
            raise ValueError(f"voxel_size = {voxel_size} m; expected a positive length, such as 0.03")
        if max_points < 1:
            raise ValueError(f"max_points = {max_points}; expected at least 1")
        return PointMemory(
            float(voxel_size),
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, 3, device=device),
            torch.empty(0, 3, dtype=torch.uint8, device=device),
            torch.empty(0, device=device),
            torch.empty(0, dtype=torch.int32, device=device),
            int(max_points),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @cached_property
    def radii(self) -> torch.Tensor:
        """(N,) float32 metres: the half side of a point when drawn."""
        return voxel_keys.sides_of(self.keys, self.voxel_size)

    @cached_property
    def chunks(self) -> Chunks:
        """Runs of points in one cube of space, for culling."""
        names, counts = torch.unique_consecutive(self.keys >> voxel_keys.CHUNK_SHIFT, return_counts=True)
        centres, radii = voxel_keys.chunk_bounds(names, self.voxel_size)
        starts = torch.zeros(len(names) + 1, dtype=torch.int32, device=self.device)
        starts[1:] = counts.cumsum(0)
        # a point may reach out of its voxel by its own radius, 1/16 of the chunk, and a square's corner by more
        return Chunks(starts, centres, radii * 1.2)

    def keep(self, mask: torch.Tensor) -> PointMemory:
        """The points where `mask` (N,) bool is True."""
        rows = mask.nonzero()[:, 0]
        return replace(
            self,
            keys=self.keys[rows],
            positions=self.positions[rows],
            colors=self.colors[rows],
            confidence=self.confidence[rows],
            last_seen=self.last_seen[rows],
        )

    def fuse(
        self,
        points: torch.Tensor,
        colors: torch.Tensor,
        confidence: torch.Tensor,
        step: int,
        footprint: torch.Tensor | None = None,
    ) -> PointMemory:
        """Merges observed static points into the map.

        points (N, 3) float32 world metres; colors (N, 3) uint8; confidence (N,) float32 in 0..1, points at 0 are ignored; step: clip
        number; footprint (N,) metres: a pixel's size at the point (depth / focal length), which picks the voxel's level (None: the
        finest).
        Positions and colours are averages weighted by confidence, a point's evidence is the sum of its observations'.
        """
        self._check_points(points, colors, confidence, footprint)
        from spatia_model.geometry.warp_runtime import wp
        from spatia_model.memory import fuse_kernels as kernels

        if not len(points):
            return self
        run = launcher(self.device)
        size = torch.full((len(points),), self.voxel_size, device=self.device) if footprint is None else footprint
        sources = points.float().contiguous(), colors.contiguous(), confidence.float().contiguous(), size.float().contiguous()
        w_points, w_colors = wp.from_torch(sources[0], dtype=wp.vec3), wp.from_torch(sources[1])
        w_weight, w_size = wp.from_torch(sources[2]), wp.from_torch(sources[3])

        keys = torch.empty(len(points), dtype=torch.int64, device=self.device)
        run(kernels.voxel_key, (len(points),), [w_points, w_size, w_weight, self.voxel_size, wp.from_torch(keys)])
        keys, order = torch.sort(keys, stable=True)
        keys, counts = torch.unique_consecutive(keys, return_counts=True)
        starts = torch.zeros(len(keys) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(counts, 0, out=starts[1:])
        keys = keys[: len(keys) - int(keys[-1] == torch.iinfo(torch.int64).max)]  # the points that are not to be fused come last

        n = (len(keys),)
        position, color = torch.empty(*n, 3, device=self.device), torch.empty(*n, 3, device=self.device)
        evidence = torch.empty(n, device=self.device)
        new = [wp.from_torch(position, dtype=wp.vec3), wp.from_torch(color, dtype=wp.vec3), wp.from_torch(evidence)]
        run(kernels.average, n, [wp.from_torch(order), wp.from_torch(starts), w_points, w_colors, w_weight, w_size, self.voxel_size, *new])
        return self._merge(keys, new, step).bounded(step)

    def _merge(self, keys: torch.Tensor, new: list, step: int) -> PointMemory:
        """Merges averaged voxels (sorted, unique keys; Warp arrays of position, colour, evidence) into the map without sorting again."""
        from spatia_model.geometry.warp_runtime import wp
        from spatia_model.memory import fuse_kernels as kernels

        place = torch.searchsorted(self.keys, keys)
        known = self.keys[place.clamp(max=len(self) - 1)] == keys if len(self) else torch.zeros_like(place, dtype=torch.bool)
        added = torch.cumsum(~known, 0)
        row = place + added - (~known).long()
        total = len(self) + (int(added[-1]) if len(added) else 0)
        # an old voxel moves by the number of added ones before it
        shift = torch.zeros(len(self) + 1, dtype=torch.int64, device=self.device)
        shift = shift.scatter_add_(0, place, (~known).long()).cumsum(0)
        out = (
            torch.empty(total, dtype=torch.int64, device=self.device),
            torch.empty(total, 3, device=self.device),
            torch.empty(total, 3, dtype=torch.uint8, device=self.device),
            torch.empty(total, device=self.device),
            torch.empty(total, dtype=torch.int32, device=self.device),
        )

        def arrays(keys, positions, colors, confidence, last_seen) -> list:
            return [
                wp.from_torch(keys),
                wp.from_torch(positions, dtype=wp.vec3),
                *(wp.from_torch(x) for x in (colors, confidence, last_seen)),
            ]

        run = launcher(self.device)
        old = arrays(*(x.contiguous() for x in (self.keys, self.positions, self.colors, self.confidence, self.last_seen)))
        w_out = arrays(*out)
        run(kernels.place_old, (len(self),), [wp.from_torch(shift), *old, *w_out])
        inputs = [wp.from_torch(row), wp.from_torch(known), wp.from_torch(keys.contiguous()), *new, MAX_CONFIDENCE, int(step), *w_out]
        run(kernels.place_new, (len(keys),), inputs)
        return PointMemory(self.voxel_size, *out, self.max_points)

    def bounded(self, step: int) -> PointMemory:
        """Drops the least confident and longest unseen points beyond `max_points`."""
        if len(self) <= self.max_points:
            return self
        worth = self.confidence / (1.0 + 0.1 * (step - self.last_seen).clamp(min=0).float())
        order = torch.argsort(worth, descending=True, stable=True)[: self.max_points]
        mask = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        mask[order] = True
        return self.keep(mask)

    def carve(
        self,
        depth: torch.Tensor,
        confidence: torch.Tensor,
        T_world_camera: torch.Tensor,
        camera: Camera,
        step: int,
        margin: float = 0.05,
        min_confidence: float = 0.5,
        strength: float = 1.0,
    ) -> PointMemory:
        """Free-space carving: a point that a confident new depth looks through loses confidence, and goes when none is left.

        depth (T, H, W) z-depth in metres, confidence (T, H, W) in 0..1, poses (T, 4, 4). A ray is known free up to the least depth of its
        3x3 neighbourhood, and only where all nine are at least `min_confidence` sure, less `margin` of the depth and two voxels. Each
        frame
        that looks
        through takes `strength` times its confidence.
        """
        if depth.shape != confidence.shape or depth.ndim != 3:
            raise ValueError(f"depth {tuple(depth.shape)} and confidence {tuple(confidence.shape)}; expected both (T, H, W)")
        if not len(self):
            return self
        sure = torch.where(confidence >= min_confidence, depth, torch.zeros_like(depth)).float()
        free = -highest_near(-sure, 1)
        lost = look_through(self.positions, self.radii, self.chunks, free, confidence.float(), T_world_camera, camera, margin)
        left = self.confidence - strength * lost
        hit = lost > 0
        if not bool(hit.any()):
            return self
        carved, gone = replace(self, confidence=left), hit & (left <= _GONE)
        return carved.keep(~gone) if bool(gone.any()) else carved

    def project(
        self,
        T_world_camera: torch.Tensor,
        camera: Camera,
        *,
        min_confidence: float = 0.0,
        style: SplatStyle | None = None,
        threads: int = 1,
    ) -> Projection:
        """The memory seen from poses (T, 4, 4): colours, depth, hole mask and the row of the front point.

        Points below `min_confidence` are left out.
        """
        drawn = self.confidence >= min_confidence if min_confidence > 0 else None
        return splat(
            self.positions,
            self.colors,
            T_world_camera,
            camera,
            self.radii,
            drawn=drawn,
            chunks=self.chunks if len(self) else None,
            style=style,
            threads=threads,
        )

    def in_view(self, T_world_camera: torch.Tensor, camera: Camera, near: float = 0.05) -> torch.Tensor:
        """(N,) bool: points in a chunk that some frame of the path may see. A quick, generous bound."""
        entries = visible_chunks(self.chunks, se3.inverse(T_world_camera), camera, near)
        chosen = torch.zeros(len(self.chunks.radii), dtype=torch.bool, device=self.device)
        chosen[entries[:, 1].long()] = True
        return chosen.repeat_interleave(self.chunks.starts.diff().long())

    def save_ply(self, path: str | Path) -> None:
        """Writes a binary PLY that any viewer opens and that `load_ply` reads back bit for bit."""
        from spatia_model.memory.ply import save_ply

        save_ply(self, path)

    @staticmethod
    def load_ply(path: str | Path, device: torch.device | str = "cpu") -> PointMemory:
        """Reads a memory that `save_ply` wrote. ValueError on a corrupt, truncated or foreign file."""
        from spatia_model.memory.ply import load_ply

        return load_ply(path, device)

    def _check_points(self, points: torch.Tensor, colors: torch.Tensor, confidence: torch.Tensor, footprint: torch.Tensor | None) -> None:
        n = points.shape[0]
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points have shape {tuple(points.shape)}; expected (N, 3)")
        if tuple(colors.shape) != (n, 3) or colors.dtype != torch.uint8:
            raise ValueError(f"colors are {tuple(colors.shape)} {colors.dtype}; expected ({n}, 3) uint8")
        if tuple(confidence.shape) != (n,):
            raise ValueError(f"confidence has shape {tuple(confidence.shape)}; expected ({n},), one value per point")
        if footprint is not None and tuple(footprint.shape) != (n,):
            raise ValueError(f"footprint has shape {tuple(footprint.shape)}; expected ({n},) metres, one per point")
        if not bool(torch.isfinite(points).all()):
            raise ValueError("points hold NaN or infinite values; drop them before fusing")
