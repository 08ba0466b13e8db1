"""Other skins, light and cameras for pictures of worlds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.geometry.camera import camera_from_fov
from spatia_model.training import looks
from spatia_model.training.looks import LATTICE, SKY, developed, reskinned
from spatia_model.worlds.trajectories import pose_from

CAMERA = camera_from_fov(math.radians(75), 32, 32)
HERE = torch.eye(4, dtype=torch.float64)[None]


def wall(depth: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rgb = torch.full((1, 32, 32, 3), 120, dtype=torch.uint8)
    return rgb, torch.full((1, 32, 32), depth), torch.zeros(1, 32, 32, dtype=torch.bool)


def test_skins_change_surfaces_and_leave_movers_and_the_sky():
    rgb, depth, keep = wall()
    keep[:, :8], depth[:, 24:] = True, SKY + 1
    for seed in range(6):
        out = reskinned(np.random.default_rng(seed), rgb, depth, keep, HERE, CAMERA)
        assert out.shape == rgb.shape and out.dtype == torch.uint8
        assert torch.equal(out[:, :8], rgb[:, :8]) and torch.equal(out[:, 24:], rgb[:, 24:])
        assert float(out[:, 8:24].float().std()) > 0.5
    again = reskinned(np.random.default_rng(5), rgb, depth, keep, HERE, CAMERA)
    assert torch.equal(out, again)


def test_a_skin_lies_on_the_surface_and_not_on_the_picture():
    """A wall seen from a step aside shows the same skin, shifted by as many pixels as the wall."""
    rgb, depth, keep = wall()
    pixels = 6
    aside = pixels * 3.0 / float(CAMERA.K[0, 0])
    shifted = pose_from(aside, 0.0, 0.0, 0.0, 0.0, 0.0)[None]
    for seed in range(4):
        one = reskinned(np.random.default_rng(seed), rgb, depth, keep, HERE, CAMERA)
        two = reskinned(np.random.default_rng(seed), rgb, depth, keep, shifted, CAMERA)
        same = (one[:, :, pixels:].int() - two[:, :, :-pixels].int()).abs()
        assert int(same.max()) <= 2  # rounding
        assert float((one.int() - two.int()).abs().float().mean()) > float(same.float().mean())


def test_noise_is_the_lattice_interpolated_between_its_cells():
    rng = np.random.default_rng(3)
    points = torch.from_numpy(np.random.default_rng(1).uniform(-1.5, 1.5, (1, 4, 5, 3))).float()
    got = looks._octaves(rng, points, torch.full((1, 1, 4, 5), 1e-6), 2.0, 1, 2)
    plain = np.random.default_rng(3)
    lattice, offset = plain.standard_normal((2, LATTICE, LATTICE, LATTICE), np.float32), plain.uniform(-1, 1, 3)
    where = points[0].numpy() * 2.0 * 2 / LATTICE + offset
    for y in range(4):
        for x in range(5):
            cell = (where[y, x] + 1) / 2 * (LATTICE - 1)
            cell = np.abs(cell)  # reflected at both ends
            cell = np.where(cell > LATTICE - 1, 2 * (LATTICE - 1) - cell, cell)[::-1]  # z, y, x
            low = np.floor(cell).astype(int)
            value = np.zeros(2)
            for corner in np.ndindex(2, 2, 2):
                share = np.prod([c - f if k else 1 - (c - f) for c, f, k in zip(cell, low, corner, strict=True)])
                value += share * lattice[:, *np.minimum(low + corner, LATTICE - 1)]
            np.testing.assert_allclose(got[0, :, y, x], value * 1.4, atol=1e-4)


def test_octaves_too_fine_for_a_pixel_fade():
    points = torch.rand(1, 8, 8, 3)
    fine, coarse = (looks._octaves(np.random.default_rng(0), points, torch.full((1, 1, 8, 8), size), 4.0, 2, 1) for size in (0.001, 0.5))
    assert float(fine.abs().mean()) > 0.2 and float(coarse.abs().max()) == 0


@pytest.mark.parametrize("seed", range(8))
def test_another_camera_keeps_shape_and_kind_and_what_is_seen(seed):
    blocks = np.random.default_rng(9).integers(30, 220, (2, 8, 8, 3)).astype(np.uint8)
    rgb = torch.from_numpy(blocks.repeat(4, 1).repeat(4, 2))
    out = developed(np.random.default_rng(seed), rgb)
    assert out.shape == rgb.shape and out.dtype == torch.uint8 and not torch.equal(out, rgb)
    steps = torch.stack([frames.float().mean(-1)[0, :, 2::4].diff(dim=1).flatten() for frames in (out, rgb)])  # from block to block
    assert float(torch.corrcoef(steps)[0, 1]) > 0.5
    assert torch.equal(out, developed(np.random.default_rng(seed), rgb))
