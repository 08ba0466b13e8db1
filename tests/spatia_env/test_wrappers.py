"""The wrappers."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from spatia_env import DiscreteMotion, FrameByFrame, SpatiaEnv, SpatiaNavEnv


def test_discrete_motion_walks_the_path_of_nav(fake, picture):
    wrapped = DiscreteMotion(gym.make("Spatia-v0", model=fake, image=picture))
    nav = gym.make("SpatiaNav-v0", model=fake, image=picture)
    assert wrapped.action_space == nav.action_space
    wrapped.reset(seed=0)
    nav.reset(seed=0)
    for action in (0, 2, 4, 0, 1, 3, 5):
        _, _, _, _, one = wrapped.step(action)
        _, _, _, _, two = nav.step(action)
        np.testing.assert_allclose(one["poses"], two["poses"], atol=1e-6)  # fractions pass through float32


def test_discrete_motion_refuses_envs_it_cannot_drive(fake, picture):
    with pytest.raises(ValueError, match="no continuous camera motion"):
        DiscreteMotion(SpatiaNavEnv(model=fake, image=picture))
    with pytest.raises(ValueError, match="raise max_translation"):
        DiscreteMotion(SpatiaEnv(model=fake, image=picture, max_translation=0.1))
    with pytest.raises(ValueError, match="give one of"):
        env = DiscreteMotion(SpatiaEnv(model=fake, image=picture))
        env.reset(seed=0)
        env.step(6)


def test_frame_by_frame_hands_out_every_frame_once(fake, picture):
    env = FrameByFrame(SpatiaNavEnv(model=fake, image=picture, max_steps=2, task=lambda observation, info: 1.0, render_mode="rgb_array"))
    plain = SpatiaNavEnv(model=fake, image=picture, max_steps=2)
    env.reset(seed=0)
    plain.reset(seed=0)
    for clip, action in enumerate((0, 2)):
        _, _, _, _, expected = plain.step(action)
        for index in range(8):
            observation, reward, terminated, truncated, info = env.step(action if index == 0 else 1)
            np.testing.assert_array_equal(observation, expected["frames"][index])
            np.testing.assert_array_equal(env.render(), observation)
            assert (info["frame"], info["acted"]) == (index, index == 0)
            assert reward == (1.0 if index == 7 else 0.0)
            assert (terminated, truncated) == (False, clip == 1 and index == 7)
    env.reset(seed=0)
    assert env.step(0)[4]["frame"] == 0


def test_frame_by_frame_passes_the_checker(fake, picture):
    check_env(FrameByFrame(SpatiaNavEnv(model=fake, image=picture)), skip_render_check=True)
