"""Obstacles: what the memory or the true world holds solid stops a body, or lets it slide along."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from spatia_env import SpatiaEnv, SpatiaNavEnv, SpatiaTruthEnv
from spatia_env.obstacles import ABOVE, BELOW, MemoryObstacles, WorldObstacles, walk
from spatia_model.geometry import se3
from spatia_model.memory.entities import PAST, Entities
from spatia_model.memory.point_memory import PointMemory
from spatia_model.worlds import World

RADIUS = 0.2
EYE = torch.eye(4, dtype=torch.float64)


def sheet(corner, one, two, spacing=0.03, confidence=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a parallelogram at `corner` spanned by two vectors, and their confidences."""
    corner, one, two = (torch.tensor(v, dtype=torch.float32) for v in (corner, one, two))
    steps = [torch.arange(0, 1, spacing / float(v.norm())) for v in (one, two)]
    u, v = torch.meshgrid(*steps, indexing="ij")
    points = corner + u.reshape(-1, 1) * one + v.reshape(-1, 1) * two
    return points, torch.full((len(points),), confidence)


def memory_of(*sheets, spacing=0.03) -> PointMemory:
    points, confidence = (torch.cat(parts) for parts in zip(*sheets, strict=True))
    black = torch.zeros(len(points), 3, dtype=torch.uint8)
    return PointMemory.empty(0.03).fuse(points, black, confidence, 0, torch.full((len(points),), spacing))


WALL = sheet([-2.0, -2, 1], [4.0, 0, 0], [0.0, 4, 0])  # a wall across, 1 m ahead
FLOOR = sheet([-2.0, 0.6, -2], [4.0, 0, 0], [0.0, 0, 4])  # a floor within the body's height


def straight(x: float, z: float, y: float = 0.0, frames: int = 8) -> torch.Tensor:
    path = EYE.repeat(frames, 1, 1)
    path[:, :3, 3] = torch.linspace(0, 1, frames + 1, dtype=torch.float64)[1:, None] * torch.tensor([x, y, z], dtype=torch.float64)
    return path


def go(memory: PointMemory, path: torch.Tensor, mode: str, start: torch.Tensor = EYE) -> tuple[np.ndarray, bool]:
    solid = MemoryObstacles(memory, start[:3, 3].numpy().copy(), 3.0, RADIUS)
    walked, hit = walk(path, start, solid, mode)
    assert torch.equal(walked[:, :3, :3], path[:, :3, :3])
    return walked[:, :3, 3].numpy(), hit


@pytest.mark.parametrize("spacing", [0.03, 0.06, 0.12, 0.2])
@pytest.mark.parametrize("mode", ["block", "slide"])
def test_a_wall_stops_who_walks_into_it(mode, spacing):
    """Walls seen from near or far alike: their points are close together or wide apart."""
    wall = memory_of(sheet([-2.0, -2, 1], [4.0, 0, 0], [0.0, 4, 0], spacing), spacing=spacing)
    places, hit = go(wall, straight(0, 1.5), mode)
    assert hit and (np.diff(places[:, 2], prepend=0) >= -1e-9).all()
    assert 0.55 < places[-1, 2] <= 1 - RADIUS + 0.03 + spacing / 2
    assert abs(places[-1, 0]) < 0.1


def test_what_moves_stops_a_walker_as_a_wall_does():
    points, confidence = WALL
    entities = Entities(
        points.float(),
        torch.zeros(len(points), 3, dtype=torch.uint8),
        torch.full((len(points),), 0.03),
        torch.zeros(len(points), dtype=torch.int64),
        torch.zeros(1, len(PAST), 3),
        torch.zeros(1, dtype=torch.bool),
    )
    path, eye = straight(0, 1.5), np.zeros(3)
    held, hit = walk(path, EYE, MemoryObstacles(PointMemory.empty(0.03), eye, 3.0, RADIUS, entities), "block")
    as_wall, _ = walk(path, EYE, MemoryObstacles(memory_of(WALL), eye, 3.0, RADIUS), "block")
    assert hit
    torch.testing.assert_close(held, as_wall, atol=0.05, rtol=0)
    assert not walk(path, EYE, MemoryObstacles(PointMemory.empty(0.03), eye, 3.0, RADIUS, Entities.empty()), "block")[1]


