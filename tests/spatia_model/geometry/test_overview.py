"""The picture from above: what it shows and that it never fails."""

import numpy as np
import pytest
import torch

from spatia_model.geometry.overview import top_view
from spatia_model.memory.point_memory import PointMemory


def floor_and_ceiling() -> PointMemory:
    """A green floor at y = 0 and a red ceiling at y = -2.8, 4 x 4 m."""
    x, z = torch.meshgrid(torch.linspace(-2, 2, 120), torch.linspace(-2, 2, 120), indexing="ij")
    flat = torch.stack([x, torch.zeros_like(x), z], -1).reshape(-1, 3)
    points = torch.cat([flat, flat - torch.tensor([0, 2.8, 0])])
    colors = torch.zeros(len(points), 3, dtype=torch.uint8)
    colors[: len(flat), 1] = 180
    colors[len(flat) :, 0] = 180
    return PointMemory.empty(0.03).fuse(points, colors, torch.ones(len(points)), 0)


def path() -> torch.Tensor:
    T = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    T[:, 1, 3] = -1.4
    T[:, 2, 3] = torch.linspace(-1, 1, 5)
    return T


def test_the_ceiling_is_cut_away_and_the_path_drawn():
    picture = top_view(floor_and_ceiling(), path(), 96)
    assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    green = (picture[..., 1] > 120) & (picture[..., 0] < 60)
    red = (picture[..., 0] > 120) & (picture[..., 1] < 60)
    assert green.mean() > 0.4 and red.sum() == 0
    orange = (picture[..., 0] > 150) & (picture[..., 1] > 110) & (picture[..., 2] < 120)
    rows, columns = np.nonzero(orange)
    assert len(rows) > 10 and abs(columns.mean() - 48) < 6  # the path runs up the middle


def test_sizes_and_an_empty_memory():
    assert top_view(PointMemory.empty(), path()[:1], (40, 64)).shape == (40, 64, 3)
    assert np.array_equal(top_view(floor_and_ceiling(), path(), 64), top_view(floor_and_ceiling(), path(), 64))
    with pytest.raises(ValueError, match="16 pixels"):
        top_view(PointMemory.empty(), path(), 4)
    with pytest.raises(ValueError, match="at least one pose"):
        top_view(PointMemory.empty(), path()[:0])
