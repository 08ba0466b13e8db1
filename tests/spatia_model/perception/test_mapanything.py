"""MapAnything's adapter against a stand-in that demands what the package's source demands, and looks at a known plane."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch

from spatia_model.geometry import se3
from spatia_model.geometry.camera import camera_from_normalised, pixel_rays, resize
from spatia_model.perception.composed import ComposedPerceiver, looked_at, nearest
from spatia_model.perception.mapanything import MapAnythingPerceiver, scale_to_memory, to_frame_size, working_size
from spatia_model.perception.optional import MissingPackageError
from spatia_model.types import Camera, Projection

ALLOWED = {
    "img",
    "data_norm_type",
    "depth_z",
    "ray_directions",
    "intrinsics",
    "camera_poses",
    "is_metric_scale",
    "true_shape",
    "idx",
    "instance",
}
NORMAL, OFFSET = torch.tensor([0.1, 0.25, 1.0], dtype=torch.float64), 4.0  # the plane NORMAL . X = OFFSET, in metres
HEIGHT, WIDTH = 60, 106
CAMERA = camera_from_normalised((0.8, 1.4, 0.47, 0.55), WIDTH, HEIGHT)


def plane_depth(T_world_camera: torch.Tensor, camera: Camera) -> torch.Tensor:
    """(T, H, W) z-depth of the plane, from its equation."""
    rays = pixel_rays(camera).double() @ T_world_camera[:, None, :3, :3].transpose(-1, -2)
    return ((OFFSET - T_world_camera[:, :3, 3] @ NORMAL)[:, None, None] / (rays @ NORMAL)).float()


def poses(count: int) -> torch.Tensor:
    twists = torch.zeros(count, 6, dtype=torch.float64)
    twists[:, 0] = torch.linspace(0, 0.4, count)
    twists[:, 4] = torch.linspace(0, 0.2, count)
    far = torch.eye(4, dtype=torch.float64)
    far[:3, 3] = torch.tensor([1.0, -1.4, 0.5])
    return far @ se3.exp(twists)


def pictures(count: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class StandIn:
    """`MapAnything.infer` as far as an adapter can tell: checks its arguments and sees the plane, in a scale of its own.

    `first` is where the first camera really stands: known to the stand-in, as it is to the test, never told by the adapter.
    """

    def __init__(self, first: torch.Tensor, true_camera: Camera = CAMERA, scale: float = 1.0):
        self.first, self.true_camera, self.scale, self.calls = first, true_camera, scale, []
        self.encoder = types.SimpleNamespace(data_norm_type="dinov2")
        self.true_poses: torch.Tensor | None = None  # relative to the first; for calls that do not give them
        self.unsure: tuple[slice, slice] | None = None

    def infer(self, views, memory_efficient_inference=True, minibatch_size=None, use_amp=True, amp_dtype="bf16", apply_mask=True,
              mask_edges=True, edge_normal_threshold=5.0, edge_depth_threshold=0.03, apply_confidence_mask=False, confidence_percentile=10,
              ignore_calibration_inputs=False, ignore_depth_inputs=False, ignore_pose_inputs=False, ignore_depth_scale_inputs=False,
              ignore_pose_scale_inputs=False, use_multiview_confidence=False):  # fmt: skip
        self.calls.append(views)
        assert apply_mask and mask_edges and not use_amp  # bf16 autocast is for GPUs
        posed = [i for i, view in enumerate(views) if "camera_poses" in view]
        assert not posed or 0 in posed
        answers = []
        for i, view in enumerate(views):
            assert set(view) <= ALLOWED and {"img", "data_norm_type"} <= set(view) and not {"intrinsics", "ray_directions"} <= set(view)
            image = view["img"]
            assert image.shape[:2] == (1, 3) and image.dtype == torch.float32 and view["data_norm_type"] == ["dinov2"]
            h, w = image.shape[-2:]
            assert h % 14 == 0 and w % 14 == 0 and image.shape == views[0]["img"].shape
            assert float(image.min()) > -2.2 and float(image.max()) < 2.7  # ImageNet statistics, not 0..1 or 0..255
            pose = self.first
            if "camera_poses" in view:
                given = view["camera_poses"]
                assert given.shape == (1, 4, 4) and given.dtype == torch.float32
                assert view["is_metric_scale"].shape == (1,) and view["is_metric_scale"].dtype == torch.bool
                torch.testing.assert_close(given[0, :3, :3] @ given[0, :3, :3].T, torch.eye(3), atol=1e-5, rtol=0)
                pose = self.first @ given[0].double()  # camera to world
            elif self.true_poses is not None:
                pose = self.first @ self.true_poses[i]
            if "intrinsics" in view:
                K = view["intrinsics"]
                assert K.shape == (1, 3, 3) and K.dtype == torch.float32
                K = K[0].double()
            else:
                K = resize(self.true_camera, w, h).K.clone()
                K[:2, 2] -= 0.5
            # the package's own convention: pixel (0, 0) has its centre at (0, 0)
            grid = torch.meshgrid(torch.arange(w, dtype=torch.float64), torch.arange(h, dtype=torch.float64), indexing="xy")
            rays = torch.stack([(grid[0] - K[0, 2]) / K[0, 0], (grid[1] - K[1, 2]) / K[1, 1], torch.ones(h, w)], -1) @ pose[:3, :3].T
            depth = ((OFFSET - pose[:3, 3] @ NORMAL) / (rays @ NORMAL)).float() * self.scale
            mask = torch.ones(h, w, dtype=torch.bool)
            if self.unsure is not None:
                mask[self.unsure] = False
            relative = (se3.inverse(self.first[None])[0] @ pose).float()
            relative[:3, 3] *= self.scale
            answers.append({
                "depth_z": (depth * mask)[None, ..., None],
                "conf": torch.full((1, h, w), 3.0),
                "mask": mask[None, ..., None],
                "camera_poses": relative[None],
                "intrinsics": K.float()[None],
            })  # fmt: skip
        return answers


def prior_of(T_world_camera: torch.Tensor, holes: bool = True) -> Projection:
    depth = plane_depth(T_world_camera, CAMERA)
    mask = torch.ones_like(depth, dtype=torch.bool)
    if holes:
        mask[:, :, WIDTH // 2 :] = False
    shape = depth.shape
    return Projection(torch.zeros(*shape, 3, dtype=torch.uint8), depth * mask, mask, torch.zeros(shape, dtype=torch.int32))


def test_known_poses_and_intrinsics_give_depth_at_the_frames_own_pixels():
    path = poses(3)
    seen = MapAnythingPerceiver(StandIn(path[0])).estimate(pictures(3), path, CAMERA)
    inside = (slice(None), slice(1, -1), slice(1, -1))  # at the rim interpolation has only one side
    torch.testing.assert_close(seen.depth[inside], plane_depth(path, CAMERA)[inside], rtol=1e-4, atol=0)
    assert seen.scale == 1.0 and seen.camera is CAMERA
    assert torch.equal(seen.T_world_camera, path)
    torch.testing.assert_close(seen.confidence, torch.full_like(seen.confidence, 1 - math.exp(-1.5)))


def test_half_a_pixel_off_would_be_noticed():
    """The precision of the test above rests on it."""
    path = poses(1)
    shifted = Camera(CAMERA.K.clone(), WIDTH, HEIGHT)
    shifted.K[:2, 2] += 0.5
    seen = MapAnythingPerceiver(StandIn(path[0])).estimate(pictures(1), path, shifted)
    error = (seen.depth / plane_depth(path, CAMERA) - 1).abs()[:, 1:-1, 1:-1]
    assert float(error.median()) > 1e-3


def test_poses_are_handed_over_relative_to_the_first_view_and_in_double():
    path = poses(3)
    path[:, :3, 3] += 1e6  # in float32 such a world has a grain of 6 cm
    stand_in = StandIn(path[0])
    MapAnythingPerceiver(stand_in).estimate(pictures(3), path, CAMERA)
    given = torch.cat([view["camera_poses"] for view in stand_in.calls[0]]).double()
    torch.testing.assert_close(given, se3.inverse(path[:1]) @ path, atol=1e-6, rtol=0)


def test_without_poses_and_intrinsics_it_gives_them():
    path = poses(3)
    stand_in = StandIn(path[0])
    stand_in.true_poses = se3.inverse(path[:1]) @ path
    seen = MapAnythingPerceiver(stand_in).estimate(pictures(3))
    assert not {"camera_poses", "intrinsics", "is_metric_scale"} & set(stand_in.calls[0][0])
    torch.testing.assert_close(seen.T_world_camera, stand_in.true_poses, atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.camera.K, CAMERA.K, atol=1e-3, rtol=0)
    assert (seen.camera.width, seen.camera.height) == (WIDTH, HEIGHT) and seen.T_world_camera.dtype == torch.float64


def test_depth_is_brought_to_the_memorys_scale():
    path = poses(4)
    perceiver = MapAnythingPerceiver(StandIn(path[0], scale=1.7))
    seen = perceiver.estimate(pictures(4), path, CAMERA, prior_of(path))
    assert seen.scale == pytest.approx(1 / 1.7, rel=1e-3)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(seen.depth[inside], plane_depth(path, CAMERA)[inside], rtol=2e-3, atol=0)


def test_the_scale_survives_disagreement_and_ignores_what_moves():
    path = poses(2)
    prior = prior_of(path, holes=False)
    depth, sure = plane_depth(path, CAMERA) * 2, torch.ones(2, HEIGHT, WIDTH)
    wrong = depth.clone()
    wrong[:, :, :40] = 0.5  # 38 % of the pixels: something new before the wall
    assert scale_to_memory(wrong, sure, prior) == pytest.approx(0.5, rel=1e-4)
    wrong[:, :, :70] = 0.5  # the greater part: the median fails ...
    assert scale_to_memory(wrong, sure, prior) > 2
    moving = torch.zeros_like(sure)
    moving[:, :, :70] = 1  # ... unless it is known to move
    assert scale_to_memory(wrong, sure, prior, moving) == pytest.approx(0.5, rel=1e-4)
    weak = torch.where(moving > 0, torch.full_like(sure, 0.01), sure)  # or is hardly believed
    assert scale_to_memory(wrong, weak, prior) == pytest.approx(0.5, rel=1e-4)


def test_with_too_little_in_common_the_scale_stays():
    path = poses(1)
    prior = prior_of(path)
    few = Projection(prior.rgb, prior.depth, torch.zeros_like(prior.mask), prior.index)
    few.mask[:, 0, :10] = True
    assert scale_to_memory(plane_depth(path, CAMERA) * 2, torch.ones(1, HEIGHT, WIDTH), few) == 1.0


def test_what_it_masks_is_not_known_and_spoils_nothing_around_it():
    path = poses(1)
    stand_in = StandIn(path[0])
    stand_in.unsure = (slice(100, 200), slice(50, 150))  # of 294 x 518
    seen = MapAnythingPerceiver(stand_in).estimate(pictures(1), path, CAMERA)
    hole = seen.confidence == 0
    assert torch.equal(hole, seen.depth == 0)
    assert 0.9 < float(hole.float().mean()) / (100 * 100 / (294 * 518)) < 1.2
    known = ~hole
    known[:, [0, -1]] = known[:, :, [0, -1]] = False
    torch.testing.assert_close(seen.depth[known], plane_depth(path, CAMERA)[known], rtol=1e-4, atol=0)


def test_interpolation_of_inverse_depth_is_exact_on_planes():
    coarse, fine = resize(CAMERA, 56, 28), resize(CAMERA, 112, 56)
    pose = poses(1)
    depth, _ = to_frame_size(plane_depth(pose, coarse), torch.ones(1, 28, 56), torch.ones(1, 28, 56, dtype=torch.bool), 56, 112)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(depth[inside], plane_depth(pose, fine)[inside], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("size", "expected"), [((704, 1248), (294, 518)), ((128, 128), (518, 518)), ((1248, 704), (518, 294)), ((10, 2000), (14, 518))]
)
def test_working_size(size, expected):
    assert working_size(*size) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(0, 4, 4, 3, dtype=torch.uint8)}, r"frames are \(0, 4, 4, 3\)"),
        ({"frames": pictures(2).float()}, "expected a tensor"),
        ({"T_world_camera": poses(3)}, r"T_world_camera is \(3, 4, 4\); expected \(2, 4, 4\)"),
        ({"camera": resize(CAMERA, 50, 50)}, "the camera is of 50x50 pixels, the frames are 106x60"),
    ],
)
def test_bad_input(change, message):
    given = {"frames": pictures(2), "T_world_camera": poses(2), "camera": CAMERA} | change
    with pytest.raises(ValueError, match=message):
        MapAnythingPerceiver(StandIn(poses(1)[0])).estimate(**given)


def test_another_normalisation_is_refused():
    stand_in = StandIn(poses(1)[0])
    stand_in.encoder.data_norm_type = "identity"
    with pytest.raises(ValueError, match="normalised as 'identity'"):
        MapAnythingPerceiver(stand_in)


def test_loading_asks_for_strict_weights_by_hub_id_or_folder(monkeypatch, tmp_path):
    asked = []

    class Model(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, name, strict=False):
            asked.append((name, strict))
            if name == "facebook/none":
                raise OSError("no network")
            return cls()

    module = types.ModuleType("mapanything.models")
    module.MapAnything = Model
    monkeypatch.setitem(sys.modules, "mapanything", types.ModuleType("mapanything"))
    monkeypatch.setitem(sys.modules, "mapanything.models", module)
    assert not MapAnythingPerceiver.from_pretrained().model.training
    MapAnythingPerceiver.from_pretrained(tmp_path)
    assert asked == [("facebook/map-anything", True), (str(tmp_path), True)]
    with pytest.raises(ValueError, match="'facebook/none' is not in the hub cache .*no network.*hf download facebook/none"):
        MapAnythingPerceiver.from_pretrained("facebook/none")
    with pytest.raises(ValueError, match="there is no folder './weights'"):
        MapAnythingPerceiver.from_pretrained("./weights")


def test_without_the_package_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "mapanything", None)
    with pytest.raises(MissingPackageError, match="needs the package mapanything, which is not installed.*pip install .*map-anything.git"):
        MapAnythingPerceiver.from_pretrained()


# -- composed with a masker


class HalfMoves:
    """Calls the left half moving, and remembers what it was shown."""

    def __init__(self):
        self.seen = None

    def masks(self, frames):
        self.seen = frames
        masks = torch.zeros(frames.shape[:3])
        masks[:, :, : frames.shape[2] // 2] = torch.arange(1, len(frames) + 1)[:, None, None] / 10
        return masks


def test_composed_looks_at_every_nth_frame_counted_from_the_last():
    path, frames = poses(8), pictures(8)
    stand_in, masker = StandIn(path[1]), HalfMoves()
    prior = prior_of(path)
    seen = ComposedPerceiver(MapAnythingPerceiver(stand_in), masker, every=3).perceive(frames, path, CAMERA, prior)
    assert len(stand_in.calls[0]) == 3 and torch.equal(masker.seen, frames[[1, 4, 7]])
    assert (seen.confidence > 0).flatten(1).any(1).tolist() == [False, True, False, False, True, False, False, True]
    torch.testing.assert_close(seen.depth[4, 1:-1, 1:-1], plane_depth(path, CAMERA)[4, 1:-1, 1:-1], rtol=2e-3, atol=0)
    assert torch.equal(seen.depth[3], prior.depth[3])
    assert (seen.dynamic[:, 0, 0] * 10).round().tolist() == [1, 1, 1, 2, 2, 2, 3, 3]
    assert (seen.dynamic[:, :, WIDTH // 2 :] == 0).all()


def test_composed_fills_a_map_at_its_rate():
    from spatia_model.memory.mapping import MappingConfig, map_clip
    from spatia_model.memory.point_memory import PointMemory

    path, frames = poses(7), pictures(7)
    perceiver = ComposedPerceiver(MapAnythingPerceiver(StandIn(path[0])), every=3)
    seen = perceiver.perceive(frames, path, CAMERA)
    config = MappingConfig(tracking="path", fuse_stride=3, depth_error=0)
    memory, report = map_clip(PointMemory.empty(0.02), frames, path, CAMERA, seen, None, 1, config)
    assert report.fused_pixels > 3 * HEIGHT * WIDTH * 0.9
    distance = (memory.positions.double() @ NORMAL - OFFSET).abs() / NORMAL.norm()
    assert float(distance.max()) < 0.02  # all points lie on the plane, none at the cameras


def test_rows():
    assert looked_at(1, 6) == [0] and looked_at(8, 6) == [1, 7] and looked_at(5, 1) == [0, 1, 2, 3, 4]
    assert nearest(8, [1, 7]) == [0, 0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="every = 0"):
        ComposedPerceiver(MapAnythingPerceiver(StandIn(poses(1)[0])), every=0)


def test_a_masker_of_the_wrong_shape_is_named():
    class Wrong:
        def masks(self, frames):
            return torch.zeros(1, 2, 2)

    with pytest.raises(ValueError, match=r"the masker gave masks \(1, 2, 2\)"):
        ComposedPerceiver(MapAnythingPerceiver(StandIn(poses(1)[0])), Wrong()).perceive(pictures(2), poses(2), CAMERA)
