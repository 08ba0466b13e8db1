"""The values that flow through the world model.

Everything here is a frozen dataclass of tensors: state is a value, a transition is a function, so keeping a
`WorldState` is a snapshot and using it twice is a branch.

Conventions (they hold in the whole project):

* Camera axes are OpenCV's: x right, y down, z forward. Poses are `T_world_camera` (4, 4) float64, camera to world.
* Lengths are metres, angles radians. `K` is the pixel 3x3 matrix; pixel (u, v) has its centre at (u + 0.5, v + 0.5).
* Frames are uint8 RGB (T, H, W, 3) outside the networks, float in [-1, 1] (B, C, T, H, W) inside.
* Depth is z-depth along the optical axis, in metres; 0 means "none".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from spatia_model.memory.entities import Entities
    from spatia_model.memory.point_memory import PointMemory
    from spatia_model.memory.references import KeyframeBank


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: intrinsics in pixels and the image size they belong to."""

    K: torch.Tensor  # (3, 3) float64, pixels
    width: int
    height: int


@dataclass(frozen=True)
class Projection:
    """The memory seen along a path (paper section 3.2: projection video and its hole mask)."""

    rgb: torch.Tensor  # (T, H, W, 3) uint8, black in holes
    depth: torch.Tensor  # (T, H, W) float32 z-depth in metres, 0 in holes
    mask: torch.Tensor  # (T, H, W) bool, True where the memory covers the pixel
    index: torch.Tensor  # (T, H, W) int32 row of the front point in the memory, -1 in holes
    alpha: torch.Tensor | None = None  # (T, H, W) uint8, 255 where points cover the pixel wholly; None: wholly wherever `mask` says so

    @property
    def coverage(self) -> float:
        """Share of pixels that the memory covers, over the whole path."""
        return float(self.mask.float().mean())


@dataclass(frozen=True)
class Perception:
    """What a perceiver says of frames: dense geometry and what moves."""

    depth: torch.Tensor  # (T, H, W) float32 z-depth in metres, in the memory's scale
    confidence: torch.Tensor  # (T, H, W) float32 in 0..1
    dynamic: torch.Tensor  # (T, H, W) float32 in 0..1, probability that the pixel moves


@dataclass(frozen=True)
class GroundTruth:
    """What a procedural world shows a camera."""

    rgb: torch.Tensor  # (T, H, W, 3) uint8
    depth: torch.Tensor  # (T, H, W) float32 z-depth in metres; sky is at the far plane
    dynamic: torch.Tensor  # (T, H, W) bool, True on moving objects


@dataclass(frozen=True)
class Conditioning:
    """Everything the generator is told about one clip, before encoding.

    The window is H history frames followed by T target frames; the projection covers both.
    """

    history: torch.Tensor  # (H, H_img, W_img, 3) uint8
    history_dynamic: torch.Tensor  # (H, H_img, W_img) float32, probability that the pixel moves
    projection: Projection  # H + T frames
    references: torch.Tensor  # (R, H_img, W_img, 3) uint8, R may be 0
    text: str
    T_world_camera: torch.Tensor  # (H + T, 4, 4) float64
    lora: float = 1.0  # share of the LoRA, where the generator has one
    entities: Projection | None = None  # T frames: what moves, where nothing hides it, to be drawn over what is generated; None: nothing


@dataclass(frozen=True)
class Clip:
    """One generated clip, as `WorldModel.advance` hands it out."""

    frames: torch.Tensor  # (T, H, W, 3) uint8
    T_world_camera: torch.Tensor  # (T, 4, 4) float64: the path as asked
    camera: Camera
    projection: Projection  # T frames: what the memory knew before the clip
    perception: Perception  # T frames
    references: tuple[int, ...]  # keyframe ids that were shown to the generator
    text: str
    latents: torch.Tensor | None = None  # (C, F, h, w) float32 that the frames were decoded from, where the tier hands them out

    @property
    def coverage(self) -> float:
        return self.projection.coverage


@dataclass(frozen=True)
class WorldState:
    """All that a world is between two clips. `save`/`load` live in `spatia_model.world_state`."""

    camera: Camera
    memory: PointMemory
    keyframes: KeyframeBank
    frames: torch.Tensor  # (H, h, w, 3) uint8, the last frames, oldest first
    frames_dynamic: torch.Tensor  # (H, h, w) float32
    frames_projection: Projection  # the memory along those frames, as the generator saw it
    T_world_camera: torch.Tensor  # (H, 4, 4) float64 poses of those frames
    prompt: str
    clip_count: int
    frame_count: int
    rng_state: torch.Tensor  # uint8 state of the CPU generator all noise is drawn from
    entities: Entities | None = None  # what moves, kept beside the memory; None: the tier leaves it to the generator
    surroundings: PointMemory | None = None  # what is taken to lie where the memory has no points; None: that, too, is left to it
    T_level_world: torch.Tensor | None = None  # (4, 4) float64: turns the world so that +y is down; None: it is
