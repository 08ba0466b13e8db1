"""Camera control, quality, ablation, long horizon and the report: right where the answer is known, worse where something is spoilt."""

from __future__ import annotations

import argparse
import json
import math
import types

import pytest
import torch

from spatia_model.evaluation import ablation, camera_control, full_report, long_horizon, perceptual, quality
from spatia_model.evaluation.ablation import FIGURES, Variant, WithoutProjection, changed, evaluate_ablation, loop_figures, memory_variants
from spatia_model.evaluation.camera_control import ClipMotion, clip_motions, control_figures
from spatia_model.evaluation.full_report import markdown, run_parts
from spatia_model.evaluation.long_horizon import evaluate_long_horizon
from spatia_model.evaluation.motion import seen_in
from spatia_model.evaluation.perceptual import Tools, match_accuracy
from spatia_model.evaluation.quality import evaluate_quality, quality_figures
from spatia_model.evaluation.setting import walk
from spatia_model.geometry import se3
from spatia_model.types import Conditioning, GroundTruth, Projection
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import clips_between, pose_from
from tests.spatia_model.evaluation.models import fake_model, paint_projection, paint_truth, tiny_model

SEED = 2_000_410
NONE = Tools()


def pose(turn_deg: float = 0.0, forward: float = 0.0) -> torch.Tensor:
    return se3.exp(torch.tensor([0, 0, forward, 0, math.radians(turn_deg), 0], dtype=torch.float64))


def motion(asked: torch.Tensor, estimated: torch.Tensor) -> ClipMotion:
    return ClipMotion(asked, estimated, asked)


def measured(figures: dict[str, float | None]) -> dict[str, float]:
    """The figures that there are."""
    return {name: value for name, value in figures.items() if value is not None}


# -- camera control


@pytest.mark.parametrize(
    ("turn", "way", "score"),
    [(0, 0, 100), (15, 0, 0), (0, 0.5, 0), (40, 9, 0), (7.5, 0, 100 * math.sqrt(0.5)), (3, 0.1, 100 * math.sqrt(0.64))],
)
def test_the_score_of_known_errors(turn, way, score):
    assert camera_control.camera_control(turn, way) == pytest.approx(score)


def test_a_path_of_another_scale_is_no_error_but_a_wrong_turn_is():
    asked = [pose(5, 0.4), pose(-10, 0.2), pose(0, 0.3)]
    halved = [motion(a, torch.cat([torch.cat([a[:3, :3], a[:3, 3:] / 2], 1), a[3:]])) for a in asked]
    figures = control_figures(halved)
    assert figures["scale"] == pytest.approx(2) and figures["camera_control"] == pytest.approx(100)
    turned = measured(control_figures([motion(a, a @ pose(6)) for a in asked]))
    assert turned["rotation_error_deg"] == pytest.approx(6) and turned["camera_control"] < 80
    still = control_figures([motion(a, torch.eye(4, dtype=torch.float64)) for a in asked])
    assert still["scale"] == 1 and still["translation_error_m"] == pytest.approx(0.3, abs=1e-3)
    back = control_figures([motion(a, se3.inverse(a)) for a in asked])
    assert back["scale"] == 0  # a camera that goes the other way is not saved by a negative scale
    assert control_figures([])["camera_control"] is None


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(SEED, kind="room", movers=0)


@pytest.fixture(scope="module")
def loop(world: World) -> torch.Tensor:
    """Two clips: a little forward with a turn, and back."""
    import numpy as np

    start = world.start_pose(np.random.default_rng(4))
    x, z = float(start[0, 3]), float(start[2, 3])
    yaw = math.atan2(float(start[0, 2]), float(start[2, 2]))
    away = pose_from(x + 0.15 * math.sin(yaw), float(start[1, 3]), z + 0.15 * math.cos(yaw), yaw + 0.25, 0.0, 0.0)
    here = pose_from(x, float(start[1, 3]), z, yaw, 0.0, 0.0)
    out = clips_between(here, away[None], 8)[0]
    return torch.cat([here[None], out, out[:-1].flip(0), here[None]])


