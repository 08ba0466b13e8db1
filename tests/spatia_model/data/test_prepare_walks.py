"""Walks of the embedded trainer as clips: the same windows, latents and marks as that trainer's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spatia_model.config import MiniConfig
from spatia_model.data.clips import ClipDataset
from spatia_model.data.latents import window_frames
from spatia_model.data.prepare import run
from spatia_model.data.prepare.build import Settings
from spatia_model.data.prepare.footage import BadFootage
from spatia_model.data.prepare.tools import Tools
from spatia_model.data.prepare.walks import Walks
from spatia_model.generator.conditioning import encode_references, pooled_control, to_model
from tests.spatia_model.data import fake_walks
from tests.spatia_model.tiny import CONFIG, SEED, SIZE, tiny_parts

SETTINGS = Settings(height=SIZE, width=SIZE, fps=8, frames=13, preceding=5, clips_per_video=4, references=3, voxel=0.02)
NAMES = run.ToolNames("none", "", "")


def tools() -> Tools:
    return Tools(None, tiny_parts()[0], None, "pooled", {"control": "pooled", "vae": "tiny", "latent_channels": 4})


def source(folder, walks: int = 1) -> Walks:
    for seed in range(walks):
        fake_walks.write(folder, SEED + seed)
    return Walks(folder, CONFIG)


def test_a_clip_is_the_window_that_the_embedded_trainer_encodes(tmp_path):
    walks, held = source(tmp_path), tools()
    built = walks.build(walks.names()[0], replace(SETTINGS, pictures="png"), held)
    walked, shown = fake_walks.tensors(SEED)
    assert len(built.clips) == fake_walks.CLIPS and len(built.panels) == 2
    for number, clip in enumerate(built.clips):
        rows = window_frames(number, CONFIG)
        mask = shown["projection_depth"][rows] > 0
        known = walked["dynamic"][rows].float()
        known[5:] = 0
        with torch.inference_mode():
            control = pooled_control(held.vae, shown["projection_rgb"][rows][None], mask[None], known[None])[0].half()
            latents = held.vae.encode(to_model(walked["rgb"][rows][None]))[0].half()
            ids = [i for i in shown["references"][number].tolist() if i >= 0]
            references = encode_references(held.vae, walked["rgb"][ids]).transpose(0, 1).half()
        assert torch.equal(clip.latents, latents) and torch.equal(torch.cat([clip.projection, clip.holes]), control)
        assert torch.equal(clip.references, references) and clip.reference_frames == tuple(ids)
        assert torch.equal(clip.uncovered, held.shares(~mask)) and torch.equal(clip.moving, held.shares(walked["dynamic"][rows].float()))
        assert torch.equal(clip.frames, walked["rgb"][rows]) and torch.equal(clip.depth, walked["depth"][rows])
        assert torch.equal(clip.T_world_camera, walked["T_world_camera"][rows])
        assert clip.caption == f"a ball rolls to the {('left', 'right')[number % 2]}" and clip.prompt == "a room" and clip.number == number
    assert sum(clip.holes[4:].abs().sum() for clip in built.clips) > 0  # type: ignore[index]


def test_movers_that_the_map_overlooked_are_not_told_of(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    walks = source(tmp_path)
    path = walks.files[walks.names()[0]]
    with safe_open(path, framework="pt") as file:
        told = dict(file.metadata())
    for metadata in ({**told, "overlooked": "1"}, {"seed": told["seed"]}):
        save_file(load_file(path), path, metadata=metadata)
        first, second = walks.build(walks.names()[0], SETTINGS, tools()).clips[:2]
        assert not first.holes[4:].any() and first.moving.any() and second.holes[4:].any()  # type: ignore[index]


def test_a_walk_that_cannot_be_used_is_set_aside(tmp_path, monkeypatch):
    walks = source(tmp_path, 3)
    first, second, third = walks.names()
    (tmp_path / "walks" / f"{first}.safetensors").unlink()
    path = tmp_path / "walks" / f"{second}.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    held = tools()
    monkeypatch.setattr(run, "load_tools", lambda *names: held)
    summary = run.prepare(walks, tmp_path / "out", SETTINGS, NAMES)
    assert summary["videos_with_clips"] == 1 and summary["clips"] == 3
    assert all("no whole walk with its window" in summary["set_aside"][name] for name in (first, second))
    data = ClipDataset(tmp_path / "out")
    assert {entry.video for entry in data.entries} == {third} and (tmp_path / "out" / "summary.png").exists()


def test_other_sizes_and_folders_are_refused(tmp_path):
    walks = source(tmp_path)
    with pytest.raises(BadFootage, match="13 frames of 32x32, 5 of them history: leave the sizes out"):
        walks.build(walks.names()[0], replace(SETTINGS, height=64, width=64), tools())
    with pytest.raises(BadFootage, match="no|belong"):
        Walks(tmp_path, MiniConfig(image_size=64)).build(walks.names()[0], replace(SETTINGS, height=64, width=64), tools())
    with pytest.raises(ValueError, match="holds no windows/: give a folder that `spatia train mini --stage data` has made"):
        Walks(tmp_path / "nothing")
