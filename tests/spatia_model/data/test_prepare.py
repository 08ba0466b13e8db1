"""From files to clips: what a clip holds is true, and a run loses nothing, whatever is wrong with a video or happens to the machine."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spatia_model.data.clips import ClipDataset
from spatia_model.data.prepare import build as building
from spatia_model.data.prepare import cli, run
from spatia_model.data.prepare.build import Settings, build, resample
from spatia_model.data.prepare.datasets import RealEstate10K, SpatialVID, Videos
from spatia_model.data.prepare.footage import BadFootage, Footage
from spatia_model.data.prepare.recorded import Rollouts, Worlds
from spatia_model.data.prepare.tools import Tools
from spatia_model.data.schema import Clip
from spatia_model.geometry import se3
from spatia_model.geometry.camera import camera_from_normalised
from spatia_model.types import Camera, Perception
from tests.spatia_model.data import footage_files as files
from tests.spatia_model.tiny import tiny_parts

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = Settings(height=32, width=32, fps=8, frames=13, preceding=5, clips_per_video=2, references=3, voxel=0.02, candidate_rate=2)
NAMES = run.ToolNames("none", "", "")


class WallPerceiver:
    """Knows the wall of the tests: depth in metres of the frame it is shown, whatever unit the poses have; and its poses, when asked."""

    def __init__(self, frames: int = 33, size: int = 32):
        self.poses_known = files.path(frames)
        self.rgb, self.depths = files.wall(self.poses_known, size, size)

    def depth(self, frame: torch.Tensor, pose: torch.Tensor, camera: Camera) -> Perception:
        i = int((self.rgb.float() - frame.float()).abs().mean((1, 2, 3)).argmin())
        d = self.depths[i : i + 1]
        return Perception(d, torch.ones_like(d), torch.zeros_like(d))

    def motion(self, frames: torch.Tensor, poses: torch.Tensor, camera: Camera) -> torch.Tensor:
        return torch.zeros(frames.shape[:3])

    def poses(self, frames: torch.Tensor, camera: Camera | None) -> tuple[torch.Tensor, Camera]:
        some = [int((self.rgb.float() - f.float()).abs().mean((1, 2, 3)).argmin()) for f in frames]
        poses = self.poses_known[some]
        return se3.inverse(poses[:1]) @ poses, camera_from_normalised((*(0.5 / np.tan(files.FOV / 2),) * 2, 0.5, 0.5), 32, 32)


def tools(vae: bool = False, perceiver: bool = True) -> Tools:
    if not vae:
        return Tools(WallPerceiver() if perceiver else None, described={"control": None, "vae": "", "latent_channels": 0})
    return Tools(
        WallPerceiver() if perceiver else None, tiny_parts()[0], None, "pooled", {"control": "pooled", "vae": "tiny", "latent_channels": 4}
    )


@pytest.fixture
def made_with(monkeypatch):
    """`prepare` with these tools in place of those it would load."""

    def use(given: Tools) -> Tools:
        monkeypatch.setattr(run, "load_tools", lambda *names: given)
        return given

    return use


def wall_footage(frames: int = 33, **changes) -> Footage:
    poses = files.path(frames)
    rgb, depth = files.wall(poses, 32, 32)
    K = torch.tensor([*(0.5 / np.tan(files.FOV / 2),) * 2, 0.5, 0.5], dtype=torch.float64).repeat(frames, 1)
    values = {
        "name": "wall",
        "times": torch.arange(frames).double() / 8,
        "read": lambda numbers: rgb[list(numbers)],
        "T_world_camera": poses,
        "intrinsics": K,
        "depth": lambda numbers: depth[list(numbers)],
        "dynamic": lambda numbers: torch.zeros(len(numbers), 32, 32),
        "metric": True,
    }
    return Footage(**{**values, **changes})


# -- one video ----------------------------------------------------------------------------------------------------------


def test_a_clip_shows_what_the_cloud_knows_where_it_is():
    """The projection agrees with the true frames, the latents are those frames', the references see the same wall."""
    held = tools(vae=True)
    built = build(wall_footage(), replace(SETTINGS, pictures="png"), held)
    assert len(built.clips) == 2 and not built.dropped and len(built.panels) == 2
    rgb, depth = files.wall(files.path(33), 32, 32)
    for clip in built.clips:
        rows = list(clip.frame_numbers)
        assert len(rows) == 13 and rows == list(range(rows[0], rows[0] + 13))
        assert torch.equal(clip.frames, rgb[rows]) and torch.equal(clip.T_world_camera, files.path(33)[rows])
        assert clip.projection_depth is not None
        seen = clip.projection_depth > 0
        assert seen.float().mean() > 0.5
        off = (clip.projection_depth.float() / depth[rows] - 1).abs()[seen]
        assert float(off.median()) < 0.02
        picture = (clip.projection_frames.float() - rgb[rows].float()).abs().mean(-1)
        shuffled = (clip.projection_frames.float() - rgb[rows].float().roll(7, 2)).abs().mean(-1)
        assert float(picture[seen].mean()) < 0.6 * float(shuffled[seen].mean())
        assert clip.cloud_frame in clip.candidate_frames and not set(clip.candidate_frames) & set(rows[5:])
        assert clip.reference_frames and set(clip.reference_frames) <= set(clip.candidate_frames)
        assert torch.equal(clip.reference_poses, files.path(33)[list(clip.reference_frames)])
        assert (clip.reference_iou >= SETTINGS.threshold).all()
        assert torch.equal(clip.latents, held.latents(rgb[rows]))
        assert torch.equal(clip.references, held.references(rgb[list(clip.reference_frames)]))
        assert clip.holes.shape[0] == 8 and torch.equal(clip.uncovered, held.shares(~seen))
        assert clip.preceding == 5 and clip.fps == pytest.approx(8.0) and clip.provenance["scale_from"] == "given"


