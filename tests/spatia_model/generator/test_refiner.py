from __future__ import annotations

import pytest
import torch

from spatia_model.generator.refiner import DetailRefiner, RefinerConfig
from tests.spatia_model.tiny import SEED


def inputs():
    generator = torch.Generator().manual_seed(SEED)
    decoded = torch.rand(2, 3, 4, 8, 12, generator=generator) * 2 - 1
    projection = (torch.rand(2, 4, 8, 12, 3, generator=generator) * 256).clamp(max=255).to(torch.uint8)
    return decoded, projection, torch.rand(2, 4, 8, 12, generator=generator) > 0.5


def network() -> DetailRefiner:
    torch.manual_seed(SEED)
    net = DetailRefiner(RefinerConfig(width=8, blocks=2))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    return net


def test_an_untrained_refiner_meets_the_memory_half_way():
    decoded, projection, mask = inputs()
    shown = projection.permute(0, 4, 1, 2, 3) / 127.5 - 1
    expected = torch.where(mask.unsqueeze(1), (decoded + shown) / 2, decoded)
    with torch.no_grad():
        torch.testing.assert_close(DetailRefiner().refine(decoded, projection, mask), expected, atol=1e-6, rtol=1e-5)


def test_what_the_memory_does_not_cover_is_not_shown():
    decoded, projection, mask = inputs()
    other = torch.where(mask.unsqueeze(-1), projection, 255 - projection)
    with torch.no_grad():
        net = network()
        a, b = net.refine(decoded, projection, mask), net.refine(decoded, other, mask)
        assert torch.equal(a, b) and a.abs().max() <= 1
        assert not torch.equal(a, net.refine(decoded, 255 - projection, mask))


def test_frames_are_refined_one_by_one():
    decoded, projection, mask = inputs()
    with torch.no_grad():
        net = network()
        whole = net.refine(decoded, projection, mask)
        one = net(decoded[1:, :, 2], projection[1:, 2].permute(0, 3, 1, 2) / 127.5 - 1, mask[1:, 2, None].float())
    torch.testing.assert_close(whole[1:, :, 2], one.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter():
    decoded, projection, mask = inputs()
    net = network()
    net.refine(decoded * 0.5, projection, mask).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_a_refiner_of_nothing_is_refused():
    with pytest.raises(ValueError, match="positive width and number of blocks"):
        RefinerConfig(width=0)
