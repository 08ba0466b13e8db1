"""What the world loop asks of perception, whoever answers: the embedded network, ground truth, or large models.

`Perceiver` is all that the loop knows. The large models come in two halves, because they are chosen apart: a
`GeometryPerceiver` says how far everything is, a `DynamicMasker` which of it moves (often asking an `EntityNamer` what to look
for). `composed.ComposedPerceiver` makes one `Perceiver` of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from spatia_model.types import Camera, Perception, Projection


@runtime_checkable
class Perceiver(Protocol):
    """Dense geometry and motion for frames whose poses are known."""

    def perceive(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor,
        camera: Camera,
        prior: Projection | None = None,
        previous: torch.Tensor | None = None,
    ) -> Perception:
        """Estimate depth, its confidence and what moves.

        Args:
            frames: (T, H, W, 3) uint8.
            T_world_camera: (T, 4, 4) float64; +y of the world is down (gravity).
            camera: intrinsics of the frames.
            prior: the memory rendered at those poses; it fixes the scale. None: the perceiver's own metric scale.
            previous: (T, H, W, 3) uint8, each frame's earlier frame as evidence of motion.

        Returns:
            A value for every pixel of every frame. Depth 0 or confidence 0 says "not known": such pixels are never mapped.
            A perceiver that only sees motion calls nothing dynamic without `prior` and `previous`: there is no evidence then.
            One that knows things by name (a person, a cow) may do so in a single picture.
        """
        ...


@dataclass(frozen=True)
class Geometry:
    """What a geometry perceiver says of T frames."""

    depth: torch.Tensor  # (T, H, W) float32 z-depth, metres, in the memory's scale where there is one; 0 for none
    confidence: torch.Tensor  # (T, H, W) float32 in 0..1; 0 where nothing is known
    T_world_camera: torch.Tensor  # (T, 4, 4) float64: as given, or estimated with the first camera as the world
    camera: Camera  # as given, or estimated
    scale: float  # by which the model's own metric depth was multiplied to meet the memory; 1 without one


@runtime_checkable
class GeometryPerceiver(Protocol):
    """Dense depth of several views of one place."""

    def estimate(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor | None = None,
        camera: Camera | None = None,
        prior: Projection | None = None,
        moving: torch.Tensor | None = None,
    ) -> Geometry:
        """Depth, confidence, and whatever of poses and intrinsics was not given.

        Args:
            frames: (T, H, W, 3) uint8 of one place at one time of the world.
            T_world_camera: (T, 4, 4) float64, or None to estimate them.
            camera: or None to estimate it.
            prior: the memory rendered at those poses; depth is scaled to agree with it.
            moving: (T, H, W) float32 in 0..1; pixels above a half do not take part in finding the scale.
        """
        ...


@runtime_checkable
class DynamicMasker(Protocol):
    """Which pixels belong to things that move."""

    def masks(self, frames: torch.Tensor) -> torch.Tensor:
        """Consecutive frames (T, H, W, 3) uint8 to the probability (T, H, W) float32 in 0..1 that a pixel moves, on the CPU."""
        ...


@runtime_checkable
class EntityNamer(Protocol):
    """Names of the things in frames that move or could."""

    def names(self, frames: torch.Tensor) -> tuple[str, ...]:
        """Frames (T, H, W, 3) uint8 to short noun phrases in English, each once, most certain first; empty for none."""
        ...