def test_windows_follow_on_each_other():
    a, b = build(wall_footage(), SETTINGS, tools()).clips
    assert b.frame_numbers[:5] == a.frame_numbers[-5:] and b.number == a.number + 1


def test_what_moves_is_in_no_cloud_and_in_the_marks():
    mask = torch.zeros(33, 32, 32)
    mask[:, 8:24, 8:24] = 1
    moving = build(wall_footage(dynamic=lambda n: mask[list(n)]), replace(SETTINGS, pictures="png"), tools(vae=True)).clips[0]
    still = build(wall_footage(), replace(SETTINGS, pictures="png"), tools(vae=True)).clips[0]
    assert moving.provenance["points"] < 0.8 * still.provenance["points"]
    assert moving.dynamic is not None and moving.moving is not None and moving.holes is not None
    assert moving.dynamic[:, 8:24, 8:24].all() and not moving.dynamic[:, :8].any()
    assert (moving.moving[:, 1:3, 1:3] == 255).all() and not still.moving.any()
    assert moving.holes[4:, :2].any() and not moving.holes[4:, 2:].any()  # motion is known of the history only


def test_poses_of_unknown_unit_are_brought_to_metres():
    poses = files.path(33)
    poses[:, :3, 3] /= 5.0
    clip = build(
        wall_footage(T_world_camera=poses, depth=None, dynamic=None, metric=False), replace(SETTINGS, pictures="png"), tools()
    ).clips[0]
    assert clip.provenance["scale_from"] == "matched" and clip.provenance["scale"] == pytest.approx(5.0, rel=0.15)
    assert clip.projection_depth is not None
    seen = clip.projection_depth > 0
    assert (
        float((clip.projection_depth.float() / files.wall(files.path(33), 32, 32)[1][list(clip.frame_numbers)] - 1).abs()[seen].median())
        < 0.05
    )


def test_poses_are_estimated_where_there_are_none():
    clip = build(wall_footage(T_world_camera=None, intrinsics=None, depth=None, dynamic=None, metric=False), SETTINGS, tools()).clips[0]
    true = files.path(33)[list(clip.frame_numbers)]
    assert torch.allclose(se3.inverse(clip.T_world_camera[:1]) @ clip.T_world_camera, se3.inverse(true[:1]) @ true, atol=1e-3)
    assert clip.provenance["poses"] == "estimated"


