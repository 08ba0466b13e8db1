"""N worlds side by side: Gymnasium's rules, the single envs' results, and the work that is not done."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import spatia_env
from spatia_env import SpatiaNavVectorEnv, SpatiaVectorEnv
from tests.fakes import FakeWorld
from tests.spatia_model.tiny import picture as tiny_picture
from tests.spatia_model.tiny import tiny_model

MODES = list(AutoresetMode)


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


def single(model, image, **arguments):
    return spatia_env.SpatiaNavEnv(image=image, model=model, **arguments)


def rows(infos: dict, number: int) -> dict:
    """The info of one world, as the single env gives it."""
    found = {}
    for key, value in infos.items():
        if not key.startswith("_") and infos[f"_{key}"][number]:
            found[key] = rows(value, number) if isinstance(value, dict) else value[number]
    return found


def same(one: dict, two: dict) -> bool:
    return set(one) == set(two) and all(np.array_equal(one[key], two[key]) for key in one)


def alike(one, two) -> bool:
    """Equal up to what a few steps make of sums in another order: convolutions of another batch size need not be equal bit for bit."""
    one, two = np.asarray(one), np.asarray(two)
    if one.shape != two.shape or one.dtype.kind != two.dtype.kind:
        return False
    if one.dtype == np.uint8:
        return int(np.abs(one.astype(int) - two).max()) <= 2
    return np.array_equal(one, two) if one.dtype.kind in "bUO" else np.allclose(one, two, rtol=0.01, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*carry no meaning.*")  # random letters
def test_make_vec_takes_it_by_default_and_says_its_mode(fake, picture):
    for env_id, kind in (("Spatia-v0", SpatiaVectorEnv), ("SpatiaNav-v0", SpatiaNavVectorEnv)):
        envs = gym.make_vec(env_id, num_envs=3, model=fake, image=picture, autoreset_mode=AutoresetMode.SAME_STEP)
        assert type(envs) is kind and envs.num_envs == 3 and envs.spec.id == env_id
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and envs.autoreset_mode is AutoresetMode.SAME_STEP
        observations, infos = envs.reset(seed=1)
        assert observations in envs.observation_space and observations.shape == (3, 24, 24, 3)
        assert infos["frames"].shape == (3, 8, 24, 24, 3) and infos["_frames"].all()
        observations, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        envs.close()
        envs.close()
        assert envs.closed
    assert SpatiaVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("mode", MODES)
def test_it_does_what_gymnasiums_own_vector_env_does(mode, picture):
    """Step for step, with episodes that end at different times, and a reset by mask where the mode asks for one."""
    lengths = (2, 3, 5)
    ours = SpatiaNavVectorEnv(3, autoreset_mode=mode, model=FakeWorld(), image=picture, task="return-home")
    for env, length in zip(ours.envs, lengths, strict=True):
        env.max_steps = length
    fake = FakeWorld()
    theirs = SyncVectorEnv(
        [lambda n=length: single(fake, picture, task="return-home", max_steps=n) for length in lengths], autoreset_mode=mode
    )
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    one, two = ours.reset(seed=11), theirs.reset(seed=11)
    assert data_equivalence(one[0], two[0]) and same(rows(one[1], 1), rows(two[1], 1))
    rng = np.random.default_rng(0)
    for _ in range(9):
        actions = rng.integers(0, 6, 3)
        one, two = ours.step(actions), theirs.step(actions)
        assert data_equivalence(one[0], two[0])
        for mine, other in zip(one[1:4], two[1:4], strict=True):
            np.testing.assert_array_equal(mine, other)
        for number in range(3):
            mine, other = rows(one[4], number), rows(two[4], number)
            assert data_equivalence(mine.pop("final_obs", None), other.pop("final_obs", None))
            assert same(mine.pop("final_info", {}), other.pop("final_info", {}))
            assert same(mine, other)
        ended = one[2] | one[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            one, two = ours.reset(options={"reset_mask": ended}), theirs.reset(options={"reset_mask": ended.copy()})
            assert data_equivalence(one[0], two[0])
            assert all(same(rows(one[1], number), rows(two[1], number)) for number in range(3))


@pytest.mark.parametrize("task", [None, "reach-view"])
def test_worlds_of_the_model_in_a_batch_are_those_of_single_envs(task, tiny):
    """The embedded model's batches, with other company in every step, over resets too."""
    image = tiny_picture().numpy()
    envs = SpatiaNavVectorEnv(3, model=tiny, image=image, task=task, max_steps=3)
    alone = [single(tiny, image, task=task, max_steps=3) for _ in range(3)]
    one, two = envs.reset(seed=[5, 9, 7]), [env.reset(seed=seed) for env, seed in zip(alone, (5, 9, 7), strict=True)]
    alone[1].max_steps = envs.envs[1].max_steps = 2
    actions = np.array([[0, 1, 2], [1, 0, 0], [0, 0, 5], [2, 1, 0], [0, 0, 1]])
    for step in range(len(actions)):
        assert not np.array_equal(two[0][1]["frames"], two[1][1]["frames"]) or step == 0
        for number, (observation, info) in enumerate(two):
            seen = {key: value[number] for key, value in one[0].items()} if task else {"image": one[0][number]}
            expected = observation if task else {"image": observation}
            told = rows(one[1], number)
            assert set(told) == set(info) and set(seen) == set(expected)
            assert all(alike(seen[key], expected[key]) for key in seen), (step, number)
            assert all(alike(told[key], info[key]) for key in info), (step, number)
        one = envs.step(actions[step])
        one = one[0], one[4]
        two = []
        for number, env in enumerate(alone):
            two.append(env.reset() if env._episode.ended else env.step(actions[step, number])[::4])


