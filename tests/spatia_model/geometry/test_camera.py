"""Cameras: pixel centres, round trips, bad input."""

import math

import pytest
import torch

from spatia_model.geometry import camera as cameras
from tests.spatia_model.geometry.scenes import poses, small_camera


def test_the_field_of_view_spans_the_image():
    camera = cameras.camera_from_fov(math.radians(90), 8, 6)
    rays = cameras.pixel_rays(camera)
    assert rays.shape == (6, 8, 3) and rays.dtype == torch.float32
    # the outermost pixel centres lie half a pixel inside the 90 degree cone
    assert rays[0, 0, 0].item() == pytest.approx(-3.5 / 4) and rays[0, -1, 0].item() == pytest.approx(3.5 / 4)
    torch.testing.assert_close(rays.mean((0, 1)), torch.tensor([0.0, 0.0, 1.0]))


def test_project_undoes_unproject():
    camera, T = small_camera(), poses(3)
    depth = 1 + 3 * torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(2_000_003))
    points = cameras.unproject(depth, T, camera)
    for t in range(3):
        uv, z = cameras.project(points[t].reshape(-1, 3), T[t : t + 1], camera)
        v, u = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(32) + 0.5, indexing="ij")
        torch.testing.assert_close(uv[0], torch.stack([u, v], -1).reshape(-1, 2), atol=1e-3, rtol=0)
        torch.testing.assert_close(z[0], depth[t].reshape(-1), atol=1e-5, rtol=1e-5)


def test_normalised_intrinsics_round_trip_and_resize():
    camera = cameras.camera_from_normalised((0.6, 0.8, 0.48, 0.51), 320, 240)
    assert cameras.normalised_intrinsics(camera) == pytest.approx((0.6, 0.8, 0.48, 0.51))
    assert camera.K[0, 0].item() == pytest.approx(192) and camera.K[1, 2].item() == pytest.approx(0.51 * 240)
    half = cameras.resize(camera, 160, 120)
    torch.testing.assert_close(half.K[:2], camera.K[:2] / 2)


@pytest.mark.parametrize("fov", [0.0, -1.0, math.pi, 75.0])
def test_a_field_of_view_in_degrees_is_refused(fov: float):
    with pytest.raises(ValueError, match="radians"):
        cameras.camera_from_fov(fov, 8, 8)


def test_bad_sizes_and_shapes_are_refused():
    with pytest.raises(ValueError, match="0x8"):
        cameras.camera_from_fov(1.0, 0, 8)
    with pytest.raises(ValueError, match="four finite"):
        cameras.camera_from_normalised((0.6, float("nan"), 0.5, 0.5), 8, 8)
    with pytest.raises(ValueError, match=r"\(2, 24, 32\)"):
        cameras.unproject(torch.ones(1, 24, 32), poses(2), small_camera())
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        cameras.project(torch.ones(3), poses(1), small_camera())
