"""The ray-caster and the distance field against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.geometry.camera import camera_from_fov, pixel_rays, unproject
from spatia_model.worlds import FAR, World
from spatia_model.worlds.layout import Plan
from spatia_model.worlds.scene import Body, Material, Piece, Scene
from spatia_model.worlds.shapes import BOX, CYLINDER, LYING_CYLINDER, SPHERE
from spatia_model.worlds.trajectories import pose_from
from spatia_model.worlds.world import Tables
from tests.spatia_model.worlds import reference

CAMERA = camera_from_fov(math.radians(75), 24, 24)


def world_of(*bodies: Body) -> World:
    scene = Scene(np.random.default_rng(0))
    scene.add(Piece("box", "", list(bodies)))
    return World(0, Plan("room", 20.0, 20.0, 5.0), Tables(**scene.tables(), parts=np.zeros((0, 3, 4), np.float32)), tuple(scene.things), ())


@pytest.mark.parametrize(
    ("kind", "half"),
    [(BOX, (0.7, 0.5, 0.4)), (CYLINDER, (0.5, 0.6, 0.5)), (LYING_CYLINDER, (0.8, 0.4, 0.4)), (SPHERE, (0.6, 0.6, 0.6))],
    ids=["box", "cylinder", "lying cylinder", "sphere"],
)
@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_depth_of_each_kind_equals_ray_marching(kind: int, half: tuple[float, float, float], yaw: float) -> None:
    world = world_of(Body(kind, (0.2, -0.1, 3.0), half, Material(), yaw))
    pose = pose_from(0.3, -0.9, 0.4, -0.05, -0.2, 0.1)
    depth = world.render(pose[None], CAMERA, torch.zeros(1), supersample=1).depth[0].numpy().ravel()
    rays = pixel_rays(CAMERA).reshape(-1, 3).double().numpy() @ pose[:3, :3].numpy().T
    expected = reference.march(world.tables, pose[:3, 3].numpy(), rays, FAR)
    hit = expected < FAR - 1
    assert 30 < hit.sum() < len(hit) - 30  # the picture shows the body and what is beside it
    grazing = np.abs(reference.static_sdf(world.tables, pose[:3, 3].numpy() + rays * depth[:, None])) > 1e-3
    assert (hit != (depth < FAR - 1)).sum() <= 2  # rays that just touch an edge may fall either way
    same = hit & (depth < FAR - 1)
    assert np.abs(depth - expected)[same].max() < 5e-3
    assert not grazing[same].any()


@pytest.mark.parametrize("kind", ["room", "courtyard"])
def test_distance_field_equals_the_union_of_all_bodies(kind: str) -> None:
    world = World.generate(2_000_101, kind=kind)
    points = np.random.default_rng(1).uniform((-6, -3.2, -6), (6, 0.3, 6), (400, 3))
    expected = reference.static_sdf(world.tables, points)
    got = world.static_sdf(torch.from_numpy(points)).numpy()
    outside = expected > 0
    assert outside.sum() > 100
    assert np.abs(got - expected)[outside].max() < 2e-4
    assert (got[~outside] <= 1e-6).all()
    assert np.array_equal(world.static_distance(torch.from_numpy(points)).numpy(), np.abs(got))


@pytest.mark.parametrize("kind", ["room", "courtyard"])
def test_unprojected_static_pixels_lie_on_static_surfaces(kind: str) -> None:
    world = World.generate(2_000_102, kind=kind, movers=2)
    rng = np.random.default_rng(2)
    poses = torch.stack([world.start_pose(rng) for _ in range(3)])
    truth = world.render(poses, CAMERA, torch.zeros(3), supersample=1)
    points = unproject(truth.depth, poses, CAMERA)
    static = (truth.depth < FAR) & ~truth.dynamic
    assert static.float().mean() > 0.3
    assert float(world.static_distance(points[static]).max()) < 0.01
    assert torch.equal(truth.depth == FAR, truth.depth >= FAR)  # the sky is exactly at the far plane


def test_depth_of_a_whole_room_equals_ray_marching() -> None:
    world = World.generate(2_000_103, kind="room", movers=0)
    pose = world.start_pose(np.random.default_rng(0))
    small = camera_from_fov(math.radians(75), 12, 12)
    depth = world.render(pose[None], small, torch.zeros(1), supersample=1).depth[0].numpy().ravel()
    rays = pixel_rays(small).reshape(-1, 3).double().numpy() @ pose[:3, :3].numpy().T
    expected = reference.march(world.tables, pose[:3, 3].numpy(), rays, FAR)
    assert (np.abs(depth - expected) < 0.01).mean() > 0.97


def test_centre_ray_decides_depth_whatever_the_supersampling() -> None:
    world = World.generate(2_000_104, movers=2)
    pose = world.start_pose(np.random.default_rng(3))[None]
    plain = world.render(pose, CAMERA, torch.tensor([1.0]), supersample=1)
    fine = world.render(pose, CAMERA, torch.tensor([1.0]), supersample=3)
    assert torch.equal(plain.depth, fine.depth)
    assert torch.equal(plain.dynamic, fine.dynamic)
    assert not torch.equal(plain.rgb, fine.rgb)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_shows_the_same_picture() -> None:
    world = World.generate(2_000_105, movers=2)
    poses = world.start_pose(np.random.default_rng(3))[None]
    cpu = world.render(poses, CAMERA, torch.tensor([1.0]))
    gpu = world.render(poses, CAMERA, torch.tensor([1.0]), device="cuda")
    assert gpu.rgb.device.type == "cuda"
    assert (cpu.depth - gpu.depth.cpu()).abs().median() < 1e-4
    assert (cpu.rgb.float() - gpu.rgb.cpu().float()).abs().mean() < 1.0
