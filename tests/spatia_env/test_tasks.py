"""All tasks, and any callable as one: what they show, when they end, and that their state goes where the episode goes."""

from __future__ import annotations

import json
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from spatia_env import Explore, FollowText, FrameByFrame, ReachView, ReturnHome, SpatiaEnv, Task, make_task
from spatia_env.tasks import TASKS, Verdict
from tests.fakes import FakeWorld, load_fake_state, save_fake_state
from tests.spatia_env.task_envs import FORWARD, RIGHT, STAY, truth

# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(TASKS))
def test_gymnasiums_checker(task, nav):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of the checker is a defect
        check_env(nav(task), skip_render_check=True)


@pytest.mark.parametrize(
    "task", [*TASKS, {"name": "reach-view", "observe": "channels"}, {"name": "return-home", "observe": "info"}], ids=str
)
def test_stable_baselines3s_checker(task, nav):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="stable-baselines3 (extra: agents) is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(nav(task, max_steps=4), warn=True)


@pytest.mark.parametrize("task", list(TASKS))
def test_info_of_reset_and_step_has_the_same_keys_and_kinds(task, nav):
    for env in (nav(task), truth(task)):
        _, first = env.reset(seed=0)
        observation, reward, terminated, truncated, second = env.step(RIGHT)
        assert {key: type(value) for key, value in first.items()} == {key: type(value) for key, value in second.items()}
        assert "is_success" in first and type(first["is_success"]) is bool
        assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
        assert observation in env.observation_space


@pytest.mark.parametrize("task", list(TASKS))
def test_snapshot_and_restore_take_the_task_along(task, nav):
    env = nav(task)
    env.reset(seed=3)
    env.step(FORWARD)
    mark = env.snapshot()
    straight = [env.step(action) for action in (FORWARD, RIGHT, FORWARD)]
    env.restore(mark)
    assert data_equivalence([env.step(action) for action in (FORWARD, RIGHT, FORWARD)], straight, exact=True)


@pytest.mark.parametrize("task", [*TASKS, {"name": "reach-view", "radius": 0.25}], ids=str)
def test_a_saved_episode_holds_its_task(task, nav, tmp_path, monkeypatch):
    monkeypatch.setattr(SpatiaEnv, "_save_state", lambda self, state, folder: save_fake_state(state, folder))
    monkeypatch.setattr(SpatiaEnv, "_load_state", lambda self, folder: load_fake_state(folder))
    env = nav(task)
    env.reset(seed=3)
    observation, _, _, _, info = env.step(FORWARD)
    env.save(tmp_path / "episode")
    straight = [env.step(action) for action in (FORWARD, RIGHT)]
    other = nav(task)
    seen, told = other.load(tmp_path / "episode")
    assert data_equivalence(seen, observation, exact=True)
    same = {"goal_image", "goal_pose", "path_length", "explored_area", "instruction", "target_share", "distance_to_goal"} & set(info)
    assert same and all(np.array_equal(told[key], info[key]) for key in same)
    assert data_equivalence([other.step(action) for action in (FORWARD, RIGHT)], straight, exact=True)
    with pytest.raises(ValueError, match="saved with the task .* make it with the same task"):
        nav("explore" if task != "explore" else None).load(tmp_path / "episode")
    if task == "reach-view":
        with pytest.raises(ValueError, match="radius"):
            nav(ReachView(radius=0.5)).load(tmp_path / "episode")
        (tmp_path / "episode" / "task.npz").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="damaged"):
            nav(task).load(tmp_path / "episode")


def test_one_task_may_serve_several_envs(nav):
    task = ReachView()
    one, two = nav(task), nav(task)
    goals = [env.reset(seed=seed)[1]["goal_pose"] for seed, env in ((1, one), (2, two))]
    assert not np.array_equal(*goals)
    np.testing.assert_array_equal(one.step(FORWARD)[4]["goal_pose"], goals[0])


