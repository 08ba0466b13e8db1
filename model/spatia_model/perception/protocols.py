"""What the world loop asks of perception, whoever answers: the embedded network, ground truth, or large models."""

from __future__ import annotations

from typing import Protocol

import torch

from spatia_model.types import Camera, Perception, Projection


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
            previous: (T, H, W, 3) uint8, each frame's earlier frame as evidence of motion. With neither `prior` nor
                `previous` there is no evidence, and nothing may be called dynamic.
        """
        ...
