"""Tasks: what they reward, when they end, what they show, and that their state goes where the episode goes."""

from __future__ import annotations

import json
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence

from spatia_env import (
    Explore,
    FollowText,
    FrameByFrame,
    ReachView,
    ReturnHome,
    SpatiaEnv,
    SpatiaNavEnv,
    SpatiaTruthEnv,
    Task,
    explored_area,
    make_task,
)
from spatia_env.tasks import TASKS
from spatia_env.tasks.colors import HUES, color_mask, color_share
from spatia_env.tasks.follow_text import WORDS, named_words
from spatia_env.tasks.goals import pose_gap, relative_goal
from spatia_model.geometry import se3
from spatia_model.memory.point_memory import PointMemory
from tests.fakes import FakeWorld, load_fake_state, save_fake_state

FORWARD, LEFT, RIGHT, UP, DOWN, STAY = range(6)
WORLD = 2_000_003


@pytest.fixture(scope="module")
def fakes():
    return FakeWorld(image_size=40)  # SB3's checker wants 36 pixels


@pytest.fixture
def nav(fakes, picture):
    def make(task, **arguments):
        return SpatiaNavEnv(image=picture, model=fakes, task=task, **arguments)

    return make


def truth(task, **arguments):
    given = {"world": WORLD, "kind": "room", "movers": 0, "discrete": True, "image_size": 24, "supersample": 1, **arguments}
    return SpatiaTruthEnv(task=task, **given)


# -- all of them -----------------------------------------------------------------------------------------------------


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


# -- any callable ----------------------------------------------------------------------------------------------------


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
            from spatia_env.tasks import Verdict

            height = -float(scene.pose[1, 3])
            return Verdict(height - state["height"], height > 0.5, {"height": height}, {"height": height})

    env = SpatiaEnv(model=FakeWorld(), task=Climb())
    env.reset(seed=0)
    up = {"camera": np.array([0, -1, 0, 0, 0, 0], np.float32), "text": ""}
    assert [env.step(up)[1:3] for _ in range(2)] == [(0.5, False), (0.5, True)]


# -- explore ---------------------------------------------------------------------------------------------------------


def plane(turn: float, tilt: float, spacing: float) -> PointMemory:
    """A memory of 2 x 3 m of plane, a point every `spacing` metres, at an angle."""
    axes = (torch.arange(0, 2, spacing), torch.arange(0, 3, spacing))
    flat = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    points = torch.cat([flat, torch.zeros(len(flat), 1)], 1).double() + torch.tensor([0.1, 0.07, 0.13])
    T = se3.exp(torch.tensor([[0.0, 0, 0, 0, turn, 0], [0.0, 0, 0, tilt, 0, 0]], dtype=torch.float64))
    points = (points @ T[1, :3, :3].T @ T[0, :3, :3].T).float()
    n = len(points)
    return PointMemory.empty(0.03).fuse(points, torch.zeros(n, 3, dtype=torch.uint8), torch.ones(n), 0, torch.full((n,), spacing))


def test_area_of_planes():
    """At most a fifth too large along the axes, at most two thirds at an angle; never more than a tenth too small."""
    for spacing in (0.03, 0.05, 0.12, 0.2):
        assert 0.9 * 6 < explored_area(plane(0.0, 0.0, spacing)) < 1.2 * 6
        assert 0.9 * 6 < explored_area(plane(0.4, 0.0, spacing)) < 1.5 * 6
        assert 0.9 * 6 < explored_area(plane(0.8, 0.5, spacing)) < 1.67 * 6
    assert explored_area(PointMemory.empty(0.03)) == 0.0
    far = plane(0.0, 0.0, 0.03).fuse(
        torch.tensor([[0.0, 0, 50]]), torch.zeros(1, 3, dtype=torch.uint8), torch.ones(1), 0, torch.tensor([0.6])
    )
    assert explored_area(far) == explored_area(plane(0.0, 0.0, 0.03))  # the sky is no surface


