"""Rollouts: clips whose history and memory are the model's own and whose targets are true; the run that mixes them in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatia_model.data.clips import ClipDataset
from spatia_model.training.self_forcing import believable, read_walk, roll_out, to_clip
from spatia_model.types import Projection
from tests.spatia_model.data import fake_clips, fake_walks
from tests.spatia_model.tiny import CONFIG, tiny_model
from tests.spatia_model.training.test_accelerated import equal, last
from tests.spatia_model.training.tiny_run import train


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("walks")
    for seed in range(2):
        fake_walks.write(folder, 2_000_000 + seed)
    return folder / "walks"


def test_a_rollout_shows_the_model_its_own_frames_and_wants_the_truth(walks):
    world, walk = tiny_model(), read_walk(sorted(walks.iterdir())[0])
    windows = list(roll_out(world, walk, 0, 3, seed=5))
    assert [w.number for w in windows] == [1, 2]
    state = world.begin(walk.rgb[0], "", 5, T_world_camera=walk.T_world_camera[0])  # the same by hand
    for number in range(3):
        frames = slice(1 + 8 * number, 9 + 8 * number)
        if number:
            window = windows[number - 1]
            assert torch.equal(window.conditioning.history, state.frames)  # generated, not true
            assert not torch.equal(state.frames, walk.rgb[frames.start - 5 : frames.start])
            assert torch.equal(window.conditioning.projection.rgb[5:], state.memory.project(walk.T_world_camera[frames], state.camera).rgb)
            assert torch.equal(window.target, walk.rgb[frames])
            assert len(window.T_world_reference) == len(window.conditioning.references)
        state, _ = world.advance(state, walk.T_world_camera[frames], walk.captions[number])


def test_with_true_frames_the_windows_are_the_same_but_for_whose_frames_they_are(walks):
    world, walk = tiny_model(), read_walk(sorted(walks.iterdir())[0])
    own, true = (list(roll_out(world, walk, 0, 3, seed=5, frames_from=whose)) for whose in ("own", "true"))
    for a, b in zip(own, true, strict=True):
        first = 1 + 8 * b.number
        assert torch.equal(b.conditioning.history, walk.rgb[first - 5 : first]) and not torch.equal(
            a.conditioning.history, b.conditioning.history
        )
        assert not torch.equal(a.conditioning.projection.rgb, b.conditioning.projection.rgb)  # the map is of what was seen
        assert a.number == b.number and a.conditioning.text == b.conditioning.text
        for name in ("target", "target_dynamic"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(a.conditioning.T_world_camera, b.conditioning.T_world_camera)


def test_its_windows_become_clips_like_all_others(walks):
    world, walk = tiny_model(), read_walk(sorted(walks.iterdir())[0])
    vae = world.generator.vae
    window = list(roll_out(world, walk, 0, 3, seed=5))[1]
    clip = to_clip(window, vae, world.camera, CONFIG, "w", "", "a caption")
    from spatia_model.generator.conditioning import to_model

    with torch.inference_mode():
        expected = vae.encode(to_model(torch.cat([window.conditioning.history, window.target])[None]))[0].float().half()
    assert torch.equal(clip.latents, expected)
    assert clip.preceding == 5 and clip.caption == "a caption" and len(clip.frame_numbers) == 13
    assert clip.holes.shape[0] == 8 and clip.references.shape[0] == len(clip.reference_frames) == len(window.conditioning.references)
    assert clip.provenance == {"source": "self-forced"}
    assert torch.equal(clip.counted, believable(window, 8, 4))


def test_the_loss_counts_only_where_the_own_map_does_not_contradict_the_truth(walks):
    """A map that shows the truth, but for a block of invention and a hole."""
    walk = read_walk(sorted(walks.iterdir())[0])
    window = list(roll_out(tiny_model(), walk, 0, 2, seed=5))[0]
    truth = torch.cat([window.conditioning.history, window.target])
    shown, mask = truth.clone(), torch.ones(13, 32, 32, dtype=torch.bool)
    shown[7:9, 8:16, 16:24] = 255 - truth[7:9, 8:16, 16:24].float().mean((1, 2), keepdim=True).byte()
    shown[:, 24:, 24:], mask[:, 24:, 24:] = 0, False
    shown[6:, :8, :8] = truth[6:, :8, :8].roll(1, 2)  # moved by a pixel: the same surface
    projection = Projection(shown, mask.float(), mask, mask.int() - 1)
    found = believable(replace(window, conditioning=replace(window.conditioning, projection=projection)), 8, 4)
    expected = torch.full((4, 4, 4), 255)
    expected[:2] = 0  # the model's own history
    expected[2, 1, 2] = round(255 * 2 / 4)  # of frames 5 to 8, two contradict
    assert found.tolist() == expected.tolist()


def test_a_run_mixes_its_own_clips_in_and_resumes_to_the_bit(walks, tmp_path, monkeypatch):
    clips = fake_clips.write(tmp_path / "clips")
    settings = {"rollouts": str(walks), "rollout_every": 2, "rollout_walks": 1, "rollout_clips": 3, "rollout_keep": 1, "steps": 5}
    settings |= {"rollout_share": 0.5, "batch": 2, "micro_batch": 2, "checkpoint_steps": 1}
    seen = []
    from spatia_model.training import stage_control

    real = stage_control.draw
    monkeypatch.setattr(stage_control, "draw", lambda batch, *rest: seen.append(batch["captions"]) or real(batch, *rest))
    train(clips, tmp_path / "whole", **settings)
    made = sorted(path.name for path in (tmp_path / "whole" / "rollouts").iterdir())
    assert made == ["step-0000002", "step-0000004"]
    own = {c.caption for c in (ClipDataset(tmp_path / "whole" / "rollouts" / made[0])[i] for i in range(2))}
    assert own == {"a ball rolls to the left", "a ball rolls to the right"}
    assert any(set(captions) <= own for captions in seen[2:]) and not any(set(captions) & own for captions in seen[:2])
    with pytest.raises(KeyboardInterrupt):
        train(clips, tmp_path / "out", stop_at=3, **settings)
    train(clips, tmp_path / "out", **settings)
    equal(last(tmp_path / "whole"), last(tmp_path / "out"))
    with_none, with_own = (
        load_file(last(place) / "model.safetensors") for place in (_plain(clips, tmp_path, settings), tmp_path / "whole")
    )
    assert any(not torch.equal(with_none[k], with_own[k]) for k in with_none)


def _plain(clips: Path, tmp_path: Path, settings: dict) -> Path:
    train(clips, tmp_path / "plain", **{**settings, "rollouts": ""})
    return tmp_path / "plain"


def test_rollouts_that_cannot_be_say_why(walks, tmp_path):
    clips = fake_clips.write(tmp_path / "clips")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no walks: make some with `spatia train mini --stage data"):
        train(clips, tmp_path / "a", rollouts=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="give --rollout-clips 2 or more"):
        train(clips, tmp_path / "b", rollouts=str(walks), rollout_every=1, rollout_clips=1, rollout_walks=1, steps=2)


def test_a_walk_is_read_with_its_captions(walks):
    walk = read_walk(sorted(walks.iterdir())[0])
    assert len(walk.captions) == 3 and walk.rgb.shape[0] == 25 and json.dumps(walk.captions)
    assert replace(walk, prompt="x").prompt == "x"
