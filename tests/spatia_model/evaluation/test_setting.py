"""The walk, the VAE's ceiling and the command line's model."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

from spatia_model.evaluation import setting
from spatia_model.generator.conditioning import to_frames, to_model
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import out_and_back
from tests.spatia_model.evaluation.models import fake_model, paint_projection, paint_truth, tiny_model


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(2_000_400, kind="room", movers=1)


def test_walk_keeps_time_with_the_truth(world: World) -> None:
    path = out_and_back(world, np.random.default_rng(3), 2)
    walked = setting.walk(fake_model(paint_truth(world)), world, path, seed=0, oracle=True)
    assert torch.equal(walked.frames, walked.truth.rgb[1:])
    assert walked.times[-1] == 2.0 and len(walked.texts) == 2 and all(t.startswith("a room") for t in walked.texts)
    assert walked.state.clip_count == 2 and walked.mask.shape == walked.frames.shape[:3]
    assert torch.equal(walked.projection[~walked.mask], torch.zeros_like(walked.projection[~walked.mask]))


def test_the_first_true_frame_is_all_that_a_walk_looks_at(world: World) -> None:
    path = out_and_back(world, np.random.default_rng(3), 2)
    model = fake_model(paint_projection)
    whole = setting.walk(model, world, path, seed=0, oracle=True)
    first = world.render(path[:1], model.camera, setting.frame_times(1))
    assert torch.equal(first.rgb[0], whole.truth.rgb[0])
    short = setting.walk(model, world, path, seed=0, oracle=True, truth=first)
    assert torch.equal(short.frames, whole.frames) and short.texts == whole.texts and len(short.truth.rgb) == 1


def test_without_memory_nothing_is_shown_but_the_split_stays(world: World) -> None:
    path = out_and_back(world, np.random.default_rng(3), 2)
    shown = []

    def draw(conditioning, first):
        shown.append(float(conditioning.projection.mask.float().mean()))
        return paint_projection(conditioning, first)

    off = setting.walk(fake_model(draw), world, path, seed=0, memory=False, oracle=True)
    assert shown == [0, 0] and bool(off.mask.any())
    on = setting.walk(fake_model(paint_projection), world, path, seed=0, oracle=True)
    assert torch.equal(on.mask[:8], off.mask[:8])  # before the first clip both know the picture alone


def test_walk_refuses_a_path_of_broken_clips(world: World) -> None:
    with pytest.raises(ValueError, match=r"1 \+ 8k poses"):
        setting.walk(fake_model(paint_projection), world, torch.eye(4, dtype=torch.float64).expand(8, 4, 4), seed=0)


def test_vae_reconstruction_is_clip_by_clip_with_history() -> None:
    model = tiny_model()
    frames = torch.randint(0, 256, (17, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    rebuilt = setting.vae_reconstruction(model, frames)
    assert rebuilt is not None and rebuilt.shape == (16, 64, 64, 3)
    vae = model.generator.vae
    with torch.inference_mode():
        first = to_frames(vae.decode(vae.encode(to_model(frames[[0] * 5 + list(range(1, 9))][None]))))[0, 5:]
        second = to_frames(vae.decode(vae.encode(to_model(frames[4:17][None]))))[0, 5:]
    assert torch.equal(rebuilt, torch.cat([first, second]))


def test_steps_replace_the_models_own_and_leave_it_alone() -> None:
    model = tiny_model()
    quick = setting.with_steps(model, 3)
    assert setting.model_steps(quick) == 3 and quick.config.steps == 3
    assert all(getattr(quick.generator, n) is getattr(model.generator, n) for n in ("vae", "transformer", "text", "refiner"))
    assert setting.model_steps(model) == 1


def test_counts_and_seeds_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    setting.add_common_arguments(parser, worlds=4)
    args = parser.parse_args(["--seed", "3000000", "--steps", "2"])  # any seed that the user gives
    assert (args.worlds, args.seed, args.steps, args.model) == (4, 3_000_000, 2, "spatia-mini")
    for bad in (["--worlds", "0"], ["--seed", "-1"], ["--steps", "x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(bad)
    assert "at least 1, got 0" in capsys.readouterr().err
