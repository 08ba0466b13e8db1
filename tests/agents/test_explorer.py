"""The frontier explorer: its map is true, and it sees more than one who walks at random."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.agents.loading import load, small_truth


@pytest.fixture(scope="module")
def explorer():
    return load("frontier_explorer")


@pytest.mark.parametrize("discrete", [False, True])
def test_free_cells_are_free_in_the_true_world(explorer, discrete):
    env = small_truth(image_size=48, discrete=discrete)
    agent = explorer.FrontierExplorer(env, seed=0)
    observation, info = env.reset(seed=1)
    agent.reset(observation, info)
    floor = []
    for _ in range(7):
        action = agent.act(observation, info)
        assert env.action_space.contains(action)
        observation, _, _, _, info = env.step(action)
        floor.append(int((agent.map.cells == explorer.FREE).sum()))
    assert floor[-1] > 1.3 * floor[0], floor
    free = np.argwhere(agent.map.cells == explorer.FREE)
    places = agent.map.corner + (free + 0.5) * explorer.CELL
    height = np.full(len(places), info["poses"][-1][1, 3])
    truth = env.unwrapped.world.world(2_000_003, "room", 0)
    inside = truth.is_free(torch.from_numpy(np.stack([places[:, 0], height, places[:, 1]], 1)), 0.02)
    assert float(torch.as_tensor(inside).float().mean()) > 0.95


def test_tasks_with_other_observations_do_not_matter(explorer):
    env = small_truth(task="reach-view", discrete=True)
    agent = explorer.FrontierExplorer(env)
    observation, info = env.reset(seed=1)
    assert isinstance(observation, dict)
    agent.reset(observation, info)
    assert env.action_space.contains(agent.act(observation, info))


def empty_map(explorer):
    ground = explorer.GroundMap(np.zeros(3))
    ground.cells[:] = explorer.FREE
    return ground


def test_gain_counts_what_walls_do_not_hide(explorer):
    ground = empty_map(explorer)
    middle = ground.size // 2
    ground.cells[middle - 30 : middle + 30, middle + 10 : middle + 20] = 0  # unknown, one metre ahead (+z)
    eye = np.zeros(2)
    seen = ground.gain(eye, 0.0, 1.3)
    assert seen > 100 and ground.gain(eye, math.pi, 1.3) == 0
    ground.doubts[:] = 3
    assert ground.gain(eye, 0.0, 1.3) == 0
    ground.doubts[:] = 0
    ground.cells[:, middle + 5] = explorer.OCCUPIED
    assert ground.gain(eye, 0.0, 1.3) == 0


def test_ways_lead_around_walls(explorer):
    ground = empty_map(explorer)
    middle = ground.size // 2
    ground.cells[: middle + 20, middle + 10] = explorer.OCCUPIED  # a wall with an end
    start, goal = np.array([middle, middle]), np.array([middle, middle + 20])
    length, before = ground.ways(start)
    straight = 20 * explorer.CELL
    assert math.isfinite(length[tuple(goal)]) and length[tuple(goal)] > 1.5 * straight
    cell, steps = tuple(goal), 0
    while before[cell] >= 0:
        cell, steps = divmod(int(before[cell]), ground.size), steps + 1
        assert ground.cells[cell] == explorer.FREE
    assert cell == tuple(start) and steps > 20
    ground.cells[:, middle + 10] = explorer.OCCUPIED
    assert not math.isfinite(ground.ways(start)[0][tuple(goal)])


def test_a_bump_is_remembered(explorer):
    agent = explorer.FrontierExplorer(small_truth(discrete=True))
    agent.reset(None, {"poses": np.eye(4)[None]})
    agent.poses, agent.walked = [np.eye(4)], 0.25
    agent._notice_bump(np.eye(4))
    assert agent.map.bumped.sum() == 1
    moved = np.eye(4)
    moved[2, 3] = 0.25
    agent._notice_bump(moved)
    assert agent.map.bumped.sum() == 1


def test_headings_and_turns(explorer):
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # looks along +x: 90 degrees to the right
    assert explorer.heading_of(pose) == pytest.approx(math.pi / 2)
    assert explorer.turn_between(3.0, -3.0) == pytest.approx(2 * math.pi - 6)
