from typing import Any

import pytest
import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

from spatia_model.generator.blocks import rotary_positions, rotary_split, rotary_table, time_sinusoid
from spatia_model.generator.checkpoint import load_official
from spatia_model.generator.text import CompactTextConfig, CompactTextEncoder
from spatia_model.generator.transformer import Conditions, SpatiaTransformer
from spatia_model.training.stage_denoiser import MINI_TRANSFORMER
from tests.spatia_model.generator import reference_transformer as reference

SEED = 2_000_000
TINY = reference.TINY


def build(config=TINY, control=True, **changes):
    settings = {
        "patch_size": tuple(config["patch_size"]),
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "text_dim": config["text_dim"],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "eps": config["eps"],
        "vace_layers": tuple(config["vace_layers"]) if control else (),
        "vace_in_channels": config["vace_in_dim"],
    }
    torch.manual_seed(SEED)
    return SpatiaTransformer(**{**settings, **changes})


def inputs(config=TINY, batch=2, frames=4, references=0, height=4, width=6, seed=SEED):
    generator = torch.Generator().manual_seed(seed)
    _, ph, pw = config["patch_size"]
    height, width = height // 2 * ph, width // 2 * pw
    latents = torch.randn(batch, config["in_dim"], frames, height, width, generator=generator)
    control = torch.randn(batch, config["vace_in_dim"], frames - references, height, width, generator=generator)
    context = torch.randn(batch, 5, config["text_dim"], generator=generator)
    context[:, -2:] = 0  # padding rows take part
    times = torch.rand(batch, 1, generator=generator) * 1000 * torch.ones(1, frames)
    times[:, : references + 1] = 0
    return latents, times, context, control


def largest(a, b):
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize(
    ("changes", "references", "control", "scale"),
    [
        ({}, 0, True, 1.0),
        ({}, 2, True, 0.7),
        ({}, 1, False, 1.0),
        ({"dim": 56, "num_heads": 1, "patch_size": [1, 4, 4], "vace_layers": [0]}, 1, True, 1.0),  # the embedded tier's heads and patches
        ({"dim": 48, "num_heads": 3, "vace_layers": [1, 2], "patch_size": [1, 4, 2]}, 2, True, 1.3),  # an odd head_dim // 3
    ],
)
def test_equals_the_plain_reference(changes, references, control, scale):
    config = {**TINY, **changes}
    weights = reference.random_weights(config, SEED, control)
    model = build(config, control)
    load_official(model, [weights])
    latents, times, context, given = inputs(config, 2, 4, references)
    given = given if control else None
    with torch.no_grad():
        found = model(latents, times, context, given, references, scale)
    assert found.dtype == torch.float32
    for i in range(2):
        one = None if given is None else given[i]
        expected = reference.forward(weights, config, latents[i], times[i], context[i], one, references, scale)
        assert largest(found[i], expected) < 1e-5
    assert found.std() > 0.1  # a constant would agree with nothing


def test_one_time_means_frame_0_is_clean():
    model, (latents, _, context, control) = build(), inputs()
    time = torch.tensor([937.0, 12.0])
    frames = time[:, None].repeat(1, latents.shape[2])
    frames[:, 0] = 0
    with torch.no_grad():
        found = model(latents, time, context, control)
        assert largest(found, model(latents, frames, context, control)) < 1e-6
        assert largest(found, model(latents, time[:, None].repeat(1, 4), context, control)) > 1e-3
    with pytest.raises(ValueError, match="reference"):
        model(latents, time, context, control[:, :, 1:], num_references=1)


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("options", [{}, {"control_in_main": True, "control_to_output": True, "prediction": "sample"}])
def test_prepared_conditions_change_nothing(references, options):
    model = build(vace_in_channels=6, **options)
    latents, times, context, _ = inputs(references=references)
    control = torch.randn(2, 6, 4 - references, 4, 6)
    if options:
        torch.nn.init.normal_(model.control_in.weight, std=0.2)
    scale = torch.tensor([[1.0], [0.3]])
    with torch.no_grad():
        plain = model(latents, times, context, control, references, scale)
        ready = model.prepare(context, control, references, scale)
        assert largest(model(latents, times, conditions=ready), plain) < 1e-6
        assert (
            largest(model(latents * 2, times / 2, conditions=ready), model(latents * 2, times / 2, context, control, references, scale))
            < 1e-6
        )
        # batches: stacked conditions equal separate ones, and no sample sees another
        halves = [model.prepare(context[i : i + 1], control[i : i + 1], references, float(scale[i])) for i in range(2)]
        assert largest(model(latents, times, conditions=Conditions.cat(halves)), plain) < 2e-6
        assert largest(model(latents[1:], times[1:], conditions=halves[1]), plain[1:]) < 2e-6


