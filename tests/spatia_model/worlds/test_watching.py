"""Cameras before things that move: they stand free, see the mover, and what follows is not told by the picture."""

from __future__ import annotations

import math

import numpy as np
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.worlds import World
from spatia_model.worlds.watching import LEAST_SHOWN, drift, shown, stands, watching_walk
from spatia_model.worlds.world import MOVING

CAMERA = mini_camera(MiniConfig(image_size=64))
TIMES = torch.arange(17, dtype=torch.float64) / 8
SEED = 2_000_410


def test_stands_look_at_the_mover_from_the_distance_asked():
    world = World.generate(SEED, kind="room", movers=2)
    found = list(stands(world, np.random.default_rng(0), TIMES, nearest=1.5, farthest=2.5, aside=0.1))
    assert found
    for index, here in found:
        at = world.movers[index].position(TIMES).double()
        assert 1.5 < float((at - here[:3, 3]).norm(dim=-1).min()) < 2.5
        x, _, z = (torch.linalg.inv(here)[:3, :3] @ (at[0] - here[:3, 3])).tolist()
        assert abs(math.atan2(x, z)) < 0.1 + 0.05  # the camera looks down a little, too
    assert not list(stands(World.generate(SEED, movers=0), np.random.default_rng(0), TIMES))


def test_shown_counts_the_movers_pixels():
    world = World.generate(SEED, kind="room", movers=2)
    index, here = next(
        (index, here)
        for index, here in stands(world, np.random.default_rng(1), TIMES)
        if float(shown(world, index, here[None], CAMERA, TIMES[:1])[0]) > 30
    )
    exact = (world.identities(here[None], CAMERA, TIMES[:1]) == MOVING + index).sum()
    assert abs(float(shown(world, index, here[None], CAMERA, TIMES[:1])[0]) / float(exact) - 1) < 0.4  # seen at 48 x 48


def test_drift_begins_where_it_is_told_and_stays_near():
    here = torch.eye(4, dtype=torch.float64)
    path = drift(here, np.random.default_rng(2), 3, 8)
    assert path.shape == (25, 4, 4) and torch.equal(path[0], here)
    assert 0 < float(path[:, :3, 3].norm(dim=-1).max()) < 0.5


def test_watching_walks_see_movers_that_go_either_way():
    signs, still = set(), 0
    for seed in range(SEED, SEED + 6):
        found = watching_walk(seed, 2, 8, CAMERA)
        if found is None:
            continue
        world, path, times = found
        assert path.shape == (17, 4, 4) and times.shape == (17,)
        assert float(times[0]) == int(times[0]) and torch.allclose(times.diff(), torch.full((16,), 0.125, dtype=torch.float64))
        assert bool(world.is_free(path[::4, :3, 3], 0.3).all())
        seen = max(float(shown(world, i, path[:1], CAMERA, times[:1])[0]) for i in range(len(world.movers)))
        assert seen >= LEAST_SHOWN
        signs |= {mover.sign for mover in world.movers}
        still += bool(torch.equal(path[0], path[-1]))
        again = watching_walk(seed, 2, 8, CAMERA)
        assert again is not None and torch.equal(again[1], path) and again[0].movers == world.movers
    assert {1.0, -1.0} <= signs and still < 6


def test_where_nothing_is_to_be_seen_there_is_no_walk(monkeypatch):
    monkeypatch.setattr("spatia_model.worlds.watching.stands", lambda *args: iter(()))
    assert watching_walk(SEED, 2, 8, CAMERA) is None
