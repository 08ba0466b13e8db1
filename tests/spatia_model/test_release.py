"""A rehearsal of the 5B without its weights: files in the released layout -> convert -> from_pretrained -> env -> two clips on a photo.

The clips are checked against `plain_release`, a plain statement of the release's loop.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import spatia_env  # noqa: F401 (registers the envs)
from spatia_env import cli
from spatia_model.config import PAPER, RELEASE, preset
from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.memory.references import match_frames
from spatia_model.release_world import ReleaseWorldModel
from spatia_model.world_model import WorldModel
from spatia_model.world_state import load_state, save_state
from tests.spatia_model.generator.tiny_release import LOOP, write_release
from tests.spatia_model.plain_release import Plain, Slope, assert_alike, plain_loop
from tests.spatia_model.tiny import picture

SEED = 2_000_800
PHOTO = Path(__file__).parents[2] / "../shared/cases/case_3/img.jpg"
CONFIG = replace(LOOP, max_references=3, render_voxel_step=0.04)
STEP = CONFIG.frames_per_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `spatia convert` makes of the files."""
    place = tmp_path_factory.mktemp("release")
    base, spatia, sizes = write_release(place)
    command = ["convert", "--base", base, "--spatia", spatia, "--out", place / "model", "--dtype", "float32", "--architecture", sizes]
    assert cli.main([str(word) for word in (*command, "--perception", "embedded", "--json")]) == 0
    described = json.loads((place / "model" / "spatia.json").read_text())
    assert described["world"] == json.loads(json.dumps(vars(RELEASE))) and described["perception"] == "embedded"
    return place / "model"


@pytest.fixture(scope="module")
def world(folder):
    model = WorldModel.from_pretrained(folder, perceiver=Slope(), config=CONFIG)
    assert isinstance(model, ReleaseWorldModel)
    return model


@pytest.fixture(scope="module")
def photo():
    return Image.open(PHOTO).convert("RGB") if PHOTO.exists() else Image.fromarray(picture(SEED, 60, 120).numpy())


def path_to(poses, forward, turn, count=STEP):
    """`count` poses that go on from the last of `poses`."""
    from spatia_model.geometry import se3

    share = torch.arange(1, count + 1, dtype=torch.float64)[:, None] / count
    twist = torch.tensor([0.0, 0.0, forward, 0.0, turn, 0.0], dtype=torch.float64)
    return se3.orthonormalise(poses[-1] @ se3.exp(share * twist))


# -- the rehearsal --------------------------------------------------------------------------------------------------


def test_two_steps_of_the_env_are_two_clips_of_the_loop(world, photo):
    env = gym.make("Spatia-v0", image=photo, prompt="a sunny kitchen", model=world, max_translation=1.0, disable_env_checker=True)
    observation, info = env.reset(seed=SEED)
    assert env.observation_space.shape == observation.shape == (32, 64, 3)
    rng_state = env.unwrapped.state.rng_state
    camera = {"camera": np.array([0, 0, 0.4, 0, 0.3, 0], np.float32), "text": "a red ball rolls to the left"}
    steps = [env.step(camera), env.step({"camera": np.array([0.2, 0, 0, 0, -0.5, 0], np.float32), "text": ""})]
    infos = [info for *_, info in steps]
    assert all(info["frames"].shape == (STEP, 32, 64, 3) for info in infos)
    assert infos[1]["references"][0] >= 0 and infos[0]["references"][0] == -1

    state = world.begin(photo, "a sunny kitchen")
    state = replace(state, rng_state=rng_state)
    for info, text in zip(infos, (camera["text"], ""), strict=True):  # the env adds nothing of its own
        state, clip = world.advance(state, torch.from_numpy(info["poses"]), text)
        assert np.array_equal(clip.frames.numpy(), info["frames"]) and len(state.memory) == info["memory_points"]
        assert info["frames"].std() > 5
    assert np.array_equal(steps[1][0], infos[1]["frames"][-1])
    env.close()