@pytest.mark.parametrize(("threads", "as_on_a_gpu"), [(1, False), (2, False), (3, False), (2, True)])
def test_workers_change_nothing_and_leave_the_threads_as_they_were(threads, as_on_a_gpu, tiny, monkeypatch):
    """Whole worlds dealt out, or (as on a GPU) one batch whose maps are kept side by side."""
    image = tiny_picture().numpy()
    envs = SpatiaNavVectorEnv(3, model=tiny, image=image)
    envs.reset(seed=0)
    expected = envs.step(np.array([0, 1, 2]))[0]
    before = torch.get_num_threads()
    monkeypatch.setattr(type(tiny), "_on_cpu", not as_on_a_gpu)
    try:
        torch.set_num_threads(threads)
        envs.reset(seed=0)
        assert alike(envs.step(np.array([0, 1, 2]))[0], expected)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_one_batch_per_step_and_nothing_for_finished_worlds(picture):
    class Batched(FakeWorld):
        def __init__(self):
            super().__init__()
            self.batches = []

        def advance_batch(self, states, paths, texts, memory=True):
            self.batches.append(len(states))
            return [self.advance(*row, memory=memory) for row in zip(states, paths, texts, strict=True)]

    for mode, expected in (
        (AutoresetMode.DISABLED, [3, 3, 1, 1]),
        (AutoresetMode.NEXT_STEP, [3, 3, 1, 3]),
        (AutoresetMode.SAME_STEP, [3] * 4),
    ):
        world = Batched()
        envs = SpatiaVectorEnv(3, autoreset_mode=mode, model=world, image=picture, max_steps=2)
        envs.reset(seed=0)
        envs.envs[2].max_steps = 9
        action = {"camera": np.zeros((3, 6), np.float32), "text": ("",) * 3}
        seen = [envs.step(action) for _ in range(4)]
        assert world.batches == expected
        if mode is AutoresetMode.DISABLED:  # they rest as they ended
            assert [step[3].tolist() for step in seen[1:]] == [[True, True, False]] * 3
            np.testing.assert_array_equal(seen[1][0][:2], seen[3][0][:2])
            assert seen[3][4]["_frames"].tolist() == [False, False, True]


def test_memory_on_and_off_in_one_batch(fake, picture):
    envs = SpatiaNavVectorEnv(2, model=fake, image=picture)
    envs.envs[1]._with_memory = False
    envs.reset(seed=0)
    info = envs.step(np.array([0, 0]))[4]
    assert info["references"][:, 0].tolist() == [0, -1]


