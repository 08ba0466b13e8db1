from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spatia_model.config import FRAME_RATE, MiniConfig, mini_camera
from spatia_model.data import procedural
from spatia_model.data.procedural import ClipFolder, make_walks, run_jobs, views, walk, watch, write_atomic
from spatia_model.worlds import World

SEED = 2_000_000
CONFIG = MiniConfig(image_size=32)


def put(folder: Path, name: str, value: int, frames: int = 9, size: int = 12) -> None:
    """A file whose rgb counts up, so that a crop tells where it was taken."""
    y, x = np.mgrid[0:size, 0:size]
    rgb = np.stack([np.stack([y, x, np.full_like(x, value * 50 + t)], -1) for t in range(frames)])
    folder.mkdir(exist_ok=True)
    save_file({"rgb": torch.from_numpy(rgb.astype(np.uint8))}, folder / name, metadata={})


def test_a_walk_is_what_the_world_shows():
    tensors, metadata = walk(SEED, 2, CONFIG)
    n = 17
    assert tensors["rgb"].shape == (n, 32, 32, 3) and tensors["rgb"].dtype == torch.uint8
    assert tensors["depth"].shape == (n, 32, 32) and tensors["depth"].dtype == torch.float16
    assert tensors["dynamic"].shape == (n, 32, 32) and tensors["dynamic"].dtype == torch.bool
    path = tensors["T_world_camera"]
    assert path.shape == (n, 4, 4) and path.dtype == torch.float64
    world, times = World.generate(SEED), torch.arange(n) / FRAME_RATE
    truth = world.render(path[5:6], mini_camera(CONFIG), times[5:6].double(), threads=1)
    assert torch.equal(tensors["rgb"][5], truth.rgb[0]) and torch.equal(tensors["depth"][5], truth.depth[0].half())
    assert torch.equal(tensors["dynamic"][5], truth.dynamic[0])
    captions = json.loads(metadata["captions"])
    assert metadata["seed"] == str(SEED) and len(captions) == 2
    assert captions[1] == world.describe(path[8:17], mini_camera(CONFIG), times[8:17].double())  # from the clip's first camera on
    again, _ = walk(SEED, 2, CONFIG)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_a_watched_world_shows_what_moves(tmp_path, monkeypatch):
    make_walks(tmp_path, range(SEED + 410, SEED + 411), clips=2, config=CONFIG, kind="watch")
    with safe_open(tmp_path / f"{SEED + 410}.safetensors", framework="pt") as file:
        assert bool(file.get_tensor("dynamic")[0].any()) and file.get_tensor("rgb").shape == (17, 32, 32, 3)
        described = file.metadata()
    assert described["prompt"].startswith(("a room", "a courtyard")) and len(json.loads(described["captions"])) == 2
    monkeypatch.setattr(procedural, "watching_walk", lambda *args: None)
    instead, plain = watch(SEED, 2, CONFIG)[0], walk(SEED, 2, CONFIG)[0]
    assert all(torch.equal(instead[name], tensor) for name, tensor in plain.items())


