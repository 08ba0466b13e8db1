"""Explore: how much surface a memory holds, and that only what is new is rewarded."""

from __future__ import annotations

import pytest
import torch

from spatia_env import Explore, explored_area
from spatia_model.geometry import se3
from spatia_model.memory.point_memory import PointMemory
from tests.spatia_env.task_envs import LEFT, RIGHT, STAY, truth


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
