"""CEM and MPPI: they find goals, and leave the world as it was."""

from __future__ import annotations

import numpy as np
import pytest

from tests.agents.loading import load, small_truth

PLANNERS = {
    "cem": ("CemPlanner", {"horizon": 2, "population": 5, "elites": 2, "iterations": 2}),
    "mppi": ("MppiPlanner", {"horizon": 2, "samples": 8}),
}


def planner(name: str, env, seed: int = 0):
    cls, options = PLANNERS[name]
    return getattr(load(name), cls)(env, seed, **options)


@pytest.mark.parametrize(("name", "discrete"), [("cem", False), ("cem", True), ("mppi", False)])
def test_planning_leaves_the_world_as_it_was(name, discrete):
    env, twin = (small_truth(task="reach-view", discrete=discrete) for _ in range(2))
    agent = planner(name, env)
    observation, info = env.reset(seed=3)
    twin.reset(seed=3)
    agent.reset(observation, info)
    dice = env.unwrapped.np_random.bit_generator.state
    action = agent.act(observation, info)
    assert agent.imagined > 0 and env.action_space.contains(action)
    assert env.unwrapped.np_random.bit_generator.state == dice
    one, other = env.step(action), twin.step(action)
    assert one[1:4] == other[1:4] and np.array_equal(one[4]["poses"], other[4]["poses"])
    assert np.array_equal(one[0]["image"], other[0]["image"])


@pytest.mark.parametrize("name", PLANNERS)
def test_planning_gets_nearer_than_standing_still(name):
    env = small_truth(task={"name": "reach-view", "observe": "info"})
    agent = planner(name, env)
    observation, info = env.reset(seed=5)
    agent.reset(observation, info)
    start, total, ended = (info["distance_to_goal"], info["angle_to_goal"]), 0.0, False
    for _ in range(4):
        observation, reward, ended, _, info = env.step(agent.act(observation, info))
        total += float(reward)
        if ended:
            break
    left = info["distance_to_goal"] + 0.5 * info["angle_to_goal"]
    assert total > 0.2 and left < 0.6 * (start[0] + 0.5 * start[1])


def test_the_same_seed_plans_the_same():
    actions = []
    for _ in range(2):
        env = small_truth(task="reach-view", discrete=True)
        agent = planner("cem", env, seed=7)
        observation, info = env.reset(seed=3)
        agent.reset(observation, info)
        actions.append(agent.act(observation, info))
    assert actions[0] == actions[1]


def test_what_cannot_be_planned_is_said():
    with pytest.raises(ValueError, match="continuous motions"):
        planner("mppi", small_truth(discrete=True))
    with pytest.raises(ValueError, match="elites"):
        load("cem").CemPlanner(small_truth(), population=3, elites=4)
    with pytest.raises(ValueError, match="samples"):
        load("mppi").MppiPlanner(small_truth(), samples=0)


def test_cem_moves_its_chances_to_the_best():
    agent = planner("cem", small_truth(discrete=True))
    agent.reset(None, {})
    agent.fit(np.array([[2, 0], [2, 1]]))
    assert agent.chances[0].argmax() == 2 and np.allclose(agent.chances.sum(1), 1) and agent.chances.min() > 0.02
    continuous = planner("cem", small_truth())
    continuous.reset(None, {})
    continuous.fit(np.array([[[0.5, -1.0], [0, 0]], [[0.7, -1.0], [0, 0]]]))
    assert np.allclose(continuous.mean[0], [0.6, -1.0]) and continuous.spread[0, 1] == pytest.approx(0.1)
