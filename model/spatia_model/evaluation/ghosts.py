"""Ghosts: points in the memory where the true world has no surface."""

from __future__ import annotations

import math

import torch

from spatia_model.memory import voxel_keys
from spatia_model.memory.point_memory import PointMemory
from spatia_model.worlds import FAR, World

SKY = 0.8 * FAR  # metres from the origin: no place reaches so far, so in a courtyard such points stand for the sky


def _judged(memory: PointMemory, world: World, min_confidence: float) -> torch.Tensor:
    """(N,) bool: points that are drawn and do not stand for the sky."""
    judged = memory.confidence >= min_confidence
    if world.kind == "courtyard":
        judged = judged & (memory.positions.norm(dim=-1) < SKY)
    return judged


def ghosts(memory: PointMemory, world: World, voxels: float = 2.0) -> torch.Tensor:
    """(N,) bool: points farther than `voxels` of their own voxel's size from every static surface of the world."""
    if not len(memory):
        return torch.zeros(0, dtype=torch.bool)
    size = voxel_keys.sides_of(memory.keys, memory.voxel_size)
    return world.static_distance(memory.positions) > voxels * size


def ghost_rate(memory: PointMemory, world: World, min_confidence: float = 0.0) -> float:
    """Share of the memory's points, from `min_confidence` on, that are `ghosts`. NaN for an empty memory.

    A wrong depth, a wrong scale, a hallucinated wall and what a mover left behind all count: the truth has no surface there.
    """
    judged = _judged(memory, world, min_confidence)
    return float(ghosts(memory, world)[judged].float().mean()) if bool(judged.any()) else math.nan


def mover_ghost_rate(memory: PointMemory, world: World, times: torch.Tensor, min_confidence: float = 0.0) -> float:
    """Share of the points that are ghosts and lie where a mover was at one of `times` (T,) seconds: what movers left behind."""
    judged = _judged(memory, world, min_confidence)
    if not bool(judged.any()):
        return math.nan
    suspects = ghosts(memory, world) & judged
    points = memory.positions[suspects]
    if not len(points) or not world.movers:
        return 0.0
    size = voxel_keys.sides_of(memory.keys[suspects], memory.voxel_size)
    left = torch.zeros(len(points), dtype=torch.bool)
    for mover in world.movers:
        gap = torch.cdist(points.double(), mover.position(times).double()).amin(1)
        left |= gap < mover.bounding_radius + 2 * size
    return float(left.sum() / judged.sum())
