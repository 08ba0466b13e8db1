"""Each stage's loss on tiny folders: what it draws, what it rewards, and that it reaches every weight."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spatia_model.config import MiniConfig
from spatia_model.data.latents import LatentFolder, encode_walk, read_window
from spatia_model.data.procedural import ClipFolder, write_atomic
from spatia_model.data.windows import WindowFolder
from spatia_model.generator.conditioning import to_model
from spatia_model.generator.pipeline import ClipGenerator, SamplerOptions
from spatia_model.generator.refiner import RefinerConfig
from spatia_model.generator.text import join_texts
from spatia_model.perception.compact import CompactPerceptionConfig
from spatia_model.training.pictures import PicturePool
from spatia_model.training.stage_decoder import DecoderStage
from spatia_model.training.stage_denoiser import DenoiserStage, sample_window
from spatia_model.training.stage_perception import PerceptionStage, degrade, zoom
from spatia_model.training.stage_refiner import RefinerStage, elsewhere
from spatia_model.training.stage_sharpen import SharpenStage
from spatia_model.training.stage_vae import VAEStage, augment, measure_latents
from spatia_model.types import Conditioning
from spatia_model.worlds import VOCABULARY
from tests.spatia_model.data.fake_walks import CLIPS, fake_walk, write
from tests.spatia_model.generator.test_vae import TINY, build
from tests.spatia_model.tiny import SEED, TRANSFORMER, picture

CONFIG = MiniConfig(image_size=32)
PROMPT, CAPTIONS = "a room with red walls", ["a ball rolls", "a box slides", "a blue ball"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder: walks, windows, latents, pictures."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, SEED)
    write(folder, SEED + 1)
    np.save(folder / "pictures.npy", np.stack([picture(SEED + i, 72, 72).numpy() for i in range(3)]))
    (folder / "latents").mkdir()
    for seed in (SEED, SEED + 1):
        metadata = {"captions": json.dumps(CAPTIONS), "prompt": PROMPT}
        write_atomic(folder / "latents" / f"{seed}.safetensors", encode_walk(fake_walk(seed), build(), CONFIG), metadata)
    return folder


def draw(step: int = 0) -> tuple[np.random.Generator, torch.Generator, int]:
    return np.random.default_rng([SEED, step]), torch.Generator().manual_seed(SEED + step), step


def pool(run: Path) -> PicturePool:
    return PicturePool(run / "pictures.npy")


def windows(run: Path) -> WindowFolder:
    return WindowFolder(run / "walks", run / "windows")


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(SEED)) * 0.05)


def assert_learns(stage, steps: int = 3) -> None:
    """Finite, the same for the same draw, different for another, and with a gradient for every weight."""
    randomise(stage.model)
    loss, figures = stage.loss(*draw())
    assert torch.isfinite(loss) and all(np.isfinite(v) for v in figures.values()) and figures
    same, other = stage.loss(*draw())[0], stage.loss(*draw(1))[0]
    assert float(loss.detach()) == float(same.detach()) != float(other.detach())
    for step in range(steps):
        stage.loss(*draw(step))[0].backward()
    for name, p in stage.model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name


# -- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_are_made_once(tmp_path):
    made = PicturePool(tmp_path / "deep" / "pool.npy", size=2, side=48)
    assert made.pictures.shape == (2, 48, 48, 3) and made.pictures.dtype == np.uint8
    assert made.pictures[0].std() > 2 and not np.array_equal(made.pictures[0], made.pictures[1])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["pool.npy"]
    again = PicturePool(tmp_path / "deep" / "pool.npy", size=99)
    np.testing.assert_array_equal(again.pictures, made.pictures)


def test_stills_are_crops(run):
    held, rng = pool(run), np.random.default_rng(SEED)
    for _ in range(5):
        crop = held.still(rng, 70)
        assert any(np.array_equal(crop, whole[y : y + 70, x : x + 70]) for whole in held.pictures for y in range(3) for x in range(3))


def test_pans_move_a_little_and_stay_in_the_picture(run):
    rng = np.random.default_rng(SEED)
    pans = [pool(run).pan(rng, 5, 32) for _ in range(6)]
    for pan in pans:
        assert pan.shape == (5, 32, 32, 3) and pan.dtype == np.uint8
        first, last = (np.abs(pan[0].astype(int) - pan[i]).mean() for i in (1, 4))
        assert first <= last + 1 and last < 80
    assert max(np.abs(pan[0].astype(int) - pan[4]).mean() for pan in pans) > 1


# -- VAE -------------------------------------------------------------------------------------------------------------


def vae_stage(run: Path, **options) -> VAEStage:
    clips = ClipFolder(run / "walks")
    return VAEStage(clips, clips, pool(run), TINY, crop=16, batch=(2, 1, 2), **options)


def test_the_vae_learns_from_clips_pans_and_stills(run):
    stage = vae_stage(run)
    assert_learns(stage)
    assert set(stage.loss(*draw())[1]) == {"clip", "still"}


def test_the_decoder_may_learn_alone(run):
    stage = vae_stage(run, decoder_only=True)
    randomise(stage.model)
    stage.loss(*draw())[0].backward()
    for name, p in stage.model.named_parameters():
        assert (p.grad is None) == name.startswith("enc_"), name


def test_latents_are_measured_to_unit_variance(tmp_path):
    write(tmp_path, SEED, clips=2, size=128)
    vae = build(dataclasses.replace(TINY, latent_channels=3))
    clips = ClipFolder(tmp_path / "walks")
    measure_latents(vae, clips, samples=6)
    rng = np.random.default_rng([0, 17])  # the very clips it measured
    latents = torch.cat([vae.encode(to_model(torch.from_numpy(clips.random_frames(rng, 9, 128))[None])) for _ in range(6)])
    flat = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones(3), atol=1e-3, rtol=0)


def test_augmenting_treats_a_clip_as_one(run):
    still = np.broadcast_to(picture().numpy(), (6, 4, 32, 32, 3)).copy()
    out = augment(np.random.default_rng(SEED), still)
    assert out.shape == still.shape and out.dtype == np.uint8
    assert all(np.array_equal(clip[0], frame) for clip in out for frame in clip)
    assert len({clip.tobytes() for clip in out}) > 3


# -- perception ------------------------------------------------------------------------------------------------------


def perception_stage(run: Path) -> PerceptionStage:
    return PerceptionStage(windows(run), windows(run), pool(run), CompactPerceptionConfig((8, 8)), CONFIG, batch=3, stills=2)


def test_the_perceiver_learns_from_worlds_and_stills(run):
    stage = perception_stage(run)
    assert_learns(stage)
    with torch.no_grad():
        figures = stage.validate()
    assert {"abs_rel_prior", "abs_rel_empty", "dynamic_iou_prior", "dynamic_iou_empty", "called_still"} <= set(figures)


def test_without_evidence_what_may_move_is_to_be_told_by_its_looks(run):
    stage, rng = perception_stage(run), np.random.default_rng(SEED)
    x, depth, dynamic, _ = stage._world_sample(rng, plain=True, prior=False, evidence=False)
    assert dynamic.max() == 1 and x[:, 3:8].abs().max() == 0 and torch.equal(x[:, 8:11], x[:, :3])
    assert depth.min() > 0
    x, _, dynamic, _ = stage._world_sample(rng, plain=True)
    assert dynamic.max() == 1 and not torch.equal(x[:, 8:11], x[:, :3]) and x[:, 7].max() == 1


def test_views_are_seen_alone(run):
    """First pictures of more worlds: the network's input has no memory and no earlier frame, and its rays fit the picture's pose."""
    stage, rng = perception_stage(run), np.random.default_rng(SEED)
    stage.views, stage.first = ClipFolder(run / "walks"), 1.0
    for _ in range(6):
        x, depth, dynamic, known = stage._view_sample(rng)
        assert x.shape == (1, 14, 32, 32) and depth.shape == dynamic.shape == known.shape == (1, 32, 32)
        assert x[:, 3:8].abs().max() == 0 and torch.equal(x[:, 8:11], x[:, :3]) and known.min() == 1 and depth.min() > 0
        assert set(dynamic.unique().tolist()) <= {0.0, 1.0} and x[:, 13].min() > 0  # every ray goes ahead
    stage.windows = None  # type: ignore[assignment]
    loss, _ = stage.loss(*draw())  # nothing but views and stills
    assert torch.isfinite(loss)


def test_stills_never_move_and_keep_the_memory_s_depth(run):
    stage, rng = perception_stage(run), np.random.default_rng(SEED)
    seen = [stage._still_sample(rng) for _ in range(12)]
    for x, depth, dynamic, known in seen:
        assert dynamic.abs().max() == 0 and set(known.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(known, x[:, 7])  # judged where there is a memory to keep to
        shown = 3.0 * x[:, 6].exp()
        assert known.sum() == 0 or ((shown - depth).abs() / depth)[known > 0].mean() < 0.05
    assert any(known.sum() for *_, known in seen)


def test_a_zoomed_sample_is_what_a_narrower_camera_would_see():
    """A floor's plane depth, rays and pictures are functions of the ray alone, so after zooming they must still agree."""
    from spatia_model.config import mini_camera
    from spatia_model.perception.compact import stack_inputs

    camera = mini_camera(CONFIG)
    pose = torch.eye(4, dtype=torch.float64)[None]
    x = stack_inputs(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), pose, camera, None, None)
    x[:, :3] = x[:, 11:14]  # the picture shows its own rays
    depth = 1.5 / (x[:, 12] + 1)
    x[:, 6] = depth.log()
    zoomed = 0
    for step in range(6):
        y, near, moving = zoom(draw(step)[0], x, depth, (x[:, 11] > 0).float())
        assert y.shape == x.shape and near.shape == depth.shape
        torch.testing.assert_close(y[:, :3], y[:, 11:14])
        torch.testing.assert_close(near, 1.5 / (y[:, 12] + 1), rtol=0.1, atol=0)  # nearest pixel
        torch.testing.assert_close(y[:, 6], near.log())  # the memory's depth keeps its edges, as the truth does
        assert torch.equal(moving[y[:, 11].abs() > 0.1] > 0, y[:, 11][y[:, 11].abs() > 0.1] > 0)
        span, whole = (float(z[:, 11].max() - z[:, 11].min()) for z in (y, x))
        assert 0.25 * whole < span <= whole + 1e-6
        zoomed += span < 0.9 * whole
    assert zoomed >= 2