def test_control_strength_zero_is_no_control_and_references_get_no_hints():
    model = build(vace_in_channels=6, control_in_main=True, control_to_output=True, prediction="sample")
    torch.nn.init.normal_(model.control_in.weight, std=0.2)
    latents, times, context, _ = inputs(references=1)
    control = torch.randn(2, 6, 3, 4, 6)
    with torch.no_grad():
        off = model(latents, times, context, None, 1)
        assert largest(model(latents, times, context, control, 1, 0.0), off) < 1e-6
        assert largest(model(latents, times, context, control, 1), off) > 1e-2
        mixed = model(latents, times, context, control, 1, torch.tensor([[0.0], [1.0]]))
        assert largest(mixed[:1], off[:1]) < 1e-6
        assert largest(mixed[1:], off[1:]) > 1e-2
        layers = model(latents, times, context, control, 1, torch.tensor([0.0, 1.0]))
        assert largest(layers, off) > 1e-3


def test_control_to_output_copies_the_projection_at_the_start():
    model = build(vace_in_channels=6, control_in_main=True, control_to_output=True, prediction="sample").initialise()
    latents, times, context, _ = inputs(references=1)
    control = torch.randn(2, 6, 3, 4, 6)
    with torch.no_grad():
        out = model(latents, times, context, control, 1)
    assert torch.equal(out[:, :, 1:], control[:, : TINY["out_dim"]])
    assert not out[:, :, :1].any()


def test_words_are_heard_from_the_start():
    """Texts that differ in one word reach cross-attention about as large as what the trunk holds, and as different as words are."""
    torch.manual_seed(0)
    model = SpatiaTransformer(**MINI_TRANSFORMER).initialise()
    text = CompactTextEncoder(CompactTextConfig(("a", "ball", "left", "right", "rolls", "the", "to")))
    with torch.no_grad():
        one, other = model._embed_text(text.encode(["a ball rolls to the left", "a ball rolls to the right"]), 1.0)[:, :6]
    assert 0.3 < float(one.std()) < 3
    assert float((one[5] - other[5]).std()) > 0.3


def test_gradients_reach_every_parameter():
    model = build(vace_in_channels=6, control_in_main=True, control_to_output=True, prediction="sample")
    latents, times, context, _ = inputs(references=1)
    model(latents, times, context, torch.randn(2, 6, 3, 4, 6), 1).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = build()
        if checkpointing:
            model.enable_gradient_checkpointing()
        latents, times, context, control = inputs(references=1)
        model.train()(latents, times, context, control, 1).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        assert largest(grad, grads[1][name]) < 1e-6, name


@pytest.mark.filterwarnings("error")
def test_autocast_and_bfloat16_stay_near_float32():
    model, (latents, times, context, control) = build(), inputs(references=1)
    with torch.no_grad():
        exact = model(latents, times, context, control, 1)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(latents, times, context, control, 1)
    near.square().mean().backward()
    assert near.dtype == torch.float32
    assert 0 < largest(near, exact) < 0.1
    with torch.no_grad():
        half: Any = build()
        low = half.to(torch.bfloat16)(latents.bfloat16(), times, context, control, 1)
    assert low.dtype == torch.bfloat16
    assert largest(low, exact) < 0.2


