"""What moves, beside the map: found, drawn on its way, and followed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spatia_model.generator.pipeline import overlay
from spatia_model.geometry.camera import camera_from_fov, pixel_rays
from spatia_model.geometry.rendering import splat
from spatia_model.memory.entities import MAX_ENTITIES, PAST, THICKNESS, Entities, find, followed, observed, unhidden
from spatia_model.types import Projection

SIZE, T = 48, 8
CAMERA = camera_from_fov(math.radians(75), SIZE, SIZE)
EYE = torch.eye(4, dtype=torch.float64)
RED, BLUE, GREY = (200, 30, 30), (30, 40, 210), (128, 128, 128)
LEFT, RIGHT = (slice(20, 30), slice(6, 16)), (slice(20, 28), slice(32, 40))


def scene(*things: tuple[tuple[slice, slice], tuple[int, int, int], float]):
    """frame, depth, moves (each (H, W[, 3])): squares of a colour at a depth before a grey wall at 5 m."""
    frame = torch.tensor(GREY, dtype=torch.uint8).expand(SIZE, SIZE, 3).clone()
    depth, moves = torch.full((SIZE, SIZE), 5.0), torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for where, colour, z in things:
        frame[where], depth[where], moves[where] = torch.tensor(colour, dtype=torch.uint8), z, True
    return frame, depth, moves


def found(*things, pose: torch.Tensor = EYE) -> Entities:
    return find(*scene(*things), pose, CAMERA)


def wall(depth: float = 5.0, frames: int = T) -> Projection:
    shape = (frames, SIZE, SIZE)
    rgb = torch.tensor(GREY, dtype=torch.uint8).expand(*shape, 3).clone()
    return Projection(rgb, torch.full(shape, depth), torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int32))


def to_the_right(entities: Entities, metres: float = 0.5) -> torch.Tensor:
    way = torch.zeros(len(entities), T, 3)
    way[..., 0] = torch.linspace(metres / T, metres, T)
    return way


def test_connected_parts_become_entities_with_their_points():
    pose = EYE.clone()
    pose[:3, 3] = torch.tensor([1.0, 0.5, -2.0])
    seen = found((LEFT, RED, 2.0), (RIGHT, BLUE, 3.0), ((slice(2, 3), slice(2, 3)), BLUE, 1.0), pose=pose)  # one pixel is noise
    assert len(seen) == 2 and seen.watched.tolist() == [False, False] and not seen.past.any()
    order = [int(seen.shades[:, 0].argmax()), int(seen.shades[:, 2].argmax())]
    for k, (where, colour, z) in zip(order, ((LEFT, RED, 2.0), (RIGHT, BLUE, 3.0)), strict=True):
        own = seen.owner == k
        expected = (pixel_rays(CAMERA)[where] * z).reshape(-1, 3) + pose[:3, 3].float()
        torch.testing.assert_close(seen.positions[own], expected)
        assert (seen.colors[own] == torch.tensor(colour, dtype=torch.uint8)).all()
        torch.testing.assert_close(seen.radii[own], torch.full((len(expected),), 2 * z / float(CAMERA.K[0, 0] + CAMERA.K[1, 1])))
        torch.testing.assert_close(seen.centres[k], expected.mean(0))
        torch.testing.assert_close(seen.spreads[k], (expected - expected.mean(0)).square().sum(1).mean().sqrt())


def test_nothing_trails_behind_an_entity_where_its_edge_is_blurred():
    frame, depth, moves = scene((LEFT, RED, 2.0))
    depth[20:30, 15] = 4.0
    z = find(frame, depth, moves, EYE, CAMERA).positions[:, 2]
    assert float(z.max()) == pytest.approx(2.0 * (1 + THICKNESS))


def test_of_too_many_the_smallest_are_left_out():
    many = [((slice(4 * k, 4 * k + 3), slice(0, 4 + k)), RED, 2.0) for k in range(MAX_ENTITIES + 3)]
    seen = found(*many)
    assert sorted(torch.bincount(seen.owner).tolist()) == [3 * (4 + k) for k in range(3, MAX_ENTITIES + 3)]
    assert len(seen.joined(found((LEFT, BLUE, 1.0)))) == MAX_ENTITIES
    assert found() is not None and len(found()) == 0


def test_drawn_on_its_way_as_its_moved_points_would_be():
    """Plain reference: the points moved, frame by frame."""
    seen, path = found((LEFT, RED, 2.0)), EYE.repeat(T, 1, 1)
    path[:, 0, 3] = torch.linspace(0, 0.1, T)
    way = to_the_right(seen)
    layer = seen.project(way, path, CAMERA)
    for t in range(T):
        plain = splat(seen.positions + way[0, t], seen.colors, path[t : t + 1], CAMERA, seen.radii)
        assert torch.equal(layer.mask[t], plain.mask[0])
        torch.testing.assert_close(layer.depth[t], plain.depth[0], atol=1e-4, rtol=1e-5)
        assert ((layer.rgb[t].int() - plain.rgb[0].int()).abs() <= 1).all()
    assert set(layer.index.unique().tolist()) == {-1, 0}
    columns = [float(layer.mask[t].nonzero()[:, 1].float().mean()) for t in (0, -1)]
    assert columns[1] > columns[0] + 3  # pixels


def test_the_nearer_entity_hides_the_farther_and_the_wall_hides_both():
    seen = found((LEFT, RED, 2.0), (RIGHT, BLUE, 3.0))
    red, blue = int(seen.shades[:, 0].argmax()), int(seen.shades[:, 2].argmax())
    way = torch.zeros(2, 1, 3)
    way[red, 0] = (seen.centres[blue] * (2.0 / 3.0)) - seen.centres[red]  # in front of the blue one
    layer = seen.project(way, EYE[None], CAMERA)
    assert int(layer.index[0, 24, 36]) == red and layer.rgb[0, 24, 36].tolist() == list(RED)
    assert unhidden(layer, wall(frames=1)).mask.equal(layer.mask)
    near, beside = unhidden(layer, wall(1.0, 1)), unhidden(layer, wall(1.9, 1))
    assert not near.mask.any() and not near.rgb.any() and not near.depth.any() and (near.index == -1).all()
    # A wall that is nearer by less than depth can be trusted hides nothing.
    assert torch.equal(beside.mask, layer.mask & (layer.depth < 2.05))
    nothing = replace(wall(1.0, 1), mask=torch.zeros(1, SIZE, SIZE, dtype=torch.bool))
    assert torch.equal(unhidden(layer, nothing).mask, layer.mask)


def test_having_moved_it_knows_its_past():
    seen = found((LEFT, RED, 2.0))
    way = to_the_right(seen, 0.8)  # 0.1 m a frame
    moved = seen.moved(way)
    torch.testing.assert_close(moved.positions, seen.positions + torch.tensor([0.8, 0, 0]))
    torch.testing.assert_close(moved.past[0, :, 0], -0.1 * torch.tensor(PAST, dtype=torch.float32))
    assert moved.watched.all() and not seen.watched.any()


def follow(seen: Entities, way: torch.Tensor, frame: torch.Tensor, depth: torch.Tensor, moves: torch.Tensor) -> Entities:
    path = EYE.repeat(T, 1, 1)
    return followed(seen, way, unhidden(seen.project(way, path, CAMERA), wall()), frame, depth, moves, EYE, CAMERA)


def test_believed_where_the_frame_shows_it_and_where_it_shows_nothing_like_it():
    seen = found((LEFT, RED, 2.0))
    way = to_the_right(seen)
    drawn = overlay(wall().rgb, seen.project(way, EYE.repeat(T, 1, 1), CAMERA))[-1]
    there = follow(seen, way, drawn, *scene()[1:])
    torch.testing.assert_close(there.positions, seen.positions + way[0, -1])
    frame, depth, moves = scene((RIGHT, BLUE, 2.0))
    torch.testing.assert_close(follow(seen, way, frame, depth, moves).positions, there.positions)


def test_put_where_the_frame_shows_it_when_that_is_elsewhere():
    seen = found((LEFT, RED, 2.0))
    way = to_the_right(seen, -0.2)  # asked to the left; the frame has it on the right
    frame, depth, moves = scene(((slice(20, 30), slice(30, 40)), RED, 2.0))
    there = follow(seen, way, frame, depth, moves)
    torch.testing.assert_close(there.centres[0], find(frame, depth, moves, EYE, CAMERA).centres[0], atol=1e-3, rtol=0)
    assert float(there.past[0, -1, 0]) < -0.5  # it came from the left, whatever was planned


def test_what_looks_smaller_than_it_is_stands_farther_away():
    seen = found((LEFT, RED, 2.0))
    frame, depth, moves = scene(((slice(20, 28), slice(30, 38)), RED, 2.0))  # 8 pixels wide instead of 10, its depth not noticed
    there = follow(seen, to_the_right(seen, -0.2), frame, depth, moves)
    assert float(there.centres[0, 2]) == pytest.approx(2.5, rel=0.02)


# -- watched ---------------------------------------------------------------------------------------------------------


def watch(before: Entities, columns: list[int | None], colour=RED, looked=(1, 3, 5, 7), path: torch.Tensor | None = None) -> Entities:
    """What is known after T frames in which a square stands 2 m away, its left edge at these columns; None: not in view."""
    shots = [scene() if c is None else scene(((slice(20, 30), slice(c, c + 10)), colour, 2.0)) for c in columns]
    frames, depth, moves = (torch.stack(part) for part in zip(*shots, strict=True))
    at = torch.zeros(T, dtype=torch.bool)
    at[list(looked)] = True
    return observed(before, frames, depth, at, moves, EYE.repeat(T, 1, 1) if path is None else path, CAMERA)


def test_what_is_watched_is_cut_out_anew_with_its_past():
    before = found((LEFT, RED, 2.0))  # at column 6, and then two columns a frame
    seen = watch(before, [8, 10, 12, 14, 16, 18, 20, 22])
    last = find(*scene(((slice(20, 30), slice(22, 32)), RED, 2.0)), EYE, CAMERA)
    assert len(seen) == 1 and bool(seen.watched[0])
    torch.testing.assert_close(seen.positions, last.positions)
    step = 2 * 2.0 / float(CAMERA.K[0, 0])  # metres of two columns, 2 m away
    torch.testing.assert_close(seen.past[0, :, 0], -step * torch.tensor(PAST, dtype=torch.float32), atol=0.02, rtol=0)
    assert (
        float(seen.past[0, :, 1].abs().max()) < 0.005 and float(seen.past[0, :, 2].abs().max()) < 0.07
    )  # straight, but for a pace that is even


def test_a_thing_s_distance_does_not_jump_with_its_size():
    """It goes away at an even pace; one mask is a pixel short on every side."""
    sizes = [12, 11, 11, 10, 10, 9, 9, 8]
    shots = [scene(((slice(24 - n // 2, 24 - n // 2 + n), slice(24 - n // 2, 24 - n // 2 + n)), RED, 2.0)) for n in sizes]
    frames, depth, moves = (torch.stack(part) for part in zip(*shots, strict=True))
    moves[5, :20], moves[5, 27:], moves[5, :, :20], moves[5, :, 27:] = False, False, False, False
    at = torch.arange(T) % 2 == 1
    seen = observed(Entities.empty(), frames, depth, at, moves, EYE.repeat(T, 1, 1), CAMERA)
    ahead = seen.past[0, :, 2] / torch.tensor(PAST)
    torch.testing.assert_close(ahead, ahead.mean().expand(3), atol=0.01, rtol=0)
    assert -0.15 < float(ahead.mean()) < -0.03  # metres a frame: it was nearer


def test_where_nobody_looked_it_went_on_evenly():
    before = found((RIGHT, BLUE, 2.0))  # another thing: this one is new
    new = watch(before, [8, 10, 12, 14, 16, 18, 20, 22], looked=(4,))  # three frames before the last, and the last
    step = 2 * 2.0 / float(CAMERA.K[0, 0])
    torch.testing.assert_close(new.past[0, :, 0], -step * torch.tensor(PAST, dtype=torch.float32), atol=0.02, rtol=0)


def test_what_the_last_frame_cannot_show_stays_and_what_is_new_has_no_past():
    aside = EYE.clone()
    aside[0, 3] = 9.0
    before = found((RIGHT, BLUE, 2.0), pose=aside)  # out of view
    behind = found((RIGHT, BLUE, 6.0))  # behind the wall
    for known in (before, behind):
        seen = watch(known, [None] * 7 + [6])
        assert seen.watched.tolist() == [True, False]  # one that was known and stood still, unseen; one that nobody saw move
        torch.testing.assert_close(seen.only(torch.tensor([True, False])).positions, known.positions)
        assert float(seen.past.abs().max()) == 0
    assert len(watch(Entities.empty(), [None] * T)) == 0


def test_what_the_last_frame_would_show_and_does_not_is_forgotten():
    before = found((RIGHT, BLUE, 2.0))
    seen = watch(before, [None] * 7 + [6])
    assert len(seen) == 1 and float(seen.shades[0, 0]) > 150  # the red one alone
    assert len(watch(before, [None] * T)) == 0


def test_what_perception_overlooks_stays_where_the_frame_shows_it():
    before = found((LEFT, RED, 2.0))
    frames = torch.stack([scene((LEFT, RED, 2.0))[0]] * T)
    nothing = torch.zeros(T, SIZE, SIZE, dtype=torch.bool)
    seen = observed(before, frames, torch.full((T, SIZE, SIZE), 2.0), torch.ones(T, dtype=torch.bool), nothing, EYE.repeat(T, 1, 1), CAMERA)
    torch.testing.assert_close(seen.positions, before.positions)


def test_half_hidden_for_a_while_it_was_no_farther_away():
    """It comes nearer at an even pace; something covers half of it in one of the frames that were looked at."""
    sizes = [8, 8, 9, 9, 10, 10, 11, 12]
    shots = [scene(((slice(24 - n // 2, 24 - n // 2 + n), slice(24 - n // 2, 24 - n // 2 + n)), RED, 24 / n)) for n in sizes]
    frames, depth, moves = (torch.stack(part) for part in zip(*shots, strict=True))
    plain, hidden = moves.clone(), moves.clone()
    hidden[5, :24] = False
    at = torch.arange(T) % 2 == 1
    with_half, without = (observed(Entities.empty(), frames, depth, at, m, EYE.repeat(T, 1, 1), CAMERA) for m in (hidden, plain))
    assert float(without.past[0, -1, 2]) == pytest.approx(8 / 6, abs=0.1)  # a metre in six frames
    torch.testing.assert_close(with_half.past[0, -1, 2], without.past[0, -1, 2], atol=0.06, rtol=0)


def test_a_camera_that_moves_is_not_a_thing_that_moves():
    """The square stands still in the world while the camera goes to the left: its columns move, its past does not."""
    step = 2 * 2.0 / float(CAMERA.K[0, 0])
    path = EYE.repeat(T, 1, 1)
    path[:, 0, 3] = -step * torch.arange(1, T + 1)
    seen = watch(found((LEFT, RED, 2.0)), [8, 10, 12, 14, 16, 18, 20, 22], path=path)
    assert bool(seen.watched[0]) and float(seen.past.abs().max()) < 1e-3
