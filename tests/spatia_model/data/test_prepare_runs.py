"""From many videos to clips: a run loses nothing, whatever is wrong with a video or happens to the machine."""

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

import pytest
import torch
from PIL import Image

from spatia_model.data.clips import ClipDataset
from spatia_model.data.prepare import build as building
from spatia_model.data.prepare import cli, run
from spatia_model.data.prepare.datasets import RealEstate10K, SpatialVID, Videos
from spatia_model.data.prepare.recorded import Rollouts, Worlds
from spatia_model.data.prepare.tools import Tools
from spatia_model.data.schema import Clip
from tests.spatia_model.data import footage_files as files
from tests.spatia_model.data.wall_videos import NAMES, ROOT, SETTINGS, tools
from tests.spatia_model.tiny import tiny_parts


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
