"""The loop with a tiny random model: what a state holds, what the generator is shown, and that states are values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from PIL import Image

from spatia_model.geometry.camera import camera_from_fov
from spatia_model.types import Conditioning, WorldState
from spatia_model.world_model import WorldModel
from spatia_model.world_steps import levelled
from tests.spatia_model.tiny import CONFIG, SEED, SIZE, picture, tiny_model, walk

H, T = CONFIG.history_frames, CONFIG.frames_per_clip


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


@pytest.fixture(scope="module")
def start(model: WorldModel) -> WorldState:
    return model.begin(picture(), "a room", seed=SEED)


@pytest.fixture(scope="module")
def first(model: WorldModel, start: WorldState):
    """State and clip after one step."""
    return model.advance(start, walk(0), "a red ball rolls to the left")


def flat(value: Any) -> dict[str, Any]:
    """Every tensor and plain value in a tree of dataclasses."""
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple):
        parts = dict(enumerate(value))
    else:
        return {"": value.clone() if isinstance(value, torch.Tensor) else value}
    return {f"{name}.{deeper}": leaf for name, part in parts.items() for deeper, leaf in flat(part).items()}


def assert_equal(a: Any, b: Any) -> None:
    a, b = (x if isinstance(x, dict) else flat(x) for x in (a, b))
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == b[name].dtype and torch.equal(value, b[name]), name
        else:
            assert value == b[name], name


class Recorder:
    """Stands before the generator or the perceiver and keeps what they were told."""

    def __init__(self, real: Any):
        self.real, self.text, self.conditionings, self.calls = real, getattr(real, "text", None), [], []

    def generate(self, conditionings, rngs, progress=None):
        self.conditionings += conditionings
        return self.real.generate(conditionings, rngs, progress)

    def perceive(self, *arguments):
        self.calls.append(arguments)
        return self.real.perceive(*arguments)


def recorded(model: WorldModel) -> tuple[WorldModel, Recorder, Recorder]:
    generator, perceiver = Recorder(model.generator), Recorder(model.perceiver)
    return WorldModel(generator, perceiver, model.config, model.mapping), generator, perceiver


# -- begin -----------------------------------------------------------------------------------------------------------


def test_a_world_begins_with_time_standing_still(model, start):
    assert start.frames.shape == (H, SIZE, SIZE, 3) and start.frames.dtype == torch.uint8
    assert all(torch.equal(frame, picture()) for frame in start.frames)
    assert torch.equal(start.T_world_camera, torch.eye(4, dtype=torch.float64).expand(H, 4, 4))
    assert start.frames_dynamic.shape == (H, SIZE, SIZE) and torch.equal(start.frames_dynamic[0], start.frames_dynamic[-1])
    assert (start.prompt, start.clip_count, start.frame_count) == ("a room", 0, 1)
    assert len(start.memory) > 100 and start.keyframes.ids == (0,)
    assert torch.equal(start.keyframes.keyframes[0].frame, picture())
    assert start.frames_projection.coverage > 0.95  # all of the picture is in the map, its random depth's edges too
    for name in ("rgb", "depth", "mask", "index"):
        rows = getattr(start.frames_projection, name)
        assert all(torch.equal(row, rows[0]) for row in rows)


def test_pictures_of_any_shape_give_their_middle_square(model, start):
    wide = torch.zeros(SIZE, 2 * SIZE, 3, dtype=torch.uint8)
    wide[:, SIZE // 2 : SIZE // 2 + SIZE] = picture()
    assert_equal(model.begin(wide, "a room", seed=SEED), start)
    assert_equal(model.begin(Image.fromarray(picture().numpy()), "a room", seed=SEED), start)
    assert model.begin(torch.zeros(1, 1, 3, dtype=torch.uint8)).frames.shape == (H, SIZE, SIZE, 3)


def test_a_world_may_begin_anywhere_with_any_camera(model):
    pose = walk(3)[-1]
    state = model.begin(picture(), camera=camera_from_fov(math.radians(60), 640, 640), T_world_camera=pose)
    assert torch.equal(state.T_world_camera, pose.expand(H, 4, 4))
    assert (state.camera.width, state.camera.height) == (SIZE, SIZE)
    torch.testing.assert_close(state.camera.K, camera_from_fov(math.radians(60), SIZE, SIZE).K)
    ahead = (state.memory.positions.double() - pose[:3, 3]) @ pose[:3, 2]  # depth of the map's points
    assert ahead.min() > 0


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8), torch.uint8), ((8, 8, 3), torch.float32), ((8, 8, 4), torch.uint8), ((3, 8, 8), torch.uint8)]
)
def test_arrays_that_are_no_pictures_are_refused(model, shape, dtype):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        model.begin(torch.zeros(shape, dtype=dtype))


def test_a_start_that_is_no_pose_is_refused(model):
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.begin(picture(), T_world_camera=torch.full((4, 4), math.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="got \\(1, 3, 4\\)"):
        model.begin(picture(), T_world_camera=torch.eye(4, dtype=torch.float64)[:3])


# -- advance ---------------------------------------------------------------------------------------------------------


def test_a_clip_and_the_window_that_follows_it(start, first):
    state, clip = first
    assert clip.frames.shape == (T, SIZE, SIZE, 3) and clip.frames.dtype == torch.uint8
    assert clip.frames.float().std() > 1
    assert torch.equal(clip.T_world_camera, walk(0)) and clip.T_world_camera.dtype == torch.float64
    assert clip.text == "a red ball rolls to the left" and 0 < clip.coverage <= 1
    for name in ("depth", "confidence", "dynamic"):
        assert getattr(clip.perception, name).shape == (T, SIZE, SIZE)
    assert torch.equal(state.frames, clip.frames[-H:])
    assert torch.equal(state.T_world_camera, walk(0)[-H:])
    assert torch.equal(state.frames_dynamic, clip.perception.dynamic[-H:])
    for name in ("rgb", "depth", "mask", "index"):
        assert torch.equal(getattr(state.frames_projection, name), getattr(clip.projection, name)[-H:])
    assert (state.prompt, state.clip_count, state.frame_count) == ("a room", 1, 1 + T)
    assert state.keyframes.ids == (0, 1)
    assert torch.equal(state.keyframes.keyframes[1].frame, clip.frames[-1])
    assert torch.equal(state.keyframes.keyframes[1].T_world_camera, walk(0)[-1])
    assert clip.references == (0,)
    assert not torch.equal(state.rng_state, start.rng_state)
    assert not torch.equal(state.memory.keys, start.memory.keys)


def test_the_window_reaches_back_beyond_a_short_clip():
    model = tiny_model(config=dataclasses.replace(CONFIG, frames_per_clip=4))
    start = model.begin(picture(), seed=SEED)
    state, clip = model.advance(start, walk(frames=4))
    assert torch.equal(state.frames, torch.cat([start.frames[-1:], clip.frames]))
    assert torch.equal(state.T_world_camera, torch.cat([start.T_world_camera[-1:], walk(frames=4)]))
    assert torch.equal(state.frames_projection.rgb, torch.cat([start.frames_projection.rgb[-1:], clip.projection.rgb]))


def test_the_generator_is_shown_history_memory_and_references(model, first):
    state, _ = first
    listening, generator, perceiver = recorded(model)
    after, clip = listening.advance(state, walk(1), "a ball rolls")
    (given,) = generator.conditionings
    assert isinstance(given, Conditioning) and given.text == "a room . a ball rolls"
    assert torch.equal(given.history, state.frames) and torch.equal(given.history_dynamic, state.frames_dynamic)
    assert torch.equal(given.T_world_camera, torch.cat([state.T_world_camera, walk(1)]))
    expected = state.memory.project(walk(1), state.camera)  # as it was before the clip
    for name in ("rgb", "depth", "mask", "index"):
        whole = torch.cat([getattr(state.frames_projection, name), getattr(expected, name)])
        assert torch.equal(getattr(given.projection, name), whole)
        assert torch.equal(getattr(clip.projection, name), getattr(expected, name))
    assert 0 < len(clip.references) <= CONFIG.max_references
    assert torch.equal(given.references, torch.stack([k.frame for k in state.keyframes.get(clip.references)]))
    (frames, path, _, prior, earlier) = perceiver.calls[0]
    assert torch.equal(frames, clip.frames) and torch.equal(path, levelled(walk(1), state.T_level_world))
    assert torch.equal(prior.rgb, expected.rgb)
    gap = CONFIG.motion_gap
    assert torch.equal(earlier, torch.cat([state.frames[-gap:], clip.frames[:-gap]]))
    assert after.clip_count == 2


def test_without_memory_nothing_of_it_is_shown_or_written(model, first):
    state, _ = first
    listening, generator, perceiver = recorded(model)
    after, clip = listening.advance(state, walk(1), memory=False)
    (given,) = generator.conditionings
    assert given.projection.rgb.shape == (H + T, SIZE, SIZE, 3)
    assert not given.projection.mask.any() and given.projection.rgb.max() == 0 and given.projection.depth.max() == 0
    assert given.projection.index.max() == -1
    assert given.references.shape == (0, SIZE, SIZE, 3) and clip.references == () and clip.coverage == 0
    assert torch.equal(given.history, state.frames)  # the last frames are no memory
    assert perceiver.calls[0][3] is None and perceiver.calls[0][4] is not None
    assert after.memory is state.memory and after.keyframes is state.keyframes
    assert torch.equal(after.frames, clip.frames[-H:]) and after.clip_count == 2
    _, remembering = model.advance(state, walk(1))
    assert not torch.equal(remembering.frames, clip.frames)


def test_what_is_told_matters(model, start, first):
    _, clip = first
    for changed in (model.advance(start, walk(0), "a blue box"), model.advance(start, walk(0, forward=-0.2), clip.text)):
        assert not torch.equal(changed[1].frames, clip.frames)
    assert model.unknown_words("a red zeppelin") == ["zeppelin"]


# -- values ----------------------------------------------------------------------------------------------------------


def test_advance_changes_nothing_it_was_given(model, first):
    state, path = first[0], walk(1)
    before = flat(state)
    model.advance(state, path, "a red ball")
    model.advance(state, path, memory=False)
    assert_equal(before, state)
    assert torch.equal(path, walk(1))


def test_a_branch_is_using_a_state_twice(model, first):
    a, b = (model.advance(first[0], walk(1), "a red ball") for _ in range(2))
    assert_equal(a[0], b[0])
    assert_equal(a[1], b[1])


def test_one_seed_one_future(start, model):
    other = tiny_model()  # the same weights, made anew
    same = other.begin(picture(), "a room", seed=SEED)
    assert_equal(start, same)
    assert_equal(model.advance(start, walk(0))[0], other.advance(same, walk(0))[0])
    different = model.begin(picture(), "a room", seed=SEED + 1)
    assert torch.equal(start.memory.positions, different.memory.positions)
    assert not torch.equal(model.advance(start, walk(0))[1].frames, model.advance(different, walk(0))[1].frames)


def test_later_noise_is_new_noise(model, start):
    """The same place and text twice: frames differ because the noise does."""
    still = torch.eye(4, dtype=torch.float64).repeat(T, 1, 1)
    state, a = model.advance(start, still, memory=False)
    back = dataclasses.replace(start, rng_state=state.rng_state)
    _, b = model.advance(back, still, memory=False)
    assert not torch.equal(a.frames, b.frames)


def test_worlds_in_a_batch_do_not_meet(model, start, first):
    """Equal to one by one, up to the sums' order in batched matrix products: one level of a byte."""
    other = model.begin(picture(SEED + 1), "a courtyard", seed=SEED + 7)
    states, paths, texts = [first[0], other, start], [walk(1), walk(0, turn=-0.02), walk(0)], ["a red ball", "", "a box"]
    batch = model.advance_batch(states, paths, texts)
    assert len(batch) == 3
    for (state, clip), given, path, text in zip(batch, states, paths, texts, strict=True):
        alone_state, alone = model.advance(given, path, text)
        assert (clip.frames.int() - alone.frames.int()).abs().max() <= 1
        assert torch.equal(clip.projection.rgb, alone.projection.rgb) and clip.references == alone.references
        assert torch.equal(state.rng_state, alone_state.rng_state) and clip.text == text
    assert (batch[1][1].frames.int() - batch[2][1].frames.int()).abs().max() > 1
    assert model.advance_batch([], [], []) == []