def test_pictures_and_prompts_per_world(fake, picture):
    envs = SpatiaVectorEnv(2, model=fake, images=[picture, 255 - picture], prompts=["a kitchen", "the kitchen"])
    observations, _ = envs.reset(seed=[3, 3])
    assert not np.array_equal(observations[0], observations[1])
    assert [state.prompt for state in envs.get_attr("state")] == ["a kitchen", "the kitchen"]
    again, _ = envs.reset(options={"image": picture})
    np.testing.assert_array_equal(again[0], again[1])


def test_a_function_draws_the_picture_of_every_episode(fake, picture):
    drawn = []

    def draw(np_random):
        drawn.append(int(np_random.integers(256)))
        return np.full((16, 16, 3), drawn[-1], np.uint8)

    envs = SpatiaNavVectorEnv(2, model=fake, image=draw, max_steps=1)
    first, _ = envs.reset(seed=4)
    envs.step(np.array([5, 5]))
    second = envs.step(np.array([5, 5]))[0]
    assert len(set(drawn)) >= 3  # four draws of 256
    assert [int(o[0, 0, 0]) for o in (*first, *second)] == drawn
    np.testing.assert_array_equal(envs.reset(seed=4)[0], first)


def test_call_get_attr_set_attr_render_and_snapshots(fake, picture):
    envs = gym.make_vec("SpatiaNav-v0", num_envs=2, model=fake, image=picture, render_mode="rgb_array")
    observations, _ = envs.reset(seed=0)
    assert all(np.array_equal(frame, seen) for frame, seen in zip(envs.render(), observations, strict=True))
    marks = envs.call("snapshot")
    straight = envs.step(np.array([0, 1]))
    for env, mark in zip(envs.envs, marks, strict=True):
        env.restore(mark)
    assert data_equivalence(envs.step(np.array([0, 1]))[:4], straight[:4], exact=True)
    assert envs.get_attr("frames_per_clip") == (8, 8)
    envs.set_attr("max_steps", [7, 9])
    assert envs.get_attr("max_steps") == (7, 9)
    envs.set_attr("max_steps", 5)
    assert envs.get_attr("max_steps") == (5, 5)
    with pytest.raises(ValueError, match="3 values for 2 worlds"):
        envs.set_attr("max_steps", [1, 2, 3])
    assert len(envs.np_random) == 2 and len(set(envs.np_random_seed)) == 2


