"""What the counts of the 5B rest on: a plain statement of the release's forward that equals ours, and a count of what is alive."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spatia_model.generator import blocks
from spatia_model.generator.checkpoint import load_official
from spatia_model.generator.transformer import SpatiaTransformer
from tests.agents.loading import load
from tests.spatia_model.generator import reference_transformer as reference
from tests.spatia_model.generator.test_transformer import build

SEED = 2_000_900
CONFIG = {
    "dim": 96,
    "num_heads": 4,
    "ffn_dim": 448,  # as many times the width as the released
    "num_layers": 6,
    "vace_layers": [0, 4],
    "in_dim": 8,
    "out_dim": 8,
    "vace_in_dim": 16,
    "text_dim": 32,
    "freq_dim": 16,
    "patch_size": [1, 2, 2],
    "eps": 1e-6,
}
REFERENCES, FRAMES, SIDE = 2, 5, 16  # of latents


@pytest.fixture(scope="module")
def cost():
    return load("release_cost", "benchmarks")


@pytest.fixture(scope="module")
def weights():
    return reference.random_weights(CONFIG, SEED)


@pytest.fixture(scope="module")
def model(weights):
    network = build(CONFIG)
    load_official(network, weights)
    return network.requires_grad_(False)


def inputs(side=SIDE):
    generator = torch.Generator().manual_seed(SEED)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    times = torch.full((1, REFERENCES + FRAMES), 500.0)
    times[:, : REFERENCES + 1] = 0
    latents, control = noise(1, CONFIG["in_dim"], REFERENCES + FRAMES, side, side), noise(1, CONFIG["vace_in_dim"], FRAMES, side, side)
    return latents, times, noise(1, 6, CONFIG["text_dim"]), control


def plainly(cost, weights, given, attention):
    side = given[0].shape[-1] // 2
    turn = blocks.rotary_table(CONFIG["dim"] // CONFIG["num_heads"], REFERENCES + FRAMES, REFERENCES, side, side, torch.device("cpu"))
    return cost.plain_forward(weights, CONFIG["num_heads"], tuple(CONFIG["vace_layers"]), *given, REFERENCES, turn, attention)


def attend(query, key, value):
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def test_the_plain_statement_equals_our_forward(cost, weights, model):
    given = inputs(side=6)
    latents, times, context, control = given
    ours = model(latents, times, context, control, REFERENCES)
    plain = plainly(cost, weights, given, attend)
    assert torch.allclose(plain, ours, atol=2e-5), float((plain - ours).abs().max())
    assert not torch.allclose(plainly(cost, weights, (latents, times + 1, context, control), attend), ours, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_our_forward_takes_no_more_memory_than_the_plain_statement(cost, weights, model, kind, monkeypatch):
    """Beyond the weights, at a small size with the released proportions; `benchmarks/release_cost.py` counts it at the full size."""
    attention = cost.Attention()
    monkeypatch.setattr(blocks, "dispatch_attention_fn", attention)
    network = SpatiaTransformer.from_config(model.config)
    network.load_state_dict(model.state_dict())
    network.to(kind).requires_grad_(False)
    given = inputs()
    latents, times, context, control = given
    stored = {name: tensor.to(kind) for name, tensor in weights.items()}
    _, plain = cost.counted(lambda: plainly(cost, stored, given, attention))
    _, ours = cost.counted(lambda: network(latents, times, context, control, REFERENCES))
    conditions = network.prepare(context, control, REFERENCES)
    _, prepared = cost.counted(lambda: network(latents, times, conditions=conditions))
    kept = sum(t.nbytes for pair in (*conditions.text, *conditions.control_text) for t in pair) + conditions.control.nbytes
    tokens = (REFERENCES + FRAMES) * (SIDE // 2) ** 2
    assert plain > 2 * tokens * 6 * CONFIG["dim"] * kind.itemsize  # a modulation per token, twice: of the time, and of the block
    assert ours <= plain and prepared + kept <= plain, (ours, prepared, kept, plain)


def test_what_is_alive_is_counted_and_what_is_gone_is_not(cost):
    def work():
        a = torch.zeros(1000)
        b = a[10:].view(9, 110)  # no storage of its own
        del a
        c = b + 1
        del b
        return c + torch.zeros(990).view(9, 110)

    flops, peak = cost.counted(work)
    assert peak == 4 * 3 * 990 and flops == 0  # c, zeros and their sum; the thousand were gone
    a, b = torch.zeros(4, 5), torch.zeros(5, 6)
    assert cost.counted(lambda: a @ b)[0] == 2 * 4 * 5 * 6


def test_traffic_counts_elements_and_bytes_but_no_views(cost):
    x = torch.zeros(100)
    with cost.Traffic() as traffic:
        x.view(10, 10)[2:].T  # noqa: B018
    assert traffic.elements == traffic.bytes == 0
    with cost.Traffic() as traffic:
        x + 1
        x.add_(2)
    assert traffic.elements == 200 and traffic.bytes == 2 * 4 * 200


def test_every_setting_leaves_room_on_its_gpu(cost):
    """The rule by which the settings' peaks are put together, on made-up figures."""
    gib = cost.GIB
    clip = {
        "width": 1248,
        "height": 704,
        "forward": {"bytes": 3 * gib, "prepared_bytes": gib, "unprepared_bytes": 4 * gib},
        "autoencoder": {"encode": {"bytes": 6 * gib}, "decode": {"bytes": 7 * gib}},
    }
    weights = {"denoiser": 12 * gib, "autoencoder": gib, "text encoder": 11 * gib}
    found = cost.settings([clip, clip | {"width": 832, "height": 480}], weights, {"bytes": 0})
    assert [s["least"] // gib for s in found] == [36, 36, 22, 22, 15, 15, 11, 11]
    assert [s["stage"] for s in found[::2]] == ["all", "denoiser", "denoiser", "autoencoder"]
    assert found[0]["bytes"] > 24 * gib + 7 * gib and found[-1]["bytes"] == 8 * gib
    assert all(s["bytes"] < s["least"] for s in found[2:])