def test_a_caller_may_reuse_its_array(model, start):
    path = walk(0)
    state, clip = model.advance(start, path)
    path[:] = math.nan
    assert torch.equal(clip.T_world_camera, walk(0))
    assert torch.equal(state.keyframes.keyframes[-1].T_world_camera, walk(0)[-1])
    array = walk(0).numpy()
    assert_equal(model.advance(start, array)[0], state)


# -- bad input -------------------------------------------------------------------------------------------------------


def spoilt(**entries: float) -> torch.Tensor:
    path = walk(0)
    for place, value in entries.items():
        path[3, int(place[1]), int(place[2])] = value
    return path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (spoilt(_03=math.nan), "NaN or infinite"),
        (spoilt(_13=math.inf), "NaN or infinite"),
        (walk(0)[:-1], r"\(8, 4, 4\).*got \(7, 4, 4\)"),
        (walk(0)[0], r"\(8, 4, 4\).*got \(4, 4\)"),
        (walk(0)[:, :3], r"\(8, 4, 4\).*got \(8, 3, 4\)"),
        (spoilt(_00=2.0), "not rotations"),
        (spoilt(_11=-1.0), "not rotations"),  # a mirror
        (walk(0).transpose(1, 2), "last row.*0 0 0 1"),
        (["forward"] * 8, "must be numbers"),
        (None, "must be numbers"),
    ],
)
def test_paths_that_cannot_be_walked_leave_the_world_as_it_was(model, first, path, message):
    state = first[0]
    before = flat(state)
    with pytest.raises(ValueError, match=message):
        model.advance(state, path)
    with pytest.raises(ValueError, match=message):  # nor does the good company of a batch move
        model.advance_batch([state, state], [walk(1), path], ["", ""])
    assert_equal(before, state)