def walked_with(draw, world: World, path: torch.Tensor):
    model = fake_model(draw)
    return model, walk(model, world, path, seed=0, oracle=True)


def test_true_frames_are_measured_as_asked_and_frozen_ones_as_still(world, loop):
    model, walked = walked_with(paint_truth(world), world, loop)
    first = GroundTruth(walked.truth.rgb[:1], walked.truth.depth[:1], walked.truth.dynamic[:1])
    seen = seen_in(walked.truth, loop, first, loop[0], model.camera)
    motions = clip_motions(walked, seen, model.camera, 8)
    assert len(motions) == 2
    right = measured(control_figures(motions))
    assert right["camera_control"] > 90
    frozen = types.SimpleNamespace(**{**walked.__dict__, "frames": walked.truth.rgb[:1].expand(len(walked.frames), -1, -1, -1)})
    wrong = measured(control_figures(clip_motions(frozen, seen, model.camera, 8)))
    assert wrong["rotation_error_deg"] > 10 and wrong["camera_control"] < right["camera_control"] - 40

    # the same walks, by the other figures
    good = loop_figures(Variant("both", model), walked, Tools(lambda a, b: 0.25, lambda a, b: torch.ones(2, 2)))
    assert (
        good["psnr_c"] == pytest.approx(100) and good["ssim_c"] == pytest.approx(1) and good["lpips_c"] == 0.25 and good["match_acc"] == 1
    )
    along = quality_figures(model, walked, NONE)
    assert (
        along["psnr"] == pytest.approx(100) and along["ssim"] == pytest.approx(1) and along["lpips"] is None and along["psnr_vae"] is None
    )
    stuck = measured(quality_figures(model, frozen, NONE))
    assert stuck["psnr"] < 30 and stuck["psnr_first"] != stuck["psnr_last"]


# -- perceptual tools


def test_match_accuracy_is_relative_to_the_first_frames_own_matches():
    first, last = torch.zeros(4, 4, 3, dtype=torch.uint8), torch.ones(4, 4, 3, dtype=torch.uint8)

    def matcher(a, b):
        sure = torch.zeros(4, 4)
        sure.flatten()[: 8 if torch.equal(a, b) else 6] = 0.9
        return sure

    assert match_accuracy(first, last, matcher) == pytest.approx(6 / 8)
    assert match_accuracy(first, last, lambda a, b: torch.full((4, 4), 0.4)) is None  # nothing is sure of itself


def test_tools_follow_what_is_installed(monkeypatch):
    """The packages' own calls: LPIPS on [-1, 1] (N, 3, H, W); RoMa's certainty, of which the left half is a to b."""
    import sys

    for name in ("lpips", "romatch"):
        monkeypatch.setitem(sys.modules, name, None)
    tools = perceptual.find_tools()
    assert tools == Tools(None, None)
    assert tools.absent["lpips"].startswith("pip install lpips") and "romatch" in tools.absent

    class Network(torch.nn.Module):
        def forward(self, a, b):
            assert a.shape[1] == 3 and a.min() >= -1 and a.max() <= 1
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=lambda net, verbose: Network()))
    matcher = types.SimpleNamespace(match=lambda a, b, device: (None, torch.cat([torch.full((2, 3), 0.7), torch.zeros(2, 3)], 1)))
    monkeypatch.setitem(sys.modules, "romatch", types.SimpleNamespace(roma_outdoor=lambda device: matcher))
    tools = perceptual.find_tools()
    black, white = torch.zeros(9, 4, 4, 3, dtype=torch.uint8), torch.full((9, 4, 4, 3), 255, dtype=torch.uint8)
    assert tools.lpips is not None and tools.matcher is not None
    assert tools.lpips(black, white) == pytest.approx(2) and tools.lpips(black, black) == 0
    assert tools.matcher(black[0], white[0]).shape == (2, 3) and match_accuracy(black[0], white[0], tools.matcher) == 1
    assert tools.absent == {}


# -- variants


