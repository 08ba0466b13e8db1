"""From actions to calibrated paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from spatia_env.actions import ContinuousMotion, NavMotion, level_twist, nav_twist, pitch_of, twist_path

EYE = torch.eye(4, dtype=torch.float64)


def some_pose(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return twist_path(EYE, rng.normal(size=6), 1)[-1]


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    cosine = (float((a[:3, :3].T @ b[:3, :3]).trace()) - 1) / 2
    return math.acos(max(-1.0, min(1.0, cosine)))


@pytest.mark.parametrize("seed", range(3))
def test_path_is_the_matrix_exponential_of_the_action(seed):
    """The reference is scipy's general matrix exponential."""
    rng = np.random.default_rng(seed)
    motion = ContinuousMotion(8, max_translation=0.4, max_rotation=0.6)
    camera = rng.uniform(-1, 1, 6).astype(np.float32)
    start = some_pose(seed)
    plan = motion.plan({"camera": camera, "text": "a ball"}, start)
    twist = camera.astype(np.float64) * [0.4, 0.4, 0.4, 0.6, 0.6, 0.6]
    (tx, ty, tz), (x, y, z) = twist[:3], twist[3:]
    generator = np.array([[0, -z, y, tx], [z, 0, -x, ty], [-y, x, 0, tz], [0, 0, 0, 0]])
    expected = np.stack([start.numpy() @ expm(generator * k / 8) for k in range(1, 9)])
    np.testing.assert_allclose(plan.T_world_camera.numpy(), expected, atol=1e-12)
    assert plan.T_world_camera.dtype == torch.float64
    assert plan.text == "a ball"


@pytest.mark.parametrize(
    ("axis", "moves"),
    [(0, (1, 0, 0)), (1, (0, 1, 0)), (2, (0, 0, 1))],
)
def test_translations_are_calibrated(axis, moves):
    camera = np.zeros(6, np.float32)
    camera[axis] = 1
    last = ContinuousMotion(8).plan({"camera": camera, "text": ""}, EYE).T_world_camera[-1]
    np.testing.assert_allclose(last[:3, 3].numpy(), 0.5 * np.array(moves), atol=1e-12)


@pytest.mark.parametrize(
    ("axis", "looks_to"),
    [
        (3, (0, -0.5, math.cos(math.radians(30)))),  # pitch: up is -y
        (4, (0.5, 0, math.cos(math.radians(30)))),  # yaw: to the right
        (5, (0, 0, 1)),  # roll: the same way
    ],
)
def test_rotations_are_calibrated_and_turn_the_way_they_say(axis, looks_to):
    camera = np.zeros(6, np.float32)
    camera[axis] = 1
    last = ContinuousMotion(8).plan({"camera": camera, "text": ""}, EYE).T_world_camera[-1]
    np.testing.assert_allclose(last[:3, 2].numpy(), looks_to, atol=1e-12)
    assert angle_between(EYE, last) == pytest.approx(math.radians(30))
    if axis == 5:  # clockwise for the walker: the camera's right side goes down
        assert float(last[1, 0]) > 0


def test_motion_is_even_over_the_clip():
    path = ContinuousMotion(8).plan({"camera": np.array([0.3, 0, 1, 0, 1, 0], np.float32), "text": ""}, some_pose(1)).T_world_camera
    steps = torch.linalg.inv(path[:-1]) @ path[1:]
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_opposite_actions_cancel():
    motion = ContinuousMotion(8)
    camera = np.array([0.2, -0.1, 0.7, 0.3, -0.8, 0.1], np.float32)
    there = motion.plan({"camera": camera, "text": ""}, EYE).T_world_camera[-1]
    back = motion.plan({"camera": -camera, "text": ""}, there).T_world_camera[-1]
    torch.testing.assert_close(back, EYE, atol=1e-12, rtol=0)


def test_a_thousand_steps_stay_rigid():
    motion = ContinuousMotion(8)
    rng = np.random.default_rng(0)
    pose = EYE
    for _ in range(1000):
        pose = motion.plan({"camera": rng.uniform(-1, 1, 6).astype(np.float32), "text": ""}, pose).T_world_camera[-1]
    rotation = pose[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)


def nav(action: int, pose: torch.Tensor = EYE) -> torch.Tensor:
    return NavMotion(8).plan(action, pose).T_world_camera[-1]


def test_nav_motions_on_level_ground():
    np.testing.assert_allclose(nav(0)[:3, 3], [0, 0, 0.25], atol=1e-12)
    np.testing.assert_allclose(nav(1)[:3, 2], [-math.sin(math.radians(15)), 0, math.cos(math.radians(15))], atol=1e-12)
    np.testing.assert_allclose(nav(2)[:3, 2], [math.sin(math.radians(15)), 0, math.cos(math.radians(15))], atol=1e-12)
    assert pitch_of(nav(3)) == pytest.approx(math.radians(15))
    assert pitch_of(nav(4)) == pytest.approx(math.radians(-15))
    torch.testing.assert_close(nav(5), EYE)


def test_nav_stays_level_when_looking_down():
    down = nav(4, nav(4))
    ahead = nav(0, down)
    np.testing.assert_allclose((ahead[:3, 3] - down[:3, 3]).numpy(), [0, 0, 0.25], atol=1e-12)
    turned = down
    for _ in range(24):  # a full circle
        turned = nav(2, turned)
        assert pitch_of(turned) == pytest.approx(math.radians(-30))
        assert float(turned[1, 0]) == pytest.approx(0)  # no roll
    torch.testing.assert_close(turned, down, atol=1e-9, rtol=0)


def test_nav_pitch_is_bounded():
    for action, sign in ((3, 1), (4, -1)):
        pose = EYE
        for _ in range(6):
            pose = nav(action, pose)
        assert pitch_of(pose) == pytest.approx(sign * math.radians(60))


def test_level_twist_of_a_level_camera_is_the_plain_twist():
    np.testing.assert_allclose(
        level_twist(EYE, forward=0.1, right=0.2, down=0.3, turn=0.4, look=0.5, roll=0.6), [0.2, 0.3, 0.1, 0.5, 0.4, 0.6]
    )
    assert not nav_twist(5, EYE).any()
