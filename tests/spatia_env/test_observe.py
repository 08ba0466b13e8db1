"""What an env passes on to its world: recordings, against the world model told the same; and motions, level where the world is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from spatia_env import SpatiaEnv, SpatiaNavEnv
from spatia_env.truth import SpatiaTruthEnv
from spatia_model.worlds.trajectories import pose_from
from tests.conftest import needs_weights

STEP = {"camera": np.array([0, 0, 0.5, 0, 0.5, 0], np.float32), "text": ""}


@pytest.fixture(scope="module")
def model():
    from spatia_model.world_model import WorldModel

    return WorldModel.from_pretrained("spatia-mini")


def recorded(steps: int = 2):
    """Frames and poses of a walk through a true world, the first picture's camera at the origin."""
    env = SpatiaTruthEnv(world=2_000_008)
    first, info = env.reset(seed=0)
    frames, poses = [first[None]], [info["poses"][-1:]]
    for _ in range(steps):
        info = env.step(STEP)[4]
        frames.append(info["frames"])
        poses.append(info["poses"])
    path = np.concatenate(poses)
    return np.concatenate(frames), np.linalg.inv(path[0]) @ path


@pytest.mark.weights
@needs_weights
def test_a_recording_becomes_the_worlds_past_as_it_does_in_the_world_model(model):
    frames, poses = recorded()
    env = SpatiaEnv(image=frames[0], model=model, render_mode="rgb_array_list")
    env.reset(seed=3)
    before, random = len(env.memory), env.np_random.bit_generator.state
    plain = env.state
    observation, info = env.observe(frames[1:], poses[1:], "a red ball rolls")
    expected, clip = model.observe(plain, torch.from_numpy(frames[1:]), torch.from_numpy(poses[1:]), "a red ball rolls")
    np.testing.assert_array_equal(observation, frames[-1])
    np.testing.assert_array_equal(info["frames"], frames[1:])
    np.testing.assert_allclose(info["poses"], poses[1:])
    assert info["coverage"] == clip.coverage and info["memory_points"] == len(env.memory) == len(expected.memory) > before
    torch.testing.assert_close(env.memory.positions, expected.memory.positions, rtol=0, atol=0)
    np.testing.assert_allclose(env.pose, poses[-1])
    assert env.np_random.bit_generator.state == random and len(env.render()) == len(frames)
    # what is walked from here is walked from the recording's end, and knows what it showed
    _, _, _, _, info = env.step({"camera": np.array([0, 0, -0.5, 0, 0, 0], np.float32), "text": ""})
    assert info["coverage"] > 0.8
    back = np.eye(4)
    back[2, 3] = -0.25
    np.testing.assert_allclose(info["poses"][-1], poses[-1] @ back, atol=1e-6)


@pytest.mark.weights
@needs_weights
def test_no_step_is_counted_and_tasks_tell_what_they_told(model):
    frames, poses = recorded(1)
    env = SpatiaNavEnv(image=frames[0], model=model, task="explore", max_steps=1)
    first, told = env.reset(seed=0)
    observation, info = env.observe(frames[1:], poses[1:])
    assert set(info) == set(told) and type(observation) is type(first)
    assert env.step(5)[3] is True  # the first of one step
    with pytest.raises(ResetNeeded, match="observe"):
        env.observe(frames[1:], poses[1:])


def test_what_is_no_recording_is_refused_and_changes_nothing(fake, picture):
    env = SpatiaEnv(image=picture, model=fake)
    with pytest.raises(ResetNeeded, match="observe"):
        env.observe(picture[None], np.eye(4)[None])
    env.reset(seed=0)
    before = env.state
    for frames, poses, message in (
        (picture, np.eye(4)[None], "frames"),
        (picture[None].astype(float), np.eye(4)[None], "frames"),
        (picture[None][:0], np.eye(4)[None][:0], "frames"),
        (picture[None], np.eye(4), "poses"),
        (picture[None], np.stack([np.eye(4)] * 2), "poses"),
        (picture[None], np.full((1, 4, 4), "x"), "poses"),
    ):
        with pytest.raises(ValueError, match=message):
            env.observe(frames, poses)
    assert env.state is before


@pytest.mark.weights
@needs_weights
def test_poses_that_are_no_poses_are_the_worlds_to_refuse(model):
    frames, poses = recorded(1)
    env = SpatiaEnv(image=frames[0], model=model)
    env.reset(seed=0)
    before = env.state
    with pytest.raises(ValueError, match="T_world_camera|path|finite"):
        env.observe(frames[1:], poses[1:] * np.nan)
    assert env.state is before


@pytest.mark.parametrize("env_class", [SpatiaNavEnv, SpatiaEnv])
def test_level_motions_are_level_where_the_first_picture_was_tilted(env_class, fake, picture):
    env = env_class(image=picture, model=fake)
    env.reset(seed=0)
    turn = pose_from(0, 0, 0, 0, -0.4, 0)  # it looked down
    env._episode = replace(env._episode, state=replace(env.state, T_level_world=turn))
    path = env.step(0 if env_class is SpatiaNavEnv else STEP)[4]["poses"]
    fallen = (turn.numpy() @ path)[:, 1, 3]
    if env_class is SpatiaNavEnv:
        np.testing.assert_allclose(fallen, 0, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(path[-1, :3, 3]), 0.25, atol=1e-6)
    else:  # the camera's own axes: nothing has changed
        env.reset(seed=0)
        np.testing.assert_allclose(path, env.step(STEP)[4]["poses"], atol=1e-9)
        assert fallen[-1] > 0.05
