"""A rehearsal of the 5B without its weights: files in the released layout -> convert -> from_pretrained -> env -> two clips on a photo.

The clips are checked against a plain statement of the release's loop, written here from the public classes of diffusers and transformers:
merged LoRA weights, one forward after another, every point against every pixel.
"""

from __future__ import annotations

import html
import importlib.util
import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import ftfy
import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import spatia_env  # noqa: F401 (registers the envs)
from spatia_env import cli
from spatia_model.config import PAPER, RELEASE, preset
from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.generator.names import to_diffusers
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.geometry.camera import camera_from_fov, project
from spatia_model.memory.mapping import map_clip
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.references import match_frames
from spatia_model.release_world import MAPPING, ReleaseWorldModel, join_sentences
from spatia_model.types import Perception
from spatia_model.world_model import WorldModel
from spatia_model.world_state import load_state, save_state
from tests.spatia_model.generator.tiny_release import LOOP, write_release
from tests.spatia_model.geometry.test_point_compositing import composite_reference
from tests.spatia_model.tiny import picture

SEED = 2_000_800
PHOTO = Path(__file__).parents[2] / "../shared/cases/case_3/img.jpg"
CONFIG = replace(LOOP, max_references=3, render_voxel_step=0.04)
STEP = CONFIG.frames_per_clip


class Slope:
    """Depth from the memory where it shows something, else a slope; the brightest pixels move."""

    def perceive(self, frames, T_world_camera, camera, prior=None, previous=None):
        shape = frames.shape[:3]
        rows, columns = torch.arange(shape[1])[:, None] / shape[1], torch.arange(shape[2]) / shape[2]
        depth = (2 + 0.7 * rows + 0.31 * columns + 0.05 * (9 * rows * columns).sin()).expand(shape).clone()  # no two pixels equally far
        if prior is not None:
            depth = torch.where(prior.mask, prior.depth, depth)
        moving = (frames.float().mean(-1) > 245).float()
        return Perception(depth, torch.full(shape, 0.8), moving)


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


# -- the release's loop, plainly ------------------------------------------------------------------------------------


class Plain:
    """The release's networks, opened with the public classes; LoRA by adding B A to copies of the weights."""

    def __init__(self, folder):
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.vae = AutoencoderKLWan.from_pretrained(folder / "vae")
        self.text = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.without, self.adapted = (SpatiaTransformer.from_pretrained(folder / "transformer").eval() for _ in range(2))
        lora = load_file(folder.parent / "spatia" / "lora_weights_10000.safetensors")
        with torch.no_grad():
            for key in [key for key in lora if ".lora_A." in key]:
                weight = self.adapted.get_parameter(to_diffusers(key.removeprefix("pipe.dit.").partition(".lora_A")[0]) + ".weight")
                weight += lora[key.replace("lora_A", "lora_B")] @ lora[key]

    def encode(self, frames):
        """(T, H, W, 3) in -1..1 (or 0..1) -> (1, C, F, h, w)."""
        config = self.vae.config
        mean, std = (torch.tensor(getattr(config, f"latents_{n}")).view(1, -1, 1, 1, 1) for n in ("mean", "std"))
        return (self.vae.encode(frames.permute(3, 0, 1, 2)[None]).latent_dist.mode() - mean) / std

    def decode(self, latents, cut=True):
        """(1, C, F, h, w) -> (T, H, W, 3) uint8, fractions cut off or rounded."""
        config = self.vae.config
        mean, std = (torch.tensor(getattr(config, f"latents_{n}")).view(1, -1, 1, 1, 1) for n in ("mean", "std"))
        video = self.vae.decode(latents * std + mean).sample[0].permute(1, 2, 3, 0)
        colors = ((video + 1) * 127.5).clip(0, 255)
        return (colors if cut else colors.round()).to(torch.uint8)

    def rows(self, text):
        # Wan's tokenizer cleans first; of the released negative prompt this makes the wide commas plain ones, other tokens.
        text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
        given = self.tokenizer([text], padding="max_length", truncation=True, max_length=512, return_tensors="pt")
        rows = self.text(given.input_ids, given.attention_mask).last_hidden_state
        return rows * given.attention_mask[..., None]

    def denoise(self, network, noise, known, references, control, prompt, config):
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.shift)
        scheduler.set_timesteps(config.steps, sigmas=np.linspace(0.999, 0, config.steps + 1)[:-1])
        positive, negative = self.rows(prompt + config.prompt_suffix), self.rows(config.negative_prompt)
        count = references.shape[2]
        x = torch.cat([references, known, noise[:, :, known.shape[2] :]], 2)
        for t in scheduler.timesteps:
            times = torch.full((1, x.shape[2]), float(t))
            times[:, : count + known.shape[2]] = 0
            yes, no = (network(x, times, rows, control, count, config.control_scale) for rows in (positive, negative))
            x = scheduler.step(no + config.guidance * (yes - no), t, x, return_dict=False)[0]
            x[:, :, : count + known.shape[2]] = torch.cat([references, known], 2)
        return x[:, :, count:]