def test_degraded_frames_look_like_the_frames():
    rng, frames = np.random.default_rng(SEED), picture()[None]
    out = [degrade(rng, frames, 1.0) for _ in range(4)]
    for x in out:
        assert x.shape == frames.shape and x.dtype == torch.uint8 and not torch.equal(x, frames)
        assert (x.float() - frames.float()).abs().mean() < 12
    assert torch.equal(degrade(rng, frames, 0.0), frames)


# -- denoiser --------------------------------------------------------------------------------------------------------


def denoiser_stage(run: Path, **options) -> DenoiserStage:
    transformer = TRANSFORMER | {"text_dim": 128}  # the text encoder's width
    return DenoiserStage(LatentFolder(run / "latents"), windows(run), build(), VOCABULARY, CONFIG, transformer, batch=3, **options)


def test_the_denoiser_and_its_text_encoder_learn(run):
    assert_learns(denoiser_stage(run), steps=6)


class Listener(torch.nn.Module):
    """Stands in for the transformer: keeps what it was asked and answers as told."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, *arguments):
        self.asked.append(arguments)
        return self.answer(*arguments)


def test_known_frames_are_clean_and_targets_are_noised_by_their_time(run):
    stage = denoiser_stage(run, drop_memory=0.0, drop_text=0.0, history_noise=0.0)
    listener = Listener(lambda x, *_: x)
    stage.model.transformer = listener
    batches = []
    drawn = stage.draw
    stage.draw = lambda rng: batches.append(drawn(rng)) or batches[-1]
    for step in range(8):
        stage.loss(*draw(step))
    counts = set()
    for (batch, texts, references), (x, times, context, control, count) in zip(batches, listener.asked, strict=True):
        counts.add(count)
        known = count + stage.known
        assert count == references and x.shape == (3, 4, count + 4, 4, 4) and times.shape == (3, count + 4)
        assert (times[:, :known] == 0).all() and (times[:, known:] == times[:, known : known + 1]).all()
        assert torch.equal(x[:, :, :count], batch["references"][:, :count].transpose(1, 2))
        assert torch.equal(x[:, :, count:known], batch["target"][:, :, : stage.known])
        assert torch.equal(control, batch["control"])
        s = times[:, -1].view(3, 1, 1, 1, 1) / 1000
        noise = (x[:, :, known:] - (1 - s) * batch["target"][:, :, stage.known :]) / s
        assert 0 < s.min() <= s.max() <= 1 and 0.5 < noise.std() < 1.5 and noise.abs().max() < 8
        assert set(texts) <= {text for caption in CAPTIONS for text in (caption, join_texts(PROMPT, caption))}
        torch.testing.assert_close(context, stage.model.text.encode(texts))
    assert counts == {0, 1, 2, 3}


def test_own_states_are_what_the_sampler_makes_of_noise(run):
    """The state trained on equals Euler steps written out, from the noise and the answers that the model gave on the way."""
    stage = denoiser_stage(run, own=1.0, own_from=5, history_noise=0.0)
    randomise(stage.model)
    steps, model = stage.own_steps, stage.model.transformer
    seen = []
    model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append((args[0], args[1], out, torch.is_grad_enabled())), with_kwargs=True
    )
    stage.loss(*draw(4))
    assert len(seen) == 1  # not yet
    taken = set()
    for step in range(5, 12):
        seen.clear()
        _, _, references = stage.draw(draw(step)[0])
        loss, _ = stage.loss(*draw(step))
        start, count = references + stage.known, len(seen) - 1
        taken.add(count)
        assert [enabled for *_, enabled in seen] == [False] * count + [True] and loss.requires_grad
        noise = x = seen[0][0][:, :, start:]
        assert 0.8 < noise.std() < 1.2
        for i, (state, times, out, _) in enumerate(seen):
            torch.testing.assert_close(state[:, :, start:], x, atol=1e-5, rtol=1e-5)
            sigma, following = 1 - i / steps, 1 - (i + 1) / steps
            assert times[:, start:].unique().tolist() == pytest.approx([1000 * sigma]) and times[:, :start].abs().max() == 0
            clean = out[:, :, start:].detach()
            x = (1 - following) * clean + following * (x - (1 - sigma) * clean) / sigma
    assert taken == set(range(1, steps))


def test_a_perfect_denoiser_has_no_loss(run):
    stage = denoiser_stage(run)
    drawn, batches = stage.draw, []
    stage.draw = lambda rng: batches.append(drawn(rng)) or batches[-1]

    def perfect(x, times, context, control, count):
        batch = batches[-1][0]
        return torch.cat([batch["references"][:, :count].transpose(1, 2), batch["target"]], 2)

    stage.model.transformer = Listener(perfect)
    assert float(stage.loss(*draw())[0].detach()) == 0
    stage.model.transformer = Listener(lambda *given: perfect(*given) + 0.1)
    assert float(stage.loss(*draw())[0].detach()) > 0


def test_movers_and_the_unknown_count_more(run):
    """The same error in every latent pixel: the loss rises with the share that moves and the share that is not covered."""
    losses = {}
    for name in ("neither", "moving", "uncovered"):
        stage = denoiser_stage(run)
        drawn = stage.draw

        def changed(rng, name=name, drawn=drawn):
            batch, texts, count = drawn(rng)
            shares = {n: torch.full_like(batch[n], 255.0 * (n == name)) for n in ("moving", "uncovered")}
            return batch | shares, texts, count

        stage.draw = changed
        stage.model.transformer = Listener(lambda x, *_: torch.full_like(x, 9.0))
        losses[name] = float(stage.loss(*draw())[0].detach())
    assert losses["moving"] == pytest.approx(5 * losses["neither"], rel=1e-4)
    assert losses["uncovered"] == pytest.approx(1.5 * losses["neither"], rel=1e-4)


def test_dropped_memory_is_what_a_world_without_memory_shows(run):
    stage = denoiser_stage(run, drop_memory=1.0)
    batch, _, _ = stage.draw(np.random.default_rng(SEED))
    grey = build().encode(torch.zeros(1, 3, 13, 32, 32))[0]
    for control in batch["control"]:
        torch.testing.assert_close(control[:4], grey, atol=1e-3, rtol=1e-3)
        assert control[4:8].abs().max() == 0  # nothing covered
    assert (batch["uncovered"] == 255).all()


def test_walks_of_few_clips_can_validate(run):
    stage = denoiser_stage(run)
    truth, frames, mask, moving, shown = stage._validation(CLIPS + 1)  # beyond the last clip: starts over
    assert frames.shape == truth.shape == shown.shape == (8, 32, 32, 3) and mask.shape == moving.shape == (8, 32, 32)
    assert torch.equal(truth, stage.validation.open((CLIPS + 1) % 2).rgb(9, 17))


def test_validation_generates_as_the_world_loop_does(run):
    """The same window through the pipeline that worlds use: training's figures are of what is shipped."""
    stage = denoiser_stage(run)
    randomise(stage.model)
    walk = stage.validation.open(0)
    _, frames, *_ = stage.generate(walk, 2, steps=2, seed=SEED)
    rgb, dynamic, projection = read_window(walk, 2, CONFIG)
    given = Conditioning(
        history=rgb[:5],
        history_dynamic=dynamic[:5],
        projection=projection,
        references=torch.cat([walk.rgb(i, i + 1) for i in walk.references(2)]),
        text=walk.captions[2],
        T_world_camera=walk.poses(12, 25),
    )
    pipeline = ClipGenerator(stage.vae, stage.model.transformer, stage.model.text, SamplerOptions(steps=2))
    (shown,) = pipeline.generate([given], [torch.Generator().manual_seed(SEED)])
    assert (shown.int() - frames.int()).abs().max() <= 1


