"""A nice place for the documentation and for `begin` without a picture."""

from __future__ import annotations

import math

import numpy as np
import torch

from spatia_model.geometry.camera import camera_from_fov
from spatia_model.worlds.world import World

SAMPLE_SEED = 2_000_008  # in the range kept for tests: nothing was trained on it


def sample_image(size: int = 512, supersample: int = 4) -> torch.Tensor:
    """The sample picture: uint8 (size, size, 3), a procedural place seen with a field of view of 75 degrees."""
    world, pose = sample_view()
    camera = camera_from_fov(math.radians(75.0), size, size)
    return world.render(pose[None], camera, torch.zeros(1), supersample=supersample).rgb[0]


def sample_view() -> tuple[World, torch.Tensor]:
    """The world of the sample picture and its T_world_camera (4, 4)."""
    world = World.generate(SAMPLE_SEED, kind="room", movers=1)
    return world, world.start_pose(np.random.default_rng([SAMPLE_SEED, 0]))