def conditioning() -> Conditioning:
    shape = (2, 4, 4)
    projection = Projection(
        torch.ones(*shape, 3, dtype=torch.uint8),
        torch.ones(shape),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.int32),
    )
    frames = torch.ones(1, 4, 4, 3, dtype=torch.uint8)
    return Conditioning(frames, torch.zeros(1, 4, 4), projection, frames, "text", torch.eye(4).repeat(2, 1, 1))


def test_without_projection_the_generator_sees_holes_and_the_rest():
    given = []
    generator = types.SimpleNamespace(generate=lambda conditionings, rngs, progress=None: given.extend(conditionings), text="its own")
    wrapped = WithoutProjection(generator)
    before = conditioning()
    wrapped.generate([before], [None])
    (seen,) = given
    assert not seen.projection.mask.any() and not seen.projection.rgb.any() and (seen.projection.index == -1).all()
    assert torch.equal(seen.references, before.references) and seen.text == "text" and before.projection.mask.all()
    assert wrapped.text == "its own"


def test_the_four_variants_change_what_they_say():
    model = tiny_model()
    neither, projection, references, both = memory_variants(model)
    assert not neither.memory and projection.memory and references.memory and both.model is model
    assert projection.model.config.max_references == 0 and projection.model.generator is model.generator
    assert isinstance(references.model.generator, WithoutProjection) and references.model.config == model.config
    assert changed(model, voxel_size=0.1).config.voxel_size == 0.1 and model.config.voxel_size == 0.03


