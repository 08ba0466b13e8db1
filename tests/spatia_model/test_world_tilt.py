"""Pictures whose camera looked up or down: guessed by the perceiver, kept by the world, told to all that asks which way is down."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.generator.motion import MotionConfig, MotionPlanner
from spatia_model.geometry import se3
from spatia_model.memory.entities import PAST, Entities
from spatia_model.memory.surroundings import surroundings_of
from spatia_model.perception.compact import PITCH_SPREAD, PITCH_TELLS, PITCHES, USUAL_PITCH, stack_inputs
from spatia_model.world_model import WorldModel
from spatia_model.world_state import load_state, save_state
from spatia_model.worlds import VOCABULARY
from spatia_model.worlds.trajectories import pose_from, yaw_pitch_roll
from tests.conftest import needs_weights
from tests.spatia_model.test_world_model import Recorder, assert_equal
from tests.spatia_model.tiny import CONFIG, MAPPING, SEED, picture, tiny_model, walk

DOWN = math.radians(-20)


class Guesser(Recorder):
    """Takes every picture's camera for tilted by as much."""

    def __init__(self, real, pitch: float):
        super().__init__(real)
        self.pitch, self.asked = pitch, 0

    def pitch_of(self, frame, camera):
        self.asked += 1
        assert frame.shape == (1, CONFIG.image_size, CONFIG.image_size, 3) and camera.width == CONFIG.image_size
        return self.pitch


def tilted(pitch: float = DOWN) -> tuple[WorldModel, Guesser]:
    model = tiny_model(config=replace(CONFIG, surroundings=True))
    eyes = Guesser(model.perceiver, pitch)
    return WorldModel(model.generator, eyes, model.config, MAPPING), eyes


def test_the_guess_is_the_least_doubt_with_a_word_for_the_usual():
    perceiver, camera = tiny_model().perceiver, mini_camera(MiniConfig(image_size=32))
    frame = picture()[None]
    costs = []
    for degrees in PITCHES:
        pose = pose_from(0, 0, 0, 0, math.radians(degrees), 0)[None]
        doubt = perceiver(stack_inputs(frame, pose, camera, None, None))[1].mean()
        costs.append(PITCH_TELLS * float(doubt) + (degrees - USUAL_PITCH) ** 2 / (2 * PITCH_SPREAD**2))
    expected = PITCHES[costs.index(min(costs))]
    assert perceiver.pitch_of(frame, camera) == pytest.approx(math.radians(expected), abs=1e-6)
    assert 0 in PITCHES  # level is among them


def test_a_world_is_perceived_as_tilted_as_its_picture():
    model, eyes = tilted()
    start = model.begin(picture(), seed=SEED)
    assert eyes.asked == 1 and start.T_level_world is not None
    assert yaw_pitch_roll(start.T_level_world) == pytest.approx((0, DOWN, 0))
    assert torch.equal(start.T_world_camera[-1], torch.eye(4, dtype=torch.float64))  # the world's origin is its first camera, as ever
    torch.testing.assert_close(eyes.calls[0][1], start.T_level_world[None])
    after, clip = model.advance(start, walk(0))
    torch.testing.assert_close(eyes.calls[1][1], start.T_level_world @ walk(0))
    assert torch.equal(clip.T_world_camera, walk(0)) and torch.equal(after.T_level_world, start.T_level_world)
    seen, _ = model.observe(after, clip.frames, walk(1))
    torch.testing.assert_close(eyes.calls[2][1], start.T_level_world @ walk(1))
    assert torch.equal(seen.T_level_world, start.T_level_world) and eyes.asked == 1


def test_given_poses_are_believed_and_level_guesses_leave_no_trace():
    model, eyes = tilted()
    told = model.begin(picture(), seed=SEED, T_world_camera=torch.eye(4, dtype=torch.float64))
    assert eyes.asked == 0 and told.T_level_world is None
    level, _ = tilted(0.0)
    assert_equal(level.begin(picture(), seed=SEED), told)


def test_a_saved_world_keeps_its_tilt(tmp_path):
    model, _ = tilted()
    state, _ = model.advance(model.begin(picture(), seed=SEED), walk(0))
    save_state(state, tmp_path / "world")
    loaded = load_state(tmp_path / "world")
    assert_equal(loaded, state)
    assert_equal(model.advance(loaded, walk(1))[1], model.advance(state, walk(1))[1])


def test_things_are_planned_for_in_level_axes():
    """A tilted world's plan is the level world's, turned."""
    torch.manual_seed(SEED)
    planner = MotionPlanner(MotionConfig(VOCABULARY)).eval()
    torch.nn.init.normal_(planner.way.weight, std=0.3)
    points, owner = torch.tensor([[0.0, 0.5, 2], [0.1, 0.5, 2], [0, 0.3, 4], [0.1, 0.3, 4]]), torch.tensor([0, 0, 1, 1])
    past = torch.randn(2, len(PAST), 3, generator=torch.Generator().manual_seed(1)) * 0.2
    colors = torch.tensor([[200, 30, 30]] * 2 + [[30, 200, 30]] * 2, dtype=torch.uint8)
    things = Entities(points, colors, torch.full((4,), 0.05), owner, past, torch.tensor([True, False]))
    camera = pose_from(0.2, -0.1, 0.3, 0.4, 0.1, 0.0)
    turn = pose_from(0, 0, 0, 0, DOWN, 0)
    way = planner.plan(things, "a red ball rolls to the left", camera, turn)
    R = turn[:3, :3].float()
    upright = replace(things, positions=things.positions @ R.T, past=things.past @ R.T)
    expected = planner.plan(upright, "a red ball rolls to the left", turn @ camera)
    torch.testing.assert_close(way, expected @ R, atol=1e-5, rtol=1e-4)
    assert float((way - planner.plan(things, "a red ball rolls to the left", camera)).abs().max()) > 1e-3


def test_surroundings_stand_upright_in_a_tilted_world():
    """A floor seen from above goes on as a level floor: below the camera by as much everywhere."""
    camera = mini_camera(MiniConfig(image_size=48))
    turn = pose_from(0, 0, 0, 0, DOWN, 0)
    rays = torch.stack(torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="xy"), -1)
    focal = float(camera.K[0, 0])
    right, down = ((rays - 24) / focal).unbind(-1)
    below = down * math.cos(DOWN) - math.sin(DOWN)  # by how far a ray of unit depth falls
    depth = torch.where(below > 0.2, 1.4 / below.clamp(min=0.2), 7.0)
    frame = picture(height=48, width=48)
    points = surroundings_of(frame, depth, torch.eye(4, dtype=torch.float64), camera, 0.03, turn).positions
    heights = se3.transform_points(turn, points.double())[:, 1]
    plain = surroundings_of(frame, depth, turn, camera, 0.03).positions[:, 1]
    assert abs(len(heights) - len(plain)) < 0.05 * len(plain)  # voxels lie otherwise
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert float(heights.quantile(share)) == pytest.approx(float(plain.quantile(share)), abs=0.03)
    assert float(((heights - 1.4).abs() < 0.05).double().mean()) > 0.3


@pytest.mark.weights
@needs_weights
def test_the_embedded_perceiver_tells_who_looks_down(capsys):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "tilted_pictures.py"
    spec = importlib.util.spec_from_file_location("tilted_pictures", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    figures = benchmark.measure("spatia-mini", worlds=16, seed=2_000_700)
    assert figures["pitch_error"] < 0.7 * figures["pitch_error_level"]
    assert figures["abs_rel_told"] < figures["abs_rel_level"] and figures["abs_rel"] < 0.8 * figures["abs_rel_level"]
