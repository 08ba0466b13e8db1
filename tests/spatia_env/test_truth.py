"""SpatiaTruth-v0: the spaces of Spatia-v0, frames from a ground-truth world. Worlds are small pictures here, for speed."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence

import spatia_env

SEED = 2_000_101
SMALL = {"world": SEED, "image_size": 32, "supersample": 1}
STAY = {"camera": np.zeros(6, np.float32), "text": ""}


def move(right=0.0, down=0.0, forward=0.0, pitch=0.0, yaw=0.0, roll=0.0):
    return {"camera": np.array([right, down, forward, pitch, yaw, roll], np.float32), "text": ""}


@pytest.fixture(scope="module")
def env():
    env = gym.make("SpatiaTruth-v0", **SMALL)
    yield env
    env.close()


@pytest.mark.parametrize("discrete", [False, True])
def test_check_env_with_every_render_mode(discrete):
    env = gym.make("SpatiaTruth-v0", **SMALL, discrete=discrete, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_spaces_are_those_of_the_generated_envs(fake):
    truth = gym.make("SpatiaTruth-v0", image_size=fake.config.image_size)
    generated = gym.make("Spatia-v0", model=fake, image=np.zeros((40, 40, 3), np.uint8))
    assert truth.action_space == generated.action_space
    assert truth.observation_space == generated.observation_space
    discrete = gym.make("SpatiaTruth-v0", discrete=True)
    assert discrete.action_space == gym.make("SpatiaNav-v0", model=fake, image=np.zeros((40, 40, 3), np.uint8)).action_space


def test_seeded_twins_are_equal():
    def rollout(seed):
        env = gym.make("SpatiaTruth-v0", image_size=32, supersample=1)  # the world is drawn too
        seen = [env.reset(seed=seed)]
        return [*seen, *(env.step(move(forward=0.5, yaw=0.5)) for _ in range(2))]

    one, two, other = rollout(3), rollout(3), rollout(4)
    assert data_equivalence(one, two, exact=True)
    assert one[0][1]["world"] != other[0][1]["world"]


def test_frames_depth_and_mask_are_those_of_the_world(env):
    """An independent look at the same world from the poses in info."""
    from spatia_model.config import FRAME_RATE
    from spatia_model.worlds import World

    env.reset(seed=0)
    _, _, _, _, info = env.step(move(yaw=0.6))
    _, _, _, _, info = env.step(move(forward=0.1, yaw=0.2))
    world = World.generate(SEED)
    times = torch.arange(9, 17, dtype=torch.float64) / FRAME_RATE  # one frame at reset, eight in the first clip
    truth = world.render(torch.from_numpy(info["poses"]), env.unwrapped.state.camera, times, supersample=1)
    np.testing.assert_array_equal(info["frames"], truth.rgb.numpy())
    np.testing.assert_array_equal(info["depth"], truth.depth.numpy())
    np.testing.assert_array_equal(info["dynamic"], truth.dynamic.numpy())
    assert info["world"] == SEED


def test_drawn_worlds_stay_in_the_training_range():
    env = gym.make("SpatiaTruth-v0", image_size=16, supersample=1)
    for seed in range(4):
        assert 0 <= env.reset(seed=seed)[1]["world"] < 1_000_000


def test_reset_options_choose_the_world(env):
    first = env.reset(seed=0)[1]
    other = env.reset(seed=0, options={"world": SEED + 1})[1]
    assert (first["world"], other["world"]) == (SEED, SEED + 1)
    assert not np.array_equal(first["frames"], other["frames"])
    np.testing.assert_array_equal(env.reset(seed=0)[1]["frames"], first["frames"])


def test_the_memory_covers_what_was_seen(env):
    env.reset(seed=0)
    _, _, _, _, stay = env.step(STAY)
    assert stay["coverage"] > 0.5  # the same view again, sky and movers aside
    env.reset(seed=0)
    for _ in range(6):
        _, _, _, _, away = env.step(move(yaw=1.0))
    assert away["coverage"] < stay["coverage"] or away["memory_points"] > stay["memory_points"]


def test_solid_worlds_stop_the_camera_and_others_do_not():
    ends = {}
    for solid in (True, False):
        env = gym.make("SpatiaTruth-v0", **SMALL, solid=solid)
        _, info = env.reset(seed=0)
        start = info["poses"][-1]
        for _ in range(40):
            _, _, _, _, info = env.step(move(forward=1.0))
            if solid:
                position = torch.from_numpy(info["poses"][:, :3, 3])
                assert bool(env.unwrapped.world.world(SEED, None, None).is_free(position, 0.19).all())
        ends[solid] = np.linalg.norm(info["poses"][-1][:3, 3] - start[:3, 3])
    assert ends[False] == pytest.approx(20.0)
    assert ends[True] < 15


def test_snapshot_and_save_give_the_same_future(env, tmp_path):
    env.reset(seed=0)
    env.step(move(yaw=0.5))
    mark = env.unwrapped.snapshot()
    folder = env.unwrapped.save(tmp_path / "episode")
    expected = env.step(move(forward=0.2))
    env.unwrapped.restore(mark)
    assert data_equivalence(env.step(move(forward=0.2)), expected, exact=True)
    other = spatia_env.SpatiaTruthEnv(**SMALL)
    observation, info = other.load(folder)
    np.testing.assert_array_equal(observation, mark.episode.state.frames[-1].numpy())
    assert data_equivalence(other.step(move(forward=0.2)), expected, exact=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world": -1}, "seed of a world"),
        ({"world": "kitchen"}, "seed of a world"),
        ({"world": True}, "seed of a world"),
        ({"kind": "castle"}, "room"),
        ({"movers": 4}, "0 to 3"),
        ({"image_size": 4}, "16 to 1024"),
        ({"supersample": 0}, "1 to 4"),
        ({"solid": "yes"}, "True or False"),
        ({"discrete": 1}, "True or False"),
        ({"max_translation": float("nan")}, "metres per step"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        spatia_env.SpatiaTruthEnv(**arguments)


def test_bad_options_leave_the_world(env):
    env.reset(seed=0)
    episode = env.unwrapped._episode
    for options in ({"world": 1.5}, {"image": "x.png"}, 7):
        with pytest.raises(ValueError, match="world|options"):
            env.reset(options=options)
    assert env.unwrapped._episode is episode
