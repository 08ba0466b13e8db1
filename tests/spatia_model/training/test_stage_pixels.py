"""Stages vae and perception on clips with pictures: they learn, resume to the bit, and export a model that opens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from spatia_model.data.clips import ClipDataset
from spatia_model.data.schema import ShardError
from spatia_model.model_folder import load_mini, save_mini
from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig
from spatia_model.training import recipe as recipes
from spatia_model.training.accelerated import fit
from spatia_model.training.recipe import Recipe
from spatia_model.training.stage_pixels import ClipWalk, PerceptionOnClips, PixelClips, VAEOnClips
from tests.spatia_model.data import fake_clips
from tests.spatia_model.tiny import CONFIG, OPTIONS, tiny_parts


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    vae, transformer, text, perception, refiner = tiny_parts()
    save_mini(folder, CONFIG, OPTIONS, vae, transformer, text, perception, refiner)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return fake_clips.write(tmp_path_factory.mktemp("clips"))


def recipe(stage: str, clips: Path, model: Path, **changes) -> Recipe:
    small = {
        "steps": 3,
        "batch": 2,
        "micro_batch": 2,
        "precision": "no",
        "warmup": 1,
        "crop": 32,
        "checkpoint_steps": 1,
        "validate_every": 100,
    }
    return Recipe(
        **{"stage": stage, **recipes.PRESETS[stage], "clips": str(clips), "model": str(model), "log_every": 1, **small, **changes}
    )


@pytest.mark.parametrize(("stage", "kind", "part"), [("vae", VAEOnClips, "vae"), ("perception", PerceptionOnClips, "perception")])
def test_it_trains_resumes_and_exports(clips, model, tmp_path, monkeypatch, stage, kind, part):
    monkeypatch.setattr(kind, "validate", lambda self: ({"x": 1.0}, None))  # theirs look at fixed sizes; tested with the stages
    runs = {}
    for name in ("whole", "out"):
        AcceleratorState._reset_state(True)
        if name == "out":
            held = kind(recipe(stage, clips, model))
            real = held.prepare_step

            def stopping(step, *rest, real=real):
                if step == 2:
                    raise KeyboardInterrupt
                return real(step, *rest)

            held.prepare_step = stopping
            with pytest.raises(KeyboardInterrupt):
                fit(held, held.recipe, tmp_path / name, cpu=True)
            AcceleratorState._reset_state(True)
        held = kind(recipe(stage, clips, model))
        assert fit(held, held.recipe, tmp_path / name, cpu=True) == {"step": 3, "x": 1.0}
        runs[name] = load_file(tmp_path / name / "model" / "weights.safetensors")
    assert all(torch.equal(runs["whole"][k], runs["out"][k]) for k in runs["whole"])
    before, after = (load_file(place / f"{part}.safetensors") for place in (model, tmp_path / "out" / "model"))
    assert any(not torch.equal(before[k], after[k]) for k in before)
    load_mini(tmp_path / "out" / "model")


def test_a_perceiver_with_a_network_for_first_pictures_trains_both(clips, model, tmp_path, monkeypatch):
    monkeypatch.setattr(PerceptionOnClips, "validate", lambda self: ({"x": 1.0}, None))
    vae, transformer, text, perception, refiner = tiny_parts()
    both = CompactPerception(replace(perception.config, first=CompactPerceptionConfig((8, 8))))
    save_mini(tmp_path / "model", CONFIG, OPTIONS, vae, transformer, text, both, refiner)
    AcceleratorState._reset_state(True)
    held = PerceptionOnClips(recipe("perception", clips, tmp_path / "model", steps=6, batch=4, micro_batch=4))
    fit(held, held.recipe, tmp_path / "out", cpu=True)
    before, after = (load_mini(place)[1].state_dict() for place in (tmp_path / "model", tmp_path / "out" / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.startswith("first.") for name in changed} == {True, False}


def test_clips_without_what_a_stage_needs_say_what_to_prepare(tmp_path, model):
    bare = fake_clips.write(tmp_path / "bare", pixels=False)
    with pytest.raises((ShardError, ValueError), match="neither latents nor frames|keeps no frames"):
        VAEOnClips(recipe("vae", bare, model))
    with pytest.raises(ShardError, match="keeps no depth.*prepare with --pictures png, from a source that has depth"):
        PerceptionOnClips(recipe("perception", fake_clips.write(tmp_path / "flat", depth=None), model))


def test_pictures_are_drawn_by_the_generator_alone(clips):
    data = ClipDataset(clips)
    a, b = PixelClips(data, ("frames",)), PixelClips(data, ("frames",))
    b.clip(np.random.default_rng(9))  # what is held already must not matter
    draws = [[p.random_frames(np.random.default_rng(i), 9, 16) for i in range(5)] for p in (a, b)]
    assert all(np.array_equal(x, y) and x.shape == (9, 16, 16, 3) for x, y in zip(*draws, strict=True))
    assert a.still(np.random.default_rng(0), 64).shape == (32, 32, 3)


def test_a_clip_reads_like_a_walk(clips):
    one = ClipDataset(clips)[0]
    walk = ClipWalk(one)
    assert one.frames is not None and one.depth is not None and one.projection_depth is not None
    assert torch.equal(walk.rgb(2, 5), one.frames[2:5]) and torch.equal(walk.depth(1, 2), one.depth[1:2].float())
    assert torch.equal(walk.projection(0, 3).mask, one.projection_depth[:3] > 0) and walk.frames == 13
