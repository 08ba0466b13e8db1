"""ReachView and ReturnHome: where the goal is, and who gets there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_env import ReachView, ReturnHome, SpatiaTruthEnv
from spatia_env.tasks.goals import pose_gap, relative_goal
from spatia_model.geometry import se3
from tests.spatia_env.task_envs import FORWARD, LEFT, RIGHT, WORLD, truth

# -- reach-view -------------------------------------------------------------------------------------------------------


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


# -- return-home ------------------------------------------------------------------------------------------------------


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
