"""A saved world is the same world, and a damaged one says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spatia_model import world_state
from spatia_model.model_folder import save_mini
from spatia_model.types import WorldState
from spatia_model.world_model import WorldModel
from spatia_model.world_state import load_state, save_state
from tests.spatia_model.test_world_model import assert_equal
from tests.spatia_model.tiny import CONFIG, OPTIONS, SEED, picture, tiny_model, tiny_parts, walk

ROOT = Path(__file__).resolve().parents[2]
FILES = ("world.json", "memory.ply", "state.safetensors")


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


@pytest.fixture(scope="module")
def state(model: WorldModel) -> WorldState:
    state = model.begin(picture(), "a room with grün walls", seed=SEED)
    for clip in range(2):
        state, _ = model.advance(state, walk(clip), "a red ball")
    return state


def test_every_number_comes_back(state, tmp_path):
    save_state(state, tmp_path / "deep" / "world")
    loaded = load_state(tmp_path / "deep" / "world")
    assert_equal(loaded, state)
    assert loaded.keyframes.similarity is not None and loaded.keyframes.similarity.shape == (3, 3)
    assert sorted(p.name for p in (tmp_path / "deep" / "world").iterdir()) == sorted(FILES)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["world"]


def test_the_future_is_the_same(model, state, tmp_path):
    save_state(state, tmp_path / "world")
    expected = model.advance(state, walk(2), "a box")
    found = model.advance(load_state(str(tmp_path / "world")), walk(2), "a box")
    assert_equal(found[0], expected[0])
    assert_equal(found[1], expected[1])


CHILD = """
import hashlib, sys, torch
torch.set_num_threads(1)
from spatia_model.world_model import WorldModel
from spatia_model.world_state import load_state
from tests.spatia_model.tiny import walk
model = WorldModel.from_pretrained(sys.argv[1])
state, clip = model.advance(load_state(sys.argv[2]), walk(1), "a red ball")
state, later = model.advance(state, walk(2))
print(hashlib.sha256(clip.frames.numpy().tobytes() + later.frames.numpy().tobytes()).hexdigest(), len(state.memory))
"""


@pytest.mark.slow
def test_the_future_is_the_same_in_a_new_process(tmp_path):
    save_mini(tmp_path / "model", CONFIG, OPTIONS, *tiny_parts())
    model = WorldModel.from_pretrained(tmp_path / "model")
    state, _ = model.advance(model.begin(picture(), seed=SEED), walk(0))
    save_state(state, tmp_path / "world")
    state, clip = model.advance(state, walk(1), "a red ball")
    state, later = model.advance(state, walk(2))
    digest = hashlib.sha256(clip.frames.numpy().tobytes() + later.frames.numpy().tobytes()).hexdigest()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "model")])}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "model"), str(tmp_path / "world")]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [digest, str(len(state.memory))]


def test_saving_again_replaces(model, state, tmp_path):
    save_state(model.begin(picture(SEED + 1)), tmp_path / "world")
    save_state(state, tmp_path / "world")
    assert_equal(load_state(tmp_path / "world"), state)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_an_empty_folder_is_taken(state, tmp_path):
    (tmp_path / "world").mkdir()
    save_state(state, tmp_path / "world")
    assert load_state(tmp_path / "world").clip_count == 2


def test_what_is_no_world_is_not_overwritten(state, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"text")
    for name in ("photos", "file"):
        with pytest.raises(ValueError, match=f"{name} exists and is no saved world: give a new folder"):
            save_state(state, tmp_path / name)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat" and (tmp_path / "file").read_bytes() == b"text"
    with pytest.raises(ValueError, match="cannot write to .*file.*give a folder you may write to"):
        save_state(state, tmp_path / "file" / "world")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photos"]


def test_a_save_that_fails_leaves_the_old_world(model, state, tmp_path, monkeypatch):
    old = model.begin(picture(SEED + 1))
    save_state(old, tmp_path / "world")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world_state, "save_file", full)
    with pytest.raises(ValueError, match="No space left on device.*is the disk full"):
        save_state(state, tmp_path / "world")
    assert_equal(load_state(tmp_path / "world"), old)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(state, tmp_path, name):
    save_state(state, tmp_path / "world")
    (tmp_path / "world" / name).unlink()
    with pytest.raises(ValueError, match=f"no saved world: {name} is missing"):
        load_state(tmp_path / "world")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no saved world: world.json is missing"):
        load_state(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_named(state, tmp_path, name, damage):
    save_state(state, tmp_path / "world")
    path = tmp_path / "world" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) * 2 // 3 if name != "world.json" else 0] ^= 0x80
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"" if damage == "empty" else content)
    with pytest.raises(ValueError, match=f"damaged: .*{name}.*Restore the folder from a copy"):
        load_state(tmp_path / "world")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format is 99, this version reads 1"),
        ({"sha256": {}}, "memory.ply"),
        ({"keyframe_ids": [0, 17]}, "keyframe.17"),
        ({"width": "wide"}, "wide"),
        ({"prompt": None, "frame_count": None}, "world.json"),
    ],
)
def test_a_changed_description_is_refused(state, tmp_path, change, message):
    save_state(state, tmp_path / "world")
    path = tmp_path / "world" / "world.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path / "world")


def test_a_saved_state_is_a_copy(state, tmp_path):
    """Rows that share storage, as slices do, are written as what they show."""
    assert state.frames.untyped_storage().nbytes() >= state.frames.nbytes
    save_state(state, tmp_path / "world")
    size = (tmp_path / "world" / "state.safetensors").stat().st_size
    held = sum(t.nbytes for t in world_state._tensors(state).values())
    assert held < size < held + 10_000
    assert isinstance(load_state(tmp_path / "world").rng_state, torch.Tensor)
