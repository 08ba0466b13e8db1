"""A perceiver that reads the ground truth: separates the memory's own errors from perception's in experiments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from spatia_model.types import Camera, GroundTruth, Perception, Projection


class Renderable(Protocol):
    def render(self, T_world_camera: torch.Tensor, camera: Camera, times: torch.Tensor) -> GroundTruth: ...


class OraclePerceiver:
    """Depth and motion of `world` itself, at the times that `times` gives for the poses asked.

    Args:
        world: anything with `render(T_world_camera, camera, times)`.
        times: called with the number of frames asked for; returns their times (T,) in seconds.
    """

    def __init__(self, world: Renderable, times: Callable[[int], torch.Tensor]):
        self.world, self.times = world, times

    def perceive(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor,
        camera: Camera,
        prior: Projection | None = None,
        previous: torch.Tensor | None = None,
    ) -> Perception:
        truth = self.world.render(T_world_camera, camera, self.times(len(frames)))
        return Perception(truth.depth, torch.ones_like(truth.depth), truth.dynamic.float())
