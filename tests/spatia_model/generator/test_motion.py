"""The planner's frames of reference, and what it reads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spatia_model.generator.motion import MotionConfig, MotionPlanner, features, level
from spatia_model.memory.entities import PAST, Entities
from spatia_model.worlds import VOCABULARY
from spatia_model.worlds.trajectories import pose_from

TEXT = "a red ball rolls to the left"


@pytest.fixture(scope="module")
def planner() -> MotionPlanner:
    torch.manual_seed(2_000_000)
    return MotionPlanner(MotionConfig(VOCABULARY, width=16, layers=2, heads=2)).eval()


def entities(count: int = 2, seed: int = 0) -> Entities:
    generator = torch.Generator().manual_seed(seed)
    return Entities(
        torch.rand(20 * count, 3, generator=generator) + torch.tensor([0.0, 0.0, 2.0]),
        torch.randint(0, 256, (20 * count, 3), generator=generator, dtype=torch.uint8),
        torch.full((20 * count,), 0.02),
        torch.arange(count).repeat_interleave(20),
        torch.randn(count, len(PAST), 3, generator=generator) * 0.1,
        torch.tensor([True, False] * count)[:count],
    )


def turned(things: Entities, T: torch.Tensor) -> Entities:
    R = T[:3, :3].float()
    return replace(things, positions=things.positions @ R.T + T[:3, 3].float(), past=things.past @ R.T)


def test_level_axes_keep_the_heading_and_nothing_else():
    R = level(pose_from(1.0, -1.4, 2.0, 0.7, 0.3, 0.2))
    expected = pose_from(0.0, 0.0, 0.0, 0.7, 0.0, 0.0)[:3, :3].T  # rows: right, down, ahead
    torch.testing.assert_close(R, expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(R @ R.T, torch.eye(3, dtype=torch.float64))
    assert R[1].tolist() == [0, 1, 0]
    for pitch in (math.pi / 2, -math.pi / 2):  # straight up and down still has axes
        R = level(pose_from(0.0, 0.0, 0.0, 0.4, pitch, 0.0))
        assert torch.isfinite(R).all() and float(torch.linalg.det(R)) == pytest.approx(1.0)


def test_the_way_does_not_depend_on_where_the_world_lies(planner):
    here, there = pose_from(0.3, -1.2, 0.1, 0.2, 0.25, 0.0), pose_from(-3.0, 0.0, 5.0, 1.9, 0.0, 0.0)
    way = planner.plan(entities(), TEXT, here)
    moved = planner.plan(turned(entities(), there), TEXT, there @ here)
    assert way.shape == (2, planner.config.frames, 3) and way.abs().max() > 0.01
    torch.testing.assert_close(moved, way @ there[:3, :3].float().T, atol=1e-4, rtol=1e-4)


def test_entities_do_not_see_each_other_and_text_matters(planner):
    both, pose = entities(), torch.eye(4, dtype=torch.float64)
    way = planner.plan(both, TEXT, pose)
    alone = planner.plan(both.only(torch.tensor([False, True])), TEXT, pose)
    torch.testing.assert_close(alone[0], way[1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(planner.plan(both, TEXT.replace("left", "right"), pose), way)
    assert planner.plan(Entities.empty(), TEXT, pose).shape == (0, planner.config.frames, 3)


def test_an_unseen_past_is_not_read(planner):
    both, pose = entities(), torch.eye(4, dtype=torch.float64)
    other = replace(both, past=both.past + torch.tensor([0.0, 1.0])[:, None, None])  # of the second, which was not watched
    assert torch.equal(planner.plan(other, TEXT, pose), planner.plan(both, TEXT, pose))


def test_padding_is_not_read_and_a_long_text_keeps_its_end(planner):
    ids = planner.ids(TEXT)
    assert ids.shape == (planner.config.max_tokens,) and int((ids > 0).sum()) == len(TEXT.split())
    given = features(torch.zeros(1, 3), torch.ones(1), torch.ones(1, 3), torch.zeros(1, len(PAST), 3), torch.ones(1))
    assert given.shape == (1, MotionPlanner.FEATURES)
    torch.testing.assert_close(planner(given, ids[None]), planner(given, ids[None, :9]))
    assert torch.equal(planner.ids("a room . " * 60 + TEXT)[-len(TEXT.split()) :], ids[: len(TEXT.split())])
    assert not planner.ids("").any() and torch.isfinite(planner(given, planner.ids("")[None])).all()


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of heads"):
        MotionConfig(width=10, heads=4)