def test_the_choice_depends_on_the_video_and_the_seed_alone():
    a, b, c = (build(wall_footage(45), replace(SETTINGS, seed=seed), tools()) for seed in (0, 0, 1))
    assert [x.cloud_frame for x in a.clips] == [x.cloud_frame for x in b.clips]
    assert [(x.number, x.cloud_frame) for x in a.clips] != [(x.number, x.cloud_frame) for x in c.clips]
    assert len(a.clips) == 2  # of five


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        (
            {"times": torch.arange(9).double() / 8, "T_world_camera": None, "intrinsics": None},
            {},
            "no shot of 13 frames at 8 a second: the longest has 9",
        ),
        ({"depth": None, "dynamic": None}, {"perceiver": False}, "no depth, and there is no perceiver.*--perceiver"),
        ({"T_world_camera": None}, {"perceiver": False}, "no poses, and there is no perceiver"),
    ],
)
def test_videos_that_cannot_be_used_say_why(changes, given, message):
    with pytest.raises(BadFootage, match=message):
        build(wall_footage(**changes), SETTINGS, tools(**given))


def test_windows_that_are_no_use_are_counted():
    built = build(wall_footage(T_world_camera=torch.eye(4, dtype=torch.float64).repeat(33, 1, 1)), SETTINGS, tools())
    assert not built.clips and dict(built.dropped) == {"camera stands still": 2}
    far = torch.full((33, 32, 32), 90.0)
    built = build(wall_footage(depth=lambda n: far[list(n)]), SETTINGS, tools())
    assert not built.clips and set(built.dropped) <= {"empty cloud", "camera stands still"}


def test_a_video_is_taken_at_the_rate_asked_for():
    times = torch.arange(97).double() / 24
    assert resample(times, 8.0) == list(range(0, 97, 3))
    assert resample(times, 30.0) == list(range(97))
    uneven = torch.tensor([0.0, 0.1, 0.11, 0.25, 0.37, 0.38, 0.5], dtype=torch.float64)
    assert resample(uneven, 8.0) == [0, 1, 3, 4, 6] or resample(uneven, 8.0)[0] == 0


# -- many videos ----------------------------------------------------------------------------------------------------------


def realestate(folder: Path, count: int = 4) -> RealEstate10K:
    for i in range(count):
        cameras, frames = files.realestate(folder, f"clip{i}", frames=21)
    return RealEstate10K(cameras, frames)


def rows(place: Path) -> dict[str, Clip]:
    data = ClipDataset(place)
    return {data[i].key: data[i] for i in range(len(data))}


def same(a: Path, b: Path) -> None:
    x, y = rows(a), rows(b)
    assert x.keys() == y.keys() and len(x) > 1
    for key in x:
        for f in fields(Clip):
            u, v = getattr(x[key], f.name), getattr(y[key], f.name)
            assert torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v, (key, f.name)


def test_bad_videos_are_set_aside_and_the_rest_goes_on(tmp_path, made_with, capsys):
    made_with(tools(vae=True))
    source = realestate(tmp_path)
    camera = tmp_path / "cameras" / "clip1.txt"
    camera.write_text(camera.read_text().replace("\n", " 7\n", 3))
    Image.new("RGB", (48, 32)).save(next((tmp_path / "frames" / "clip2").iterdir()))
    summary = run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    assert summary["videos"] == 4 and summary["videos_with_clips"] == 2 and summary["videos_set_aside"] == 2
    assert "line 2 has 20 columns; expected 19" in summary["set_aside"]["clip1"] and "mixed sizes" in summary["set_aside"]["clip2"]
    assert "set aside: clip1" in capsys.readouterr().err
    assert {key.split("-")[0] for key in rows(tmp_path / "out")} == {"clip0", "clip3"}
    assert Image.open(tmp_path / "out" / "summary.png").height > 100
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["clips"] == summary["clips"]
    assert (tmp_path / "out" / "empty.safetensors").exists() and not (tmp_path / "out" / "parts").exists()


def test_a_run_that_is_stopped_goes_on_and_ends_the_same(tmp_path, made_with, monkeypatch):
    made_with(tools())
    source = realestate(tmp_path, 5)
    run.prepare(source, tmp_path / "whole", SETTINGS, NAMES)
    real, opened = source.open, []

    def opening(name):
        opened.append(name)
        if name == "clip3" and len(opened) < 5:
            raise KeyboardInterrupt
        return real(name)

    source.open = opening
    with pytest.raises(KeyboardInterrupt):
        run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    (tmp_path / "out" / "parts" / "clip1.parquet").write_bytes(b"half a")  # a part that is not whole is made again
    (tmp_path / "out" / "parts" / ".clip9.parquet.77.partial").write_bytes(b"left over")
    source.open = lambda name: opened.append(name) or real(name)
    opened.clear()
    summary = run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    assert opened == ["clip1", "clip3", "clip4"] and summary["videos_with_clips"] == 5
    same(tmp_path / "whole", tmp_path / "out")
    opened.clear()
    run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    assert not opened