def test_sliding_keeps_what_leads_along_the_wall_and_blocking_does_not():
    wall = memory_of(WALL)
    (slid, hit), (held, also) = go(wall, straight(1.2, 1.2), "slide"), go(wall, straight(1.2, 1.2), "block")
    assert hit and also
    assert slid[-1, 0] == pytest.approx(1.2, abs=0.1) and slid[:, 2].max() <= 0.83
    assert held[-1, 0] <= 0.83 and np.allclose(held[-1], held[-2])


def test_a_corner_holds():
    corner = memory_of(WALL, sheet([1.0, -2, -2], [0.0, 0, 4], [0.0, 4, 0]))
    places, hit = go(corner, straight(1.6, 1.4), "slide")
    assert hit and places[:, (0, 2)].max() <= 0.85
    assert places[-1, 0] > 0.5 and places[-1, 2] > 0.5


def test_free_space_is_free():
    wall = memory_of(WALL)
    for path in (straight(0, 0.7), straight(1.5, 0), straight(-0.5, -1.5)):
        places, hit = go(wall, path, "slide")
        assert not hit and np.array_equal(places, path[:, :3, 3].numpy())
    assert go(PointMemory.empty(0.03), straight(0, 3), "block")[1] is False


def test_what_is_over_the_head_or_under_the_feet_is_no_obstacle():
    for height in (-ABOVE - 0.1, BELOW + 0.1):
        slab = memory_of(sheet([-2.0, height, 0.5], [4.0, 0, 0], [0.0, 0, 3]))
        assert not go(slab, straight(0, 1.5), "block")[1]
    low = memory_of(sheet([-2.0, BELOW - 0.1, 0.5], [4.0, 0, 0], [0.0, 0, 3]))  # a table
    assert go(low, straight(0, 1.5), "block")[1]


def test_a_floor_that_touches_the_feet_stops_nobody_and_hides_no_wall():
    assert not go(memory_of(FLOOR), straight(0, 1.0), "slide")[1]
    places, hit = go(memory_of(FLOOR, WALL), straight(0, 1.5), "slide")
    assert hit and places[-1, 2] <= 0.83


def test_nobody_sinks_into_a_floor_or_rises_through_a_ceiling():
    floor = memory_of(sheet([-2.0, 1.2, -2], [4.0, 0, 0], [0.0, 0, 4]))
    for mode in ("block", "slide"):
        places, hit = go(floor, straight(0, 0, 1.0), mode)
        assert hit and 0.3 < places[-1, 1] <= 1.2 - BELOW + 0.1
    places, _ = go(floor, straight(0.8, 0, 0.8), "slide")
    assert places[-1, 0] == pytest.approx(0.8) and 0.3 < places[-1, 1] < 0.65  # along the floor


def test_single_and_doubtful_points_are_nothing():
    lonely = memory_of((torch.tensor([[0.0, 0, 0.5]]), torch.ones(1)))
    assert not go(lonely, straight(0, 1), "block")[1]
    doubtful = memory_of((torch.tensor([[0.0, 0.05 * i, 0.5] for i in range(6)]), torch.full((6,), 0.1)))
    assert not go(doubtful, straight(0, 1), "block")[1]


def test_who_stands_in_something_may_walk_out_but_not_deeper():
    wall = memory_of(WALL)
    start = EYE.clone()
    start[2, 3] = 0.9  # the map has put a wall within the body
    back, hit = go(wall, straight(0, -0.5) + _at(0.9), "block", start)
    assert not hit and back[-1, 2] == pytest.approx(0.4)
    on, hit = go(wall, straight(0, 0.5) + _at(0.9), "block", start)
    assert hit and on[-1, 2] < 0.93


