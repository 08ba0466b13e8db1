"""What the world loops of both tiers share: paths that can be walked, projections put together, generators from their states."""

from __future__ import annotations

from typing import Any

import torch

from spatia_model.geometry import se3
from spatia_model.geometry.pictures import fit_image
from spatia_model.types import Camera, Projection


def checked_path(path: Any, frames: int) -> torch.Tensor:
    """A copy (frames, 4, 4) float64 of T_world_camera, rotations put right by a hair; ValueError says why it can't be walked."""
    try:
        path = torch.as_tensor(path, dtype=torch.float64).clone()  # the caller may go on using its own
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the path must be numbers, T_world_camera ({frames}, 4, 4), got {type(path).__name__}: {error}") from error
    if path.shape != (frames, 4, 4):
        raise ValueError(f"the path must be T_world_camera ({frames}, 4, 4), one pose per new frame, got {tuple(path.shape)}")
    if not torch.isfinite(path).all():
        raise ValueError("the path holds NaN or infinite numbers: give finite poses")
    if not torch.equal(path[:, 3], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(frames, 4)):
        raise ValueError("the last row of every pose must be 0 0 0 1: give T_world_camera, column vectors, not transposed")
    R = path[:, :3, :3]
    error = (R @ R.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().max()
    if error > 1e-3 or (torch.linalg.det(R) < 0).any():
        raise ValueError(f"the path holds poses that are not rotations (off by {float(error):.2g}, or mirrored): orthonormalise them")
    return se3.orthonormalise(path) if error > 1e-9 else path


def fitted(frames: Any, size: int | tuple[int, int]) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 of any size, their middle at `size` (side, or height and width); ValueError says what they should be."""
    given = f"{frames.dtype} {tuple(frames.shape)}" if isinstance(frames, torch.Tensor) else type(frames).__name__
    if not isinstance(frames, torch.Tensor) or frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be a uint8 tensor (T, H, W, 3), one or more frames, got {given}")
    return torch.stack([fit_image(frame, size) for frame in frames])


def guessed_level(perceiver: Any, frame: torch.Tensor, camera: Camera) -> torch.Tensor | None:
    """T_level_world (4, 4) of a world whose first camera is its origin: what the perceiver takes that camera's pitch to be.

    None when it has no view (it has no `pitch_of`) or takes it for level.
    """
    guess = getattr(perceiver, "pitch_of", None)
    pitch = 0.0 if guess is None else guess(frame, camera)
    return se3.exp(torch.tensor([0, 0, 0, pitch, 0, 0], dtype=torch.float64)) if pitch else None


def levelled(path: torch.Tensor, T_level_world: torch.Tensor | None) -> torch.Tensor:
    """T_world_camera (T, 4, 4) in a frame whose +y is down."""
    return path if T_level_world is None else T_level_world @ path


def generator_of(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def empty_projection(frames: int, camera: Camera) -> Projection:
    shape = (frames, camera.height, camera.width)
    return Projection(
        torch.zeros(*shape, 3, dtype=torch.uint8),
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.bool),
        torch.full(shape, -1, dtype=torch.int32),
    )


def select(projection: Projection, rows: list[int]) -> Projection:
    return Projection(projection.rgb[rows], projection.depth[rows], projection.mask[rows], projection.index[rows])


def concatenate(a: Projection, b: Projection) -> Projection:
    return Projection(*(torch.cat([getattr(a, n), getattr(b, n)]) for n in ("rgb", "depth", "mask", "index")))
