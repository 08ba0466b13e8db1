"""Presets: what a tier's numbers are. One dataclass per thing, a bad combination is refused with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spatia_model.geometry.camera import camera_from_fov
from spatia_model.types import Camera

FRAME_RATE = 8.0  # frames per second of procedural worlds and of the embedded tier


@dataclass(frozen=True)
class MiniConfig:
    """The embedded tier's window and memory: `history_frames` known frames, then `frames_per_clip` new ones.

    Args:
        image_size: side of the square frames, pixels.
        fov_x: horizontal field of view, radians, assumed of pictures that come without intrinsics.
        frames_per_clip: new frames per step, a multiple of 4.
        history_frames: frames that the generator is shown, 1 + 4k.
        max_references: K, the most reference frames shown (paper: 7; MINI.md: 3).
        reference_threshold: epsilon, least IoU of visible surface for a reference.
        voxel_size: metres, the map's finest cell.
        steps: sampler steps.
        guidance: text guidance scale; 1 is none and halves the work.
        motion_gap: frames between a frame and the earlier one that perception compares it with.
    """

    image_size: int = 128
    fov_x: float = math.radians(75)
    frames_per_clip: int = 8
    history_frames: int = 5
    max_references: int = 3
    reference_threshold: float = 0.04
    voxel_size: float = 0.03
    steps: int = 4
    guidance: float = 1.0
    motion_gap: int = 2

    def __post_init__(self) -> None:
        if self.frames_per_clip < 4 or self.frames_per_clip % 4:
            raise ValueError(f"frames_per_clip must be a positive multiple of 4 (the VAE's temporal factor), got {self.frames_per_clip}")
        if self.history_frames < 1 or (self.history_frames - 1) % 4:
            raise ValueError(f"history_frames must be 1 + 4k, got {self.history_frames}")
        if not 0 < self.fov_x < math.pi:
            raise ValueError(f"fov_x is an angle in radians between 0 and pi, got {self.fov_x}")
        if self.motion_gap < 1 or self.motion_gap >= self.history_frames:
            raise ValueError(f"motion_gap must be between 1 and history_frames - 1, got {self.motion_gap}")
        if self.steps < 1 or self.steps > 1000:
            raise ValueError(f"steps must be between 1 and 1000, got {self.steps}")

    @property
    def window(self) -> int:
        return self.history_frames + self.frames_per_clip


def mini_camera(config: MiniConfig) -> Camera:
    """The camera of the embedded tier's square frames."""
    return camera_from_fov(config.fov_x, config.image_size, config.image_size)
