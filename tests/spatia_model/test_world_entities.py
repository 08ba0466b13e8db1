"""What moves in the loop: taken out of the picture, sent where the text says, drawn over what is generated, and kept out of the map."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from spatia_model.generator.motion import MotionConfig, MotionPlanner
from spatia_model.generator.pipeline import overlay
from spatia_model.model_folder import FILES, PLANNER, CheckpointError, load_planner, save_mini
from spatia_model.types import Conditioning, Perception, Projection
from spatia_model.world_model import WorldModel
from spatia_model.world_state import load_state, save_state
from spatia_model.worlds import VOCABULARY
from tests.spatia_model.test_world_model import assert_equal
from tests.spatia_model.tiny import CONFIG, MAPPING, OPTIONS, SEED, SIZE, tiny_model, tiny_parts

T, H = CONFIG.frames_per_clip, CONFIG.history_frames
WHERE = (slice(14, 20), slice(6, 12))
RED, GREY = torch.tensor([220, 20, 20], dtype=torch.uint8), torch.tensor([120, 120, 120], dtype=torch.uint8)


def picture() -> torch.Tensor:
    """A red square before grey."""
    frame = GREY.expand(SIZE, SIZE, 3).clone()
    frame[WHERE] = RED
    return frame


class Eyes:
    """Red moves; it is 2 m away, all else 4 m."""

    def __init__(self) -> None:
        self.priors: list[Projection | None] = []

    def perceive(self, frames, T_world_camera, camera, prior=None, previous=None) -> Perception:
        self.priors.append(prior)
        red = (frames.float() - RED.float()).abs().amax(-1) < 60
        return Perception(torch.where(red, 2.0, 4.0), torch.ones(frames.shape[:3]), red.float())


class Mirror:
    """A generator that shows the memory it was told, with what moves over it; holes are grey."""

    text = None

    def __init__(self) -> None:
        self.told: list[Conditioning] = []

    def generate(self, conditionings, rngs, progress=None):
        self.told += conditionings
        still = [torch.where(c.projection.mask[H:, :, :, None], c.projection.rgb[H:], GREY) for c in conditionings]
        return [frames if c.entities is None else overlay(frames, c.entities) for frames, c in zip(still, conditionings, strict=True)]


class Way:
    """Half a metre to the right for "right", else to the left."""

    def plan(self, entities, text: str, T_world_camera: torch.Tensor, T_level_world: torch.Tensor | None = None) -> torch.Tensor:
        way = torch.zeros(len(entities), T, 3)
        way[..., 0] = torch.linspace(0.5 / T, 0.5, T) * (1 if "right" in text else -1)
        return way


def world(planner: Any = None) -> tuple[WorldModel, Mirror, Eyes]:
    mirror, eyes = Mirror(), Eyes()
    return WorldModel(mirror, eyes, CONFIG, MAPPING, planner or Way()), mirror, eyes  # type: ignore[arg-type]


def here(frames: int = T) -> torch.Tensor:
    return torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)


def column(frame: torch.Tensor) -> float:
    """Of the red pixels' middle."""
    red = (frame.float() - RED.float()).abs().amax(-1) < 60
    assert red.any(), "nothing red"
    return float(red.nonzero()[:, 1].float().mean())


def red_in(frames: torch.Tensor) -> bool:
    return bool(((frames.float() - RED.float()).abs().amax(-1) < 60).any())


def test_the_picture_is_taken_apart():
    model, _, _ = world()
    state = model.begin(picture(), seed=SEED)
    assert state.entities is not None and len(state.entities) == 1
    assert state.entities.shades[0].tolist() == RED.tolist()
    assert not red_in(state.memory.colors)  # no ghost of it in the map
    assert state.memory.project(here(1), state.camera).mask.float().mean() > 0.95  # and no hole behind it
    assert red_in(state.frames) and not red_in(state.frames_projection.rgb)  # the picture is as it was, its memory without it
    assert not red_in(state.keyframes.keyframes[0].frame)


def test_nothing_near_beside_it_is_taken_to_lie_before_it():
    """The background behind it is filled in from around it, where something nearer may stand: that must not hide it."""
    model, _, eyes = world(Still())
    close = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    close[4:30, :22] = True
    far = eyes.perceive

    def perceive(frames, *rest, **more) -> Perception:
        seen = far(frames, *rest, **more)
        return replace(seen, depth=torch.where(close & (seen.dynamic < 0.5), 1.0, seen.depth))

    eyes.perceive = perceive  # type: ignore[method-assign]
    state = model.begin(picture(), seed=SEED)
    behind = state.memory.project(here(1), state.camera).depth[0][WHERE]
    assert float(behind.min()) >= 1.9
    _, clip = model.advance(state, here())
    assert column(clip.frames[-1]) == pytest.approx(column(picture()), abs=1)


def test_the_text_says_where_it_goes_and_the_map_stays_clean():
    model, mirror, eyes = world()
    start = model.begin(picture(), seed=SEED)
    ends = {}
    for text in ("a red box slides to the left", "a red box slides to the right"):
        state, clip = model.advance(start, here(), text)
        told = mirror.told[-1]
        assert told.entities is not None and column(told.entities.rgb[-1]) == pytest.approx(column(clip.frames[-1]), abs=1)
        assert not any(red_in(seen) for seen in (told.history, told.projection.rgb, told.references))  # as still as the memory
        assert not told.history_dynamic.any()
        ends[text] = column(clip.frames[-1])
        assert not red_in(state.memory.colors)
        assert not red_in(clip.projection.rgb)  # what the memory knew: the static world
        assert eyes.priors[-1] is not None and not red_in(eyes.priors[-1].rgb)
        later, clip = model.advance(state, here(), text)
        assert (column(clip.frames[-1]) - ends[text]) * (1 if "right" in text else -1) > 1  # it goes on from there
        assert later.entities is not None and later.entities.watched.all()
    left, right = ends.values()
    assert left < column(picture()) - 2 < column(picture()) + 2 < right
    assert start.entities is not None and not start.entities.watched.any()  # states are values


