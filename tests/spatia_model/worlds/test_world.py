"""Worlds: the same seed is the same world, movers are where they say, captions say what happens."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from spatia_model.geometry.camera import camera_from_fov, project
from spatia_model.worlds import MAX_WORDS, VOCABULARY, World
from spatia_model.worlds.captions import motion_words
from spatia_model.worlds.furniture import INDOORS
from spatia_model.worlds.garden import OUTDOORS
from spatia_model.worlds.movers import MOTIONS, draw_mover
from spatia_model.worlds.palette import floor_material, ground_material, wall_material
from spatia_model.worlds.trajectories import pose_from, sample_path
from spatia_model.worlds.world import MOVING, largest_area

CAMERA = camera_from_fov(math.radians(75), 40, 40)


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [World.generate(2_000_200 + i, kind=("room", "courtyard")[i % 2], movers=3) for i in range(10)]


def test_same_seed_same_picture_on_any_number_of_threads() -> None:
    poses = torch.stack([World.generate(2_000_300).start_pose(np.random.default_rng(i)) for i in range(3)])
    times = torch.tensor([0.0, 0.5, 7.25])
    first = World.generate(2_000_300).render(poses, CAMERA, times, threads=1)
    again = World.generate(2_000_300).render(poses, CAMERA, times, threads=2)
    one = torch.cat([World.generate(2_000_300).render(poses[i : i + 1], CAMERA, times[i : i + 1]).rgb for i in range(3)])
    assert torch.equal(first.rgb, again.rgb) and torch.equal(first.depth, again.depth) and torch.equal(first.dynamic, again.dynamic)
    assert torch.equal(first.rgb, one)
    assert not torch.equal(first.rgb, World.generate(2_000_301).render(poses, CAMERA, times).rgb)


def test_types_and_ranges(worlds: list[World]) -> None:
    pose = worlds[0].start_pose(np.random.default_rng(0))
    assert pose.shape == (4, 4) and pose.dtype == torch.float64
    truth = worlds[0].render(pose[None].expand(2, 4, 4), CAMERA, torch.zeros(2))
    assert truth.rgb.shape == (2, 40, 40, 3) and truth.rgb.dtype == torch.uint8
    assert truth.depth.shape == (2, 40, 40) and truth.depth.dtype == torch.float32 and float(truth.depth.min()) > 0
    assert truth.dynamic.shape == (2, 40, 40) and truth.dynamic.dtype == torch.bool
    empty = worlds[0].render(pose[None][:0], CAMERA, torch.zeros(0))
    assert empty.rgb.shape == (0, 40, 40, 3)
    copy = pickle.loads(pickle.dumps(worlds[0]))  # worlds travel to worker processes
    assert torch.equal(copy.render(pose[None], CAMERA, torch.zeros(1)).rgb[0], truth.rgb[0])


def test_pictures_are_neither_flat_nor_noise(worlds: list[World]) -> None:
    rgb = torch.cat([w.render(w.start_pose(np.random.default_rng(1))[None], CAMERA, torch.zeros(1)).rgb for w in worlds]).float()
    spread = rgb.std((1, 2)).mean(-1)
    step = (rgb[:, :, 1:] - rgb[:, :, :-1]).abs().mean((1, 2, 3))
    assert float(spread.min()) > 8  # of 255
    assert float((step / spread).max()) < 0.8  # white noise has 1.13
    assert float(rgb.mean((1, 2)).std(0).mean()) > 10  # places differ from one another


def test_sizes_and_floor(worlds: list[World]) -> None:
    for world in worlds:
        low, high = (4, 9) if world.kind == "room" else (8, 14)
        assert low <= world.plan.width <= high and low <= world.plan.depth <= high
        assert len(world.free_cells()) * 0.04 >= 4.0
        x, z = world.free_cells()[0].tolist()
        assert float(world.static_sdf(torch.tensor([[x, 0.05, z]]))) < 0  # the floor is at y = 0


def look_at(target: torch.Tensor, back: tuple[float, float, float]) -> torch.Tensor:
    x, y, z = (float(t) + b for t, b in zip(target, back, strict=True))
    yaw = math.atan2(-back[0], -back[2])
    pitch = math.atan2(back[1], math.hypot(back[0], back[2]))
    return pose_from(x, y, z, yaw, pitch, 0.0)


def test_dynamic_mask_is_where_the_mover_is(worlds: list[World]) -> None:
    seen = set()
    for world in worlds:
        for i, mover in enumerate(world.movers):
            time = torch.tensor([3.3])
            centre = mover.position(time)[0]
            pose = look_at(centre, (0.35, -0.3, -0.55))
            ident = world.identities(pose[None], CAMERA, time)[0]
            truth = world.render(pose[None], CAMERA, time, supersample=1)
            assert torch.equal(truth.dynamic[0], ident >= MOVING)
            if float(world.static_sdf(pose[None, :3, 3])) < 0.05:
                continue  # the camera would stand in furniture
            seen.add(mover.motion)
            assert int(ident[20, 20]) == MOVING + i, (world, mover)
            distance = math.sqrt(0.35**2 + 0.3**2 + 0.55**2)
            assert distance - mover.bounding_radius - 0.01 < float(truth.depth[0, 20, 20]) < distance - 0.5 * mover.radius
            uv, z = project(centre[None], pose[None], CAMERA)
            rows, columns = (ident == MOVING + i).nonzero().unbind(-1)
            reach = float(CAMERA.K[0, 0]) * mover.bounding_radius / (float(z) - mover.bounding_radius) + 1.5
            ball = torch.hypot(columns + 0.5 - uv[0, 0, 0], rows + 0.5 - uv[0, 0, 1]) <= reach
            rope = torch.tensor(mover.motion == "swing").expand_as(ball) & (rows < 20)
            assert bool((ball | rope).all())
    assert len(seen) >= 3, seen


def test_movers_touch_nothing_and_turn_at_whole_seconds(worlds: list[World]) -> None:
    times = torch.arange(0, 150, 0.125, dtype=torch.float64)
    motions = set()
    for world in worlds:
        tracks = []
        for mover in world.movers:
            motions.add(mover.motion)
            track = mover.position(times)
            tracks.append(track)
            assert float(world.static_sdf(track).min()) > mover.radius - 0.01
            flat = track[:, (0, 2)]
            speed = (flat[1:] - flat[:-1]).norm(dim=-1) * 8
            assert 0.3 < float(speed.max()) < 1.2
            if mover.motion != "swing":
                away = (flat - torch.tensor([mover.anchor[0], mover.anchor[2]])).norm(dim=-1)
                assert float(away[0]) < 1e-6 and float(away.max()) <= mover.reach + 1e-5
                s = mover.along(times).reshape(-1, 8)
                step = s[:, 1:] - s[:, :-1]
                assert float((step - step[:, :1]).abs().max()) < 1e-9  # constant within every second
                assert float(mover.along(torch.tensor([2.0]))) > 0.6  # the first leg lasts two seconds at least
        for i in range(len(tracks)):
            for j in range(i):
                both = world.movers[i].radius + world.movers[j].radius
                assert float((tracks[i] - tracks[j]).norm(dim=-1).min()) > both
    assert motions == set(MOTIONS)


def test_with_motion_is_the_same_at_first_and_differs_later(worlds: list[World]) -> None:
    for world in worlds[:6]:
        if not world.movers:
            continue
        mover = world.movers[0]
        centre = mover.position(torch.zeros(1))[0]
        poses = look_at(centre, (0.0, -0.9, -2.0))[None].expand(2, 4, 4)
        times = torch.tensor([0.0, 1.0])
        views = [world.with_motion(0, d).render(poses, CAMERA, times) for d in (1, -1, 0)]
        for other in views[1:]:
            assert torch.equal(views[0].rgb[0], other.rgb[0]) and torch.equal(views[0].depth[0], other.depth[0])
        ahead, behind, rest = (world.with_motion(0, d).movers[0].position(torch.tensor([1.0]))[0] for d in (1, -1, 0))
        flat = torch.tensor([1.0, 0.0, 1.0])
        assert torch.allclose((ahead - centre) * flat, -(behind - centre) * flat, atol=1e-5)
        assert float(((ahead - centre) * flat).norm()) > 0.2 and torch.equal(rest, centre)
        assert world.with_motion(0, "reverse").movers[0].sign == -1 and world.with_motion(0, "still").movers[0].sign == 0
        assert world.movers[0].sign == 1  # the world itself is as it was


def _pace_unsaid(text: str) -> str:
    return text.replace(" slowly", "").replace(" quickly", "")


def test_motion_words_name_what_the_camera_sees(worlds: list[World]) -> None:
    times = torch.arange(9) / 8
    checked = 0
    for world in worlds:
        for i, mover in enumerate(world.movers):
            if mover.motion not in ("roll", "slide"):
                continue
            dx, _, dz = mover.direction
            ahead = look_at(mover.position(torch.zeros(1))[0], (-0.8 * dx, -0.4, -0.8 * dz))  # behind it: it goes away
            aside = look_at(mover.position(torch.zeros(1))[0], (0.8 * dz, -0.4, -0.8 * dx))
            for pose, words in ((ahead, ("away", "toward the camera")), (aside, ("to the left", "to the right"))):
                if float(world.static_sdf(pose[None, :3, 3])) < 0.05:
                    continue
                path = pose[None].expand(9, 4, 4)
                verb = {"roll": "rolls", "slide": "slides"}[mover.motion]
                said = [_pace_unsaid(world.with_motion(i, d).describe(path, CAMERA, times)) for d in (1, -1, 0)]
                clauses = [f"{mover.name} {verb} {w}" for w in words]
                right = pose[:3, 0] @ torch.tensor([dx, 0.0, dz], dtype=torch.float64)
                expected = clauses if words[0] == "away" or right < 0 else clauses[::-1]
                if not all(mover.name in text for text in said):
                    continue  # three movers can be one too many for a caption
                assert expected[0] in said[0] and expected[1] in said[1], (said, expected)
                assert f"{mover.name} stands still" in said[2]
                checked += 1
    assert checked >= 4


def test_there_are_eight_ways_to_go() -> None:
    mover = replace(draw_mover(np.random.default_rng(0), "roll", "red"), reach=3.0, heading=0.0, schedule=tuple(0.6 * k for k in range(65)))
    ways = (
        "to the right",
        "right and toward the camera",
        "toward the camera",
        "left and toward the camera",
        "to the left",
        "left and away",
    )
    for k, way in enumerate((*ways, "away", "right and away")):  # it goes along x; the camera turns to the left, an eighth at a time
        for off in (-0.35, 0.0, 0.35):
            T_camera_world = torch.linalg.inv(pose_from(0.0, -1.4, 0.0, math.pi / 4 * -k + off, 0.1, 0.0))
            assert motion_words(mover, torch.arange(9) / 8, T_camera_world) == f"rolls {way}", (k, off)


@pytest.mark.parametrize(("speed", "words"), [(0.4, "rolls slowly away"), (0.6, "rolls away"), (0.8, "rolls quickly away")])
def test_words_tell_how_fast(speed: float, words: str) -> None:
    mover = draw_mover(np.random.default_rng(0), "roll", "red")
    mover = replace(mover, reach=3.0, heading=math.pi / 2, schedule=tuple(speed * k for k in range(65)))  # along z
    T_camera_world = torch.linalg.inv(pose_from(0.0, -1.4, -2.0, 0.0, 0.1, 0.0))
    for start, seconds in ((0, 1), (3, 1), (0, 2)):
        times = start + torch.linspace(0, seconds, 8 * seconds + 1)
        assert motion_words(mover, times, T_camera_world) == words
    assert motion_words(mover.turned(0), torch.arange(9) / 8, T_camera_world) == "stands still"


def test_what_comes_into_view_was_not_in_view(worlds: list[World]) -> None:
    found = 0
    for world in worlds:
        start = world.start_pose(np.random.default_rng(5))
        x, y, z = (float(v) for v in start[:3, 3])
        path = torch.stack([pose_from(x, y, z, a, 0.0, 0.0) for a in np.linspace(0, 1.5, 9)])
        said = world.describe(path, CAMERA, torch.arange(9) / 8)
        still = world.describe(path[:1].expand(9, 4, 4), CAMERA, torch.zeros(9))
        found += "comes into view" in said
        assert "comes into view" not in still
    assert found >= 3


def test_captions_stay_in_the_vocabulary(worlds: list[World]) -> None:
    known = set(VOCABULARY)
    said = [w.caption() for w in worlds]
    for world in worlds:
        path = sample_path(world, np.random.default_rng(7), 4)
        said += [world.describe(path[i : i + 9], CAMERA, (torch.arange(9) + i) / 8) for i in (0, 8, 16, 24)]
    rng = np.random.default_rng(11)
    for _ in range(600):  # every word that a world could be made of
        said += [wall_material(rng, False)[0], wall_material(rng, True)[0], floor_material(rng)[0], ground_material(rng)[0]]
    for make, *_ in INDOORS + OUTDOORS:
        for _ in range(25):
            piece = make(rng)
            said.append(f"{piece.words} {piece.noun}")
    assert len(said) > 3000
    for text in said:
        assert text == text.lower() and set(text.split()) <= known, sorted(set(text.split()) - known)
    assert max(len(t.split()) for t in said[len(worlds) : 5 * len(worlds)]) <= MAX_WORDS
    assert len(set(VOCABULARY)) == len(VOCABULARY) < 150


def test_is_free_means_clear_all_the_way_down() -> None:
    world = World.generate(2_000_210, kind="room", movers=0)
    cells = world.free_cells()
    at = torch.stack((cells[:, 0], torch.full((len(cells),), -1.4), cells[:, 1]), -1)
    assert bool(world.is_free(at, 0.3).all())
    outside = torch.tensor([[world.plan.width, -1.4, 0.0], [0.0, -10.0, 0.0], [0.0, 0.5, 0.0], [math.nan, -1.4, 0.0]])
    assert not bool(world.is_free(outside, 0.3).any())
    furniture = ("table", "stool", "sofa", "armchair", "bed", "cabinet", "chair", "box")
    low = next(t for t in world.things if t.noun in furniture and t.high[1] > -0.1)
    above = torch.tensor([[(low.low[0] + low.high[0]) / 2, -world.plan.height + 0.35, (low.low[2] + low.high[2]) / 2]])
    assert not bool(world.is_free(above, 0.3).any())  # not while standing in a table


def test_largest_area() -> None:
    grid = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1]], bool)
    assert np.array_equal(largest_area(grid), np.array([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]], bool))
    assert not largest_area(np.zeros((2, 2), bool)).any()


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 2_000_000, "kind": "cave"}, "kind"),
        ({"seed": 2_000_000, "movers": 4}, "movers"),
    ],
)
def test_generate_refuses(kwargs: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        World.generate(**kwargs)


def test_render_and_queries_refuse(worlds: list[World]) -> None:
    world = worlds[0]
    pose = torch.eye(4, dtype=torch.float64)[None]
    with pytest.raises(ValueError, match="T_world_camera"):
        world.render(pose[0], CAMERA, torch.zeros(1))
    with pytest.raises(ValueError, match="finite"):
        world.render(pose * math.nan, CAMERA, torch.zeros(1))
    with pytest.raises(ValueError, match="times"):
        world.render(pose, CAMERA, torch.zeros(2))
    with pytest.raises(ValueError, match="supersample"):
        world.render(pose, CAMERA, torch.zeros(1), supersample=0)
    with pytest.raises(ValueError, match="threads"):
        world.render(pose, CAMERA, torch.zeros(1), threads=0)
    with pytest.raises(ValueError, match="positions"):
        world.is_free(torch.zeros(3))
    with pytest.raises(ValueError, match="radius"):
        world.is_free(torch.zeros(1, 3), -1.0)
    with pytest.raises(ValueError, match="points"):
        world.static_distance(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="mover_index"):
        world.with_motion(9, 1)
    with pytest.raises(ValueError, match="direction"):
        world.with_motion(0, "sideways")