def test_area_does_not_grow_with_a_surfaces_thickness():
    thin = plane(0.0, 0.0, 0.03)
    noise = torch.rand(len(thin), 1, generator=torch.Generator().manual_seed(0)) * 0.1 * torch.tensor([0.0, 0, 1])
    thick = thin.fuse(thin.positions + noise, thin.colors, torch.ones(len(thin)), 1)
    assert len(thick) > 1.5 * len(thin)
    assert explored_area(thick) <= 1.05 * explored_area(thin)


def test_explore_rewards_what_is_new_and_nothing_twice():
    env = truth(Explore(), image_size=48)
    _, info = env.reset(seed=0)
    first = info["explored_area"]
    assert first > 3 and info["new_area"] == 0
    round_one = [env.step(RIGHT) for _ in range(24)]
    assert all(step[1] == step[4]["new_area"] >= 0 for step in round_one)
    assert first + sum(step[1] for step in round_one) == pytest.approx(round_one[-1][4]["explored_area"])
    assert sum(step[1] for step in round_one[:12]) > 5
    assert sum(env.step(RIGHT)[1] for _ in range(12)) < 0.1 * sum(step[1] for step in round_one)  # the same round again
    assert not any(step[2] for step in round_one) and not info["is_success"]


def test_what_is_forgotten_and_seen_again_is_not_new():
    env = truth(Explore(), image_size=48)
    env.reset(seed=0)
    for _ in range(4):
        _, _, _, _, info = env.step(RIGHT)
    before = info["explored_area"]
    env.edit(lambda memory: memory.keep(torch.arange(len(memory)) % 64 == 0))
    _, reward, _, _, info = env.step(STAY)  # sees but one of the views again
    assert explored_area(env.memory) < 0.8 * before
    assert reward == 0 and info["explored_area"] == before
    assert sum(env.step(LEFT)[1] for _ in range(4)) < 0.05 * before


def test_explore_ends_at_its_target():
    env = truth({"name": "explore", "target": 5.0}, image_size=48)
    _, info = env.reset(seed=0)
    for _ in range(12):
        _, _, terminated, _, info = env.step(RIGHT)
        assert terminated == info["is_success"] == (info["explored_area"] >= 5.0)
        if terminated:
            return
    raise AssertionError("five square metres are soon seen")


# -- reach-view ------------------------------------------------------------------------------------------------------


def steer(env, info):
    """Walk to a goal by its pose: turn towards it, go, turn to its heading."""
    for _ in range(40):
        here, goal = info["poses"][-1], info["goal_pose"]
        away = (goal - here)[:3, 3]
        far = np.hypot(away[0], away[2]) > 0.2
        ahead = away if far else goal[:3, 2]
        turn = (math.atan2(ahead[0], ahead[2]) - math.atan2(here[0, 2], here[2, 2]) + math.pi) % (2 * math.pi) - math.pi
        action = FORWARD if far and abs(turn) < 0.15 else (RIGHT if turn > 0 else LEFT)
        yield (step := env.step(action))
        info = step[4]
        if step[2]:
            return


@pytest.mark.parametrize("make", ["nav", "truth"])
def test_reach_view_is_reached_by_who_goes_there(make, request):
    task = ReachView(radius=0.3, angle=15.0)
    env = truth(task) if make == "truth" else request.getfixturevalue("nav")(task)
    reached = 0
    for seed in range(4):
        observation, info = env.reset(seed=seed)
        gap = pose_gap(info["poses"][-1], info["goal_pose"])
        assert gap[0] > 0.3 or gap[1] > math.radians(15)  # not there yet
        assert gap == (info["distance_to_goal"], info["angle_to_goal"]) and info["spl"] == 0
        start, total, steps = info["distance_to_goal"] + 0.5 * info["angle_to_goal"], 0.0, 0
        for step in steer(env, info):
            observation, reward, terminated, _, info = step
            total, steps = total + reward, steps + 1
            near = info["distance_to_goal"] <= 0.3 and info["angle_to_goal"] <= math.radians(15)
            assert terminated is info["is_success"] is near
        if info["is_success"]:
            reached += 1
            left = info["distance_to_goal"] + 0.5 * info["angle_to_goal"]
            assert total == pytest.approx(start - left - 0.01 * steps + 2.5)  # the shaping sums up to what was gained
            assert 0 < info["spl"] <= 1 and info["path_length"] >= 0
        assert set(observation) == {"image", "goal_image", "goal"}
    assert reached >= 3


