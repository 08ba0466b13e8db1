"""Open country for perception: what it shows is where its bodies are, and cameras stand in the open."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.geometry.camera import camera_from_fov, pixel_rays
from spatia_model.worlds import FAR, landscapes
from spatia_model.worlds.landscapes import CLEAR, landscape, standpoint
from tests.spatia_model.worlds import reference

CAMERA = camera_from_fov(math.radians(75), 16, 16)
SEED = 2_000_300


def test_depth_is_that_of_the_bodies_large_spheres_too():
    world = landscape(SEED)
    pose = standpoint(world, np.random.default_rng(0))
    depth = world.render(pose[None], CAMERA, torch.zeros(1), supersample=1).depth[0].numpy().ravel()
    rays = pixel_rays(CAMERA).reshape(-1, 3).double().numpy() @ pose[:3, :3].numpy().T
    hit = depth < FAR - 1
    assert hit.sum() > 60
    on = np.abs(reference.static_sdf(world.tables, pose[:3, 3].numpy() + rays * depth[:, None]))[hit]
    assert np.median(on) < 1e-3 and on.max() < 0.02
    halfway = reference.static_sdf(world.tables, pose[:3, 3].numpy() + rays * depth[:, None] * 0.5)
    assert (halfway > 0).all()  # nothing was passed through


def test_cameras_stand_at_eye_level_in_the_open():
    worlds = [landscape(SEED + i) for i in range(4)]
    poses = torch.stack([standpoint(world, np.random.default_rng(i)) for i, world in enumerate(worlds)])
    assert bool(((poses[:, 1, 3] <= -0.9) & (poses[:, 1, 3] >= -1.8)).all())
    for world, pose in zip(worlds, poses, strict=True):
        assert float(world.static_sdf(pose[None, :3, 3])[0]) > CLEAR


def test_a_seed_is_one_landscape_and_seeds_differ():
    one, two, other = landscape(SEED), landscape(SEED), landscape(SEED + 1)
    assert np.array_equal(one.tables.prims, two.tables.prims) and np.array_equal(one.tables.env, two.tables.env)
    assert one.tables.prims.shape != other.tables.prims.shape or not np.array_equal(one.tables.prims, other.tables.prims)
    nouns = {thing.noun for i in range(12) for thing in landscape(SEED + i).things}
    assert {"ground", "hill", "tree", "house"} <= nouns


def test_where_no_camera_has_room_it_says_so(monkeypatch):
    monkeypatch.setattr(landscapes, "CLEAR", 100.0)
    with pytest.raises(RuntimeError, match="another seed"):
        standpoint(landscape(SEED), np.random.default_rng(0))