# -- refiner ---------------------------------------------------------------------------------------------------------


def test_the_refiner_and_its_critic_learn(run):
    stage = RefinerStage(windows(run), denoiser_stage(run), RefinerConfig(width=8, blocks=1), batch=2)
    randomise(stage.model)
    for step in range(3):
        loss, figures = stage.loss(*draw(step))
        assert torch.isfinite(loss) and all(np.isfinite(v) for v in figures.values())
        loss.backward()
    for name, p in stage.model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name


def test_where_a_frame_departs_from_the_memory_the_memory_does_not_rule():
    shown = torch.zeros(3, 2, 24, 24)
    frames = shown + 0.1
    frames[:, 1, 8:16, 8:16] = 0.9  # something that moves, before what the memory shows
    mask = torch.ones(2, 24, 24, dtype=torch.bool)
    mask[:, :4] = False
    shown[:, :, :4] = -1.0  # nothing is known there
    found = elsewhere(frames, shown, mask)
    assert not found[0].any() and bool(found[1, 9:15, 9:15].all()) and not found[1, :5].any() and not found[1, 20:].any()


def test_windows_for_the_refiner_are_pictures_and_shares(run):
    stage = RefinerStage(windows(run), denoiser_stage(run), RefinerConfig(width=8, blocks=1), batch=1)
    window = stage._window(np.random.default_rng(SEED), torch.Generator().manual_seed(SEED))
    decoded, truth, shown, mask, reconstructed = window
    for part in (decoded, truth, shown):
        assert part.shape == (3, 8, 32, 32) and part.abs().max() <= 1
    for part in (mask, reconstructed):
        assert part.shape == (1, 8, 32, 32) and set(part.unique().tolist()) <= {0.0, 1.0}