def test_the_goal_is_what_the_world_shows_there():
    """On true ground: the picture of the goal is the frame that a camera there sees, and the world remembers it."""
    env = truth(ReachView(), image_size=48)
    _, info = env.reset(seed=1)
    known = env.memory.project(torch.from_numpy(info["goal_pose"])[None], env.state.camera)
    assert known.coverage > 0.9
    assert np.abs(known.rgb[0].numpy().astype(int) - info["goal_image"])[known.mask[0].numpy()].mean() < 25
    np.testing.assert_array_equal(info["frames"][-1], truth(None, image_size=48).reset(seed=1)[0])  # the agent is at the start


def test_the_scout_is_stopped_by_walls():
    env = truth(ReachView(clips=6, stride=2.0))
    for seed in range(3):
        _, info = env.reset(seed=seed)
        place = torch.from_numpy(info["goal_pose"][:3, 3])[None]
        assert bool(env.world.world(WORLD, "room", 0).is_free(place, 0.19))


def test_where_the_goal_is_as_the_camera_sees_it():
    here = np.eye(4)
    T = np.array([[0.0, 0, 1, 2], [0, 1, 0, 0], [-1, 0, 0, 3], [0, 0, 0, 1]])  # 2 m right, 3 m ahead, looks right
    np.testing.assert_allclose(relative_goal(here, T), [2, 0, 3, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(relative_goal(T, here), [3, 0, -2, -1, 0, 0], atol=1e-12)
    up = se3.exp(torch.tensor([0.0, 0, 0, 0.3, 0, 0], dtype=torch.float64)).numpy()
    assert relative_goal(here, up)[5] == pytest.approx(0.3)
    far = np.eye(4)
    far[2, 3] = 300
    assert relative_goal(here, far)[2] == pytest.approx(10)
    assert pose_gap(here, T) == (pytest.approx(math.sqrt(13)), pytest.approx(math.pi / 2))


# -- return-home -----------------------------------------------------------------------------------------------------


def test_return_home_wants_both_ways(nav):
    env = nav(ReturnHome(min_distance=1.0), obstacles=None)
    first, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["goal_image"], first["image"])
    assert first["goal"][6] == 0 and not info["went_out"]
    gained = [env.step(FORWARD) for _ in range(4)]
    assert [step[4]["went_out"] for step in gained] == [False, False, False, True]
    assert sum(step[1] for step in gained) == pytest.approx(1.0 - 4 * 0.01)
    assert gained[-1][0]["goal"][6] == 1
    assert not any(step[2] for step in gained)
    back = [env.step(RIGHT) for _ in range(12)] + [env.step(FORWARD) for _ in range(3)]
    assert not any(step[4]["is_success"] for step in back)  # near, but looking the other way
    assert back[-1][4]["distance_to_goal"] < 0.3
    for _ in range(12):
        *_, terminated, _, info = env.step(RIGHT)
        if terminated:
            break
    assert info["is_success"] and info["angle_to_goal"] <= math.radians(15)
    assert -1 <= info["view_ssim"] <= 1 and info["view_ssim"] != 0 and info["view_psnr"] > 0


def test_return_home_turning_on_the_spot_is_no_success(nav):
    env = nav("return-home")
    env.reset(seed=0)
    for _ in range(24):
        assert not env.step(RIGHT)[4]["is_success"]


def test_a_true_world_looks_the_same_when_one_is_home_again():
    env = SpatiaTruthEnv(world=WORLD, kind="room", movers=0, image_size=24, supersample=1, task=ReturnHome(min_distance=0.4), solid=False)
    env.reset(seed=0)
    ahead = np.array([0, 0, 1, 0, 0, 0], np.float32)
    env.step({"camera": ahead, "text": ""})
    *_, terminated, _, info = env.step({"camera": -ahead, "text": ""})
    assert terminated and info["view_ssim"] == pytest.approx(1.0, abs=1e-3) and info["view_psnr"] > 40


# -- follow-text -----------------------------------------------------------------------------------------------------


def test_the_true_thing_fills_the_view_when_one_stands_before_it():
    env = truth("follow-text", discrete=False, image_size=48, solid=False)
    reached = 0
    for seed in range(4):
        observation, info = env.reset(seed=seed)
        words = named_words(info["instruction"])
        assert words and [word for word, told in zip(WORDS, observation["goal"], strict=True) if told] == words
        assert env.task_description == info["instruction"]
        target = env._episode.task["target"]  # type: ignore[index]
        thing = env.world.world(WORLD, "room", 0).things[target]
        assert thing.noun in info["instruction"]
        middle = (np.array(thing.low) + np.array(thing.high)) / 2
        for _ in range(25):
            seen = np.linalg.inv(info["poses"][-1]) @ [*middle, 1.0]
            yaw, pitch = math.atan2(seen[0], seen[2]), math.atan2(-seen[1], math.hypot(seen[0], seen[2]))
            turn = np.clip(np.array([pitch, yaw]) / 0.5236, -1, 1)
            forward = min(1.0, max(0.0, seen[2] - 0.6)) if abs(yaw) < 0.6 else 0.0
            action = {"camera": np.array([0, 0, forward, *turn, 0], np.float32), "text": ""}
            observation, reward, terminated, _, info = env.step(action)
            assert terminated is info["is_success"] is (info["target_share"] >= 0.2)
            assert info["target_share"] == (env.world.seen_things(env.state) == target).mean()
            if terminated:
                reached += 1
                assert reward > 2
                break
    assert reached >= 3


def test_an_instruction_of_ones_own_names_a_thing_of_the_world():
    env = truth(None)
    env.reset(seed=0)
    names = [name for name, _ in env.world.named_things(env.state).values()]
    wanted = f"please walk to the {names[0]} over there"
    env = truth(FollowText(wanted))
    _, info = env.reset(seed=0)
    assert info["instruction"] == wanted
    with pytest.raises(ValueError, match="this world has nothing for 'find the cyan fountain'; it has: "):
        truth(FollowText("find the cyan fountain")).reset(seed=0)


def test_movers_are_things_too():
    env = truth(None, movers=2)
    env.reset(seed=0)
    named = env.world.named_things(env.state)
    movers = env.world.world(WORLD, "room", 2).movers
    assert movers and {mover.name for mover in movers} <= {name for name, _ in named.values()}


def test_in_a_generated_world_colour_tells(fakes):
    blue = np.full((40, 40, 3), 120, np.uint8)
    blue[10:16, 10:16] = (30, 60, 220)
    env = SpatiaNavEnv(image=blue, model=fakes, task="follow-text")
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert info["instruction"] == "go to the blue thing" and info["target_share"] == pytest.approx(36 / 1600)
    blue[2:, 2:] = (30, 60, 220)
    scene_env = SpatiaNavEnv(image=blue, model=fakes, task=FollowText("go to the blue box", step_cost=0.0))
    _, info = scene_env.reset(seed=0)
    assert info["target_share"] > 0.8
    _, reward, terminated, _, info = scene_env.step(STAY)
    assert terminated and info["is_success"] and reward > 2
    with pytest.raises(ValueError, match="only SpatiaTruth-v0 knows"):
        SpatiaNavEnv(image=blue, model=fakes, task=FollowText(judge="objects")).reset(seed=0)


def test_colours_are_told_apart():
    from spatia_model.worlds.palette import MOVER_COLORS

    assert set(MOVER_COLORS) == set(HUES)
    for name, rgb in MOVER_COLORS.items():
        for shade in (1.0, 0.6):
            patch = np.full((4, 4, 3), np.array(rgb) * shade, np.uint8)
            assert [color for color in HUES if color_mask(patch, color).all()] == [name]
    grey = np.full((4, 4, 3), 90, np.uint8)
    assert not any(color_mask(grey, color).any() for color in HUES)
    two = np.full((10, 10, 3), 128, np.uint8)
    two[:2, :2] = two[6:, 6:] = MOVER_COLORS["green"]
    assert color_share(two, "green") == 0.16  # the larger patch alone


def test_gym_make_takes_names(fakes, picture):
    env = gym.make("SpatiaNav-v0", model=fakes, image=picture, task={"name": "return-home", "min_distance": 0.6})
    assert env.unwrapped.task.min_distance == 0.6
