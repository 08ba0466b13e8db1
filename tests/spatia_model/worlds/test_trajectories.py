"""Camera paths: clear of things, made of clips an agent could ask for, back where they began."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.geometry import se3
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import out_and_back, pose_from, sample_path, yaw_pitch_roll


@pytest.fixture(scope="module", params=["room", "courtyard"])
def world(request: pytest.FixtureRequest) -> World:
    return World.generate(2_000_400, kind=request.param, movers=2)


def check_clips(path: torch.Tensor, frames: int) -> torch.Tensor:
    """Every clip is one constant twist within the limits; returns the clips' twists."""
    ends = path[::frames]
    twists = se3.log(se3.inverse(ends[:-1]) @ ends[1:])
    assert float(twists[:, :3].norm(dim=-1).max()) <= 0.5 + 1e-6
    assert float(twists[:, 3:].norm(dim=-1).max()) <= math.radians(30) + 1e-6
    for c in range(len(twists)):
        for k in range(1, frames + 1):
            assert torch.allclose(path[c * frames + k], ends[c] @ se3.exp(twists[c] * (k / frames)), atol=1e-9)
    return twists


def test_walks_are_clear_and_made_of_twists(world: World) -> None:
    moved = turned = 0.0
    for seed in range(4):
        path = sample_path(world, np.random.default_rng(seed), 6)
        assert path.shape == (49, 4, 4) and path.dtype == torch.float64
        assert bool(world.is_free(path[:, :3, 3], 0.29).all())
        twists = check_clips(path, 8)
        moved += float(twists[:, :3].norm(dim=-1).mean())
        turned += float(twists[:, 3:].norm(dim=-1).mean())
        for mover in world.movers:
            gap = (path[:, :3, 3] - mover.position(torch.arange(49) / 8).double()).norm(dim=-1)
            assert float(gap[1:].min()) > mover.radius + 0.2
        assert all(abs(yaw_pitch_roll(p)[2]) < 0.12 and abs(yaw_pitch_roll(p)[1]) < 0.4 for p in path)
    assert moved > 0.2 and turned > 0.2  # they do walk and turn
    assert torch.equal(sample_path(world, np.random.default_rng(3), 2), sample_path(world, np.random.default_rng(3), 2))


def test_a_walk_starts_where_it_is_told(world: World) -> None:
    start = world.start_pose(np.random.default_rng(1))
    path = sample_path(world, np.random.default_rng(2), 2, frames_per_clip=4, start=start)
    assert path.shape == (9, 4, 4) and torch.equal(path[0], start)
    assert torch.equal(sample_path(world, np.random.default_rng(2), 0, start=start), start[None])


@pytest.mark.parametrize("clips", [2, 5, 6])
def test_out_and_back_returns_exactly(world: World, clips: int) -> None:
    path = out_and_back(world, np.random.default_rng(clips), clips)
    assert path.shape == (1 + 8 * clips, 4, 4)
    assert torch.equal(path[0], path[-1])
    check_clips(path, 8)
    assert bool(world.is_free(path[:, :3, 3], 0.29).all())
    away = float(se3.rotation_angle(path[0, :3, :3].T @ path[8 * (clips // 2), :3, :3]))
    assert math.radians(25) < away < math.radians(97)


def test_pose_from_and_back() -> None:
    for yaw, pitch, roll in [(0.0, 0.0, 0.0), (1.0, 0.3, -0.1), (-2.5, -0.4, 0.2)]:
        pose = pose_from(1.0, -1.4, 2.0, yaw, pitch, roll)
        assert np.allclose(yaw_pitch_roll(pose), (yaw, pitch, roll))
        assert torch.allclose(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3, dtype=torch.float64))
    forward = pose_from(0, 0, 0, math.pi / 2, 0, 0)[:3, 2]
    assert torch.allclose(forward, torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-12)  # yaw turns right
    assert float(pose_from(0, 0, 0, 0, 0.3, 0)[1, 2]) < 0  # pitch looks up, and up is -y


def test_refusals(world: World) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="clips"):
        sample_path(world, rng, -1)
    with pytest.raises(ValueError, match="frames_per_clip"):
        sample_path(world, rng, 1, frames_per_clip=0)
    with pytest.raises(ValueError, match="max_translation"):
        sample_path(world, rng, 1, max_translation=0.0)
    with pytest.raises(ValueError, match="clips"):
        out_and_back(world, rng, 1)