def test_who_stands_in_the_middle_of_something_may_walk_out_on_any_side():
    wall = memory_of(WALL)
    start = EYE.clone()
    start[2, 3] = 0.96
    for way in (0.5, -0.5):
        places, hit = go(wall, straight(0, way) + _at(0.96), "block", start)
        assert not hit and places[-1, 2] == pytest.approx(0.96 + way)


def _at(z: float) -> torch.Tensor:
    move = torch.zeros(4, 4, dtype=torch.float64)
    move[2, 3] = z
    return move


def test_the_camera_turns_as_asked_where_it_is_stopped():
    wall = memory_of(WALL)
    share = torch.arange(1, 9, dtype=torch.float64)[:, None] / 8
    path = se3.exp(share * torch.tensor([[0.0, 0, 1.5, 0, 0.4, 0]], dtype=torch.float64))
    places, hit = go(wall, path, "block")  # `go` compares the rotations
    assert hit and places[:, 2].max() < 0.85


@pytest.mark.parametrize("seed", [2_000_003, 2_000_010])
def test_true_walls(seed):
    """Random walks that slide stay where the world says a body fits, and get as far along as a body can."""
    world = World.generate(seed, kind="room", movers=0)
    rng = np.random.default_rng(seed)
    pose = world.start_pose(rng)
    hits = 0
    for _ in range(40):
        step = straight(*(rng.uniform(-0.6, 0.6, 2)))[:, :3, 3]
        path = pose.repeat(8, 1, 1)
        path[:, :3, 3] += step
        walked, hit = walk(path, pose, WorldObstacles(world, RADIUS), "slide")
        assert bool(world.is_free(walked[:, :3, 3], RADIUS).all())
        assert hit == (not bool(world.is_free(path[:, :3, 3], RADIUS).all()))
        hits += hit
        pose = walked[-1]
    assert hits > 3


# -- on the envs -----------------------------------------------------------------------------------------------------


def test_nav_slides_by_default_and_spatia_does_not(fake, picture):
    assert gym.make("SpatiaNav-v0", model=fake, image=picture).unwrapped.obstacles == "slide"
    assert gym.make("Spatia-v0", model=fake, image=picture).unwrapped.obstacles is None
    assert SpatiaTruthEnv(image_size=16).obstacles == "block" and SpatiaTruthEnv(image_size=16, discrete=True).obstacles == "slide"
    assert SpatiaTruthEnv(image_size=16, solid=False, discrete=True).obstacles is None


@pytest.mark.parametrize("mode", ["block", "slide"])
def test_an_env_stops_before_what_its_memory_knows(mode, fake, picture):
    def walled(memory):
        points, confidence = WALL
        return memory.fuse(points, torch.zeros(len(points), 3, dtype=torch.uint8), confidence, 0)

    env = SpatiaNavEnv(image=picture, model=fake, obstacles=mode)
    env.reset(seed=0)
    env.edit(walled)
    collided, ahead = [], []
    for _ in range(6):
        info = env.step(0)[4]
        collided.append(info["collided"])
        ahead.append(info["poses"][-1][2, 3])
        np.testing.assert_array_equal(env.pose, info["poses"][-1])
    assert collided == [False] * 3 + [True] * 3 and type(collided[0]) is bool
    assert ahead[2] == pytest.approx(0.75) and 0.75 <= ahead[-1] < 0.85
    free = SpatiaEnv(image=picture, model=fake)
    free.reset(seed=0)
    free.edit(walled)
    action = {"camera": np.array([0, 0, 1, 0, 0, 0], np.float32), "text": ""}
    assert [free.step(action)[4]["collided"] for _ in range(3)] == [False] * 3
    assert free.pose[2, 3] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obstacles": "bounce"}, "'block', 'slide'"),
        ({"obstacles": True}, "'block', 'slide'"),
        ({"body_radius": 0}, "metres above 0"),
        ({"body_radius": math.nan}, "metres above 0"),
        ({"body_radius": "thin"}, "metres above 0"),
    ],
)
def test_bad_arguments(arguments, message, fake, picture):
    with pytest.raises(ValueError, match=message):
        SpatiaEnv(image=picture, model=fake, **arguments)