def test_positions_sinusoid_and_rotation_match_their_statement():
    for frames, references, height, width in ((5, 0, 2, 3), (6, 3, 3, 2)):
        expected = torch.tensor(reference.positions(frames, references, height, width))
        assert torch.equal(rotary_positions(frames, references, height, width), expected)
    assert rotary_split(128) == (44, 42, 42)
    assert rotary_split(56) == (20, 18, 18)
    assert rotary_split(20) == (8, 6, 6)
    assert rotary_split(16) == (8, 4, 4)
    table = rotary_table(20, 3, 1, 2, 2, torch.device("cpu"))
    assert table.shape == (1, 12, 1, 10)
    assert torch.allclose(table.abs(), torch.ones(()))
    # cosines first; double precision: float32 angles would be off by more at 999
    sinusoid = time_sinusoid(torch.tensor([999.0]), 8)
    angles = 999.0 * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    assert largest(sinusoid[0], torch.cat([angles.cos(), angles.sin()])) < 1e-7
    with pytest.raises(ValueError, match="even"):
        rotary_split(15)


def test_diffusers_round_trip_and_helpers(tmp_path):
    model = build(vace_in_channels=6, control_in_main=True, control_to_output=True, prediction="sample")
    model.save_pretrained(tmp_path)
    again = SpatiaTransformer.from_pretrained(tmp_path)
    assert again.config.prediction == "sample"
    assert tuple(again.config.patch_size) == (1, 2, 2)
    latents, times, context, _ = inputs()
    control = torch.randn(2, 6, 4, 4, 6)
    with torch.no_grad():
        expected = model.eval()(latents, times, context, control)
        assert torch.equal(again(latents, times, context, control), expected)
        model.fuse_qkv_projections()
        assert largest(model(latents, times, context, control), expected) < 1e-5
        assert largest(model(latents, times, conditions=model.prepare(context, control)), expected) < 1e-5
        model.unfuse_qkv_projections()
        model.set_attention_backend("native")
        assert torch.equal(model(latents, times, context, control), expected)
        model.enable_cache(FirstBlockCacheConfig(threshold=0.0))  # nothing may be skipped at this threshold
        with model.cache_context("test"):
            assert torch.equal(model(latents, times, context, control), expected)
        model.disable_cache()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"patch_size": (2, 2, 2)}, "patch_size"),
        ({"vace_layers": (0, 9)}, "vace_layers"),
        ({"vace_layers": (2, 0)}, "vace_layers"),
        ({"prediction": "noise"}, "prediction"),
        ({"attention_head_dim": 13}, "head_dim"),
        ({"freq_dim": 15}, "freq_dim"),
        ({"control_to_output": True, "vace_in_channels": 3}, "vace_in_channels"),
    ],
)
def test_bad_configs_are_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        build(**changes)


def test_bad_inputs_are_refused():
    model, (latents, times, context, control) = build(), inputs()
    ready = model.prepare(context, control)
    cases = [
        ((latents[0], times, context, control), {}, "latents"),
        ((latents[:, :2], times, context, control), {}, "latents"),
        ((latents[..., :3], times, context, control[..., :3]), {}, "multiples"),
        ((latents, times[:, :3], context, control), {}, "timestep"),
        ((latents, times, context[..., :4], control), {}, "context"),
        ((latents, times, context, control[:, :4]), {}, "control"),
        ((latents, times, context, control[:, :, :3]), {}, "control"),
        ((latents, times, context, control[..., :2]), {}, "control"),
        ((latents, times, context, control), {"control_scale": torch.ones(3)}, "control_scale"),
        ((latents, times, context, control), {"num_references": 4}, "num_references"),
        ((latents, times), {}, "context"),
        ((latents, times, context[:1], control), {}, "contexts"),
        ((latents, times, context, control[:1]), {}, "control"),
        ((latents, times, context, control), {"control_scale": torch.ones(3, 1)}, "scales"),
        ((latents[:1], times[:1]), {"conditions": ready}, "control"),
        ((latents, times, context), {"conditions": ready}, "conditions"),
    ]
    for arguments, keywords, word in cases:
        with pytest.raises(ValueError, match=word):
            model(*arguments, **keywords)
    with pytest.raises(ValueError, match="no control"):
        build(control=False)(latents, times, context, control)
    with pytest.raises(ValueError, match="different"):
        Conditions.cat([ready, model.prepare(context)])


def test_a_table_made_in_inference_mode_serves_training():
    rotary_table.cache_clear()
    model, (latents, times, context, control) = build(), inputs()
    with torch.inference_mode():
        model(latents, times, context, control)
    model(latents, times, context, control).sum().backward()  # raises if the cached table is an inference tensor
    assert model.proj_out.weight.grad is not None
