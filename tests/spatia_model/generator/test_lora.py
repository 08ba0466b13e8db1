from typing import Any

import pytest
import torch
from torch import nn

from spatia_model.generator.checkpoint import CheckpointError, load_official
from spatia_model.generator.lora import add_lora, load_lora, lora_layers, merged_weight, save_lora
from spatia_model.generator.names import to_official
from tests.spatia_model.generator import reference_transformer as reference
from tests.spatia_model.generator.test_transformer import SEED, TINY, build, inputs, largest

TARGETS = ("self_attn.q", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2")


def adapters(weights, rank=2, dotted=True):
    generator = torch.Generator().manual_seed(SEED + 1)
    tensors = {}
    for block in range(TINY["num_layers"]):
        for target in TARGETS:
            out, into = weights[f"blocks.{block}.{target}.weight"].shape
            key = f"pipe.dit.blocks.{block}.{target}"
            middle = ".default" if dotted else ""
            tensors[f"{key}.lora_A{middle}.weight"] = torch.randn(rank, into, generator=generator) * 0.3
            tensors[f"{key}.lora_B{middle}.weight"] = torch.randn(out, rank, generator=generator) * 0.3
    return tensors


@pytest.mark.parametrize(("rank", "dotted"), [(2, True), (3, False)])
def test_adapters_equal_the_merged_weights_and_switch_by_argument(rank, dotted):
    weights = reference.random_weights(TINY, SEED)
    given = adapters(weights, rank, dotted)
    model = build()
    load_official(model, [weights])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stray = {"blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 2), "pipe.vace.x.lora_B.weight": torch.ones(1)}
    assert load_lora(model, {**given, **stray}) == sorted(stray)

    merged = dict(weights)
    middle = ".default" if dotted else ""
    for name in {key.split(".lora_")[0] for key in given}:
        a, b = given[f"{name}.lora_A{middle}.weight"], given[f"{name}.lora_B{middle}.weight"]
        official = name.removeprefix("pipe.dit.") + ".weight"
        merged[official] = weights[official] + b @ a
    latents, times, context, control = inputs(references=1)
    expected_on = reference.forward(merged, TINY, latents[0], times[0], context[0], control[0], 1)
    expected_off = reference.forward(weights, TINY, latents[0], times[0], context[0], control[0], 1)
    assert largest(expected_on, expected_off) > 0.1
    with torch.no_grad():
        for prepared in (False, True):
            for lora, expected in ((1.0, expected_on), (0.0, expected_off), (1.0, expected_on)):
                if prepared:
                    found = model(latents, times, conditions=model.prepare(context, control, 1, lora=lora))
                else:
                    found = model(latents, times, context, control, 1, lora=lora)
                assert largest(found[0], expected) < 1e-5
        half = model(latents, times, context, control, 1, lora=0.5)[0]
        assert largest(half, expected_on) > 1e-2
        assert largest(half, expected_off) > 1e-2
    for name, layer in lora_layers(model):
        assert torch.allclose(merged_weight(layer), merged[f"{to_official(name)}.weight"])
    after = {name.replace("base_layer.", ""): tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_half_strength_is_half_the_adapter_in_one_layer():
    model: Any = build()
    add_lora(model, 2, ["ffn.0"])
    layer = model.blocks[0].ffn.net[0].proj
    nn.init.normal_(layer.lora_B["default"].weight)
    from spatia_model.generator.blocks import apply_linear

    x = torch.randn(3, TINY["dim"])
    with torch.no_grad():
        half = layer.base_layer.weight + 0.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.allclose(apply_linear(layer, x, 0.5), x @ half.T + layer.base_layer.bias, atol=1e-5)
        layer.merge()
        with pytest.raises(ValueError, match="merged"):
            apply_linear(layer, x, 0.0)


def test_ranks_may_differ_between_layers():
    weights = reference.random_weights(TINY, SEED)
    given = adapters(weights)
    given["pipe.dit.blocks.1.ffn.0.lora_A.default.weight"] = torch.randn(5, TINY["dim"])
    given["pipe.dit.blocks.1.ffn.0.lora_B.default.weight"] = torch.randn(TINY["ffn_dim"], 5)
    model = build()
    load_official(model, [weights])
    load_lora(model, given)
    for name, layer in lora_layers(model):
        key = f"pipe.dit.{to_official(name)}"
        product = given[f"{key}.lora_B.default.weight"] @ given[f"{key}.lora_A.default.weight"]
        assert torch.allclose(merged_weight(layer), weights[f"{to_official(name)}.weight"] + product, atol=1e-6)
        x = torch.randn(2, layer.in_features)
        with torch.no_grad():
            assert torch.allclose(layer(x), x @ merged_weight(layer).T + layer.base_layer.bias, atol=1e-4)


def test_training_adapters_and_their_round_trip(tmp_path):
    model = build()
    latents, times, context, control = inputs(references=1)
    with torch.no_grad():
        base = model(latents, times, context, control, 1)
    parameters = add_lora(model, 2)
    assert len(parameters) == 2 * 10 * TINY["num_layers"]
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters}
    found = model(latents, times, context, control, 1)
    assert largest(found, base) < 1e-6  # B starts at zero
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(latents, times, context, control, 1).square().mean().backward()
        optimizer.step()
    trained = model(latents, times, context, control, 1)
    assert largest(trained, base) > 1e-3
    save_lora(model, tmp_path / "lora.safetensors")
    other = build()
    assert load_lora(other, tmp_path / "lora.safetensors") == []
    with torch.no_grad():
        assert largest(other(latents, times, context, control, 1), trained) < 1e-6
    with pytest.raises(ValueError, match="no LoRA"):
        save_lora(build(), tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="rank"):
        add_lora(build(), 0)
    with pytest.raises(ValueError, match="unknown"):
        add_lora(build(), 2, ["norm3x"])


def test_files_that_do_not_fit_are_refused_and_change_nothing():
    weights = reference.random_weights(TINY, SEED)
    key = "pipe.dit.blocks.0.self_attn.q"
    a, b = f"{key}.lora_A.default.weight", f"{key}.lora_B.default.weight"
    model, good = build(), adapters(weights)
    names = set(dict(model.named_modules()))
    cases = [
        ({k: v for k, v in good.items() if k != b}, "lora_B is missing"),
        ({**good, a: good[a][:, :5]}, "don't fit"),
        ({**good, a: good[a][:1]}, "don't fit"),
        ({**good, "pipe.dit.blocks.0.self_attn.q.alpha": torch.ones(1)}, "alpha"),
        ({**good, f"{key}.lora_A.weight": good[a]}, "twice"),
        ({**good, "pipe.dit.blocks.0.nothing.lora_A.weight": good[a]}, "nothing"),
        ({**good, "pipe.dit.blocks.77.ffn.0.lora_A.weight": good[a], "pipe.dit.blocks.77.ffn.0.lora_B.weight": good[b]}, "blocks.77"),
        ({**good, "pipe.dit.blocks.0.norm3.lora_A.weight": good[a], "pipe.dit.blocks.0.norm3.lora_B.weight": good[b]}, "norm3"),
        ({"other.lora_A.weight": good[a]}, "pipe.dit"),
    ]
    for tensors, word in cases:
        with pytest.raises(CheckpointError, match=word):
            load_lora(model, tensors)
        assert set(dict(model.named_modules())) == names, word
    load_lora(model, good)
    with pytest.raises(CheckpointError, match="already"):
        load_lora(model, good)