def test_out_of_view_it_stays_where_it_went():
    model, _, _ = world()
    state, _ = model.advance(model.begin(picture(), seed=SEED), here(), "a red box slides to the right")
    away = here()
    away[:, 0, 0] = away[:, 2, 2] = -1  # turned round
    still = WorldModel(model.generator, model.perceiver, CONFIG, MAPPING, Still())  # type: ignore[arg-type]
    gone, clip = still.advance(state, away, "")
    assert not red_in(clip.frames)
    back, clip = still.advance(gone, here(), "")
    assert state.entities is not None and back.entities is not None
    torch.testing.assert_close(back.entities.positions, state.entities.positions)
    assert column(clip.frames[-1]) > column(picture()) + 2


class Still:
    def plan(self, entities, text, T_world_camera, T_level_world=None):
        return torch.zeros(len(entities), T, 3)


def test_a_frame_that_shows_it_elsewhere_is_believed():
    model, mirror, _ = world()
    start = model.begin(picture(), seed=SEED)
    mirror.generate = lambda conditionings, rngs, progress=None: [elsewhere() for _ in conditionings]  # type: ignore[method-assign]
    state, _ = model.advance(start, here(), "a red box slides to the left")
    assert state.entities is not None and start.entities is not None
    assert float(state.entities.centres[0, 0]) > float(start.entities.centres[0, 0]) + 0.5


def elsewhere() -> torch.Tensor:
    frames = GREY.expand(T, SIZE, SIZE, 3).clone()
    frames[:, 14:20, 20:26] = RED
    return frames


def test_without_memory_nothing_is_told_and_nothing_moves():
    model, mirror, _ = world()
    start = model.begin(picture(), seed=SEED)
    state, _ = model.advance(start, here(), "a red box slides to the right", memory=False)
    assert not mirror.told[-1].projection.mask.any() and state.entities is start.entities


def test_worlds_keep_their_entities_apart_in_a_batch():
    model, _, _ = world()
    a, b = model.begin(picture(), seed=1), model.begin(picture().flip(1), seed=2)
    texts = ["a red box slides to the right", "a red box slides to the left"]
    both = model.advance_batch([a, b], [here(), here()], texts)
    for state, text, (found, clip) in zip((a, b), texts, both, strict=True):
        alone, own = model.advance(state, here(), text)
        assert_equal(found, alone)
        assert torch.equal(clip.frames, own.frames)


def test_entities_are_saved_and_a_world_of_before_has_none(tmp_path):
    model, _, _ = world()
    state, _ = model.advance(model.begin(picture(), seed=SEED), here(), "a red box slides to the right")
    save_state(state, tmp_path / "world")
    assert_equal(load_state(tmp_path / "world"), state)
    save_state(replace(state, entities=None), tmp_path / "before")
    assert load_state(tmp_path / "before").entities is None
    model.advance(load_state(tmp_path / "before"), here(), "a red box slides to the right")


# -- weights


def planned(folder) -> MotionPlanner:
    torch.manual_seed(SEED)
    planner = MotionPlanner(MotionConfig(VOCABULARY, width=8, layers=1, heads=2)).eval()
    save_mini(folder, CONFIG, OPTIONS, *tiny_parts(), planner)
    return planner


def test_a_folder_holds_the_planner_or_does_not(tmp_path):
    planner = planned(tmp_path / "with")
    assert sorted(p.name for p in (tmp_path / "with").iterdir()) == sorted([*FILES, PLANNER, "config.json"])
    found = WorldModel.from_pretrained(tmp_path / "with").planner
    assert found is not None and found.config == planner.config and not found.training
    for name, tensor in planner.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.half().float())
    save_mini(tmp_path / "without", CONFIG, OPTIONS, *tiny_parts())
    assert load_planner(tmp_path / "without") is None
    model = WorldModel.from_pretrained(tmp_path / "without")
    assert model.planner is None and model.begin(picture()).entities is None


def test_a_damaged_planner_is_named(tmp_path):
    planned(tmp_path / "model")
    settings = (tmp_path / "model" / "config.json").read_text()
    described = json.loads(settings)
    described["motion"]["depth"] = 2
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="motion"):
        load_planner(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(settings)
    (tmp_path / "model" / PLANNER).unlink()
    with pytest.raises(ValueError, match=PLANNER):
        WorldModel.from_pretrained(tmp_path / "model")


def test_the_whole_tiny_model_runs_with_a_planner():
    tiny = tiny_model()
    torch.manual_seed(SEED)
    model = WorldModel(tiny.generator, Eyes(), CONFIG, MAPPING, MotionPlanner(MotionConfig(VOCABULARY, width=8, layers=1, heads=2)).eval())
    state, clip = model.advance(model.begin(picture(), "a room", SEED), here(), "a red box slides to the right")
    again, other = model.advance(model.begin(picture(), "a room", SEED), here(), "a red box slides to the left")
    assert state.entities is not None and len(state.entities) == 1 and clip.frames.shape == (T, SIZE, SIZE, 3)
    assert not torch.equal(clip.frames, other.frames)
