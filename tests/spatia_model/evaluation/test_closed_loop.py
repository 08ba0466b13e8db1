"""Closed loop: figures must be high where the answer is right and fall by what is spoilt."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from spatia_model.evaluation import closed_loop
from spatia_model.evaluation.closed_loop import UNITS, closed_loop_figures, evaluate_closed_loop, revisit_figures, revisit_path
from spatia_model.evaluation.report import median
from spatia_model.evaluation.setting import walk
from spatia_model.geometry import se3
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import out_and_back
from tests.spatia_model.evaluation.models import fake_model, paint_projection, paint_truth, tiny_model

SEED = 2_000_400


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(SEED, kind="room", movers=1)


@pytest.fixture(scope="module")
def path(world: World) -> torch.Tensor:
    return out_and_back(world, np.random.default_rng(3), 2)


def figures_of(draw, world: World, path: torch.Tensor, memory: bool = True) -> dict:
    model = fake_model(draw)
    return closed_loop_figures(model, world, walk(model, world, path, seed=0, memory=memory, oracle=True))


def test_truth_scores_high_and_memory_off_low(world: World, path: torch.Tensor) -> None:
    truth = figures_of(paint_truth(world), world, path)
    memory = figures_of(paint_projection, world, path)
    nothing = figures_of(paint_projection, world, path, memory=False)
    assert truth["psnr_covered"] == truth["psnr_uncovered"] == pytest.approx(100)  # equal pictures, as `psnr` bounds them
    assert truth["gradient_energy_covered"] == pytest.approx(1) and truth["gradient_energy_uncovered"] == pytest.approx(1)
    assert truth["psnr_c"] == truth["psnr_c_truth"]
    assert memory["psnr_covered"] > 24 and memory["psnr_c"] > 24
    assert memory["psnr_covered"] > nothing["psnr_covered"] + 5
    assert memory["psnr_c"] > nothing["psnr_c"] + 5
    assert memory["psnr_covered"] > memory["psnr_uncovered"] + 3
    assert memory["gradient_energy_uncovered"] < 0.3  # holes were filled with one colour
    assert 0.3 < nothing["coverage"] < 1
    assert truth["depth_error"] == 0  # the oracle's
    assert truth["psnr_vae"] is None  # no VAE behind the fake


def test_moving_pixels_are_told_apart(world: World, path: torch.Tensor) -> None:
    erased = replace(world.movers[0], anchor=(0.0, -200.0, 0.0))
    without = World(world.seed, world.plan, world.tables, world.things, (erased,))
    figures = figures_of(paint_truth(without), world, path)
    assert figures["psnr_moving"] < 30 < figures["psnr_covered"]


def test_camera_errors_show_a_shift(world: World, path: torch.Tensor) -> None:
    """All generated frames 4 pixels off: the first clip turned by 4 / f more than asked, the second not."""
    straight, shifted = (figures_of(paint_truth(world, shift), world, path) for shift in (0, 4))
    pixel = math.degrees(1 / float(fake_model(paint_projection).camera.K[0, 0]))
    assert straight["motion_clips"] == shifted["motion_clips"] == 2
    assert straight["rotation_error_deg"] == pytest.approx(straight["own_rotation_error_deg"])
    assert straight["rotation_error_deg"] < 0.5
    assert shifted["rotation_error_deg"] > straight["rotation_error_deg"] + 0.5
    assert shifted["rotation_error_deg"] < 4 * pixel


def test_a_camera_that_stands_still_is_as_wrong_as_the_path_is_long(world: World, path: torch.Tensor) -> None:
    figures = figures_of(lambda conditioning, first: conditioning.history[-1:].expand(8, -1, -1, -1), world, path)
    asked = se3.inverse(path[8]) @ path[0]
    assert figures["rotation_error_deg"] == pytest.approx(math.degrees(float(se3.rotation_angle(asked))), rel=0.15)


def test_vae_ceiling_and_determinism() -> None:
    results = [evaluate_closed_loop(tiny_model(), worlds=1, seed=SEED, clips=2, revisit=True) for _ in range(2)]
    assert results[0] == results[1]
    result = results[0]
    assert {k for k in result if not k.endswith("_ci95")} == {*UNITS, "config", "details"}
    assert {k for k in result if k.endswith("_ci95")} == {f"{k}_ci95" for k in UNITS}
    assert result["psnr_vae"] is not None and 3 < result["psnr_vae"] < 40
    assert result["details"]["gradient_energy_uncovered_median"] == result["gradient_energy_uncovered"]  # of one world
    assert median([{"a": 1.0}, {"a": 9.0}, {"a": None}, {}, {"a": 2.0}], "a") == 2.0 and median([{}], "a") is None
    assert result["psnr_revisit"] is not None and result["psnr_c"] is not None
    assert result["config"] == {
        "worlds": 1, "seed": SEED, "clips": 2, "memory": "on", "model": "ClipGenerator", "steps": 1, "perception": "model", "revisit": True,
    }  # fmt: skip
    json.dumps(result, allow_nan=False)


def test_revisit_path_returns_to_what_the_start_did_not_see(world: World) -> None:
    path, visit = revisit_path(world, np.random.default_rng(5), 8, away=2)
    assert len(path) == 1 + 8 * 8 and visit == 32
    assert torch.equal(path[-1], path[visit])
    turned = se3.rotation_angle(se3.inverse(path[0]) @ path[visit])
    assert float(turned) > math.radians(75)  # wider than a view
    assert float(se3.rotation_angle(se3.inverse(path[visit]) @ path[visit + 16])) > math.radians(45)
    assert bool(world.is_free(path[:, :3, 3], 0.3).all())
    steps = se3.log(se3.inverse(path[:-1]) @ path[1:])
    assert float(steps[:, 3:].norm(dim=-1).max()) * 8 <= math.radians(30) + 1e-9


def test_revisit_compares_the_second_visit_with_the_first(world: World) -> None:
    path, visit = revisit_path(world, np.random.default_rng(5), 8, away=1)
    model = fake_model(paint_truth(world))
    walked = walk(model, world, path, seed=0, oracle=True)
    good = revisit_figures(walked, visit, model.camera)
    assert good["psnr_revisit"] is not None and good["psnr_revisit"] > 35  # shadows of movers differ
    assert good["revisit_seen_from_start"] is not None and good["revisit_seen_from_start"] < 0.05
    spoilt = walked.frames.clone()
    spoilt[visit - 1] = 255 - spoilt[visit - 1]
    bad = revisit_figures(replace(walked, frames=spoilt), visit, model.camera)
    assert bad["psnr_revisit"] is not None and bad["psnr_revisit"] < 20


def test_command_prints_one_object_and_writes_strips(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(closed_loop, "load_model", lambda args: tiny_model())
    parser = argparse.ArgumentParser()
    closed_loop.add_arguments(parser)
    arguments = ["--worlds", "1", "--seed", str(SEED), "--clips", "2", "--memory", "off", "--strips", str(tmp_path / "s")]
    assert closed_loop.run(parser.parse_args([*arguments, "--json"])) == 0
    out = capsys.readouterr()
    result = json.loads(out.out)
    assert result["config"]["memory"] == "off" and result["psnr_revisit"] is None and "closed loop: 1/1" in out.err
    assert [p.name for p in (tmp_path / "s").iterdir()] == [f"loop_{SEED}.png"]
    assert closed_loop.run(parser.parse_args(arguments)) == 0
    table = capsys.readouterr().out
    assert "psnr_covered" in table and "{" not in table


@pytest.mark.parametrize(
    ("given", "named"), [({"clips": 1}, "clips"), ({"worlds": 0}, "worlds"), ({"seed": -1}, "seed"), ({"perception": "eyes"}, "perception")]
)
def test_bad_arguments_are_refused(given: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        evaluate_closed_loop(tiny_model(), **given)
