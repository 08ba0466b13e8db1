"""Editing the memory: what is changed here is what the next clip shows. Every function returns a new memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from spatia_model.geometry import se3
from spatia_model.memory import voxel_keys
from spatia_model.memory.point_memory import MAX_CONFIDENCE, PointMemory

Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # (lowest corner, highest corner) in world metres


def in_box(memory: PointMemory, box: Box) -> torch.Tensor:
    """(N,) bool: points inside an axis-aligned box, borders included."""
    corners = torch.as_tensor(box, dtype=torch.float32, device=memory.device)
    if tuple(corners.shape) != (2, 3) or not bool(torch.isfinite(corners).all()) or bool((corners[0] > corners[1]).any()):
        raise ValueError(f"box = {box}; expected ((x0, y0, z0), (x1, y1, z1)) in metres with the lowest corner first")
    return ((memory.positions >= corners[0]) & (memory.positions <= corners[1])).all(1)


def remove_in_box(memory: PointMemory, box: Box) -> PointMemory:
    """Takes away what is in the box."""
    return memory.keep(~in_box(memory, box))


def recolour(memory: PointMemory, box: Box, color: tuple[int, int, int], strength: float = 1.0) -> PointMemory:
    """Paints what is in the box. The points keep their own light and shade: `color` replaces the hue, scaled by each point's
    brightness against the mean in the box. `strength` in 0..1 mixes with the old colour."""
    target = torch.as_tensor(color, dtype=torch.float32, device=memory.device)
    if tuple(target.shape) != (3,) or bool((target < 0).any()) or bool((target > 255).any()):
        raise ValueError(f"color = {color}; expected (red, green, blue) in 0..255")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength = {strength}; expected 0..1")
    inside = in_box(memory, box)
    old = memory.colors[inside].float()
    if not len(old):
        return memory
    light = old.mean(1, keepdim=True)
    new = target * (light / light.mean().clamp(min=1.0))
    colors = memory.colors.clone()
    colors[inside] = (old + strength * (new - old)).round().clamp(0, 255).to(torch.uint8)
    return replace(memory, colors=colors)


def move(memory: PointMemory, box: Box, T_new_old: torch.Tensor, step: int = 0) -> PointMemory:
    """Moves what is in the box by a rigid motion (4, 4) of world coordinates; where it lands, it replaces what was in the same voxels."""
    if tuple(T_new_old.shape) != (4, 4):
        raise ValueError(f"T_new_old has shape {tuple(T_new_old.shape)}; expected (4, 4)")
    inside = in_box(memory, box)
    positions = se3.transform_points(T_new_old.to(memory.device), memory.positions[inside].double()).float()
    rest = memory.keep(~inside)
    return _insert(rest, positions, memory.colors[inside], memory.confidence[inside], voxel_keys.levels_of(memory.keys[inside]), step)


def add_points(
    memory: PointMemory, points: torch.Tensor, colors: torch.Tensor, step: int = 0, confidence: float = MAX_CONFIDENCE
) -> PointMemory:
    """Adds points (N, 3) float32 with colors (N, 3) uint8 at the finest level; they replace what was in the same voxels."""
    if points.ndim != 2 or points.shape[1] != 3 or tuple(colors.shape) != tuple(points.shape) or colors.dtype != torch.uint8:
        raise ValueError(f"points {tuple(points.shape)} and colors {tuple(colors.shape)} {colors.dtype}; expected (N, 3) and (N, 3) uint8")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("points hold NaN or infinite values")
    if not 0 < confidence <= MAX_CONFIDENCE:
        raise ValueError(f"confidence = {confidence}; expected above 0 and at most {MAX_CONFIDENCE}")
    n = len(points)
    levels = torch.zeros(n, dtype=torch.int64, device=memory.device)
    sure = torch.full((n,), float(confidence), device=memory.device)
    return _insert(memory, points.float().to(memory.device), colors.to(memory.device), sure, levels, step)


def _insert(
    memory: PointMemory, points: torch.Tensor, colors: torch.Tensor, confidence: torch.Tensor, levels: torch.Tensor, step: int
) -> PointMemory:
    keys = voxel_keys.pack(points, levels, memory.voxel_size)
    all_keys = torch.cat([keys, memory.keys])
    order = torch.argsort(all_keys, stable=True)  # the inserted come first among equals
    sorted_keys = all_keys[order]
    first = torch.ones(len(order), dtype=torch.bool, device=memory.device)
    first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    rows = order[first]
    seen = torch.full((len(points),), int(step), dtype=torch.int32, device=memory.device)
    merged = replace(
        memory,
        keys=all_keys[rows],
        positions=torch.cat([points, memory.positions])[rows],
        colors=torch.cat([colors, memory.colors])[rows],
        confidence=torch.cat([confidence, memory.confidence])[rows],
        last_seen=torch.cat([seen, memory.last_seen])[rows],
    )
    return merged.bounded(step)