def test_tasks_describe_themselves_in_json():
    for task in (Explore(target=3.0), ReachView(radius=0.5, observe="info"), ReturnHome(angle=20.0), FollowText("go to the red box")):
        told = json.loads(json.dumps(task.describe()))
        again = make_task(told)
        assert again is not None and again.describe() == told and repr(again) == repr(task)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("sleep", {}, "no task 'sleep'; choose one of"),
        ("explore", {"goal": 3}, "cannot be made"),
        ({"radius": 3}, {}, "has no name"),
        (Explore, {}, "task is <class"),
        (5, {}, "callable"),
        (len, {"radius": 3}, "name of a task only"),
        ("explore", {"target": -1}, "square metres"),
        ("reach-view", {"radius": math.nan}, "radius is nan"),
        ("reach-view", {"observe": "telepathy"}, "observe is 'telepathy'"),
        ("reach-view", {"clips": 0}, "clips is 0"),
        ("reach-view", {"stride": 0.1, "turn": 5.0}, "finds no goal outside"),
        ("return-home", {"min_distance": 0.2}, "count as home"),
        ("follow-text", {"instruction": "dance"}, "name a colour"),
        ("follow-text", {"instruction": "go to the box", "judge": "colors"}, "no colour that can be told"),
        ("follow-text", {"fill": 2}, "fill is 2"),
    ],
)
def test_bad_tasks(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(task, **arguments)


def test_steps_are_counted_to_truncation_beside_a_task(nav):
    env = nav(ReachView(), max_steps=2)
    env.reset(seed=0)
    assert [env.step(STAY)[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_frame_by_frame_shows_frames_in_goal_observations(nav):
    for task in ("reach-view", {"name": "reach-view", "observe": "channels"}):
        env = FrameByFrame(nav(task))
        first, _ = env.reset(seed=0)
        for index in range(8):
            observation, _, _, _, info = env.step(FORWARD)
            assert observation in env.observation_space
            shown = observation["image"] if isinstance(observation, dict) else observation[..., :3]
            np.testing.assert_array_equal(shown, info["frames"][index])
        goal, kept = (o["goal_image"] if isinstance(o, dict) else o[..., 3:] for o in (first, observation))
        np.testing.assert_array_equal(goal, kept)


def test_gym_make_takes_names(fakes, picture):
    env = gym.make("SpatiaNav-v0", model=fakes, image=picture, task={"name": "return-home", "min_distance": 0.6})
    assert env.unwrapped.task.min_distance == 0.6


# -- any callable -----------------------------------------------------------------------------------------------------


def test_a_callable_may_give_figures_and_keep_state(nav, tmp_path, monkeypatch):
    class Count:
        def __init__(self):
            self.count = 0

        def reset(self, observation, info, np_random):
            self.count = 0

        def __call__(self, observation, info):
            self.count += 1
            return 1.0, self.count == 3, {"count": self.count, "is_success": self.count == 3}

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    monkeypatch.setattr(SpatiaEnv, "_save_state", lambda self, state, folder: save_fake_state(state, folder))
    monkeypatch.setattr(SpatiaEnv, "_load_state", lambda self, folder: load_fake_state(folder))
    env = nav(Count())
    env.reset(seed=0)
    env.step(STAY)
    env.save(tmp_path / "episode")
    assert env.step(STAY)[4]["count"] == 2
    other = nav(Count())
    other.load(tmp_path / "episode")
    assert other.step(STAY)[4]["count"] == 2
    assert other.step(STAY)[2] is True

    class Forgetful:
        def __init__(self):
            self.count = 0

        def __call__(self, observation, info):
            return 0.0

    env = nav(Forgetful())
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="state_dict"):
        env.save(tmp_path / "forgetful")


@pytest.mark.parametrize("verdict", [(1.0, 1), (1.0, False, 3), (1.0, False, {}, 0), (math.inf, False), None, (1.0, False, {"frames": 0})])
def test_nonsense_from_a_callable(verdict, nav):
    env = nav(lambda observation, info: verdict)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="the task"):
        env.step(STAY)


def test_a_task_of_ones_own(nav):
    class Climb(Task):
        name = "climb"

        def begin(self, scene, np_random):
            return {"height": 0.0}

        def judge(self, scene, state):
            height = -float(scene.pose[1, 3])
            return Verdict(height - state["height"], height > 0.5, {"height": height}, {"height": height})

    env = SpatiaEnv(model=FakeWorld(), task=Climb())
    env.reset(seed=0)
    up = {"camera": np.array([0, -1, 0, 0, 0, 0], np.float32), "text": ""}
    assert [env.step(up)[1:3] for _ in range(2)] == [(0.5, False), (0.5, True)]
