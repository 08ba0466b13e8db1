"""Surroundings in the loop: shown to generator and perceiver where the map is empty, remembered only once they were drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spatia_model.generator.pipeline import ClipGenerator
from spatia_model.memory.surroundings import completed
from spatia_model.world_model import WorldModel
from spatia_model.world_state import SURROUNDINGS, load_state, save_state
from spatia_model.worlds.trajectories import pose_from
from tests.spatia_model.test_world_model import Recorder, assert_equal
from tests.spatia_model.tiny import CONFIG, MAPPING, SEED, picture, tiny_model

T, H = CONFIG.frames_per_clip, CONFIG.history_frames
AROUND = replace(CONFIG, surroundings=True)


def turned(degrees: float) -> torch.Tensor:
    return pose_from(0.0, 0.0, 0.0, math.radians(degrees), 0.0, 0.0).repeat(T, 1, 1)


@pytest.fixture(scope="module")
def watched() -> tuple[WorldModel, Recorder, Recorder]:
    model = tiny_model(config=AROUND)
    generator, perceiver = Recorder(model.generator), Recorder(model.perceiver)
    return WorldModel(generator, perceiver, AROUND, MAPPING), generator, perceiver  # type: ignore[arg-type]


def test_the_generator_is_shown_what_the_clip_says_is_unknown(watched):
    model, generator, perceiver = watched
    start = model.begin(picture(), seed=SEED)
    assert start.surroundings is not None and len(start.surroundings)
    state, clip = model.advance(start, turned(90))
    told = generator.conditionings[-1].projection
    expected = completed(start.memory.project(turned(90), start.camera), start.surroundings, turned(90), start.camera)
    assert torch.equal(told.rgb[H:], expected.rgb) and torch.equal(told.mask[H:], expected.mask)
    assert torch.equal(perceiver.calls[-1][3].depth, expected.depth)
    assert told.mask[H:].float().mean() > 0.8
    assert clip.coverage < 0.05  # what the memory knew, and no more
    assert torch.equal(clip.projection.mask, start.memory.project(turned(90), start.camera).mask)
    assert state.surroundings is start.surroundings
    assert len(state.memory) > len(start.memory)  # what was drawn there is remembered


def test_without_memory_there_are_none(watched):
    model, generator, _ = watched
    model.advance(model.begin(picture(), seed=SEED), turned(90), memory=False)
    assert not generator.conditionings[-1].projection.mask.any()


def test_they_are_left_out_unless_asked_for():
    assert tiny_model().begin(picture(), seed=SEED).surroundings is None


def test_a_saved_world_keeps_them(watched, tmp_path):
    model, _, _ = watched
    state, _ = model.advance(model.begin(picture(), seed=SEED), turned(30))
    save_state(state, tmp_path / "world")
    loaded = load_state(tmp_path / "world")
    assert_equal(loaded, state)
    assert_equal(model.advance(loaded, turned(120))[1], model.advance(state, turned(120))[1])
    (tmp_path / "world" / SURROUNDINGS).write_bytes(b"")
    with pytest.raises(ValueError, match=f"damaged: .*{SURROUNDINGS}"):
        load_state(tmp_path / "world")
    (tmp_path / "world" / SURROUNDINGS).unlink()
    with pytest.raises(ValueError, match=f"damaged: .*{SURROUNDINGS}"):
        load_state(tmp_path / "world")


def test_worlds_together_are_worlds_alone(watched):
    model, _, _ = watched
    states = [model.begin(picture(seed), seed=seed) for seed in (1, 2)]
    paths = [turned(70), turned(-100)]
    together = model.advance_batch(states, paths, ["", ""])
    for state, path, (_, clip) in zip(states, paths, together, strict=True):
        assert (model.advance(state, path)[1].frames.int() - clip.frames.int()).abs().max() <= 1


def test_the_shipped_model_has_them():
    model = WorldModel.from_pretrained("spatia-mini")
    assert model.config.surroundings and isinstance(model.generator, ClipGenerator)
    state = model.begin(picture(height=128, width=128), seed=SEED)
    assert state.surroundings is not None and len(state.surroundings) > 10_000