def test_rotations_a_hair_off_are_put_right(model, start):
    path = walk(0)
    path[:, :3, :3] *= 1 + 1e-5
    _, clip = model.advance(start, path)
    R = clip.T_world_camera[:, :3, :3]
    torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(T, 3, 3), atol=1e-12, rtol=0)
    torch.testing.assert_close(clip.T_world_camera, walk(0), atol=1e-4, rtol=0)


def test_texts_and_lengths_are_checked(model, start):
    with pytest.raises(ValueError, match="text must be a string"):
        model.advance(start, walk(0), None)
    with pytest.raises(ValueError, match="got 2, 1, 2"):
        model.advance_batch([start, start], [walk(0)], ["", ""])


def test_size_of_a_state_stays_bounded(model, start):
    state = start
    for clip in range(4):
        state, _ = model.advance(state, walk(clip % 2))
    assert len(state.frames) == H and len(state.frames_projection.mask) == H and len(state.keyframes) == 5


# -- observe ---------------------------------------------------------------------------------------------------------


class Player:
    """A generator that shows given frames."""

    def __init__(self, frames: torch.Tensor):
        self.frames = frames

    def generate(self, conditionings, rngs, progress=None):
        return [self.frames]


@pytest.fixture(scope="module")
def recording() -> torch.Tensor:
    """(T, SIZE, SIZE, 3) uint8: what some camera saw."""
    return torch.stack([picture(SEED + i) for i in range(T)])