def test_killed_while_gathering_no_clip_is_lost_and_none_is_twice(tmp_path, made_with, monkeypatch):
    made_with(tools())
    source = realestate(tmp_path, 3)
    run.prepare(source, tmp_path / "whole", SETTINGS, NAMES)
    real = Path.unlink

    def unlink(self, *args, **kwargs):
        if self.parent.name == "parts" and self.suffix == ".parquet":
            raise KeyboardInterrupt  # the shard is written, its parts are not yet removed
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        run.prepare(source, tmp_path / "out", SETTINGS, NAMES, shard_mb=1e-6)
    monkeypatch.undo()
    made_with(tools())
    summary = run.prepare(source, tmp_path / "out", SETTINGS, NAMES, shard_mb=1e-6)
    assert summary["shards"] == 3
    same(tmp_path / "whole", tmp_path / "out")


def test_a_full_disk_stops_with_what_is_done_kept(tmp_path, made_with, monkeypatch):
    made_with(tools())
    source = realestate(tmp_path, 3)
    real = run.write_shard

    def write_shard(path, *rest):
        if path.stem == "clip1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(run, "write_shard", write_shard)
    with pytest.raises(OSError, match="is full .* free some space and run the same command again"):
        run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    monkeypatch.setattr(run, "write_shard", real)
    assert run.prepare(source, tmp_path / "out", SETTINGS, NAMES)["videos_with_clips"] == 3


def test_other_settings_in_the_same_folder_are_refused(tmp_path, made_with):
    made_with(tools())
    source = realestate(tmp_path, 1)
    run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    with pytest.raises(ValueError, match="was begun with other fps"):
        run.prepare(source, tmp_path / "out", replace(SETTINGS, fps=4.0), NAMES)


def test_every_source_makes_clips(tmp_path, made_with):
    """SpatialVID, videos and rollouts end to end (RealEstate10K is in the tests above, worlds below)."""
    pytest.importorskip("h5py")
    made_with(tools())
    files.video(tmp_path / "videos" / "a.mp4", files.wall(files.path(33), 32, 32)[0])
    for name, source in (
        ("sv", SpatialVID(files.spatialvid(tmp_path / "sv"))),
        ("videos", Videos(tmp_path / "videos")),
        ("rollouts", Rollouts(files.minari(tmp_path / "rollouts"))),
    ):
        summary = run.prepare(source, tmp_path / "out" / name, replace(SETTINGS, pictures="png"), NAMES)
        assert summary["clips"] == 2, (name, summary)
        clip = ClipDataset(tmp_path / "out" / name)[0]
        assert clip.provenance["source"] in ("spatialvid", "videos", "rollouts") and clip.frames.shape == (13, 32, 32, 3)


def test_worlds_make_clips_with_depth(tmp_path, made_with):
    made_with(tools(perceiver=False))
    summary = run.prepare(Worlds(range(40, 41), 21, 32, 32), tmp_path / "out", replace(SETTINGS, pictures="png", clips_per_video=1), NAMES)
    clip = ClipDataset(tmp_path / "out")[0]
    assert summary["clips"] == 1 and clip.depth is not None and clip.prompt and clip.provenance["seed"] == 40


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path):
    pytest.importorskip("OpenEXR")
    for name in ("a", "b", "c"):
        files.spatialvid(tmp_path / "sv", name, depth=True)
    (tmp_path / "sv" / "annotations" / "group_0001" / "b" / "poses.npy").unlink()
    for processes in (1, 2):
        summary = run.prepare(SpatialVID(tmp_path / "sv"), tmp_path / str(processes), SETTINGS, NAMES, processes)
        assert summary["videos_with_clips"] == 2 and "poses.npy is missing" in summary["set_aside"]["b"]
    same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_a_parallel_run_that_is_killed_goes_on(tmp_path):
    """SIGKILL of all its processes, once something is finished; the same command then does the rest."""
    words = ["worlds", "--worlds", "6", "--world-seed", "40", "--size", "32x32", "--vae", "none", "--clips-per-video", "1"]
    command = [sys.executable, "-m", "spatia_env.cli", "prepare", *words, "--processes", "2", "--out", str(tmp_path / "killed")]
    path = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=path, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "killed" / "parts").glob("world-*.parquet")):
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= len(list((tmp_path / "killed" / "parts").glob("world-*.parquet"))) < 6 and not (tmp_path / "killed" / "index.json").exists()
    for name in ("killed", "whole"):
        assert cli.run(parse(*words, "--out", tmp_path / name)) == 0
    same(tmp_path / "killed", tmp_path / "whole")


