"""Motion from depth and cameras: against points followed one by one, and against the pictures themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.generator.vae_motion import displaced
from spatia_model.geometry.camera import project
from spatia_model.training.true_motion import PLAIN, Motion, all_pairs, motion_between, pattern, told_pairs
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import pose_from

SEED = 1_000_000  # a validation world
CAMERA = mini_camera(MiniConfig())
PAIRS = all_pairs(9)


def walk(frames: int = 9) -> torch.Tensor:
    start = World.generate(SEED).start_pose(np.random.default_rng(0))
    steps = [pose_from(0.03 * t, 0.0, 0.05 * t, math.radians(2 * t), 0.0, 0.0) for t in range(frames)]
    return torch.stack([start @ step for step in steps])


@pytest.fixture(scope="module")
def clip():
    poses = walk()
    return World.generate(SEED, movers=0).render(poses, CAMERA, torch.zeros(9)), poses


def test_pairs_are_in_the_order_in_which_motion_is_told():
    first = [(1, 0), (2, 0), (3, 0), (4, 0), (1, 4), (2, 4), (3, 4)]
    assert told_pairs(5) == first and told_pairs(9) == first + [(a + 4, b + 4) for a, b in first]
    assert all_pairs(5) == first + [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_motion_equals_points_followed_one_by_one(clip):
    truth, poses = clip
    row, column, side = 24, 40, 32
    piece = slice(None), slice(row, row + side), slice(column, column + side)
    motion = motion_between(truth.depth[piece], truth.dynamic[piece], poses, CAMERA, (row, column), PAIRS)
    assert motion.way.shape == (22, 2, 8, 8) and motion.known.shape == (22, 1, 8, 8)
    K = CAMERA.K
    for number, y, x in ((0, 1, 2), (3, 5, 5), (13, 7, 0), (11, 3, 3), (17, 6, 2)):
        here, there = PAIRS[number]
        u, v = column + 4 * x + 2, row + 4 * y + 2
        z = float(truth.depth[here, v, u])
        ray = torch.tensor([(u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1], 1.0, 1.0 / z], dtype=torch.float64)
        point = poses[here] @ (ray * z)
        uv, _ = project(point[None, :3].float(), poses[there][None].float(), CAMERA)
        expected = uv[0, 0] - torch.tensor([u + 0.5, v + 0.5])
        torch.testing.assert_close(motion.way[number, :, y, x], expected.float(), atol=0.02, rtol=1e-3)


def test_frames_moved_so_are_alike(clip):
    """A frame drawn from another by the true motion is far nearer to it than the other is."""
    truth, poses = clip
    motion = motion_between(truth.depth, truth.dynamic, poses, CAMERA, (0, 0), PAIRS)
    frames = truth.rgb.permute(0, 3, 1, 2).float()
    for number in (3, 8, 12, 18):
        here, there = PAIRS[number]
        moved = displaced(frames[there][None, None], motion.way[number][None, None])[0, 0]
        inside = slice(24, 104)
        better, worse = ((other[:, inside, inside] - frames[here][:, inside, inside]).abs().mean() for other in (moved, frames[there]))
        assert float(better) < 0.6 * float(worse), (PAIRS[number], float(better), float(worse))


def test_what_moves_by_itself_or_has_no_depth_is_not_known(clip):
    truth, poses = clip
    dynamic, depth = truth.dynamic.clone(), truth.depth.clone()
    dynamic[:, :64] = True
    depth[:, :, :64] = 0
    known = motion_between(depth, dynamic, poses, CAMERA, (0, 0), PAIRS).known
    assert not bool(known[..., :16, :].any()) and not bool(known[..., :16].any()) and bool(known[..., 16:, 16:].any())


def test_mirrored_motion_is_that_of_mirrored_pictures():
    way = torch.randn(7, 2, 3, 5, generator=torch.Generator().manual_seed(SEED))
    motion = Motion(way, torch.ones(7, 1, 3, 5, dtype=torch.bool))
    pictures = torch.randn(1, 1, 3, 12, 20, generator=torch.Generator().manual_seed(SEED))
    here = displaced(pictures, way[None, :1]).flip(-1)
    torch.testing.assert_close(displaced(pictures.flip(-1), motion.mirrored().way[None, :1]), here, atol=1e-4, rtol=1e-4)


def test_being_off_counts_where_motion_is_known_and_there_is_something_to_see():
    still = Motion.none(7, 16)
    assert still.way.shape == (7, 2, 4, 4)
    told, weight = torch.zeros_like(still.way), torch.ones(7, 1, 4, 4)
    told[:, 0] = 1.0  # a pixel to the right, everywhere
    assert float(still.off(told, weight)) == pytest.approx(0.5)
    known = still.known.clone()
    known[..., 2:] = False
    told[..., 2:] = 9.0
    assert float(Motion(still.way, known).off(told, weight)) == pytest.approx(0.5)
    told[..., 1] = 3.0
    weight[..., 1] = 3.0
    assert float(Motion(still.way, known).off(told, weight)) == pytest.approx((0.5 + 3 * 3.0) / 4)
    assert float(Motion.none(7, 16, known=False).off(told, weight)) == 0
    both = Motion.stack([still, Motion.none(7, 16, known=False)])
    assert both.way.shape == (2, 7, 2, 4, 4) and int(both.known.sum()) == still.known.sum()


def test_a_pattern_is_where_colours_change():
    frames = torch.zeros(1, 3, 2, 16, 16)
    frames[:, :, 1, :, 8:] = 1.0
    found = pattern(frames)
    assert found.shape == (1, 2, 1, 4, 4)
    assert bool((found[:, 0] == PLAIN).all()) and float(found[0, 1, 0, 0, 3]) == pytest.approx(PLAIN)
    assert float(found[0, 1, 0, :, 1].min()) > 10 * PLAIN
