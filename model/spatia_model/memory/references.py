"""Keyframes: past frames that show the generator what a place looked like, and how to pick them.

What a frame sees is a sorted set of coarse voxel keys of the memory's visible surface. Two views are alike by the intersection over union
of these sets (paper, section 3.2). `match_hungarian` is the release's variant: every target frame gets a history frame of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from spatia_model.geometry.visibility import sets_iou
from spatia_model.memory import voxel_keys
from spatia_model.memory.point_memory import PointMemory
from spatia_model.types import Projection

SURFACE_VOXEL = 0.12  # metres; coarse, so that two views of one wall share cells although their pixels differ
MAX_SURFACE = 4096  # cells kept per view
MAX_KEYFRAMES = 64


def surface_keys(points: torch.Tensor, levels: torch.Tensor | None = None, voxel_size: float = SURFACE_VOXEL) -> torch.Tensor:
    """Sorted distinct int64 keys (S,) of the coarse voxels that hold points (N, 3); voxels double in size with the points' levels (N,).

    A set over MAX_SURFACE is thinned by a hash of the key, the same way in every view, so that intersections stay meaningful.
    """
    if levels is None:
        levels = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    keys = torch.unique(voxel_keys.pack(points, levels, voxel_size))
    if len(keys) > MAX_SURFACE:
        mixed = (keys * -7046029254386353131) >> 20 & 0xFFFFFFFF  # Fibonacci hashing; the product wraps
        keys = keys[torch.sort(torch.argsort(mixed, stable=True)[:MAX_SURFACE]).values]
    return keys


def visible_surface(memory: PointMemory, projection: Projection, stride: int = 2) -> torch.Tensor:
    """Keys (S,) of the surface that a projection (T, H, W) of `memory` shows over all its frames. Every `stride`-th pixel is read."""
    index = projection.index[:, ::stride, ::stride]
    rows = torch.unique(index[index >= 0]).long()
    return surface_keys(memory.positions[rows], voxel_keys.levels_of(memory.keys[rows]))


@dataclass(frozen=True)
class Keyframe:
    """A past frame and what it saw."""

    id: int
    frame: torch.Tensor  # (H, W, 3) uint8
    T_world_camera: torch.Tensor  # (4, 4) float64
    visible: torch.Tensor  # (S,) int64 sorted: coarse voxels of the surface it saw


@dataclass(frozen=True)
class KeyframeBank:
    """A bounded set of keyframes, as a value. When it is full, the older frame of the two most alike views goes."""

    keyframes: tuple[Keyframe, ...] = ()
    max_keyframes: int = MAX_KEYFRAMES
    next_id: int = 0
    # (n, n) float64 IoU of every pair of views: follows from the keyframes, kept because it is slow to make
    similarity: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.max_keyframes < 2:
            raise ValueError(f"max_keyframes = {self.max_keyframes}; expected at least 2")
        n = len(self.keyframes)
        if self.similarity is None or tuple(self.similarity.shape) != (n, n):
            similarity = torch.zeros(n, n, dtype=torch.float64)
            for i in range(n):
                similarity[i, :i] = _similarities(self.keyframes[i].visible, self.keyframes[:i])
            object.__setattr__(self, "similarity", similarity + similarity.T)

    def __len__(self) -> int:
        return len(self.keyframes)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(k.id for k in self.keyframes)

    def add(self, frame: torch.Tensor, T_world_camera: torch.Tensor, visible: torch.Tensor) -> KeyframeBank:
        """A bank with one more keyframe, whose id is `next_id`. frame (H, W, 3) uint8, pose (4, 4), visible: sorted keys (S,)."""
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != torch.uint8:
            raise ValueError(f"frame is {tuple(frame.shape)} {frame.dtype}; expected (H, W, 3) uint8")
        if tuple(T_world_camera.shape) != (4, 4):
            raise ValueError(f"T_world_camera has shape {tuple(T_world_camera.shape)}; expected (4, 4)")
        if visible.ndim != 1 or visible.dtype != torch.int64:
            raise ValueError(f"visible is {tuple(visible.shape)} {visible.dtype}; expected sorted int64 keys (S,) from visible_surface")
        assert self.similarity is not None
        n = len(self.keyframes)
        similarity = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        similarity[:n, :n] = self.similarity
        similarity[n, :n] = similarity[:n, n] = _similarities(visible, self.keyframes)
        keyframes = (*self.keyframes, Keyframe(self.next_id, frame, T_world_camera, visible))
        if n + 1 > self.max_keyframes:
            # pairs (older, newer); the newest frame is always kept
            victim = int(similarity.triu(1).max(1).values[:n].argmax())
            keep = [i for i in range(n + 1) if i != victim]
            keyframes, similarity = tuple(keyframes[i] for i in keep), similarity[keep][:, keep]
        return replace(self, keyframes=keyframes, next_id=self.next_id + 1, similarity=similarity)

    def get(self, ids: tuple[int, ...] | list[int]) -> tuple[Keyframe, ...]:
        """Keyframes by id, in the order asked."""
        known = {k.id: k for k in self.keyframes}
        missing = [i for i in ids if i not in known]
        if missing:
            raise ValueError(f"no keyframe with id {missing}; the bank holds {sorted(known)}")
        return tuple(known[i] for i in ids)

    def frames(self, ids: tuple[int, ...] | list[int], height: int, width: int) -> torch.Tensor:
        """Frames (R, H, W, 3) uint8 by id; R may be 0, for which `height` and `width` give the shape."""
        chosen = self.get(ids)
        return torch.stack([k.frame for k in chosen]) if chosen else torch.zeros(0, height, width, 3, dtype=torch.uint8)


def _similarities(visible: torch.Tensor, keyframes: tuple[Keyframe, ...]) -> torch.Tensor:
    return torch.tensor([sets_iou(visible, k.visible) for k in keyframes], dtype=torch.float64)


def retrieve(
    bank: KeyframeBank, target_visible: torch.Tensor, k: int, threshold: float = 0.1, max_similarity: float = 0.9
) -> tuple[int, ...]:
    """Ids of at most `k` keyframes that saw most of the target's visible surface, best first.

    target_visible: sorted keys (S,) of `visible_surface` along the target path. A keyframe counts when its IoU with the target is at
    least `threshold`. Picks are diverse: one that is alike (IoU over `max_similarity`) to a picked one is passed over while there are
    others. Ties go to the
    newer frame.
    """
    if k < 0 or not 0 <= threshold <= 1:
        raise ValueError(f"k = {k}, threshold = {threshold}; expected k >= 0 and a threshold in 0..1")
    scored = [(sets_iou(frame.visible, target_visible), frame.id, frame) for frame in bank.keyframes]
    ranked = [frame for score, _, frame in sorted(scored, key=lambda s: (-s[0], -s[1])) if score >= threshold and score > 0]
    picked: list[Keyframe] = []
    for frame in ranked:
        if len(picked) < k and all(sets_iou(frame.visible, p.visible) <= max_similarity for p in picked):
            picked.append(frame)
    for frame in ranked:
        if len(picked) < k and all(frame.id != p.id for p in picked):
            picked.append(frame)
    return tuple(frame.id for frame in picked)


def match_hungarian(counts: torch.Tensor) -> tuple[int, ...]:
    """The release's matching: each target frame gets one distinct history frame, so that the shared points are most in sum.

    counts (targets, history): how many visible points two frames share (`visibility.overlap_counts`). Returns one history row per target,
    -1 for a target left over (more targets than history) or one whose match shares nothing.
    """
    from scipy.optimize import linear_sum_assignment

    if counts.ndim != 2:
        raise ValueError(f"counts have shape {tuple(counts.shape)}; expected (targets, history)")
    values = counts.cpu().double().numpy()
    rows, columns = linear_sum_assignment(values, maximize=True)
    chosen = [-1] * counts.shape[0]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if values[row, column] > 0:
            chosen[row] = column
    return tuple(chosen)


def match_frames(counts: torch.Tensor) -> tuple[int, ...]:
    """What the released code itself does with `counts` (targets, history): they are rounded to bfloat16, and every target takes part, also
    one that shares nothing with its frame. One history row per target, -1 for a target left over."""
    rounded = counts.to(torch.bfloat16).double()
    return match_hungarian(rounded + 1)  # one more everywhere moves no match, and leaves none at zero