def test_what_is_observed_is_remembered_as_if_it_had_been_generated(model, start, recording):
    seen, clip = model.observe(start, recording, walk(0), "nothing happens")
    player = WorldModel(Player(recording), model.perceiver, model.config, model.mapping)  # type: ignore[arg-type]
    expected, _ = player.advance(start, walk(0), "nothing happens")
    assert_equal(seen, expected)
    assert torch.equal(clip.frames, recording) and clip.text == "nothing happens" and torch.equal(seen.frames[-T:], recording[-H:])
    assert len(seen.memory) > len(start.memory)
    again, _ = model.observe(start, recording, walk(0), "nothing happens")
    assert_equal(seen, again)
    model.advance(seen, walk(1))  # and goes on from there


def test_a_recording_may_have_any_length_and_size(model, start):
    frames = torch.stack([picture(SEED + i, 40, 60) for i in range(3)])
    seen, clip = model.observe(start, frames, walk(0, frames=3))
    assert clip.frames.shape == (3, SIZE, SIZE, 3) and seen.frame_count == 4
    assert torch.equal(seen.T_world_camera[-3:], walk(0, frames=3)) and torch.equal(seen.frames[:-3], start.frames[3:])
    model.advance(seen, walk(1))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(T, SIZE, SIZE, 3), r"uint8 tensor \(T, H, W, 3\), one or more frames, got torch.float32"),
        (torch.zeros(T, 3, SIZE, SIZE, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(0, SIZE, SIZE, 3, dtype=torch.uint8), "one or more frames"),
        ([picture()] * T, "got list"),
        (torch.zeros(T + 1, SIZE, SIZE, 3, dtype=torch.uint8), "one pose per new frame"),
    ],
)
def test_recordings_that_cannot_be_used_are_refused(model, start, frames, message):
    with pytest.raises(ValueError, match=message):
        model.observe(start, frames, walk(0))