# -- against critics -------------------------------------------------------------------------------------------------


def test_the_decoder_learns_and_the_encoder_stays(run):
    stage = DecoderStage(build(), ClipFolder(run / "walks"), ClipFolder(run / "walks"), pool(run), crop=32, batch=(1, 1, 2), ramp=1)
    before = {k: v.clone() for k, v in stage.model.vae.state_dict().items()}
    randomise(stage.model)
    for step in range(3):
        loss, figures = stage.loss(*draw(step))
        assert torch.isfinite(loss) and set(figures) == {"known", "critic", "wish"}
        loss.backward()
    for name, p in stage.model.named_parameters():
        if name.startswith("vae.enc_"):
            assert p.grad is None and not p.requires_grad, name
        else:
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name
    assert {k for k in before if k.startswith("latent_")} == {"latent_mean", "latent_std"}


def test_the_last_step_is_the_sampler_s(run):
    """`last_step` draws what the sampler draws from the same noise and past, with a gradient."""
    stage = denoiser_stage(run, history_noise=0.0)
    randomise(stage.model)
    batch, texts, references = stage.draw(np.random.default_rng(SEED))
    made = stage.last_step(batch, texts, references, torch.Generator().manual_seed(SEED))
    g = torch.Generator().manual_seed(SEED)
    torch.rand(len(texts), 1, 1, 1, 1, generator=g)  # the level of the past's noise, which is none
    past = batch["target"][:, :, : stage.known]
    torch.randn(past.shape, generator=g)
    noise = torch.randn(batch["target"].shape, generator=g)
    refs = batch["references"][:, :references].transpose(1, 2) if references else None
    context = stage.model.text.encode(texts)
    whole = sample_window(stage.model.transformer, noise, past, refs, context, batch["control"], stage.mini.steps)
    assert made.requires_grad
    torch.testing.assert_close(made.detach()[:, :, stage.known :], whole[:, :, stage.known :], atol=1e-4, rtol=1e-4)


def test_the_generator_is_sharpened_against_the_critic(run):
    stage = SharpenStage(denoiser_stage(run), plain=0.0, ramp=1, crop=3)
    assert_learns(stage, steps=6)
    loss, figures = stage.loss(*draw(3))
    assert {"critic", "wish"} <= set(figures)
    plain = SharpenStage(denoiser_stage(run), plain=1.0)
    _, figures = plain.loss(*draw(3))
    assert figures and all(name.startswith("plain_") for name in figures)
