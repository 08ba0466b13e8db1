"""The embedded tier's options of the transformer, each against a plain restatement: gates, carried control, control in the trunk."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from spatia_model.generator import pipeline
from spatia_model.generator.pipeline import ClipGenerator, SamplerOptions
from spatia_model.generator.sampler import denoise
from spatia_model.generator.transformer import Conditions
from tests.spatia_model.generator.test_transformer import SEED, TINY, build, inputs, largest

CHANNELS = TINY["out_dim"]
CONTROL = CHANNELS + 2  # latents of the projection and two mask channels
EMBEDDED = {"in_channels": CHANNELS, "control_to_output": True, "control_in_main": True, "output_gates": True, "prediction": "sample"}


def gated(**changes):
    """A transformer of the embedded kind whose zero-initialised parts have values."""
    model = build(vace_in_channels=CONTROL, **{**EMBEDDED, **changes})
    generator = torch.Generator().manual_seed(SEED + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in ("gate_out", "control_in", "control_gate", "detail", "detail_out"):
                size = (
                    0.05 if name.startswith(("gate_out", "detail")) else 0.3
                )  # gates of a few tenths, so that errors stay those of float32
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator) + (name == "control_gate"))
    return model


def given(references=0, frames=4, patch=(1, 2, 2)):
    latents, times, context, _ = inputs({**TINY, "in_dim": CHANNELS, "patch_size": patch}, 2, frames, references)
    control = torch.randn(2, CONTROL, frames - references, *latents.shape[3:], generator=torch.Generator().manual_seed(SEED + 2))
    return latents, times, context, control


def head_tokens(model, *arguments, **keywords):
    """(prediction, the tokens that `proj_out` and `gate_out` read)."""
    seen = []
    handle = model.proj_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        out = model(*arguments, **keywords)
    finally:
        handle.remove()
    return out, seen[0]


def plain_unpatch(tokens, height, width, patch):
    """Tokens (B, F, S, ph * pw * C) to (B, C, F, H, W), one pixel at a time: rows of a patch, then columns, then channels."""
    _, ph, pw = patch
    batch, frames, _, size = tokens.shape
    channels = size // (ph * pw)
    out = torch.zeros(batch, channels, frames, height, width)
    for y in range(height):
        for x in range(width):
            token = (y // ph) * (width // pw) + x // pw
            start = ((y % ph) * pw + x % pw) * channels
            out[:, :, :, y, x] = tokens[:, :, token, start : start + channels].transpose(1, 2)
    return out


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 4, 2)])
def test_output_gates_equal_their_plain_statement(references, patch):
    model = gated(patch_size=patch)
    latents, times, context, control = given(references, patch=patch)
    height, width = latents.shape[3:]
    with torch.no_grad():
        found, tokens = head_tokens(model, latents, times, context, control, references, 0.8)
        projected = plain_unpatch(F.linear(tokens, model.proj_out.weight, model.proj_out.bias), height, width, patch)
        g = plain_unpatch(F.linear(tokens, model.gate_out.weight, model.gate_out.bias), height, width, patch)
    expected = projected + g[:, :1] * latents
    carried = 0.8 * model.control_gate.detach()[:, None, None, None] * control[:, :CHANNELS]
    expected[:, :, references:] += (1 + g[:, 1:, references:]) * carried
    assert largest(found, expected) < 1e-5
    # both gates and the carried control weigh in, so that leaving one out would show
    assert largest(projected, expected) > 0.1
    assert (g[:, :1] * latents).abs().max() > 0.1
    assert (g[:, 1:, references:] * carried).abs().max() > 0.1


def plain_detail(head, noised, prediction, control, features, noise):
    """One frame after the other."""
    out = torch.zeros_like(prediction)
    for f in range(prediction.shape[2]):
        level = noise[:, f, None, None, None].expand(-1, 1, *prediction.shape[3:])
        before = prediction[:, :, max(f - 1, 0)]
        x = torch.cat([noised[:, :, f], prediction[:, :, f], before, control[:, :, f], features[:, :, f], level], 1)
        x = F.conv2d(x, head.stem.weight, head.stem.bias, padding=1)
        for first, second in zip(head.first, head.second, strict=True):
            y = x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt()
            x = x + F.conv2d(F.silu(F.conv2d(y, first.weight, first.bias, padding=1)), second.weight, second.bias, padding=1)
        out[:, :, f] = prediction[:, :, f] + F.conv2d(F.silu(x), head.out.weight, head.out.bias, padding=1)
    return out


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("with_control", [True, False])
def test_the_detail_head_equals_its_plain_statement(references, with_control):
    model, without = gated(detail_width=12), gated()
    missing, extra = without.load_state_dict(model.state_dict(), strict=False)
    assert not missing and all(name.split(".")[0] in ("detail", "detail_out") for name in extra)
    latents, times, context, control = given(references)
    control = control if with_control else None
    with torch.no_grad():
        found, tokens = head_tokens(model, latents, times, context, control, references)
        base = without(latents, times, context, control, references)
        features = plain_unpatch(F.linear(tokens, model.detail_out.weight, model.detail_out.bias), *latents.shape[3:], (1, 2, 2))
        seen = torch.zeros_like(given(references)[3]) if control is None else control
        r = references
        expected = plain_detail(model.detail, latents[:, :, r:], base[:, :, r:], seen, features[:, :, r:], times[:, r:] / 1000)
        if not references:
            one = model(latents, times[:, -1], context, control)  # one time per sample: the first frame is clean
            each = times[:, -1:].repeat(1, times.shape[1])
            each[:, 0] = 0
            assert largest(one, model(latents, each, context, control)) < 1e-6
    clean = int((times.amax(0) == 0).sum())  # references and history: nobody reads their prediction
    assert r < clean < times.shape[1]
    assert largest(found[:, :, clean:], expected[:, :, clean - r :]) < 1e-5
    assert largest(found[:, :, clean:], base[:, :, clean:]) > 0.01
    assert torch.equal(found[:, :, :clean], base[:, :, :clean])


def test_gates_without_control_pass_latents_only():
    model = gated()
    latents, times, context, _ = given(1)
    with torch.no_grad():
        found, tokens = head_tokens(model, latents, times, context, None, 1)
        projected = plain_unpatch(F.linear(tokens, model.proj_out.weight, model.proj_out.bias), 4, 6, (1, 2, 2))
        g = plain_unpatch(F.linear(tokens, model.gate_out.weight, model.gate_out.bias), 4, 6, (1, 2, 2))
    assert largest(found, projected + g[:, :1] * latents) < 1e-5
    assert largest(found, projected) > 0.1


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("detail", [0, 12])
def test_prepared_conditions_change_nothing(references, detail):
    model = gated(detail_width=detail)
    latents, times, context, control = given(references)
    scale = torch.tensor([[1.0], [0.3]])
    with torch.no_grad():
        plain = model(latents, times, context, control, references, scale)
        ready = model.prepare(context, control, references, scale)
        assert largest(model(latents, times, conditions=ready), plain) < 5e-6
        halves = [model.prepare(context[i : i + 1], control[i : i + 1], references, float(scale[i])) for i in range(2)]
        assert largest(model(latents, times, conditions=Conditions.cat(halves)), plain) < 1e-5
        assert largest(model(latents[1:], times[1:], conditions=halves[1]), plain[1:]) < 1e-5


def test_off_it_leaves_no_trace_and_on_it_starts_as_if_off():
    names = set(build(vace_in_channels=CONTROL).state_dict())
    assert set(build(vace_in_channels=CONTROL, output_gates=False).state_dict()) == names
    same = {"in_channels": CHANNELS, "out_channels": CHANNELS}
    assert set(build(vace_in_channels=CONTROL, output_gates=True, **same).state_dict()) - names == {"gate_out.weight", "gate_out.bias"}
    off = build(vace_in_channels=CONTROL, **{**EMBEDDED, "output_gates": False})
    on = build(vace_in_channels=CONTROL, **EMBEDDED)
    missing, extra = on.load_state_dict(off.state_dict(), strict=False)
    assert set(missing) == {"gate_out.weight", "gate_out.bias"} and not extra
    latents, times, context, control = given(1)
    with torch.no_grad():
        assert torch.equal(on(latents, times, context, control, 1), off(latents, times, context, control, 1))


def test_gates_need_as_many_channels_out_as_in():
    with pytest.raises(ValueError, match="in_channels 3 must equal out_channels 4"):
        build(vace_in_channels=CONTROL, output_gates=True, in_channels=3, out_channels=4)


def test_the_untrained_model_copies_the_projection():
    model = build(vace_in_channels=CONTROL, **EMBEDDED).initialise()
    latents, times, context, control = given(1)
    with torch.no_grad():
        out = model(latents, times, context, control, 1)
    assert torch.equal(out[:, :, 1:], control[:, :CHANNELS])
    assert not out[:, :, :1].any()
    # predicting velocities, a copy of the projection would be wrong: the carried control starts at nothing
    velocity = build(vace_in_channels=CONTROL, **{**EMBEDDED, "prediction": "velocity"})
    assert not velocity.control_gate.detach().any()


def test_control_in_main_adds_its_tokens_to_the_trunk_only():
    """The same as adding the mapped control tokens to the patched latents by hand, with the hints switched off in both."""
    model = gated(control_to_output=False, output_gates=False)
    with torch.no_grad():
        for block in model.vace_blocks:
            block.proj_out.weight.zero_()
            block.proj_out.bias.zero_()
    latents, times, context, control = given(1)
    with torch.no_grad():
        found = model(latents, times, context, control, 1, 0.6)
        tokens = 0.6 * F.linear(model.vace_patch_embedding(control), model.control_in.weight, model.control_in.bias)

        def added(module, args, out):
            return torch.cat([out[:, :1], out[:, 1:] + tokens], 1)

        handle = model.patch_embedding.register_forward_hook(added)
        by_hand = model(latents, times, context, None, 1)
        handle.remove()
        without = model(latents, times, context, None, 1)
    assert largest(found, by_hand) < 1e-5
    assert largest(found, without) > 1e-2


def test_gradients_reach_the_gates_from_the_start():
    model = build(vace_in_channels=CONTROL, **EMBEDDED)
    assert not model.gate_out.weight.detach().any()
    latents, times, context, control = given(1)
    model(latents, times, context, control, 1).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    gate = model.gate_out.weight.grad
    assert gate is not None
    per_gate = gate.view(4, 2, -1).abs().amax((0, 2))  # of the latents, of the control
    assert (per_gate > 0).all()


def test_gated_checkpoints_round_trip(tmp_path):
    model = gated().eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    latents, times, context, control = given(1)
    with torch.no_grad():
        assert torch.equal(again(latents, times, context, control, 1), model(latents, times, context, control, 1))


# -- the pipeline hands its options to the sampler


class Texts:
    def encode(self, texts):
        return torch.zeros(len(texts), 5, TINY["text_dim"])


def generator_with(options, model):
    return ClipGenerator(cast(Any, None), model, cast(Any, Texts()), options)


def denoised(options, model, seeds=(3, 4)):
    latents, _, _, control = given()
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = slice(0, len(seeds))
    with torch.no_grad():
        return generator_with(options, model)._denoise(
            latents[rows], latents[rows, :, :1].clone(), None, control[rows], ["" for _ in seeds], rngs, None
        )


def test_renoise_draws_from_each_worlds_own_generator():
    model = gated()
    plain = denoised(SamplerOptions(steps=3), model)
    drawn = denoised(SamplerOptions(steps=3, renoise=0.7), model)
    assert torch.equal(denoised(SamplerOptions(steps=3), model, (5, 6)), plain)  # without it, nothing is drawn while denoising
    assert torch.equal(denoised(SamplerOptions(steps=3, renoise=0.7), model), drawn)
    other = denoised(SamplerOptions(steps=3, renoise=0.7), model, (3, 6))
    assert largest(drawn, plain) > 1e-3
    assert largest(other[:1], drawn[:1]) == 0
    assert largest(other[1:], drawn[1:]) > 1e-3
    assert largest(denoised(SamplerOptions(steps=3, renoise=0.7), model, (3,)), drawn[:1]) < 1e-4


def test_pipeline_options_reach_the_sampler(monkeypatch):
    model, asked = gated(), []

    def spy(predict, noise, *arguments, **keywords):
        asked.append(keywords)
        return denoise(predict, noise, *arguments, **keywords)

    monkeypatch.setattr(pipeline, "denoise", spy)
    options = SamplerOptions(steps=2, guidance=1.5, shift=2.0, solver="euler", renoise=0.25)
    denoised(options, model)
    known = SimpleNamespace(**asked[0])
    assert (known.steps, known.guidance, known.shift, known.solver, known.renoise) == (2, 1.5, 2.0, "euler", 0.25)
    assert known.prediction == "sample"
    assert known.negative_fn is not None and len(known.generator) == 2


def test_renoise_needs_the_euler_solver():
    with pytest.raises(ValueError, match="renoise"):
        denoised(SamplerOptions(steps=2, solver="unipc", renoise=0.5), gated())
