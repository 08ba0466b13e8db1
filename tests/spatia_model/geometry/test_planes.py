"""Surfaces beyond what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.geometry.camera import pixel_rays
from spatia_model.geometry.planes import STEADY, _fit, continued


def plane_depth(normal: tuple[float, float, float], distance: float, size: int = 64) -> torch.Tensor:
    """(1, size, size) depth of the plane normal . x = distance before the embedded tier's camera."""
    rays = pixel_rays(mini_camera(MiniConfig(image_size=size)))
    return (distance / (rays @ torch.tensor(normal))).unsqueeze(0)


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (-0.5, 0.0, 0.8), (0.3, 0.2, 0.9)])
def test_a_wall_goes_on_where_the_memory_ends(normal):
    depth = plane_depth(normal, 2.5)
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[..., 44:] = False  # the camera turned to the right
    found = continued(depth * mask, mask)
    assert torch.equal(found[mask], depth[mask])
    error = (found / depth - 1).abs()
    held = (depth[..., 43:44] / depth - 1).abs()  # what is known last, going on as it is
    assert float(error[..., 44:].mean()) < max(0.01, 0.7 * float(held[..., 44:].mean()))  # slopes are a little damped


def test_every_hole_takes_the_surface_next_to_it():
    """A near wall on the left, a far one on the right: each goes on beyond its end, upwards."""
    depth = torch.cat([plane_depth((0.0, 0.0, 1.0), 1.5)[..., :32], plane_depth((0.0, 0.0, 1.0), 6.0)[..., 32:]], -1)
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[:, :16] = False
    found = continued(depth * mask, mask)
    error = (found / depth - 1).abs()
    assert float(error[:, 8:16, :22].max()) < 0.05 and float(error[:, 8:16, 42:].max()) < 0.2


def test_small_holes_are_closed_smoothly():
    depth = plane_depth((0.4, 0.3, 0.9), 3.0)
    mask = torch.rand(depth.shape, generator=torch.Generator().manual_seed(2_000_000)) > 0.4
    assert float((continued(depth * mask, mask) / depth - 1).abs().max()) < 0.06


@pytest.mark.parametrize("size", [(1, 40, 64), (3, 33, 47), (2, 6, 5)])
def test_any_size_and_frames_apart(size):
    generator = torch.Generator().manual_seed(2_000_001)
    depth, mask = torch.rand(size, generator=generator) * 4 + 1, torch.rand(size, generator=generator) > 0.5
    found = continued(depth * mask, mask)
    assert found.shape == depth.shape and bool((found >= 0.1 - 1e-6).all()) and bool((found <= 60 + 1e-3).all())
    one = continued(depth[:1] * mask[:1], mask[:1])
    torch.testing.assert_close(one, found[:1])


def test_all_known_stays():
    depth = plane_depth((0.0, 0.0, 1.0), 2.0)
    assert torch.equal(continued(depth, torch.ones_like(depth, dtype=torch.bool)), depth)


def test_nothing_known_is_nothing_told():
    found = continued(torch.zeros(2, 16, 16), torch.zeros(2, 16, 16, dtype=torch.bool))
    assert torch.equal(found, torch.zeros(2, 16, 16))
    corner = torch.zeros(1, 16, 16, dtype=torch.bool)
    corner[0, 0, 0] = True  # a single pixel: at its depth, all over
    torch.testing.assert_close(continued(corner * 2.0, corner), torch.full((1, 16, 16), 2.0), atol=0.05, rtol=0)


def test_a_fit_is_weighted_least_squares():
    rng = np.random.default_rng(2_000_000)
    u, v, z, w = rng.normal(size=(4, 30))
    w = np.abs(w)
    moments = [(w * m).sum() for m in (np.ones(30), u, v, u * u, u * v, v * v, z, u * z, v * z)]
    found = _fit(torch.tensor(moments).view(1, 9, 1, 1).float())[0, :, 0, 0]
    n = w.sum()
    du, dv, dz = (x - (w * x).sum() / n for x in (u, v, z))
    spread = ((w * du * du).sum() + (w * dv * dv).sum()) / n
    ridge = np.sqrt(n * STEADY * spread) * np.eye(2)  # as rows that ask for no slope
    rows = np.concatenate([np.sqrt(w)[:, None] * np.stack([du, dv], 1), ridge])
    b, c = np.linalg.lstsq(rows, np.concatenate([np.sqrt(w) * dz, np.zeros(2)]), rcond=None)[0]
    a = ((w * z).sum() - b * (w * u).sum() - c * (w * v).sum()) / n
    np.testing.assert_allclose(found.numpy(), [a, b, c], atol=1e-4)
