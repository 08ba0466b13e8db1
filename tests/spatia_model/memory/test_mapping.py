"""Mapping: what moves stays out, poses are refined only when that helps, ghosts go."""

import pytest
import torch

from spatia_model.geometry import se3
from spatia_model.geometry.camera import unproject
from spatia_model.geometry.neighbours import highest_near
from spatia_model.memory import tracking
from spatia_model.memory.mapping import MappingConfig, map_clip
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.static_pixels import dilate, edge_strength, slope
from spatia_model.types import Perception
from tests.spatia_model.geometry.scenes import paint, plane_depth, small_camera
from tests.spatia_model.memory.test_point_memory import same

CAMERA = small_camera(96, 96)
PATH_ONLY = MappingConfig(tracking="path")


def walk(count: int) -> torch.Tensor:
    T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    T[:, 0, 3] = 0.02 * torch.arange(count)
    return T


def corner(T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and depth of a painted scene with two surfaces: a wall at 3 m, and a near slab at 2 m on the left of x = 0."""
    wall, slab = plane_depth(T, CAMERA, 3.0), plane_depth(T, CAMERA, 2.0)
    near = unproject(slab, T, CAMERA)[..., 0] < -0.3
    depth = torch.where(near, slab, wall)
    return paint(unproject(depth, T, CAMERA) * 2.5), depth


def perceived(depth: torch.Tensor, dynamic: torch.Tensor | None = None) -> Perception:
    return Perception(depth, torch.ones_like(depth), torch.zeros_like(depth) if dynamic is None else dynamic)


def first_memory() -> PointMemory:
    T = walk(4)
    frames, depth = corner(T)
    return map_clip(PointMemory.empty(0.03), frames, T, CAMERA, perceived(depth), None, 0, PATH_ONLY)[0]


def test_what_moves_does_not_enter():
    T = walk(4)
    frames, depth = corner(T)
    dynamic = torch.zeros_like(depth)
    depth, frames = depth.clone(), frames.clone()
    depth[:, 40:60, 50:70], dynamic[:, 40:60, 50:70] = 1.0, 0.9
    frames[:, 40:60, 50:70] = torch.tensor([255, 0, 255], dtype=torch.uint8)
    memory, report = map_clip(PointMemory.empty(0.03), frames, T, CAMERA, perceived(depth, dynamic), None, 0, PATH_ONLY)
    assert report.dynamic_share == pytest.approx(24 * 24 / 96**2)  # 20 pixels and 2 on each side
    assert memory.positions[:, 2].min() > 1.8
    kept = map_clip(PointMemory.empty(0.03), frames, T, CAMERA, perceived(depth), None, 0, PATH_ONLY)[0]
    assert kept.positions[:, 2].min() < 1.2  # without the mask it would have


def test_a_mistake_of_an_earlier_clip_is_carved():
    T = walk(4)
    frames, depth = corner(T)
    ghost = torch.tensor([[0.3, 0.1, 1.2]]) + 0.02 * torch.randn(30, 3, generator=torch.Generator().manual_seed(2_000_070))
    memory = first_memory().fuse(ghost, torch.zeros(30, 3, dtype=torch.uint8), torch.ones(30), 0)
    after, report = map_clip(memory, frames, T, CAMERA, perceived(depth), memory.project(T, CAMERA), 1, PATH_ONLY)
    assert report.points_carved > 0
    for step in (2, 3):  # several points shared a voxel, so some ghosts had more confidence than one clip takes
        after, _ = map_clip(after, frames, T, CAMERA, perceived(depth), None, step, PATH_ONLY)
    assert after.positions[:, 2].min() > 1.8
    off = MappingConfig(tracking="path", carve=False)
    assert map_clip(memory, frames, T, CAMERA, perceived(depth), None, 1, off)[0].positions[:, 2].min() < 1.5


def test_flying_pixels_at_depth_edges_stay_out():
    T = walk(1)
    frames, depth = corner(T)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(depth[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
    memory = map_clip(PointMemory.empty(0.03), frames, T, CAMERA, perceived(blurred), None, 0, PATH_ONLY)[0]
    ramp = (blurred > 2.15) & (blurred < 2.85)
    assert int(ramp.sum()) > 100
    between = (memory.positions[:, 2] > 2.15) & (memory.positions[:, 2] < 2.85)
    assert int(between.sum()) == 0 and len(memory) > 5000


def test_planes_have_no_edges_however_steep_and_slopes_are_tangents():
    T = walk(1)
    T[0, :3, :3] = se3.exp(torch.tensor([0, 0, 0, 0, 0.9, 0], dtype=torch.float64))[:3, :3]
    small = small_camera(48, 48)
    depth = plane_depth(T, small, 2.0)
    valid = (depth > 0) & (depth < 20)
    inner = valid.clone()
    inner[:, :2] = inner[:, -2:] = inner[:, :, :2] = inner[:, :, -2:] = False
    assert edge_strength(depth.clamp(min=0.01))[inner].max() < 1e-3
    flat = plane_depth(walk(1), small, 2.0)
    assert slope(flat, small).max() < 1e-5
    grown = dilate(torch.eye(5, dtype=torch.bool)[None] & (torch.arange(5) == 2), 1)
    assert grown[0].sum() == 9 and bool(grown[0, 1:4, 1:4].all())


@pytest.mark.parametrize("pixels", [0, 1, 2, 9])
def test_highest_near_is_a_maximum_over_a_square(pixels: int):
    image = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(2_000_071))
    pooled = torch.nn.functional.max_pool2d(image, 2 * pixels + 1, stride=1, padding=pixels)
    assert torch.equal(highest_near(image, pixels), pooled)
    assert torch.equal(highest_near(image > 1, pixels), pooled > 1)


def test_sky_is_put_at_a_bounded_distance():
    T = walk(1)
    frames, depth = corner(T)
    depth[:, :30] = 1e4
    memory = map_clip(PointMemory.empty(0.03), frames, T, CAMERA, perceived(depth), None, 0, PATH_ONLY)[0]
    far = memory.positions[:, 2] > 40
    assert int(far.sum()) > 100 and memory.positions[far][:, 2].max() < 51
    assert memory.project(T, CAMERA).coverage > 0.97


def test_a_drifting_clip_is_pulled_back_and_the_same_way_every_time():
    pytest.importorskip("open3d", reason="open3d is not installed: poses come from the path")
    memory = first_memory()
    truth = walk(8)
    frames, depth = corner(truth)
    end = torch.tensor([0.03, -0.01, 0.02, 0.004, 0.01, 0.0], dtype=torch.float64)
    drift = se3.exp(end * torch.linspace(1 / 8, 1, 8, dtype=torch.float64)[:, None])
    path = truth @ se3.inverse(drift)  # the frames were taken at path * drift
    runs = [map_clip(memory, frames, path, CAMERA, perceived(depth), memory.project(path, CAMERA), 1) for _ in range(3)]
    report = runs[0][1]
    assert report.tracking is not None and report.tracking.accepted, report.tracking
    assert report.tracking.residual_refined < 0.9 * report.tracking.residual_path
    # what counts is where the frames' pixels land in the map
    right = unproject(depth, truth, CAMERA)
    asked, refined = ((unproject(depth, T, CAMERA) - right).norm(dim=-1).mean() for T in (path, report.T_world_camera))
    assert refined < 0.5 * asked
    for other, again in runs[1:]:
        assert torch.equal(again.T_world_camera, report.T_world_camera) and same(other, runs[0][0])


def test_a_path_that_fits_is_left_alone():
    memory = first_memory()
    T = walk(8)
    frames, depth = corner(T)
    _, report = map_clip(memory, frames, T, CAMERA, perceived(depth), memory.project(T, CAMERA), 1)
    assert torch.equal(report.T_world_camera, T) and report.tracking is not None and not report.tracking.accepted


def test_without_overlap_or_open3d_the_path_is_believed(monkeypatch: pytest.MonkeyPatch):
    memory = first_memory()
    T = walk(2)
    T[:, 0, 3] += 50
    frames, depth = corner(T)
    report = map_clip(memory, frames, T, CAMERA, perceived(depth), memory.project(T, CAMERA), 1)[1]
    assert report.tracking is not None and "overlap" in report.tracking.reason and torch.equal(report.T_world_camera, T)

    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    tracking.odometry_available.cache_clear()
    T = walk(2)
    frames, depth = corner(T)
    with pytest.warns(UserWarning, match="open3d"):
        report = map_clip(memory, frames, T, CAMERA, perceived(depth), memory.project(T, CAMERA), 1)[1]
    tracking.odometry_available.cache_clear()
    assert report.tracking is not None and "open3d" in report.tracking.reason and torch.equal(report.T_world_camera, T)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(tracking="slam"), '"odometry" or "path"'),
        (dict(fuse_stride=0), "fuse_stride"),
        (dict(min_confidence=2.0), "0..1"),
        (dict(edge_threshold=0.0), "positive"),
        (dict(dynamic_dilation=-1), "dynamic_dilation"),
        (dict(sky_distance=10.0), "wall"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MappingConfig(**setting)


def test_bad_clips_are_refused():
    T = walk(2)
    frames, depth = corner(T)
    empty = PointMemory.empty()
    with pytest.raises(ValueError, match="uint8"):
        map_clip(empty, frames.float(), T, CAMERA, perceived(depth), None, 0)
    with pytest.raises(ValueError, match="perception.depth"):
        map_clip(empty, frames, T, CAMERA, perceived(depth[:1]), None, 0)
    with pytest.raises(ValueError, match="NaN"):
        map_clip(empty, frames, T, CAMERA, perceived(depth * float("nan")), None, 0)