def test_tasks_with_state_of_their_own_are_one_per_world(fake, picture):
    class Count:
        count = 0

        def __call__(self, observation, info):
            self.count += 1
            return float(self.count), self.count == 2

    envs = SpatiaNavVectorEnv(2, model=fake, image=picture, task=Count(), autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    assert [envs.step(np.array([0, 0]))[1].tolist() for _ in range(2)] == [[1, 1], [2, 2]]


def test_vector_wrappers_take_it(fake, picture):
    envs = gym.wrappers.vector.RecordEpisodeStatistics(
        gym.make_vec("SpatiaNav-v0", num_envs=2, model=fake, image=picture, max_steps=2, task=lambda observation, info: 1.0)
    )
    envs.reset(seed=0)
    envs.step(np.array([0, 0]))
    info = envs.step(np.array([0, 0]))[4]
    assert info["episode"]["r"].tolist() == [2.0, 2.0]


def test_bad_actions_leave_every_world(fake, picture):
    envs = SpatiaVectorEnv(2, model=fake, image=picture)
    action = {"camera": np.zeros((2, 6), np.float32), "text": ("", "")}
    with pytest.raises(ResetNeeded):
        envs.step(action)
    envs.reset(seed=0)
    before = [env._episode for env in envs.envs]
    bad = copy.deepcopy(action)
    bad["camera"][1, 3] = np.nan
    for given, message in (
        (bad, "nan for pitch"),
        ({"camera": np.zeros((3, 6), np.float32), "text": ("",) * 3}, "3 actions for 2 worlds"),
        (7, "cannot be taken apart"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.step(given)
    fake.fail_next = True
    with pytest.raises(RuntimeError, match="told to fail"):
        envs.step(action)
    assert [env._episode for env in envs.envs] == before and fake.advanced == 0


def test_a_task_that_fails_in_one_world_leaves_every_world(fake, picture):
    def task(observation, info):
        if task.fails:
            raise ZeroDivisionError
        return 0.0

    task.fails = False
    envs = SpatiaNavVectorEnv(2, model=fake, image=picture)
    envs.envs[1].task = spatia_env.make_task(task)
    envs.reset(seed=0)
    before = [env._episode for env in envs.envs]
    task.fails = True
    with pytest.raises(ZeroDivisionError):
        envs.step(np.array([0, 0]))
    assert [env._episode for env in envs.envs] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"num_envs": True}, "num_envs is True"),
        ({"autoreset_mode": "sometimes"}, "NextStep"),
        ({"num_envs": 2, "images": [None]}, "sequence of 2"),
        ({"num_envs": 1, "images": [None], "image": None}, "exclude each other"),
        ({"num_envs": 1, "prompts": "x"}, "sequence of 1"),
        ({"max_steps": 3, "max_episode_steps": 4}, "say the same"),
        ({"task": "sleep"}, "no task 'sleep'"),
    ],
)
def test_bad_arguments(arguments, message, fake):
    with pytest.raises(ValueError, match=message):
        SpatiaVectorEnv(model=fake, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": [1]}, ValueError, "each of the 2 worlds"),
        ({"seed": "one"}, ValueError, "each of the 2 worlds"),
        ({"options": {"reset_mask": [True, False]}}, ValueError, "numpy array of 2 bools"),
        ({"options": {"reset_mask": np.array([False, False])}}, ValueError, "at least one"),
        ({"options": {"reset_mask": np.array([True, False])}}, ResetNeeded, r"worlds \[1\]"),
        ({"options": {"world": 3}}, ValueError, "known are"),
        ({"options": 3}, ValueError, "dictionary"),
    ],
)
def test_bad_resets(arguments, error, message, fake, picture):
    envs = SpatiaVectorEnv(2, model=fake, image=picture)
    with pytest.raises(error, match=message):
        envs.reset(**arguments)


def test_truth_worlds_side_by_side():
    envs = gym.make_vec("SpatiaTruth-v0", num_envs=2, image_size=16, supersample=1, discrete=True, kind="room", max_steps=1)
    observations, infos = envs.reset(seed=2_000_000)
    assert infos["world"].shape == (2,) and infos["world"][0] != infos["world"][1]
    alone = spatia_env.SpatiaTruthEnv(image_size=16, supersample=1, discrete=True, kind="room", max_steps=1)
    np.testing.assert_array_equal(alone.reset(seed=2_000_001)[0], observations[1])
    np.testing.assert_array_equal(alone.step(0)[0], envs.step(np.array([1, 0]))[0][1])
    assert envs.step(np.array([0, 0]))[4]["world"].tolist() != infos["world"].tolist()  # a new world each


# -- LeRobot's EnvHub ------------------------------------------------------------------------------------------------


def test_make_env_as_lerobot_calls_it(fake, picture):
    suites = spatia_env.make_env(n_envs=2, use_async_envs=False, model=fake, image=picture, task="explore")
    envs = suites["SpatiaNav-v0"][0]
    envs.reset(seed=[3, 4], options={"lerobot_new_rollout": True})  # LeRobot's evaluation does so
    assert envs.call("_max_episode_steps") == (100, 100)
    assert envs.call("task_description") == ("explore", "explore") and envs.call("task") is not None
    assert envs.call("render")[0].shape == (24, 24, 3)
    assert envs.unwrapped.metadata["render_fps"] == 8
    with pytest.raises(ValueError, match="SpatiaNav-v0"):
        spatia_env.make_env(id="CartPole-v1")


@pytest.mark.slow
def test_make_env_in_processes():
    suites = spatia_env.make_env(2, True, id="SpatiaTruth-v0", image_size=16, supersample=1, kind="room", max_steps=2, discrete=True)
    envs = suites["SpatiaTruth-v0"][0]
    try:
        observations, _ = envs.reset(seed=2_000_000)
        assert observations.shape == (2, 16, 16, 3)
        envs.step(np.array([0, 1]))
    finally:
        envs.close()
