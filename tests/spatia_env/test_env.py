"""The envs against Gymnasium's rules and their own promises."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence

import spatia_env  # noqa: F401
from spatia_model.memory.entities import PAST, Entities
from tests.fakes import FakeWorld

GENERATED = ["Spatia-v0", "SpatiaNav-v0"]
FORWARD = {"camera": np.array([0, 0, 0.5, 0, 0, 0], np.float32), "text": ""}


def action_for(env: gym.Env, index: int = 0):
    """A deterministic action that moves."""
    if isinstance(env.action_space, gym.spaces.Discrete):
        return index % 5
    camera = np.array([0.1, 0, 0.4, 0.05, [0.5, -0.3][index % 2], 0], np.float32)
    return {"camera": camera, "text": "a red ball rolls to the left" if index == 1 else ""}


def rollout(env: gym.Env, seed: int, steps: int = 3):
    observation, info = env.reset(seed=seed)
    seen = [(observation, info)]
    for index in range(steps):
        seen.append(env.step(action_for(env, index)))
    return seen


@pytest.mark.parametrize("env_id", GENERATED)
def test_check_env_with_every_render_mode(env_id, world, picture):
    env = gym.make(env_id, model=world, image=picture, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of the checker is a defect
        warnings.filterwarnings("ignore", message=".*carry no meaning.*")  # random letters
        check_env(env.unwrapped)


def test_stable_baselines3_accepts_nav(world, picture):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="stable-baselines3 (extra: agents) is not installed")
    env = gym.make("SpatiaNav-v0", model=world, image=picture, max_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if world.config.image_size < 36:
            warnings.filterwarnings("ignore", message=".*minimal resolution.*")  # the fake's frames are small
        checker.check_env(env, warn=True)


@pytest.mark.parametrize("env_id", GENERATED)
def test_seeded_twins_are_equal_and_other_seeds_differ(env_id, world, picture):
    def make():
        return gym.make(env_id, model=world, image=picture)

    one, two, other = rollout(make(), 5), rollout(make(), 5), rollout(make(), 6)
    assert data_equivalence(one, two, exact=True)
    assert not np.array_equal(one[-1][0], other[-1][0])


def test_info_has_the_documented_keys_shapes_and_kinds(world, picture):
    env = gym.make("Spatia-v0", model=world, image=picture)
    size, frames = world.config.image_size, world.config.frames_per_clip
    for call in (lambda: env.reset(seed=0), lambda: env.step(FORWARD)[::4]):
        observation, info = call()
        assert observation.shape == (size, size, 3) and observation.dtype == np.uint8
        assert set(info) == {"frames", "poses", "K", "coverage", "memory_points", "references", "collided"}
        assert info["frames"].shape == (frames, size, size, 3) and info["frames"].dtype == np.uint8
        assert info["poses"].shape == (frames, 4, 4) and info["poses"].dtype == np.float64
        assert info["K"].shape == (3, 3) and info["K"].dtype == np.float64
        assert type(info["coverage"]) is float and 0 <= info["coverage"] <= 1
        assert type(info["memory_points"]) is int and info["memory_points"] == len(env.unwrapped.memory)
        assert info["references"].shape == (world.config.max_references,) and info["references"].dtype == np.int64
        np.testing.assert_array_equal(info["frames"][-1], observation)
    assert env.unwrapped.timing["step"] > 0


def test_first_observation_is_the_picture(fake, picture):
    from spatia_env.images import load_image

    env = gym.make("Spatia-v0", model=fake, image=picture)
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation, load_image(picture, fake.config.image_size))
    np.testing.assert_array_equal(info["poses"][-1], np.eye(4))


def test_reset_options_choose_picture_and_prompt_for_one_episode(fake, picture):
    env = gym.make("Spatia-v0", model=fake, image=picture, prompt="a kitchen")
    first, _ = env.reset(seed=0)
    other, _ = env.reset(seed=0, options={"image": 255 - picture, "prompt": "the sunny kitchen"})
    assert not np.array_equal(first, other)
    assert env.unwrapped.state.prompt == "the sunny kitchen"
    again, _ = env.reset(seed=0)
    np.testing.assert_array_equal(first, again)
    assert env.unwrapped.state.prompt == "a kitchen"


def test_envs_share_the_model_they_are_given(fake, picture):
    envs = [gym.make("Spatia-v0", model=fake, image=picture) for _ in range(2)]
    assert envs[0].unwrapped.world is envs[1].unwrapped.world is fake


@pytest.mark.parametrize("env_id", GENERATED)
def test_max_steps_truncates_with_a_python_bool(env_id, fake, picture):
    env = gym.make(env_id, model=fake, image=picture, max_steps=2)
    env.reset(seed=0)
    ends = [env.step(action_for(env))[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]
    assert all(type(flag) is bool for pair in ends for flag in pair)


def test_step_before_reset_and_after_the_end(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake, max_steps=1, render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(FORWARD)
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.render()
    env.reset(seed=0)
    env.step(FORWARD)
    with pytest.raises(ResetNeeded, match="ended after 1 steps"):
        env.step(FORWARD)
    assert fake.advanced == 1
    env.reset(seed=0)
    env.step(FORWARD)


def test_a_task_rewards_and_terminates(fake, picture):
    class Twice:
        """Ends after two steps; keeps state of its own."""

        def __init__(self) -> None:
            self.count = -1

        def reset(self, observation, info, np_random) -> None:
            self.count = 0

        def __call__(self, observation, info):
            self.count += 1
            return 0.5 * self.count, self.count == 2

    env = gym.make("Spatia-v0", model=fake, image=picture, task=Twice())
    env.reset(seed=0)
    assert env.step(FORWARD)[1:4] == (0.5, False, False)
    mark = env.unwrapped.snapshot()
    for _ in range(2):
        assert env.step(FORWARD)[1:4] == (1.0, True, False)
        env.unwrapped.restore(mark)  # the task goes back too
    plain = gym.make("Spatia-v0", model=fake, image=picture, task=lambda observation, info: info["coverage"] + 2)
    plain.reset(seed=0)
    assert plain.step(FORWARD)[1:3] == (2.0, False)


def test_snapshot_restore_gives_the_same_frames_and_branches(world, picture):
    env = gym.make("Spatia-v0", model=world, image=picture)
    env.reset(seed=0)
    env.step(action_for(env, 0))
    mark = env.unwrapped.snapshot()
    straight = [env.step(action_for(env, index)) for index in (1, 2)]
    env.unwrapped.restore(mark)
    again = [env.step(action_for(env, index)) for index in (1, 2)]
    assert data_equivalence(straight, again, exact=True)
    env.unwrapped.restore(mark)
    left = env.step({"camera": np.array([0, 0, 0, 0, -1, 0], np.float32), "text": ""})
    assert not np.array_equal(left[0], straight[0][0])


def test_restore_also_restores_the_episodes_length_and_draws(fake, picture):
    env = gym.make("Spatia-v0", model=fake, image=picture, max_steps=2)
    env.reset(seed=0)
    mark = env.unwrapped.snapshot()
    draw = env.unwrapped.np_random.integers(1000)
    env.step(FORWARD)
    assert env.step(FORWARD)[3] is True
    env.unwrapped.restore(mark)
    assert env.unwrapped.np_random.integers(1000) == draw
    assert env.step(FORWARD)[3] is False


def test_snapshot_fits_only_a_model_of_its_size(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake)
    other = spatia_env.SpatiaEnv(image=picture, model=FakeWorld(image_size=16))
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="use the model it was made with"):
        other.restore(env.snapshot())
    with pytest.raises(ValueError, match="snapshot"):
        env.restore("yesterday")  # type: ignore[arg-type]


def test_edit_changes_the_memory_and_refuses_other_things(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake)
    env.reset(seed=0)
    before = env.memory
    env.edit(lambda memory: memory.keep(memory.positions[:, 0] > 0.5))
    assert 0 < len(env.memory) < len(before)
    kept = env.memory
    with pytest.raises(ValueError, match="PointMemory"):
        env.edit(lambda memory: None)  # type: ignore[arg-type, return-value]
    assert env.memory is kept


def test_entities_are_edited_apart_and_worlds_without_them_say_so(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no entities"):
        env.edit_entities(lambda entities: entities)
    env._episode = replace(env._episode, state=replace(env.state, entities=two_entities()))
    env.edit_entities(lambda entities: entities.only(entities.centres[:, 2] < 3))
    assert len(env.state.entities) == 1
    with pytest.raises(ValueError, match="Entities"):
        env.edit_entities(lambda entities: None)  # type: ignore[arg-type, return-value]
    assert len(env.state.entities) == 1


def two_entities() -> Entities:
    """One 2 m, one 4 m ahead."""
    points = torch.tensor([[0.0, 0, 2], [0.1, 0, 2], [0, 0, 4], [0.1, 0, 4]])
    colors, radii = torch.zeros(4, 3, dtype=torch.uint8), torch.full((4,), 0.05)
    return Entities(points, colors, radii, torch.tensor([0, 0, 1, 1]), torch.zeros(2, len(PAST), 3), torch.zeros(2, dtype=torch.bool))


def test_render_modes(fake, picture):
    def make(mode):
        env = spatia_env.SpatiaEnv(image=picture, model=fake, render_mode=mode)
        env.reset(seed=0)
        return env, env.step(FORWARD)

    env, (observation, *_) = make("rgb_array")
    np.testing.assert_array_equal(env.render(), observation)
    env, (_, _, _, _, info) = make("rgb_array_list")
    frames = env.render()
    assert len(frames) == 1 + len(info["frames"])  # the first frame, then the clip
    np.testing.assert_array_equal(np.stack(frames[1:]), info["frames"])
    assert env.render() == []
    env, _ = make("memory")
    top = env.render()
    assert top.dtype == np.uint8 and top.ndim == 3 and top.shape[2] == 3 and top.std() > 0
    env, _ = make(None)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_close_twice_is_fine_and_the_env_can_start_again(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake)
    env.reset(seed=0)
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step(FORWARD)
    env.reset(seed=0)


def test_what_the_env_hands_out_is_a_copy(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake)
    env.reset(seed=0)
    mark = env.snapshot()
    expected = env.step(FORWARD)[0].copy()
    env.restore(mark)
    observation, _, _, _, info = env.step(FORWARD)
    observation[:] = 0
    for value in info.values():
        if isinstance(value, np.ndarray):
            value[:] = 0
    assert torch.equal(env.state.frames[-1], torch.from_numpy(expected))
    np.testing.assert_array_equal(env.state.T_world_camera[-1].numpy()[3], [0, 0, 0, 1])


def test_unknown_words_are_named_once(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake)
    env.reset(seed=0)
    action = {**FORWARD, "text": "a red zebra rolls"}
    with pytest.warns(UserWarning, match="'zebra'"):
        env.step(action)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step(action)


def test_sync_vector_env_with_staggered_ends(fake, picture):
    """Every key of info keeps its shape, so that vector envs can stack it across resets."""
    lengths = iter([1, 3])

    def make():
        return spatia_env.SpatiaNavEnv(image=picture, model=fake, max_steps=next(lengths))

    envs = gym.vector.SyncVectorEnv([make, make])
    envs.reset(seed=0)
    for _ in range(4):
        _, _, _, truncated, info = envs.step(np.array([0, 1]))
        assert info["frames"].shape[0] == 2
    assert copy.copy(truncated).tolist() == [False, False] or truncated.any()
    envs.close()


def test_long_episode_keeps_the_trail_bounded(fake, picture):
    from spatia_env.trail import MAX_POSES, Trail

    trail = Trail()
    for number in range(5 * MAX_POSES):
        pose = np.eye(4)
        pose[2, 3] = number
        trail = trail.extended(pose[None])
    poses = trail.poses()
    assert MAX_POSES // 2 <= len(poses) <= MAX_POSES + 1
    assert poses[0, 2, 3] == 0 and poses[-1, 2, 3] == 5 * MAX_POSES - 1
    assert (np.diff(poses[:, 2, 3]) > 0).all()
