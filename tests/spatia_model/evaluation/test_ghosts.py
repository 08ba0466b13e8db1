"""Ghost rate: known shares of misplaced points must come out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.evaluation.ghosts import ghost_rate, mover_ghost_rate
from spatia_model.geometry.camera import unproject
from spatia_model.memory.point_memory import PointMemory
from spatia_model.worlds import World

TIMES = torch.arange(9, dtype=torch.float64) / 8


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(2_000_011, kind="room", movers=1)


@pytest.fixture(scope="module")
def surface(world: World) -> torch.Tensor:
    """Points (N, 3) on true static surfaces."""
    camera = mini_camera(MiniConfig(image_size=64))
    pose = world.start_pose(np.random.default_rng(1))[None]
    truth = world.render(pose, camera, torch.zeros(1, dtype=torch.float64))
    return unproject(truth.depth, pose, camera)[~truth.dynamic]


def memory_of(points: torch.Tensor, confidence: float = 1.0, voxel: float = 0.03) -> PointMemory:
    colors = torch.full((len(points), 3), 90, dtype=torch.uint8)
    return PointMemory.empty(voxel).fuse(points, colors, torch.full((len(points),), confidence), 0)


def floating(world: World, count: int) -> torch.Tensor:
    """Points (count, 3) in free air, far from everything static."""
    rng = np.random.default_rng(2)
    cells = world.free_cells()
    rows = torch.from_numpy(rng.integers(len(cells), size=count * 4))
    at = torch.stack([cells[rows, 0], torch.from_numpy(rng.uniform(-1.5, -1.0, count * 4)).float(), cells[rows, 1]], -1)
    return at[world.static_distance(at) > 0.25][:count]


def test_true_surfaces_are_no_ghosts_and_air_is(world: World, surface: torch.Tensor) -> None:
    clean = memory_of(surface)
    assert ghost_rate(clean, world) == 0
    assert ghost_rate(memory_of(floating(world, 50)), world) == 1


def test_inserted_ghosts_raise_the_rate_by_their_share(world: World, surface: torch.Tensor) -> None:
    clean = memory_of(surface)
    spoilt = memory_of(torch.cat([surface, floating(world, 60)]))
    added = len(spoilt) - len(clean)
    assert added > 40
    assert ghost_rate(spoilt, world) == pytest.approx(added / len(spoilt))


def test_faint_points_do_not_count(world: World, surface: torch.Tensor) -> None:
    both = memory_of(surface).fuse(floating(world, 60), torch.zeros(60, 3, dtype=torch.uint8), torch.full((60,), 0.1), 1)
    assert ghost_rate(both, world) > 0
    assert ghost_rate(both, world, min_confidence=0.5) == 0


def test_coarse_voxels_are_allowed_more(world: World, surface: torch.Tensor) -> None:
    """A point 12 cm off a wall: a ghost for a 3 cm voxel, none for one of 12 cm."""
    distance = world.static_distance(surface + torch.tensor([0.0, 0.0, 0.12]))
    point = (surface + torch.tensor([0.0, 0.0, 0.12]))[(distance > 0.1) & (distance < 0.13)][:1]
    color, sure = torch.zeros(1, 3, dtype=torch.uint8), torch.ones(1)
    fine = PointMemory.empty(0.03).fuse(point, color, sure, 0, footprint=torch.tensor([0.03]))
    coarse = PointMemory.empty(0.03).fuse(point, color, sure, 0, footprint=torch.tensor([0.12]))
    assert ghost_rate(fine, world) == 1 and ghost_rate(coarse, world) == 0


def test_what_a_mover_left_behind_is_told_apart(world: World, surface: torch.Tensor) -> None:
    mover = world.movers[0]
    left = mover.position(TIMES)[:1] + torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 0.3 * mover.radius
    left = left[world.static_distance(left) > 0.07]
    assert len(left) > 10
    air = floating(world, 30)
    air = air[torch.cdist(air.double(), mover.position(TIMES).double()).amin(1) > 1.0]
    assert len(air) > 5
    memory = memory_of(torch.cat([surface, left, air]))
    share = mover_ghost_rate(memory, world, TIMES)
    assert 0 < share < ghost_rate(memory, world)
    assert mover_ghost_rate(memory_of(torch.cat([surface, air])), world, TIMES) == 0


def test_nothing_to_judge(world: World) -> None:
    assert math.isnan(ghost_rate(PointMemory.empty(0.03), world))
    assert math.isnan(mover_ghost_rate(PointMemory.empty(0.03), world, TIMES))


def test_the_sky_is_no_surface() -> None:
    world = World.generate(2_000_011, kind="courtyard", movers=0)
    assert math.isnan(ghost_rate(memory_of(torch.tensor([[0.0, -30.0, 45.0]])), world))
    assert ghost_rate(memory_of(torch.tensor([[0.0, -30.0, 5.0]])), world) == 1
