"""Files of every layout become footage with the right poses; what is wrong with one is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from spatia_model.data.prepare import datasets
from spatia_model.data.prepare.datasets import RealEstate10K, SpatialVID, Videos
from spatia_model.data.prepare.footage import BadFootage, Footage, VideoFile, fit_frames, fit_intrinsics, fit_maps
from spatia_model.data.prepare.recorded import Rollouts, Worlds
from spatia_model.data.prepare.scale import find_scale
from spatia_model.data.prepare.shots import ShotRules, cuts, rejected, shots, thumbnails
from spatia_model.geometry.camera import camera_from_normalised, project
from tests.spatia_model.data import footage_files as files

K = (0.5 / np.tan(files.FOV / 2),) * 2 + (0.5, 0.5)


def near(a: torch.Tensor, b: torch.Tensor) -> float:
    """Difference of grey values: codecs keep colour at half the resolution."""
    return float((a.float().mean(-1) - b.float().mean(-1)).abs().mean())


# -- RealEstate10K ----------------------------------------------------------------------------------------------------


def test_realestate_poses_are_turned_round_and_frames_belong_to_them(tmp_path):
    footage = RealEstate10K(*files.realestate(tmp_path)).open("0f1e2d")
    assert torch.allclose(footage.T_world_camera, files.path(17), atol=1e-9)
    assert footage.intrinsics is not None and torch.allclose(footage.intrinsics[3], torch.tensor(K, dtype=torch.float64))
    assert torch.allclose(footage.times, torch.arange(17).double() / 8) and not footage.metric
    assert torch.equal(footage.read([2, 9]), files.wall(files.path(17), 32, 32)[0][[2, 9]])
    assert footage.provenance["url"].endswith("abc_DEF-123")


@pytest.mark.parametrize("stem", ["0f1e2d", "abc_DEF-123"])
def test_realestate_frames_come_from_a_video_too(tmp_path, stem):
    """A file named like the clip begins with it; one named like the YouTube video begins a second earlier."""
    cameras, frames = files.realestate(tmp_path)
    rgb, _ = files.wall(files.path(17), 32, 32)
    before = torch.zeros(8 if stem != "0f1e2d" else 0, 32, 32, 3, dtype=torch.uint8)
    files.video(tmp_path / "videos" / f"{stem}.mp4", torch.cat([before, rgb]))
    footage = RealEstate10K(cameras, tmp_path / "videos").open("0f1e2d")
    got = footage.read([0, 12])
    assert near(got, rgb[[0, 12]]) < 0.85 * min(near(got, rgb[[1, 11]]), near(got, rgb[[1, 13]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:1], "holds 0 poses: missing, or the file is cut short"),
        (lambda lines: [*lines[:4], " ".join(lines[4].split()[:-1]), *lines[5:]], "line 5 has 18 columns; expected 19"),
        (lambda lines: [*lines[:4], lines[4].replace(lines[4].split()[1], "wide"), *lines[5:]], "line 5: could not convert"),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "timestamps do not increase.*frame 4"),
        (lambda lines: [*lines[:4], " ".join([*lines[4].split()[:7], "2", *lines[4].split()[8:]]), *lines[5:]], "frame 3 is no rotation"),
        (lambda lines: [*lines[:4], " ".join([*lines[4].split()[:7], "nan", *lines[4].split()[8:]]), *lines[5:]], "frame 3 holds NaN"),
        (lambda lines: [*lines[:4], " ".join([lines[4].split()[0], "512", *lines[4].split()[2:]]), *lines[5:]], "look like pixels"),
    ],
)
def test_camera_files_that_are_wrong_say_where(tmp_path, change, message):
    cameras, frames = files.realestate(tmp_path)
    path = cameras / "0f1e2d.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(BadFootage, match=message):
        RealEstate10K(cameras, frames).open("0f1e2d")


def test_realestate_frames_that_lack_or_differ_are_named(tmp_path):
    cameras, frames = files.realestate(tmp_path)
    source = RealEstate10K(cameras, frames)
    (frames / "0f1e2d" / "1250000.png").write_bytes(b"")
    with pytest.raises(BadFootage, match="1250000.png is no picture"):
        source.open("0f1e2d").read([1, 2])
    Image.new("RGB", (48, 32)).save(frames / "0f1e2d" / "1250000.png")
    with pytest.raises(BadFootage, match="1250000.png is 48x32, the first frame 32x32: mixed sizes"):
        source.open("0f1e2d").read([1, 2])
    (frames / "0f1e2d" / "1250000.png").unlink()
    with pytest.raises(BadFootage, match="lacks 1 of 17 frames, such as 1250000.png"):
        source.open("0f1e2d")
    with pytest.raises(BadFootage, match=r"no frames: expected .*0f1e2d/ or 0f1e2d.mp4 or abc_DEF-123.mp4"):
        RealEstate10K(cameras, cameras).open("0f1e2d")


# -- SpatialVID -------------------------------------------------------------------------------------------------------


def test_spatialvid_is_read_as_it_is_published(tmp_path):
    pytest.importorskip("OpenEXR")
    source = SpatialVID(files.spatialvid(tmp_path, depth=True))
    footage = source.open("aaaa-bbbb")
    rgb, depth = files.wall(files.path(33), 32, 32)
    assert len(footage.times) == 33 and footage.depth_frames == tuple(range(0, 33, 4))
    assert footage.T_world_camera is not None and footage.depth is not None and footage.dynamic is not None
    assert torch.allclose(footage.T_world_camera[::4], files.path(33)[::4], atol=1e-9)
    assert torch.allclose(footage.T_world_camera, files.path(33), atol=1e-3)  # between, at constant velocity
    assert near(footage.read([0, 20]), rgb[[0, 20]]) < 0.7 * near(rgb[[3, 23]], rgb[[0, 20]])
    assert float((footage.depth([8])[0] / depth[8] - 1).abs().max()) < 2e-3  # half floats of the inverse
    mask = footage.dynamic([4])[0]
    assert mask.shape == (16, 16) and mask[4:8, 1:5].all() and mask.sum() == 16
    assert (footage.caption(0, 1), footage.prompt) == ("a camera passes a wall", "a wall outdoors")
    assert footage.provenance["licence"] == "CC BY-NC-SA 4.0"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: np.save(f / "poses.npy", np.zeros((9, 6))), r"poses.npy is \(9, 6\); expected \(n, 7\)"),
        (lambda f: np.save(f / "poses.npy", np.ones((9, 7))), "quaternion of row 0 has length 2, not 1"),
        (lambda f: (f / "poses.npy").unlink(), "poses.npy is missing or no array"),
        (lambda f: np.save(f / "intrinsics.npy", np.full((8, 4), 0.5)), "9 poses but 8 intrinsics"),
        (lambda f: (f / "indexes.txt").write_text("0 0\n1 4\n"), "names 2 frames for 9 poses"),
        (lambda f: (f / "indexes.txt").write_text("0\n" * 9), "expected two columns of numbers"),
        (lambda f: (f / "indexes.txt").write_text("".join(f"{i} {8 - i}\n" for i in range(9))), "do not increase"),
        (lambda f: (f / "caption.json").write_text("{"), "caption.json is no JSON"),
        (lambda f: (f.parents[2] / "videos/group_0001/aaaa-bbbb.mp4").write_bytes(b"no video"), "aaaa-bbbb.mp4 cannot be decoded"),
        (lambda f: (f.parents[2] / "videos/group_0001/aaaa-bbbb.mp4").unlink(), "aaaa-bbbb.mp4 is missing or empty"),
    ],
)
def test_spatialvid_files_that_are_wrong_are_named(tmp_path, spoil, message):
    source = SpatialVID(files.spatialvid(tmp_path))
    spoil(tmp_path / "annotations" / "group_0001" / "aaaa-bbbb")
    with pytest.raises(BadFootage, match=message):
        source.open("aaaa-bbbb")


def test_spatialvid_masks_of_another_size_and_short_videos(tmp_path):
    source = SpatialVID(files.spatialvid(tmp_path))
    footage = source.open("aaaa-bbbb")
    assert footage.dynamic is not None
    folder = tmp_path / "annotations" / "group_0001" / "aaaa-bbbb"
    with np.load(folder / "dyn_masks.npz") as masks:
        np.savez(folder / "dyn_masks.npz", **{**masks, "shape": np.array([20, 16])})
    with pytest.raises(BadFootage, match="mask 0 has 16 rows, shape says 20: a mask of another size"):
        footage.dynamic([0])
    files.video(tmp_path / "videos" / "group_0001" / "aaaa-bbbb.mp4", files.wall(files.path(9), 32, 32)[0])
    with pytest.raises(BadFootage, match="ends before frame 9: truncated"):
        source.open("aaaa-bbbb").read(list(range(20)))


# -- videos, rollouts, worlds -------------------------------------------------------------------------------------------


def test_a_folder_of_videos(tmp_path):
    files.video(tmp_path / "holidays" / "sub" / "beach.mp4", files.wall(files.path(10), 32, 48)[0])
    (tmp_path / "captions.json").write_text(json.dumps({"sub/beach.mp4": "waves"}))
    source = Videos(tmp_path / "holidays", tmp_path / "captions.json")
    footage = source.open(source.names()[0])
    assert source.names() == ["sub__beach"] and footage.T_world_camera is None and len(footage.times) == 10
    assert footage.caption(0, 1) == "waves"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no videos .*: give a folder with video files"):
        Videos(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such folder"):
        Videos(tmp_path / "nowhere")


def test_a_truncated_video_is_noticed(tmp_path, monkeypatch):
    path = files.video(tmp_path / "a.mp4", files.wall(files.path(24), 32, 32)[0])
    monkeypatch.setattr(VideoFile, "frames", lambda self: iter([np.zeros((32, 32, 3), np.uint8)] * 9))
    with pytest.raises(BadFootage, match="a.mp4 is truncated: 9 of about 24 frames"):
        Videos(tmp_path).open("a")
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadFootage, match="a.mp4 cannot be decoded"):
        Videos(tmp_path).open("a")


def test_rollouts_are_read_as_the_env_writes_them(tmp_path):
    pytest.importorskip("h5py")
    source = Rollouts(files.minari(tmp_path))
    footage = source.open("episode_00000000")
    rgb, _ = files.wall(files.path(25), 32, 32)
    assert torch.equal(footage.read([0, 1, 8, 9, 24]), rgb[[0, 1, 8, 9, 24]])
    assert torch.equal(footage.T_world_camera, files.path(25)) and footage.metric
    assert footage.intrinsics is not None and np.allclose(footage.intrinsics[0], K)
    assert [footage.caption(a, a + 1) for a in (0.1, 1.1, 2.1)] == ["step 0", "step 1", "step 2"]
    files.minari(tmp_path, 1, keys=("frames", "K"))
    with pytest.raises(BadFootage, match="has no infos/poses: record with all infos kept"):
        source.__class__(tmp_path).open("episode_00000001")
    (tmp_path / "data" / "episodes" / "episode_00000001.hdf5").write_bytes(b"cut")
    with pytest.raises(BadFootage, match="not a whole episode"):
        Rollouts(tmp_path).open("episode_00000001")


def test_worlds_know_everything(tmp_path):
    footage = Worlds(range(40, 41), 12, 32, 32).open("world-0000040")
    assert footage.depth is not None
    assert footage.read([0, 5]).shape == (2, 32, 32, 3) and float(footage.depth([3]).min()) > 0
    assert footage.prompt and footage.caption(0.0, 1.0) and footage.metric
    for seeds, validation in ((range(999_999, 1_000_001), False), (range(5), True)):
        with pytest.raises(ValueError, match="kept apart"):
            Worlds(seeds, 12, 32, 32, validation=validation)


# -- geometry and shots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [((48, 96), (32, 32)), ((96, 48), (32, 64)), ((32, 32), (32, 32))])
def test_a_point_stays_where_the_picture_shows_it(source, target):
    """Crop and scale of a picture move a pixel just as the fitted intrinsics say."""
    intrinsics = torch.tensor([[0.8, 1.1, 0.45, 0.55]], dtype=torch.float64)
    point = torch.tensor([[0.05, -0.04, 1.0]])
    pose = torch.eye(4, dtype=torch.float64)[None]
    before = project(point, pose, camera_from_normalised(intrinsics[0].tolist(), source[1], source[0]))[0][0, 0]
    after = project(point, pose, camera_from_normalised(fit_intrinsics(intrinsics, source, *target)[0].tolist(), target[1], target[0]))[0][
        0, 0
    ]
    v, u = torch.meshgrid(torch.arange(source[0]) + 0.5, torch.arange(source[1]) + 0.5, indexing="ij")
    maps = fit_maps(torch.stack([u, v]), *target, nearest=False)  # where each fitted pixel came from
    x, y = int(after[0]), int(after[1])
    assert (
        abs(float(maps[0, y, x] - before[0])) < 1.6 * source[1] / target[1]
        and abs(float(maps[1, y, x] - before[1])) < 1.6 * source[0] / target[0]
    )
    assert fit_frames(torch.zeros(2, *source, 3, dtype=torch.uint8), *target).shape == (2, *target, 3)


@pytest.mark.parametrize("unit", [7.3, 0.2])
def test_the_unit_of_the_poses_is_found(unit):
    poses = files.path(17, step=0.05)
    rgb, depth = files.wall(poses, 48, 48)
    poses[:, :3, 3] /= unit
    others = [0, 4, 16]
    found = find_scale(rgb[8], depth[8], poses[8], rgb[others], poses[others], K)
    assert found == pytest.approx(unit, rel=0.1)


def test_a_camera_that_only_turns_tells_no_scale():
    poses = files.path(9, step=0.0)
    rgb, depth = files.wall(poses, 32, 32)
    assert find_scale(rgb[4], depth[4], poses[4], rgb[[0, 8]], poses[[0, 8]], K) is None


def test_shots_end_at_cuts_and_black_frames():
    a, _ = files.wall(files.path(12), 36, 64)
    b, _ = files.wall(files.path(10), 36, 64, texture_seed=99)
    black = torch.zeros(3, 36, 64, 3, dtype=torch.uint8)
    thumbs = thumbnails([*a, *(255 - b // 2), *black, *a[:5]])
    assert 12 in cuts(thumbs, ShotRules())
    assert [(s.start, s.stop) for s in shots(thumbs, ShotRules())] == [(0, 12), (12, 22), (25, 30)]
    assert [(s.start, s.stop) for s in shots(thumbs[:12], ShotRules())] == [(0, 12)]


def test_windows_without_motion_are_rejected():
    poses = files.path(12)
    thumbs = thumbnails(files.wall(poses, 36, 64)[0])
    assert rejected(thumbs, poses, 3.0, ShotRules()) == ""
    assert rejected(thumbs[:1].repeat(12, 1, 1), poses, 3.0, ShotRules()) == "frozen picture"
    assert rejected(thumbs, poses[:1].repeat(12, 1, 1), 3.0, ShotRules()) == "camera stands still"


def test_footage_refuses_what_cannot_be():
    def make(**changes):
        values = {"name": "x", "times": torch.arange(3) / 8, "read": lambda n: None, "T_world_camera": files.path(3)}
        return Footage(**{**values, **changes})

    make()
    for changes, message in (
        ({"times": torch.zeros(1)}, "1 frame"),
        ({"times": torch.tensor([0.0, 1.0, 1.0])}, "do not increase: 1.000000 s is followed by 1.000000 s"),
        ({"T_world_camera": files.path(4)}, r"poses are \(4, 4, 4\)"),
        ({"T_world_camera": -files.path(3)}, "no rotation"),
        ({"intrinsics": torch.zeros(3, 4)}, "not positive"),
    ):
        with pytest.raises(BadFootage, match=message):
            make(**changes)


def test_captions_are_found_under_any_of_their_names(tmp_path):
    path = tmp_path / "caption.json"
    for told, expected in (
        ({"OptCaption": "x", "SceneDescription": "y"}, ("x", "y")),
        ({"a": {"scene_summary": "deep"}}, ("deep", "")),
        ({"whatever": "short", "other": "the longest one"}, ("the longest one", "")),
    ):
        path.write_text(json.dumps(told))
        assert datasets.read_caption(path) == expected
    assert datasets.read_caption(tmp_path / "none.json") == ("", "")
