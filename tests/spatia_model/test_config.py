from __future__ import annotations

import math

import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.geometry.camera import pixel_rays


def test_the_window_is_history_and_clip():
    config = MiniConfig(history_frames=9, frames_per_clip=12)
    assert config.window == 21


def test_the_camera_has_the_field_of_view():
    camera = mini_camera(MiniConfig(image_size=64, fov_x=math.radians(90)))
    assert (camera.width, camera.height) == (64, 64)
    torch.testing.assert_close(camera.K, torch.tensor([[32.0, 0, 32], [0, 32, 32], [0, 0, 1]], dtype=torch.float64))
    outermost = pixel_rays(camera)[0, -1]  # half a pixel inside 45 degrees to the right and up
    assert outermost[0] == pytest.approx(31.5 / 32) and outermost[1] == pytest.approx(-31.5 / 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames_per_clip": 6}, "frames_per_clip must be a positive multiple of 4.*got 6"),
        ({"frames_per_clip": 0}, "frames_per_clip must be a positive multiple of 4.*got 0"),
        ({"history_frames": 4}, r"history_frames must be 1 \+ 4k, got 4"),
        ({"history_frames": -3}, r"history_frames must be 1 \+ 4k, got -3"),
        ({"fov_x": 75.0}, "fov_x is an angle in radians between 0 and pi, got 75"),
        ({"motion_gap": 5}, "motion_gap must be between 1 and history_frames - 1, got 5"),
        ({"motion_gap": 0}, "motion_gap must be between 1 and history_frames - 1, got 0"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
    ],
)
def test_bad_combinations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MiniConfig(**settings)
