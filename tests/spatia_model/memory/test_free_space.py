"""A new point in front of what an earlier view showed is refused; one behind, beside or at the surface is not."""

import math

import torch

from spatia_model.geometry.camera import camera_from_fov, pixel_rays
from spatia_model.memory.free_space import blocks_view
from spatia_model.memory.point_memory import PointMemory

CAMERA = camera_from_fov(math.radians(75), 32, 32)
EYE = torch.eye(4, dtype=torch.float64)[None]


def wall(depth: float) -> PointMemory:
    points = (pixel_rays(CAMERA) * depth).reshape(-1, 3)
    colours = torch.full((len(points), 3), 128, dtype=torch.uint8)
    footprint = torch.full((len(points),), depth / float(CAMERA.K[0, 0]))
    return PointMemory.empty(0.03).fuse(points, colours, torch.ones(len(points)), 0, footprint)


def test_only_points_before_the_known_surface_block():
    memory, everywhere = wall(4.0), torch.ones(1, 32, 32, dtype=torch.bool)
    known = memory.project(EYE, CAMERA).depth
    for depth in (2.0, 3.5, 4.0, 6.0):
        new = torch.full((1, 32, 32), depth)
        blocked = blocks_view(memory, EYE, new, EYE, CAMERA, everywhere)
        assert torch.equal(blocked, (known > 0) & (new < known * 0.95))
    assert blocks_view(memory, EYE, torch.full((1, 32, 32), 2.0), EYE, CAMERA, everywhere).float().mean() > 0.95


def test_only_candidates_count_and_points_out_of_view_are_free():
    memory, new = wall(4.0), torch.full((1, 32, 32), 2.0)
    half = torch.zeros(1, 32, 32, dtype=torch.bool)
    half[..., :16] = True
    assert not blocks_view(memory, EYE, new, EYE, CAMERA, half)[..., 16:].any()
    turned = EYE.clone()
    turned[0, 0, 0] = turned[0, 2, 2] = -1  # looks the other way
    assert not blocks_view(memory, EYE, new, turned, CAMERA, torch.ones_like(half)).any()
    assert not blocks_view(PointMemory.empty(0.03), EYE, new, EYE, CAMERA, half).any()
