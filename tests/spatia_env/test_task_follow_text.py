"""FollowText: which thing is meant, and when one stands before it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spatia_env import FollowText, SpatiaNavEnv
from spatia_env.tasks.colors import HUES, color_mask, color_share
from spatia_env.tasks.follow_text import WORDS, named_words
from spatia_model.worlds.palette import MOVER_COLORS
from tests.spatia_env.task_envs import STAY, WORLD, truth


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


def test_what_one_stands_before_already_is_not_asked_for():
    """With a fill that anything reaches, the start at seed 2 asks for the door it looks at; with a smaller one, for something else."""
    shares = {}
    for fill in (1.0, 0.1):
        env = truth(FollowText(fill=fill), image_size=16)
        shares[fill] = [env.reset(seed=seed)[1]["target_share"] for seed in range(6)]
    assert max(shares[1.0]) > 0.05 and max(shares[0.1]) < 0.05


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
