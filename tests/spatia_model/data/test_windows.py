"""The memory's side of a walk, on one small rendered world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from spatia_model.config import MiniConfig
from spatia_model.data import windows
from spatia_model.data.latents import encode_walk
from spatia_model.data.procedural import make_walks
from spatia_model.data.windows import WindowFolder, add_memory, make_windows
from tests.spatia_model.data.fake_walks import CLIPS, tensors, write
from tests.spatia_model.generator.test_vae import build

SEED = 2_000_000
CONFIG = MiniConfig(image_size=32)
NAME = f"{SEED}.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_walks(folder / "walks", range(SEED, SEED + 1), 3, CONFIG)
    make_windows(folder / "walks", folder / "windows", CONFIG)
    return folder


def test_the_map_of_the_first_frame_shows_the_first_frame(made):
    walk = WindowFolder(made / "walks", made / "windows").open(0)
    shown = walk.projection(0, 1)
    assert shown.coverage > 0.3  # at 32 pixels much of it is edges, which stay out
    errors = (shown.rgb.float() - walk.rgb(0, 1).float()).abs().mean(-1)[shown.mask]
    assert errors.mean() < 25
    depth = walk.depth(0, 1)
    near = shown.mask & (depth < 30)
    assert ((shown.depth - depth).abs() / depth)[near].median() < 0.1


@pytest.mark.parametrize("overlooked", [False, True])
def test_what_may_move_stays_out_of_the_first_map_unless_it_is_overlooked(overlooked, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "OVERLOOKED", float(overlooked))
    config = MiniConfig(image_size=64)
    make_walks(tmp_path / "walks", range(SEED + 410, SEED + 411), 1, config, kind="watch")
    make_windows(tmp_path / "walks", tmp_path / "windows", config)
    walk = WindowFolder(tmp_path / "walks", tmp_path / "windows").open(0)
    shown, moving = walk.projection(0, 1).mask, walk.dynamic(0, 1)
    assert walk.overlooked == overlooked and int(moving.sum()) > 20
    assert bool(shown[moving].any()) == overlooked
    assert encode_walk(walk, build(), config)["control"][0, -4:].any() == (not overlooked)


def test_what_is_shown_of_the_past_is_plausible(made):
    walk = WindowFolder(made / "walks", made / "windows").open(0)
    assert walk.frames == 25 and len(walk.captions) == 3
    for clip in range(3):
        frames = (1 + 8 * clip, 9 + 8 * clip)
        shown = walk.projection(*frames)
        assert shown.rgb.shape == (8, 32, 32, 3) and shown.depth.shape == shown.mask.shape == shown.index.shape == (8, 32, 32)
        assert shown.coverage > 0.2
        assert not shown.rgb[~shown.mask].any()
        assert torch.equal(shown.mask, shown.index >= 0) and torch.equal(shown.mask, shown.depth > 0)
        ids = walk.references(clip)
        assert len(ids) <= 3 and len(set(ids)) == len(ids) and set(ids) <= set(range(0, 8 * clip + 1, 8))  # ends of clips before
    assert walk.references(0) == [0]


def test_a_clip_s_map_knows_only_what_came_before(made, tmp_path):
    """Other pictures from frame 17 on: what clips 0 and 1 showed, and clip 2's view of the map, stay the same."""
    from safetensors.torch import save_file

    with safe_open(made / "walks" / NAME, framework="pt") as file:
        held, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    held["rgb"][17:] = 255 - held["rgb"][17:]
    save_file(held, tmp_path / NAME, metadata=metadata)
    add_memory(tmp_path / NAME, tmp_path / "out.safetensors", CONFIG)
    with safe_open(tmp_path / "out.safetensors", framework="pt") as changed, safe_open(made / "windows" / NAME, framework="pt") as file:
        for name in ("projection_rgb", "projection_depth", "references"):
            assert torch.equal(changed.get_tensor(name), file.get_tensor(name)), name


def test_it_is_the_same_every_time_and_not_done_twice(made, tmp_path):
    add_memory(made / "walks" / NAME, tmp_path / NAME, CONFIG)
    with safe_open(tmp_path / NAME, framework="pt") as again, safe_open(made / "windows" / NAME, framework="pt") as file:
        assert again.metadata() == file.metadata()  # in whatever order it was written
        assert set(again.keys()) == set(file.keys())
        assert all(torch.equal(again.get_tensor(name), file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  not a dict
    (tmp_path / NAME).write_bytes(b"kept")
    make_windows(made / "walks", tmp_path, CONFIG)
    assert (tmp_path / NAME).read_bytes() == b"kept"


def test_a_walk_is_read_by_slices(tmp_path):
    write(tmp_path, SEED + 5)
    walked, remembered = tensors(SEED + 5)
    walk = WindowFolder(tmp_path / "walks", tmp_path / "windows").pick(np.random.default_rng(SEED))
    assert walk.frames == 1 + 8 * CLIPS and len(walk.captions) == CLIPS
    assert torch.equal(walk.rgb(3, 7), walked["rgb"][3:7]) and torch.equal(walk.poses(3, 7), walked["T_world_camera"][3:7])
    assert torch.equal(walk.depth(3, 7), walked["depth"][3:7].float()) and walk.depth(0, 1).dtype == torch.float32
    assert torch.equal(walk.dynamic(3, 7), walked["dynamic"][3:7])
    shown = walk.projection(3, 7)
    assert torch.equal(shown.rgb, remembered["projection_rgb"][3:7])
    assert torch.equal(shown.mask, remembered["projection_depth"][3:7] > 0) and not shown.mask.all()
    assert [walk.references(i) for i in range(CLIPS)] == [[0], [0, 8], [0, 8, 16]]


def test_only_walks_with_a_memory_count(tmp_path):
    for seed in (SEED, SEED + 1):
        write(tmp_path, seed)
    (tmp_path / "windows" / NAME).unlink()
    folder = WindowFolder(tmp_path / "walks", tmp_path / "windows")
    assert len(folder) == 1
    assert torch.equal(folder.open(0).rgb(0, 1), tensors(SEED + 1)[0]["rgb"][:1])  # matched by name, not by number


def test_a_memory_without_its_walk_is_named(tmp_path):
    for seed in (SEED, SEED + 1):
        write(tmp_path, seed)
    (tmp_path / "walks" / NAME).unlink()
    with pytest.raises(ValueError, match=f"{NAME} belongs to a walk that .*walks lacks"):
        WindowFolder(tmp_path / "walks", tmp_path / "windows").open(0)


def test_captions_are_kept(made):
    with safe_open(made / "walks" / NAME, framework="pt") as file:
        assert json.loads(file.metadata()["captions"]) == WindowFolder(made / "walks", made / "windows").open(0).captions
