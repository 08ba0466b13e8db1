"""Edits of the map change what they name and nothing else."""

import pytest
import torch

from spatia_model.geometry import se3
from spatia_model.memory import editing, voxel_keys
from spatia_model.memory.point_memory import PointMemory
from tests.spatia_model.memory.test_point_memory import batch, same

BOX = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def memory() -> PointMemory:
    given = batch(2_000_060, spread=1.0)
    return PointMemory.empty(0.05).fuse(*given[:3], 0, given[3])


def sound(m: PointMemory) -> None:
    assert bool((m.keys.diff() > 0).all())
    again = voxel_keys.pack(m.positions, voxel_keys.levels_of(m.keys), m.voxel_size)
    assert (again != m.keys).sum() <= 2  # float32 rounding at a voxel's border


def test_remove_takes_exactly_the_box():
    before = memory()
    inside = ((before.positions >= 0) & (before.positions <= 1)).all(1)
    after = editing.remove_in_box(before, BOX)
    assert int(inside.sum()) > 0 and torch.equal(after.keys, before.keys[~inside])


def test_recolour_keeps_light_and_shade_and_the_rest():
    before = memory()
    inside = editing.in_box(before, BOX)
    after = editing.recolour(before, BOX, (200, 20, 20))
    assert torch.equal(after.colors[~inside], before.colors[~inside])
    new = after.colors[inside].float()
    assert bool((new[:, 0] >= new[:, 1]).all()) and new[:, 0].std() > 1
    assert same(editing.recolour(before, BOX, (200, 20, 20), strength=0.0), before)


def test_move_and_back_gives_the_same_points():
    before = memory()
    T = se3.exp(torch.tensor([5.0, 0, 0, 0, 0.7, 0], dtype=torch.float64))
    moved = editing.move(before, BOX, T, step=3)
    sound(moved)
    assert int(editing.in_box(moved, BOX).sum()) == 0
    expected = se3.transform_points(T, before.positions[editing.in_box(before, BOX)].double()).float()
    distance = torch.cdist(expected, moved.positions).min(1).values
    assert (distance < 1e-4).float().mean() > 0.8  # two points that land in one voxel become one
    assert bool((distance < 0.5).all())


def test_added_points_replace_what_was_there():
    before = memory()
    row = int((voxel_keys.levels_of(before.keys) == 0).nonzero()[0, 0])
    after = editing.add_points(before, before.positions[row : row + 1], torch.tensor([[1, 2, 3]], dtype=torch.uint8), step=7)
    sound(after)
    assert len(after) == len(before) and after.colors[row].tolist() == [1, 2, 3] and int(after.last_seen[row]) == 7
    more = editing.add_points(before, torch.full((1, 3), 50.0), torch.zeros(1, 3, dtype=torch.uint8))
    assert len(more) == len(before) + 1


def test_bad_edits_are_named():
    m = memory()
    with pytest.raises(ValueError, match="lowest corner"):
        editing.remove_in_box(m, ((1.0, 0, 0), (0.0, 1, 1)))
    with pytest.raises(ValueError, match="red, green, blue"):
        editing.recolour(m, BOX, (300, 0, 0))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        editing.move(m, BOX, torch.eye(3))
    with pytest.raises(ValueError, match="NaN"):
        editing.add_points(m, torch.full((1, 3), float("nan")), torch.zeros(1, 3, dtype=torch.uint8))
