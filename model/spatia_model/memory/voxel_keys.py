"""One int64 per voxel: level of detail and place, ordered so that near voxels are neighbours in a sorted list.

Bits, high to low: level (3), chunk x, y, z (16 each), cell x, y, z within the chunk (4 each). A voxel of level L has side
`voxel_size * 2**L`; a chunk is 16 voxels wide. Coordinates reach 2**19 voxels from the origin (15 km at 3 cm) and are clamped there.
"""

from __future__ import annotations

import torch

LEVELS = 8
CHUNK_SHIFT = 12  # key >> CHUNK_SHIFT names the chunk
CHUNK_CELLS = 16
_HALF = 1 << 19


def levels_for(footprint: torch.Tensor, voxel_size: float) -> torch.Tensor:
    """(N,) int64: the coarsest level whose voxel is not larger than a point's footprint (N,) in metres (0 for fine points)."""
    return torch.log2((footprint / voxel_size).clamp(min=1.0)).floor().long().clamp(max=LEVELS - 1)


def pack(points: torch.Tensor, levels: torch.Tensor, voxel_size: float) -> torch.Tensor:
    """(N,) int64 keys of points (N, 3) at levels (N,)."""
    side = voxel_size * torch.pow(2.0, levels.double())
    grid = (points.double() / side[:, None]).floor().clamp(-_HALF, _HALF - 1).long() + _HALF
    chunk, cell = grid >> 4, grid & 15
    key = levels.long() << 60 | chunk[:, 0] << 44 | chunk[:, 1] << 28 | chunk[:, 2] << CHUNK_SHIFT
    return key | cell[:, 0] << 8 | cell[:, 1] << 4 | cell[:, 2]


def levels_of(keys: torch.Tensor) -> torch.Tensor:
    """(N,) int64 levels of keys (N,)."""
    return keys >> 60


def sides_of(keys: torch.Tensor, voxel_size: float) -> torch.Tensor:
    """(N,) float32 side lengths in metres of the voxels."""
    return (voxel_size * torch.pow(2.0, levels_of(keys).float())).float()


def chunk_bounds(chunk_keys: torch.Tensor, voxel_size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (C, 3) and radii (C,) float32 of the spheres around chunks named `key >> CHUNK_SHIFT`."""
    side = voxel_size * CHUNK_CELLS * torch.pow(2.0, (chunk_keys >> 48).double())
    grid = torch.stack([chunk_keys >> 32 & 0xFFFF, chunk_keys >> 16 & 0xFFFF, chunk_keys & 0xFFFF], 1) - (_HALF >> 4)
    centres = (grid.double() + 0.5) * side[:, None]
    return centres.float(), (side * 0.5 * 3**0.5).float()
