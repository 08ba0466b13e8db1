"""From conditioning to frames, against the same steps written out for one world."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spatia_model.generator.conditioning import fill_holes, to_model
from spatia_model.generator.pipeline import ClipGenerator, overlay
from spatia_model.generator.sampler import denoise
from spatia_model.types import Conditioning, Projection
from tests.spatia_model.generator.test_conditioning import bytes_of, random
from tests.spatia_model.tiny import OPTIONS, SEED, SIZE, tiny_parts, walk

H, T = 5, 8


def conditioning(seed: int = SEED, references: int = 2, text: str = "a red ball rolls") -> Conditioning:
    mask = random(H + T, SIZE, SIZE, seed=seed + 1) > 0.3
    rgb = bytes_of(H + T, SIZE, SIZE, 3, seed=seed + 2) * mask.unsqueeze(-1)
    return Conditioning(
        history=bytes_of(H, SIZE, SIZE, 3, seed=seed),
        history_dynamic=random(H, SIZE, SIZE, seed=seed + 3),
        projection=Projection(rgb, mask.float(), mask, mask.int() - 1),
        references=bytes_of(references, SIZE, SIZE, 3, seed=seed + 4),
        text=text,
        T_world_camera=walk(0, frames=H + T),
    )


def rng(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generator(refine: bool = True, **options) -> ClipGenerator:
    vae, transformer, text, _, refiner = tiny_parts()
    return ClipGenerator(vae, transformer, text, dataclasses.replace(OPTIONS, **options), refiner if refine else None)


def differ(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@torch.no_grad()
def plain(model: ClipGenerator, given: Conditioning, seed: int = SEED) -> torch.Tensor:
    """One world, step by step, channel by channel."""
    vae, transformer = model.vae, model.transformer
    filled = fill_holes(to_model(given.projection.rgb[None])[0].transpose(0, 1), given.projection.mask[:, None].float())
    shown = vae.encode(filled.transpose(0, 1)[None])
    cover, motion = torch.zeros(1, 4, 4, 4, 4), torch.zeros(1, 4, 4, 4, 4)
    for latent in range(4):
        for phase in range(4):
            frame = max(0, 4 * latent + phase - 3)
            for y in range(4):
                for x in range(4):
                    cell = (frame, slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8))
                    cover[0, phase, latent, y, x] = given.projection.mask[cell].float().mean()
                    if frame < H:
                        motion[0, phase, latent, y, x] = given.history_dynamic[cell].mean()
    control = torch.cat([shown, cover, motion], 1)
    known = vae.encode(to_model(given.history[None]))
    references = None
    if len(given.references):
        references = torch.cat([vae.encode(to_model(frame[None, None])) for frame in given.references], 2)
    noise = torch.randn(4, 4, 4, 4, generator=rng(seed))[None]
    text = model.text.encode([given.text])

    def predict(x, times):
        return transformer(x, times, text, control, len(given.references))

    latents = denoise(predict, noise, known, references, steps=2, shift=1.0, solver="euler", prediction="sample")
    frames = vae.decode(latents, T, to_model(given.history[None, -1:])[:, :, 0])  # from the last frame, which is known
    if model.refiner is not None:
        frames = model.refiner.refine(frames, given.projection.rgb[None, H:], given.projection.mask[None, H:])
    return ((frames[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)


@pytest.mark.parametrize(("references", "refine"), [(0, True), (2, True), (3, False)])
def test_a_clip_equals_its_plain_statement(references, refine):
    model, given = generator(refine), conditioning(references=references)
    (frames,) = model.generate([given], [rng()])
    assert frames.shape == (T, SIZE, SIZE, 3) and frames.dtype == torch.uint8 and frames.float().std() > 5
    assert differ(frames, plain(model, given)) <= 1


def test_worlds_do_not_depend_on_their_company():
    model = generator()
    worlds = [conditioning(SEED + 10 * i, references=n, text=t) for i, (n, t) in enumerate([(2, "a ball"), (0, ""), (2, "a box"), (1, "")])]
    together = model.generate(worlds, [rng(i) for i in range(4)])
    for i, world in enumerate(worlds):
        (alone,) = model.generate([world], [rng(i)])
        assert differ(together[i], alone) <= 1
    assert differ(together[0], together[2]) > 1
    assert model.generate([], []) == []


def test_noise_comes_from_each_world_s_own_generator():
    model, given = generator(), conditioning()
    ours = rng()
    (a,) = model.generate([given], [ours])
    assert not torch.equal(ours.get_state(), rng().get_state())
    b, c = model.generate([given, given], [rng(), rng(1)])
    assert differ(a, b) <= 1 and differ(b, c) > 1


@pytest.mark.parametrize("part", ["history", "history_dynamic", "projection", "references", "text"], ids=lambda part: f"{part} counts")
def test_everything_shown_counts(part):
    model, given = generator(), conditioning()
    (before,) = model.generate([given], [rng()])
    changed = dataclasses.replace(given, **{part: getattr(conditioning(SEED + 77, text="the blue box stands still"), part)})
    (after,) = model.generate([changed], [rng()])
    assert differ(before, after) > 0


def test_guidance_mixes_with_the_empty_text():
    given, empty = conditioning(), conditioning(text="")
    (plain_text,) = generator().generate([given], [rng()])
    (guided,) = generator(guidance=3.0).generate([given], [rng()])
    (other_empty,) = generator(guidance=3.0).generate([empty], [rng()])
    (alone,) = generator().generate([empty], [rng()])
    assert differ(guided, plain_text) > 0
    assert differ(other_empty, alone) <= 1  # nothing to push away from


def test_fresh_noise_between_steps_is_drawn_from_the_world_s_generator():
    given = conditioning()
    (plain_steps,) = generator().generate([given], [rng()])
    (a,), (b,) = (generator(renoise=1.0).generate([given], [rng()]) for _ in range(2))
    assert torch.equal(a, b) and differ(a, plain_steps) > 0


def test_progress_is_told():
    told: list[tuple[int, int]] = []
    generator(steps=3).generate([conditioning()], [rng()], lambda done, steps: told.append((done, steps)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_moves_is_drawn_over_the_frames_and_nothing_else_is():
    generator = torch.Generator().manual_seed(SEED)
    frames, shown = (torch.randint(0, 256, (4, 16, 16, 3), generator=generator, dtype=torch.uint8) for _ in range(2))
    mask = torch.zeros(4, 16, 16, dtype=torch.bool)
    mask[:, 4:10, 4:10] = True
    drawn = overlay(frames, Projection(shown, mask.float(), mask, mask.int() - 1))
    assert torch.equal(drawn[~mask], frames[~mask])
    assert torch.equal(drawn[:, 5:9, 5:9], shown[:, 5:9, 5:9])
    edge = frames[:, 4, 5].float() / 3 + shown[:, 4, 5].float() * 2 / 3  # 6 of its 9 neighbours are the entity's
    assert ((drawn[:, 4, 5].float() - edge).abs() <= 0.51).all()


def test_each_world_of_a_batch_has_its_own_entities_drawn():
    given = [conditioning(), conditioning(SEED + 1)]
    mask = torch.zeros(T, SIZE, SIZE, dtype=torch.bool)
    mask[:, 4:12, 4:12] = True
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(T, SIZE, SIZE, 3)
    layer, model = Projection(red, mask.float(), mask, mask.int() - 1), generator()
    told = [given[0], dataclasses.replace(given[1], entities=layer)]
    before, after = (model.generate(each, [rng(), rng(SEED + 1)]) for each in (given, told))
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], overlay(before[1], layer))
    assert not torch.equal(after[1], before[1])
