"""The first picture goes on around: where its copies stand, that the circle closes, and that the map always comes first."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.geometry.camera import camera_from_fov, pixel_rays
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.surroundings import completed, reflected, surroundings_of
from spatia_model.types import Projection
from spatia_model.worlds.trajectories import pose_from

SIZE, VOXEL = 48, 0.03
CAMERA = camera_from_fov(math.radians(75), SIZE, SIZE)
HERE = pose_from(0.3, -1.4, -0.2, math.radians(20), 0.0, 0.0)
FLOOR, CEILING, WALL = 1.4, 1.2, 3.0  # metres from the camera


def room(T_world_camera: torch.Tensor = HERE, ceiling: bool = True, floor: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """A striped wall ahead, a floor and a ceiling as a camera at that pose sees them: frame (H, W, 3) uint8, depth (H, W)."""
    R = T_world_camera[:3, :3].float()
    heading = math.atan2(float(R[0, 2]), float(R[2, 2]))
    rays = pixel_rays(CAMERA) @ R.T
    ahead = rays[..., 0] * math.sin(heading) + rays[..., 2] * math.cos(heading)
    far = torch.full((SIZE, SIZE), 1e9)
    every = torch.stack(
        [
            torch.where(ahead > 1e-3, WALL / ahead, far),
            torch.where(rays[..., 1] > 1e-3, FLOOR / rays[..., 1], far) if floor else far,
            torch.where(rays[..., 1] < -1e-3, -CEILING / rays[..., 1], far) if ceiling else far,
        ]
    )
    depth, which = every.min(0)
    across = (torch.arange(SIZE) * 5).clamp(max=255).expand(SIZE, -1)
    frame = torch.stack([across, torch.full_like(across, 90), which * 100], -1).to(torch.uint8)
    return frame, depth


def nearest(points: torch.Tensor, to: torch.Tensor) -> tuple[float, int]:
    far = (points - to).norm(dim=1)
    return float(far.min()), int(far.argmin())


def test_every_pixel_stands_mirrored_where_a_plain_reflection_puts_it():
    frame, depth = room()
    around = surroundings_of(frame, depth, HERE, CAMERA, VOXEL)
    R, centre, rays = HERE[:3, :3].float(), HERE[:3, 3].float(), pixel_rays(CAMERA)
    half = math.atan(float(rays[0, -1, 0]))  # a level camera's last column
    heading = math.radians(20)
    for v, u in [(20, 40), (24, 10), (30, 24), (5, 44)]:
        p = R @ (rays[v, u] * depth[v, u])
        for side in (1, -1):
            edge = heading + side * half
            across = torch.tensor([math.cos(edge), 0.0, -math.sin(edge)])  # normal of the upright plane through the picture's side
            there = p - 2 * (p @ across) * across
            gap, at = nearest(around.positions, there + centre)
            assert gap < VOXEL * 4, (v, u, side)
            assert (around.colors[at].int() - frame[v, u].int()).abs().max() <= 12


def test_the_circle_is_closed():
    frame, depth = room()
    around = surroundings_of(frame, depth, HERE, CAMERA, VOXEL)
    for degrees in range(90, 300, 30):
        pose = pose_from(0.3, -1.4, -0.2, math.radians(20 + degrees), 0.0, 0.0)
        seen = around.project(pose[None], CAMERA)
        assert seen.coverage > 0.97, degrees
        below = seen.depth[0, -1][seen.mask[0, -1]]
        assert float((below - depth[-1].median()).abs().max()) < 0.25  # the floor is where it was


@pytest.mark.parametrize("pitch", (-60, 60))
def test_a_steep_picture_has_no_sides_to_mirror(pitch):
    pose = pose_from(0.0, -1.4, 0.0, 0.0, math.radians(pitch), 0.0)
    frame, depth = room(pose)
    assert len(surroundings_of(frame, depth, pose, CAMERA, VOXEL)) == 0


def test_floor_and_ceiling_reach_under_and_over_the_camera():
    frame, depth = room()
    around = surroundings_of(frame, depth, HERE, CAMERA, VOXEL)
    flat = (around.positions - HERE[:3, 3].float())[:, [0, 2]].norm(dim=1)
    y = around.positions[:, 1] - float(HERE[1, 3])
    under, over = y[(flat < 1.0) & (y > 0)], y[(flat < 1.0) & (y < 0)]
    assert len(under) > 500 and float((under - FLOOR).abs().max()) < 0.1
    assert len(over) > 500 and float((over + CEILING).abs().max()) < 0.1


def test_without_a_floor_nothing_is_laid():
    frame, depth = room(ceiling=False, floor=False)
    around = surroundings_of(frame, depth, HERE, CAMERA, VOXEL)
    assert len(around) and float((around.positions - HERE[:3, 3].float())[:, [0, 2]].norm(dim=1).min()) > 2.0


def test_any_field_of_view_closes_the_circle():
    for degrees in (30, 60, 100):
        camera = camera_from_fov(math.radians(degrees), SIZE, SIZE)
        frame, depth = torch.full((SIZE, SIZE, 3), 120, dtype=torch.uint8), torch.full((SIZE, SIZE), 3.0)
        around = surroundings_of(frame, depth, torch.eye(4, dtype=torch.float64), camera, VOXEL)
        back = pose_from(0.0, 0.0, 0.0, math.pi, 0.0, 0.0)
        middle = around.project(back[None], camera).mask[0, SIZE // 2 - 2 : SIZE // 2 + 2]
        assert float(middle.float().mean()) > 0.9, degrees


def test_the_map_comes_first():
    frame, depth = room()
    around = surroundings_of(frame, depth, HERE, CAMERA, VOXEL)
    wall = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.0]) + torch.tensor([-2.0, -2.0, 2.0])
    points, radius = len(wall), torch.full((len(wall),), 0.03)
    memory = PointMemory.empty(VOXEL).fuse(wall, torch.full((points, 3), 7, dtype=torch.uint8), torch.ones(points), 0, radius)
    path = torch.stack([pose_from(0.3, -1.4, -0.2, math.radians(a), 0.0, 0.0) for a in (-55, -75, 180)])
    known = memory.project(path, CAMERA)
    shown = completed(known, around, path, CAMERA)
    assert 0 < known.coverage < 0.5 and shown.coverage > 0.9
    for name in ("rgb", "depth"):
        assert torch.equal(getattr(shown, name)[known.mask], getattr(known, name)[known.mask])
    assert torch.equal(shown.index, known.index) and bool((known.mask <= shown.mask).all())
    behind = around.project(path, CAMERA)
    new = shown.mask & ~known.mask
    assert torch.equal(shown.rgb[new], behind.rgb[new]) and torch.equal(shown.depth[new], behind.depth[new])


def test_pinholes_are_left_to_what_lies_beside_them():
    frame, depth = room()
    around = surroundings_of(frame, depth, HERE, CAMERA, VOXEL)
    path = pose_from(0.3, -1.4, -0.2, math.radians(110), 0.0, 0.0)[None]
    behind = around.project(path, CAMERA)
    known = Projection(behind.rgb, behind.depth, torch.ones_like(behind.mask), behind.index)
    assert completed(known, around, path, CAMERA) is known
    known.mask[0, 10:12, 10:40] = False
    known.mask[0, 20:30, 20:30] = False
    shown = completed(known, around, path, CAMERA)
    assert not shown.mask[0, 10:12, 10:40].any()
    assert torch.equal(shown.mask[0, 20:30, 20:30], behind.mask[0, 20:30, 20:30]) and behind.mask[0, 20:30, 20:30].float().mean() > 0.9


def plain_reflection(known: np.ndarray, place: tuple[int, int]) -> tuple[int, int]:
    """`reflected` for one place: the nearest known place is the border; what lies as far on its other side stands for it."""
    spots = np.argwhere(known)

    def border(at):
        far = ((spots - at) ** 2).sum(1)
        return spots[far.argmin()]

    at = np.array(place)
    for _ in range(4):
        if known[tuple(at)]:
            break
        at = np.clip(2 * border(at) - at, 0, np.array(known.shape) - 1)
    return tuple(int(x) for x in border(at))


def test_reflection_equals_the_plain_one():
    known = np.zeros((12, 40), bool)
    known[2:9, 10:17] = True  # every nearest place is the only one, outside the corners' diagonals too
    places = np.array([(5, u) for u in range(40)] + [(v, 12) for v in range(12)])
    found = reflected(known, places)
    assert [tuple(int(x) for x in row) for row in found] == [plain_reflection(known, tuple(p)) for p in places]
    assert all(known[tuple(row)] for row in found)
    assert len({tuple(row) for row in found[:40].tolist()}) == 7  # a texture, not one colour drawn out