# -- the command ----------------------------------------------------------------------------------------------------------


def parse(*words: object):
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("videos", "--out", "x"), "spatia prepare videos needs a path"),
        (("realestate10k", ".", "--out", "x"), "no frames of its own: give yours with --frames-from"),
        (("videos", ".", "--out", "x", "--size", "big"), "--size 'big': give height x width"),
        (("videos", ".", "--out", "x", "--size", "100x100"), "multiples of 16"),
        (("videos", ".", "--out", "x", "--frames", "12"), "1 \\+ 4k frames"),
        (("videos", ".", "--out", "x", "--tier", "release"), "--vae is missing"),
        (("worlds", "--out", "x", "--worlds", "0"), "--worlds must be at least 1"),
        (("worlds", "--out", "x", "--world-seed", "999990"), "kept apart"),
        (("spatialvid", ".", "--out", "x"), "holds no annotations/ folder"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        cli.run(parse(*words))
    assert not (tmp_path / "x").exists()


def test_the_command_prints_its_summary(tmp_path, made_with, capsys):
    made_with(tools())
    realestate(tmp_path, 1)
    words = ("realestate10k", tmp_path / "cameras", "--frames-from", tmp_path / "frames", "--out", tmp_path / "out", "--size", "32x32")
    assert cli.run(parse(*words, "--vae", "none", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clips"] >= 1 and told["videos"] == 1
    (tmp_path / "cameras" / "clip0.txt").write_text("")
    with pytest.raises(ValueError, match="no clip could be made: .*aside.jsonl says why"):
        cli.run(parse(*words[:5], tmp_path / "other", *words[6:], "--vae", "none"))


def test_the_embedded_perceiver_sends_videos_without_poses_elsewhere(tmp_path, made_with):
    from spatia_model.data.prepare.tools import Compact

    files.video(tmp_path / "videos" / "a.mp4", files.wall(files.path(17), 32, 32)[0])
    made_with(Tools(Compact(tiny_parts()[3]), described={}))
    with pytest.raises(ValueError, match="estimates none: prepare with --perceiver today .*MapAnything"):
        run.prepare(Videos(tmp_path / "videos"), tmp_path / "out", SETTINGS, NAMES)


def test_settings_say_what_is_wrong():
    for changes, message in (
        ({"frames": 12}, "1 \\+ 4k"),
        ({"preceding": 13}, "fewer preceding"),
        ({"pictures": "gif"}, "png, jpeg or none"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SETTINGS, **changes)
    assert building.describe(SETTINGS)["frames"] == 13


def test_shards_of_a_newer_version_are_never_removed(tmp_path, made_with, monkeypatch):
    from spatia_model.data import schema
    from spatia_model.data.schema import ShardError

    made_with(tools())
    source = realestate(tmp_path, 1)
    run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    shard = tmp_path / "out" / "shards" / "00000.parquet"
    before = shard.read_bytes()
    monkeypatch.setattr(schema, "VERSION", 0)
    with pytest.raises(ShardError, match="version 1 .* update spatia"):
        run.prepare(source, tmp_path / "out", SETTINGS, NAMES)
    monkeypatch.undo()
    assert shard.read_bytes() == before
    made_with(tools())
    shard.write_bytes(before[:500])
    assert run.prepare(source, tmp_path / "out", SETTINGS, NAMES)["clips"] >= 1
    assert (tmp_path / "out" / "shards" / "00000.damaged").exists()
