"""The motion estimator's own error, and that it reports what the pictures show rather than what was asked."""

from __future__ import annotations

import math

import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.evaluation.closed_loop import motion_figures
from spatia_model.evaluation.motion import estimate_motion, motion_errors, seen_in
from spatia_model.evaluation.setting import Walk
from spatia_model.geometry import se3
from spatia_model.types import GroundTruth
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import pose_from

CAMERA = mini_camera(MiniConfig())


def view(world: World, poses: torch.Tensor) -> GroundTruth:
    return world.render(poses, CAMERA, torch.zeros(len(poses), dtype=torch.float64))


def frame(truth: GroundTruth, row: int) -> GroundTruth:
    return GroundTruth(truth.rgb[row : row + 1], truth.depth[row : row + 1], truth.dynamic[row : row + 1])


@pytest.fixture(scope="module")
def scene() -> tuple[GroundTruth, torch.Tensor]:
    """Four views of a textured room: at the start, moved and turned as an agent would in a clip, and two other turns."""
    import numpy as np

    world = World.generate(2_000_002, kind="room", movers=0)
    start = world.start_pose(np.random.default_rng(0))
    offsets = [pose_from(0, 0, 0, 0, 0, 0), pose_from(0.1, 0, 0.2, 0.25, 0, 0), pose_from(0.1, 0, 0.2, 0.25 + math.radians(5), 0, 0)]
    offsets.append(pose_from(0.1, 0, 0.35, 0.25, 0.0, 0))
    poses = torch.stack([start @ offset for offset in offsets])
    return view(world, poses), poses


def test_own_error_is_small_and_does_not_need_the_answer(scene: tuple[GroundTruth, torch.Tensor]) -> None:
    truth, poses = scene
    true = se3.inverse(poses[1]) @ poses[0]
    for asked in (true, None):
        motion = estimate_motion(truth.rgb[0], truth.depth[0], truth.rgb[1], CAMERA, asked)
        assert motion is not None
        turn, gap = motion_errors(motion.T_target_source, true)
        assert turn < 0.5 and gap < 0.03, (turn, gap)
        assert motion.agreement > 0.8


@pytest.mark.parametrize(("shown", "turn", "gap"), [(2, 5.0, 0.0), (3, 0.0, 0.15)])
def test_a_picture_from_elsewhere_raises_the_error_by_that_much(scene, shown: int, turn: float, gap: float) -> None:
    """Asked was view 1; shown is a view 5 degrees, or 15 cm, off."""
    truth, poses = scene
    asked = se3.inverse(poses[1]) @ poses[0]
    motion = estimate_motion(truth.rgb[0], truth.depth[0], truth.rgb[shown], CAMERA, asked)
    assert motion is not None
    found_turn, found_gap = motion_errors(motion.T_target_source, asked)
    assert found_turn == pytest.approx(turn, abs=0.6)
    assert found_gap == pytest.approx(gap, abs=0.04)


def test_a_walk_with_a_wrong_turn_reports_it(scene) -> None:
    """A clip of one frame that shows 5 degrees more than asked."""
    truth, poses = scene
    path, pair = poses[:2], GroundTruth(truth.rgb[:2], truth.depth[:2], truth.dynamic[:2])
    seen = seen_in(pair, path, frame(truth, 0), path[0], CAMERA)
    figures = {}
    for shown in (1, 2):
        walked = Walk(path, torch.zeros(2), pair, truth.rgb[shown : shown + 1], truth.rgb[1:2], seen[1:], pair.depth[1:], ("",), None)  # type: ignore[arg-type]
        figures[shown] = motion_figures(walked, seen, CAMERA, 1)
    assert figures[1]["rotation_error_deg"] == figures[1]["own_rotation_error_deg"]
    assert figures[2]["rotation_error_deg"] == pytest.approx(5, abs=0.6)
    assert figures[1]["translation_error_pct"] is not None and figures[1]["translation_error_pct"] < 15


def test_a_blank_picture_counts_as_lost(scene) -> None:
    truth, poses = scene
    flat = torch.full_like(truth.rgb[0], 128)
    assert estimate_motion(truth.rgb[0], torch.zeros_like(truth.depth[0]), truth.rgb[1], CAMERA) is None
    path, pair = poses[:2], GroundTruth(truth.rgb[:2], truth.depth[:2], truth.dynamic[:2])
    seen = seen_in(pair, path, frame(truth, 0), path[0], CAMERA)
    walked = Walk(path, torch.zeros(2), pair, flat[None], flat[None], seen[1:], pair.depth[1:], ("",), None)  # type: ignore[arg-type]
    asked = math.degrees(float(se3.rotation_angle(se3.inverse(path[1]) @ path[0])))
    turn = motion_figures(walked, seen, CAMERA, 1)["rotation_error_deg"]
    assert turn is not None and turn > 0.3 * asked


def test_seen_in_marks_shared_static_surfaces() -> None:
    world = World.generate(2_000_002, kind="room", movers=0)
    here = torch.eye(4, dtype=torch.float64)
    here[:3, 3] = torch.tensor([*world.free_cells()[0].tolist(), 0.0])[[0, 2, 1]] + torch.tensor([0.0, -1.4, 0.0])
    turned = here @ pose_from(0, 0, 0, math.pi, 0, 0)
    half = here @ pose_from(0, 0, 0, math.radians(37.5), 0, 0)
    poses = torch.stack([here, turned, half])
    truth = view(world, poses)
    seen = seen_in(truth, poses, frame(truth, 0), here, CAMERA)
    assert float(seen[0].float().mean()) > 0.95
    assert not bool(seen[1].any())
    assert 0.25 < float(seen[2].float().mean()) < 0.65
    assert float(seen[2][:, :40].float().mean()) > 0.6 and not bool(seen[2][:, 90:].any())  # it turned right: the left half is shared
    moving = GroundTruth(truth.rgb, truth.depth, torch.ones_like(truth.dynamic))
    assert not bool(seen_in(moving, poses, frame(truth, 0), here, CAMERA).any())