def test_views_are_pictures_of_one_world_from_many_places(tmp_path):
    make_walks(tmp_path, range(SEED, SEED + 1), clips=3, config=CONFIG, kind="views")
    with safe_open(tmp_path / f"{SEED}.safetensors", framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert held["rgb"].shape == (3, 32, 32, 3) and held["depth"].shape == held["dynamic"].shape == (3, 32, 32)
    poses, world = held["T_world_camera"], World.generate(SEED)
    first = views(SEED, 3, CONFIG, anywhere=False)[0]["T_world_camera"]
    assert torch.equal(first[0], poses[0]) and not torch.equal(first[1], poses[1])
    assert bool((poses[:, 1, 3] <= -1.0).all()) and bool((poses[:, 1, 3] >= -1.7).all())  # eye level
    assert bool(world.is_free(poses[:, :3, 3], 0.3).all())
    assert float((poses[1:, :3, 3] - poses[:1, :3, 3]).norm(dim=-1).min()) > 0.1  # from different places
    assert all(torch.equal(views(SEED, 3, CONFIG)[0][name], tensor) for name, tensor in held.items())


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    made = []

    def small(seed, clips, config):
        made.append(seed)
        return {"rgb": torch.zeros(1, 2, 2, 3, dtype=torch.uint8)}, {"seed": str(seed)}

    monkeypatch.setattr(procedural, "walk", small)
    put(tmp_path, "2000001.safetensors", 1)
    kept = (tmp_path / "2000001.safetensors").read_bytes()
    (tmp_path / "2000002.partial4711").write_bytes(b"half a file")
    make_walks(tmp_path, range(SEED, SEED + 3), clips=1, config=CONFIG)
    assert made == [SEED, SEED + 2]
    assert (tmp_path / "2000001.safetensors").read_bytes() == kept
    assert [p.name for p in ClipFolder(tmp_path).files] == [f"{SEED + i}.safetensors" for i in range(3)]
    make_walks(tmp_path, range(SEED, SEED + 3), clips=1, config=CONFIG)
    assert made == [SEED, SEED + 2]


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def fails(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(procedural, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "1.safetensors", {"x": torch.zeros(1)}, {})
    assert not (tmp_path / "1.safetensors").exists()


def test_written_tensors_need_not_be_contiguous(tmp_path):
    x = torch.arange(12).reshape(3, 4).T
    write_atomic(tmp_path / "1.safetensors", {"x": x}, {"a": "b"})
    with safe_open(tmp_path / "1.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("x"), x) and file.metadata() == {"a": "b"}
    assert [p.name for p in tmp_path.iterdir()] == ["1.safetensors"]


def test_jobs_run_in_order_and_tell_progress(capsys):
    done: list[int] = []
    run_jobs(done.append, list(range(21)), 1, "numbers")
    assert done == list(range(21))
    told = capsys.readouterr().err
    assert "numbers: 20/21" in told and "numbers: 21/21" in told


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_clips_is_refused(tmp_path, make):
    folder = tmp_path / "walks"
    if make:
        folder.mkdir()
        (folder / "1.partial5").touch()
    with pytest.raises(ValueError, match="walks holds no clips: make them first"):
        ClipFolder(folder)


def test_random_frames_are_crops_of_the_files(tmp_path):
    for i in range(3):
        put(tmp_path, f"{i}.safetensors", i)
    clips = ClipFolder(tmp_path)
    rng, seen = np.random.default_rng(SEED), set()
    for _ in range(60):
        crop = clips.random_frames(rng, 4, 5)
        assert crop.shape == (4, 5, 5, 3) and crop.dtype == np.uint8
        y, x, first = (int(v) for v in crop[0, 0, 0])
        t = first % 50
        assert 0 <= y <= 7 and 0 <= x <= 7 and 0 <= t <= 5
        np.testing.assert_array_equal(crop[..., 0], np.broadcast_to(np.arange(y, y + 5)[:, None], (4, 5, 5)))
        np.testing.assert_array_equal(crop[..., 1], np.broadcast_to(np.arange(x, x + 5), (4, 5, 5)))
        np.testing.assert_array_equal(crop[..., 2], np.broadcast_to(first + np.arange(4)[:, None, None], (4, 5, 5)))
        seen.add((first // 50, t))
    assert {file for file, _ in seen} == {0, 1, 2} and {t for _, t in seen} == set(range(6))
    whole = clips.random_frames(rng, 9, 12)
    assert whole.shape == (9, 12, 12, 3)


def test_files_that_appear_later_are_noticed(tmp_path):
    put(tmp_path, "0.safetensors", 0)
    clips, patient = ClipFolder(tmp_path, refresh_seconds=-1), ClipFolder(tmp_path)
    put(tmp_path, "1.safetensors", 1)
    rng = np.random.default_rng(SEED)
    assert {clips.random_frames(rng, 1, 12)[0, 0, 0, 2] // 50 for _ in range(20)} == {0, 1}
    assert {patient.random_frames(rng, 1, 12)[0, 0, 0, 2] // 50 for _ in range(20)} == {0}
    assert len(clips) == 2 and len(patient) == 1