@torch.no_grad()
def plain_loop(plain, config, image, prompt, paths, texts, rng_state, padded, drawn, chosen_by_overlap=()):
    """Each clip, and the whole video. `padded`: new frames of each clip with its padding; `drawn`: our drawings of the memory;
    `chosen_by_overlap`: references of each clip where matching is by overlap (`retrieve` has its own tests).

    A drawing's fractions are cut off, so where a value is nearly whole, rounding decides over a step of colour. So our drawing is held to
    within one step of the plain one, and then taken, lest such steps hide other differences.
    """
    camera = camera_from_fov(config.fov_x, config.width, config.height)
    frames, poses = [*image[None]], [*torch.eye(4, dtype=torch.float64)[None]]
    perceiver = Slope()
    start = torch.stack(poses)
    nothing = PointMemory.empty(config.voxel_size, max_points=config.max_points)
    memory, _ = map_clip(
        nothing, image[None], start, camera, perceiver.perceive(image[None], start, camera), nothing.project(start, camera), 0, MAPPING
    )
    clips, latents = [], []
    generator = torch.Generator()
    generator.set_state(rng_state)
    for round_number, (path, text) in enumerate(zip(paths, texts, strict=True)):
        history = frames[-config.history_frames :]
        begin = len(frames) - len(history)
        window = [*poses[begin:], *path]
        window = torch.stack(window + [window[-1]] * (padded[round_number] - len(path)))
        # projection: one point per cell, every point against every pixel
        cell = config.render_voxel + round_number * config.render_voxel_step
        low = memory.positions.double().amin(0) - cell / 2
        cells: dict = {}
        for row, place in enumerate(((memory.positions.double() - low) / cell).floor().long().tolist()):
            cells.setdefault(tuple(place), []).append(row)
        points = torch.stack([memory.positions[rows].double().mean(0) for rows in cells.values()]).float()
        colors = torch.stack([memory.colors[rows].double().mean(0).round() for rows in cells.values()]).to(torch.uint8)
        rgb, cover = composite_reference(points, colors, window, camera, config.point_radius, config.points_per_pixel)
        ours = drawn[round_number]
        off = torch.cat([(ours.rgb - rgb * 255).abs().amax(-1), (ours.alpha - cover * 255).abs()])
        # A step for the fraction, one for colours fused of frames that differ by one; seldom more: two points equally far, a rim.
        assert (off > 2.01).float().mean() < 2e-3, (round_number, float((off > 2.01).float().mean()), float(off.max()))
        rgb, cover = ours.rgb, ours.alpha
        # references: every 4th frame before the history, one for every 12th of the window at the released rates
        chosen = list(chosen_by_overlap[round_number]) if config.matching == "iou" else []
        if round_number and config.matching == "hungarian":
            past = list(range(0, begin, round(config.frame_rate / config.candidate_rate)))
            aims = window[:: round(config.frame_rate / config.target_rate)]
            seen = [plainly_seen(memory.positions, view, camera) for view in (aims, torch.stack([poses[i] for i in past]))]
            shared = torch.tensor([[len(a & b) for b in seen[1]] for a in seen[0]])
            chosen = [past[i] for i in best_assignment(shared)][: config.max_references]
        known = plain.encode(torch.stack(history).float() / 127.5 - 1)
        pictures = [plain.encode(frames[i][None].float() / 127.5 - 1) for i in chosen]
        references = torch.cat(pictures, 2) if pictures else known[:, :, :0]
        holes = ((255 - cover.float()) / 255)[..., None].expand(-1, -1, -1, 3)
        control = torch.cat([plain.encode(rgb.float() / 127.5 - 1), plain.encode(holes)], 1)
        if config.same_noise:
            generator.set_state(rng_state)
        shape = (1, known.shape[1], (len(window) - 1) // 4 + 1, *known.shape[3:])
        noise = torch.randn(shape, generator=generator)
        network = plain.adapted if (config.lora_later if round_number else config.lora_first) else plain.without
        made = plain.denoise(network, noise, known, references, control, join_sentences(prompt, text), config)
        new = plain.decode(made, config.truncate)[len(history) :][: len(path)]
        clips.append(SimpleNamespace(frames=new, references=chosen))
        latents.append(made if not round_number else made[:, :, known.shape[2] :])
        first = len(frames)
        frames, poses = [*frames, *new], [*poses, *path]
        rows = [i for i in range(first, len(frames)) if i % round(config.frame_rate / config.map_rate) == 0]
        seen, there = torch.stack([frames[i] for i in rows]), torch.stack([poses[i] for i in rows])
        shown = memory.project(there, camera)
        memory, _ = map_clip(memory, seen, there, camera, perceiver.perceive(seen, there, camera, shown), shown, round_number + 1, MAPPING)
    return clips, plain.decode(torch.cat(latents, 2), config.truncate)


def plainly_seen(points, path, camera):
    """For every view the set of points that are nearest in their pixel."""
    uv, z = project(points, path, camera)
    views = []
    for t in range(len(path)):
        best: dict = {}
        for n, ((u, v), depth) in enumerate(zip(uv[t].floor().long().tolist(), z[t].tolist(), strict=True)):
            if depth > 0 and 0 <= u < camera.width and 0 <= v < camera.height:
                best.setdefault((u, v), []).append((depth, n))
        views.append({n for found in best.values() for depth, n in found if depth <= min(found)[0] + 1e-6})
    return views


def best_assignment(shared):
    """Of all ways to give each target a frame of its own the one that shares most; for each target in order."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-shared.to(torch.bfloat16).float().numpy())
    return [int(column) for _, column in sorted(zip(rows, columns, strict=True))]


def assert_alike(found, wanted):
    """Equal but for float32 rounding, which decides where a value is nearly whole."""
    difference = (found.int() - wanted.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01, (int(difference.max()), float((difference > 0).float().mean()))


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
