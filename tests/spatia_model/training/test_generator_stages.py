"""Stages for denoiser, refiner and last step on tiny folders: what they draw, what they reward, that they reach every weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spatia_model.data.latents import LatentFolder, read_window
from spatia_model.data.procedural import ClipFolder
from spatia_model.generator.pipeline import ClipGenerator, SamplerOptions
from spatia_model.generator.refiner import RefinerConfig
from spatia_model.generator.text import join_texts
from spatia_model.training.stage_decoder import DecoderStage
from spatia_model.training.stage_denoiser import DenoiserStage, sample_window
from spatia_model.training.stage_refiner import RefinerStage, elsewhere
from spatia_model.training.stage_sharpen import SharpenStage
from spatia_model.types import Conditioning
from spatia_model.worlds import VOCABULARY
from tests.spatia_model.data.fake_walks import CLIPS
from tests.spatia_model.generator.test_vae import build
from tests.spatia_model.tiny import SEED, TRANSFORMER
from tests.spatia_model.training.stage_checks import CAPTIONS, CONFIG, PROMPT, assert_learns, draw, pool, randomise, windows

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