@pytest.mark.slow
def test_ablation_and_long_horizon_on_the_real_parts(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(ablation, "walk_control", lambda model, walked: {"camera_control": 50.0})  # measured above; slow
    result = evaluate_ablation(model, worlds=1, seed=SEED, clips=2, references=(1,), voxels=(0.2,), tools=NONE, name="tiny")
    assert list(result["tables"]["memory"]) == ["neither", "projection only", "references only", "both"]
    assert list(result["tables"]["references"]) == ["K = 1"] and list(result["tables"]["voxel"]) == ["0.2 m"]
    both = result["tables"]["memory"]["both"]
    assert (
        both["psnr_c"] is not None
        and both["lpips_c"] is None
        and both["camera_control"] == 50
        and set(result["absent"]) == {"lpips", "romatch"}
    )
    assert result["tables"]["memory"]["neither"]["psnr_c"] != both["psnr_c"]  # memory is seen by the generator
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    horizon = evaluate_long_horizon(model, worlds=1, seed=SEED, clips=(2,), memory="both", tools=NONE)
    assert horizon["tables"]["memory on"]["2 clips"]["psnr_c"] == both["psnr_c"]  # the same loop, the same noise
    assert horizon["tables"]["memory off"]["2 clips"]["psnr_c"] == result["tables"]["memory"]["neither"]["psnr_c"]


def test_loops_of_all_lengths_begin_at_one_place(monkeypatch):
    begun: dict[int, list[torch.Tensor]] = {}
    monkeypatch.setattr(ablation, "walk", lambda model, world, path, **_: begun.setdefault(len(path), []).append(path[[0, -1]]))
    monkeypatch.setattr(ablation, "loop_figures", lambda *_: dict.fromkeys(ablation.FIGURES, 1.0))
    evaluate_long_horizon(tiny_model(), worlds=2, seed=SEED, clips=(2, 4, 8), memory="on", tools=NONE)
    assert sorted(begun) == [17, 33, 65]
    for ends in zip(*begun.values(), strict=True):  # a world each
        assert all(torch.allclose(pose, ends[0][0], atol=1e-12) for pair in ends for pose in pair)
    assert not torch.equal(begun[17][0], begun[17][1])


def test_memory_shows_in_the_figures_of_a_generator_that_copies_it(world, loop):
    good = loop_figures(
        Variant("on", *walked_with(paint_projection, world, loop)[:1]), walked_with(paint_projection, world, loop)[1], NONE, False
    )
    model = fake_model(paint_projection)
    blind = Variant("off", changed(model, generator=WithoutProjection(model.generator)))
    poor = loop_figures(blind, walk(blind.model, world, loop, seed=0, oracle=True), NONE, False)
    assert measured(good)["psnr_c"] > measured(poor)["psnr_c"] + 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate_ablation(None, references=(0,)), "references = .0."),
        (lambda: evaluate_ablation(None, voxels=(-1.0,)), "metres above 0"),
        (lambda: evaluate_long_horizon(None, clips=(1,)), "loops of at least 2 clips"),
        (lambda: evaluate_long_horizon(None, memory="maybe"), "memory = 'maybe'"),
        (lambda: evaluate_quality(None, worlds=0), "worlds must be a whole number of at least 1"),
        (lambda: camera_control.evaluate_camera(None, clips=0), "clips must be"),
        (lambda: run_parts(None, None, 1, parts=("speed",)), "no parts called"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- report and commands


def test_the_report_is_resumed_part_by_part(tmp_path, monkeypatch):
    done: list[str] = []

    def stand_in(name, result):
        monkeypatch.setattr(full_report, name, lambda model, **given: done.append(name) or result)

    stand_in(
        "evaluate_quality",
        {
            "psnr": 20.0,
            "psnr_ci95": 1.5,
            "ssim": 0.6,
            "ssim_ci95": None,
            "config": {},
            "details": {},
            "absent": {"lpips": "pip install lpips"},
        },
    )
    stand_in(
        "evaluate_ablation",
        {"tables": {"memory": {"both": {"psnr_c": 19.0, "psnr_c_ci95": 0.5}, "neither": {"psnr_c": None}}}, "config": {}},
    )
    said: list[str] = []
    results = run_parts(None, tmp_path, 2, SEED, ("quality",), name="tiny", say=said.append)
    assert done == ["evaluate_quality"] and results["quality"]["psnr"] == 20
    run_parts(None, tmp_path, 2, SEED, ("quality", "ablation"), name="tiny", say=said.append)
    assert done == ["evaluate_quality", "evaluate_ablation"] and "quality: done before, kept" in said
    text = (tmp_path / "report.md").read_text()
    for expected in (
        "| psnr | 20.000 +- 1.500 |",
        "| ssim | 0.600 |",
        "| both | 19.000 +- 0.500 |",
        "| neither | - |",
        "Without lpips",
        "PSNR 18.58",
    ):
        assert expected in text
    run_parts(None, tmp_path, 3, SEED, ("quality",), name="tiny")  # other worlds: done anew
    assert done[-1] == "evaluate_quality" and len(done) == 3
    (tmp_path / "quality.json").write_text("{")  # a damaged file is done anew
    run_parts(None, tmp_path, 3, SEED, ("quality",), name="tiny")
    assert len(done) == 4 and not list(tmp_path.glob("*.partial"))
    assert markdown({}, "", 1, 0).startswith("# Model: 1 test worlds from seed 0")


@pytest.mark.parametrize("module", [camera_control, quality, ablation, long_horizon, full_report])
def test_every_command_takes_worlds_seed_and_json(module):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    given = parser.parse_args(["--worlds", "3", "--seed", "2000001", "--json"])
    assert (given.worlds, given.seed, given.json) == (3, 2_000_001, True) and given.model == "spatia-mini"


def test_commands_print_a_table_or_one_object(monkeypatch, capsys, tmp_path):
    figures = {"psnr_c": 12.5, "psnr_c_ci95": 0.5, "ssim_c": None}
    result = {"tables": {"memory": {"both": figures}}, "config": {"worlds": 1, "model": None}, "absent": {"lpips": "pip install lpips"}}
    monkeypatch.setattr(ablation, "load_model", lambda args: None)
    monkeypatch.setattr(ablation, "find_tools", lambda device: NONE)
    monkeypatch.setattr(ablation, "evaluate_ablation", lambda *given: result)
    parser = argparse.ArgumentParser()
    ablation.add_arguments(parser)
    assert ablation.run(parser.parse_args(["--json"])) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert ablation.run(parser.parse_args([])) == 0
    text = capsys.readouterr().out
    assert "12.500 +- 0.500" in text and "both" in text and "without lpips: pip install lpips" in text and "ssim_c" not in text
    assert set(FIGURES) == {"psnr_c", "ssim_c", "lpips_c", "match_acc", "camera_control"}