def test_a_released_walk_with_a_short_last_clip_and_the_whole_video(folder, world, photo, monkeypatch):
    """Frame ranges, padding, history, text, LoRA and matching; then one video of all latents."""
    from spatia_model import release_world
    from spatia_model.geometry.pictures import fit_image

    drawn = []
    draw = release_world.composite_points
    monkeypatch.setattr(release_world, "composite_points", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    image = fit_image(photo, CONFIG.image_shape)
    assert CONFIG.clip_lengths(25) == [12, 8, 5]
    state = world.begin(image, "a sunny kitchen", seed=SEED)
    rng_state, video = state.rng_state, world.video()
    made, shown, paths = [], [], []
    for count, turn in ((12, 0.4), (8, -0.3), (5, 0.2)):
        paths.append(path_to(state.T_world_camera, 0.2, turn, count))
        state, clip = world.advance(state, paths[-1], "a red ball rolls" if made else "")
        made.append(clip)
        shown.append(video.add(clip))
    assert [len(frames) for frames in shown] == [13, 8, 5] and state.frame_count == 26 and len(state.frames) == 5
    assert torch.equal(state.rng_state, rng_state)  # every clip from the same noise
    texts = ["", "a red ball rolls", "a red ball rolls"]
    clips, whole = plain_loop(Plain(folder), CONFIG, image, "a sunny kitchen", paths, texts, rng_state, (12, 8, 8), drawn)
    stride = CONFIG.stride(CONFIG.candidate_rate)
    for clip, wanted in zip(made, clips, strict=True):
        assert [i * stride for i in clip.references] == wanted.references
        assert_alike(clip.frames, wanted.frames)
    assert [len(clip.references) for clip in made] == [0, 3, 3]
    assert_alike(torch.cat(shown), whole[:26])
    # the whole video is not the clips put in a row: every clip was decoded anew
    assert not torch.equal(torch.cat(shown)[13:21], made[1].frames)


def test_state_is_a_value_and_survives_a_file(world, photo, tmp_path):
    state = world.begin(photo, seed=SEED)
    state, _ = world.advance(state, path_to(state.T_world_camera, 0.1, 0.2))
    save_state(state, tmp_path / "world")
    path = path_to(state.T_world_camera, 0.1, -0.2, 4)
    after, clip = world.advance(state, path, "a cow")
    again, same = world.advance(load_state(tmp_path / "world"), path, "a cow")
    assert torch.equal(clip.frames, same.frames) and clip.references == same.references
    assert torch.equal(after.memory.positions, again.memory.positions) and state.clip_count == 1
    _, other = world.advance(state, path, "a red ball")
    assert not torch.equal(clip.frames, other.frames)
    _, blind = world.advance(state, path, "a cow", memory=False)
    assert blind.coverage == 0 and blind.references == () and not torch.equal(clip.frames, blind.frames)


def test_the_papers_walk(folder, world, photo, monkeypatch):
    """LoRA on from the start, fresh noise for every clip, the prompt as given, rounded colours, references by overlap."""
    from spatia_model import release_world
    from spatia_model.generator.release_pipeline import ReleaseGenerator
    from spatia_model.geometry.pictures import fit_image

    changes = {f.name: getattr(PAPER, f.name) for f in fields(PAPER) if getattr(PAPER, f.name) != getattr(RELEASE, f.name)}
    assert set(changes) == {
        *("first_frames", "matching", "render_voxel_step", "lora_first", "prompt_suffix", "negative_prompt", "same_noise", "truncate")
    }
    paper = replace(CONFIG, **(changes | {"first_frames": CONFIG.first_frames}))
    drawn = []
    draw = release_world.composite_points
    monkeypatch.setattr(release_world, "composite_points", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    parts = world.generator
    other = ReleaseWorldModel(ReleaseGenerator(parts.vae, parts.transformer, parts.text, paper), Slope(), paper)
    image = fit_image(photo, paper.image_shape)
    state = other.begin(image, "a sunny kitchen", seed=SEED)
    rng_states, made, paths = [state.rng_state], [], []
    for count, turn in ((12, 0.4), (8, -0.3)):
        paths.append(path_to(state.T_world_camera, 0.2, turn, count))
        state, clip = other.advance(state, paths[-1], "a cow" if made else "")
        rng_states.append(state.rng_state)
        made.append(clip)
    assert not torch.equal(rng_states[0], rng_states[1]) and not torch.equal(rng_states[1], rng_states[2])
    stride = paper.stride(paper.candidate_rate)
    chosen = [[i * stride for i in clip.references] for clip in made]
    assert chosen[0] == [] and 1 <= len(chosen[1]) <= 3 and max(chosen[1]) < 13 - paper.history_frames
    clips, _ = plain_loop(Plain(folder), paper, image, "a sunny kitchen", paths, ["", "a cow"], rng_states[0], (12, 8), drawn, chosen)
    for clip, wanted in zip(made, clips, strict=True):
        assert_alike(clip.frames, wanted.frames)
    _, released = world.advance(world.begin(image, "a sunny kitchen", seed=SEED), paths[0])
    assert not torch.equal(released.frames, made[0].frames)


def test_presets_are_the_documented_numbers():
    assert preset("release") is RELEASE and preset("paper") is PAPER
    assert (RELEASE.width, RELEASE.height, RELEASE.frame_rate, RELEASE.steps, RELEASE.guidance, RELEASE.shift) == (
        1248,
        704,
        24,
        40,
        3.5,
        5,
    )
    assert [RELEASE.stride(getattr(RELEASE, f"{n}_rate")) for n in ("map", "target", "candidate")] == [6, 12, 4]
    assert RELEASE.clip_lengths(192) == [120, 72] and RELEASE.clip_lengths(120) == [120] and RELEASE.clip_lengths(200) == [120, 72, 8]
    assert PAPER.clip_lengths(152) == [80, 72] and RELEASE.clip_lengths(0) == []
    assert (RELEASE.lora_first, RELEASE.lora_later, PAPER.lora_first) == (0, 1, 1)
    assert RELEASE.negative_prompt.startswith("画面切换") and RELEASE.negative_prompt.count("，") == 5
    for change, message in [
        ({"width": 1250}, "multiple of 32"),
        ({"first_frames": 120}, "1 \\+ 4k"),
        ({"history_frames": 81}, "new frames"),
        ({"matching": "best"}, "matching"),
        ({"map_rate": 30.0}, "map_rate"),
        ({"steps": 0}, "steps"),
        ({"fov_x": 60.0}, "radians"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(RELEASE, **change)
    with pytest.raises(ValueError, match="no preset"):
        preset("draft")


def test_matching_takes_every_target():
    counts = torch.tensor([[5, 0, 0], [4, 0, 0]])
    assert match_frames(counts) == (0, 1)  # the second target shares nothing with its frame, and is matched all the same
    assert match_frames(torch.tensor([[3], [9]])) == (-1, 0)


def test_bad_input_is_refused(world, folder, photo, tmp_path, monkeypatch):
    state = world.begin(photo)
    for path, message in [
        (torch.eye(4).repeat(13, 1, 1), r"\(12, 4, 4\)"),
        (torch.zeros(0, 4, 4), r"\(12, 4, 4\)"),
        (3, "got \\(\\)"),
        ("ahead", "numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            world.advance(state, path)
    with pytest.raises(ValueError, match="text must be a string"):
        world.advance(state, path_to(state.T_world_camera, 0, 0), text=None)
    with pytest.raises(ValueError, match="no latents"):
        clip = world.advance(state, path_to(state.T_world_camera, 0, 0.1, 2))[1]
        world.video().add(replace(clip, latents=None))
    with pytest.raises(ValueError, match="options of the 5B"):
        WorldModel.from_pretrained("spatia-mini", fit=None)
    with pytest.raises(ValueError, match="no preset 'draft'"):
        WorldModel.from_pretrained(folder, config="draft")
    import shutil

    place = tmp_path / "model"
    shutil.copytree(folder, place)
    file = next((place / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=file.name):
        WorldModel.from_pretrained(place)
    (place / "spatia.json").unlink()
    with pytest.raises(CheckpointError, match="interrupted"):
        WorldModel.from_pretrained(place)


def test_one_copy_of_the_weights_and_a_hub_id(folder, photo, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns=None: asked.append(name) or str(folder))
    first, second = WorldModel.from_pretrained(folder), WorldModel.from_pretrained("someone/spatia-5b")
    assert first is second and asked == ["someone/spatia-5b"]
    assert first.config == RELEASE  # what spatia.json says
    env = gym.make("Spatia-v0", image=photo, model=str(folder), disable_env_checker=True)
    assert env.unwrapped.world is first and env.observation_space.shape == (704, 1248, 3) and env.unwrapped.frames_per_clip == 72
    assert first.unknown_words("xyzzy") == []


def test_large_perceivers_are_asked_for_when_the_picture_comes(folder, photo):
    """The model opens without their packages; the first picture names what is missing."""
    pytest.importorskip("spatia_model.perception.registry")
    model = WorldModel.from_pretrained(folder, perceiver="release", config=CONFIG)
    if importlib.util.find_spec("mapanything") is None:
        with pytest.raises(ImportError, match="pip install"):
            model.begin(photo)
    with pytest.raises(ValueError, match="no perception preset 'best'"):
        WorldModel.from_pretrained(folder, perceiver="best", config=CONFIG).begin(photo)


def test_a_recording_takes_the_place_of_a_clip(world, photo):
    """Its frames become the past that the next clip goes on from, and enter the map; the next clip is a later one."""
    start = world.begin(photo, "a street", seed=SEED)
    frames = torch.stack([picture(SEED + i, *CONFIG.image_shape) for i in range(STEP)])
    path = path_to(start.T_world_camera, 0.2, 0.1)
    seen, clip = world.observe(start, frames, path, "the camera goes ahead")
    assert torch.equal(clip.frames, frames) and clip.latents is None and clip.text == "the camera goes ahead"
    assert torch.equal(seen.frames, torch.cat([start.frames, frames])[-CONFIG.history_frames :])
    assert len(seen.memory) > len(start.memory) and seen.frame_count == 1 + STEP and torch.equal(seen.rng_state, start.rng_state)
    later, made = world.advance(seen, path_to(seen.T_world_camera, 0.2, 0.0))
    assert made.frames.shape == frames.shape and later.frame_count == 1 + 2 * STEP
    with pytest.raises(ValueError, match="give clips of the full tier"):
        world.video().add(clip)
    with pytest.raises(ValueError, match="one or more frames"):
        world.observe(start, frames[:0], path)
