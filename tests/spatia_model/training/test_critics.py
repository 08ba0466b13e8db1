"""Critics: losses against plain formulas, and a generator that learns to be sharp where squared error would have it blur."""

from __future__ import annotations

import math

import torch
from torch import nn

from spatia_model.training.critics import PatchCritic, critic_loss, wish

SEED = 5


def generator(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Two scales: the sum over channels times a weight, and its 2x2 means."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        score = self.weight * x.sum(1, keepdim=True)
        return [score, nn.functional.avg_pool2d(score, 2)]


def test_scores_come_at_three_scales_and_see_whole_patches():
    critic = PatchCritic(5, (8, 8, 8))
    found = critic(torch.randn(2, 5, 16, 16, generator=generator()))
    assert [tuple(s.shape) for s in found] == [(2, 1, 16, 16), (2, 1, 8, 8), (2, 1, 4, 4)]
    folded = PatchCritic(3, (8, 8, 8), unshuffle=2)(torch.randn(2, 3, 32, 32, generator=generator()))
    assert [s.shape[-1] for s in folded] == [16, 8, 4]


def test_losses_equal_their_formulas():
    critic = Linear()
    real, made, given = (torch.randn(2, 1, 4, 4, generator=generator(i)) for i in (1, 2, 3))
    share = torch.zeros(2, 1, 4, 4)
    share[..., :2] = 1
    a, b = (0.7 * (x + given) for x in (real, made))
    pool = nn.functional.avg_pool2d

    def mean(score, weight):
        return float((score * weight).sum() / weight.sum())

    softplus = lambda x: torch.log1p(torch.exp(x))  # noqa: E731
    told = (mean(softplus(a - b), share) + mean(softplus(pool(a - b, 2)), pool(share, 2))) / 2
    assert math.isclose(float(wish(critic, real, made, given, share)), told, rel_tol=1e-5)
    # The slope of this critic along a direction is 0.7 times the direction, whatever the sample.
    g = generator()
    slopes = [0.7 * torch.randn(real.shape, generator=g) for _ in range(2)]
    flat = sum((float(s.square().mean()) + float(pool(s, 2).square().mean())) / 2 for s in slopes)
    asked = (mean(softplus(b - a), share) + mean(softplus(pool(b - a, 2)), pool(share, 2))) / 2
    found = critic_loss(critic, real, made, given, share, generator(), flatness=0.3)
    assert math.isclose(float(found.detach()), asked + 0.3 * flat, rel_tol=1e-3)


def test_gradients_reach_whom_they_should():
    critic = PatchCritic(2, (8, 8, 8))
    real, given, share = (torch.randn(2, 1, 16, 16, generator=generator(1)) for _ in range(3))
    made = torch.randn(2, 1, 16, 16, generator=generator(2), requires_grad=True)
    share = share.sigmoid()
    critic_loss(critic, real, made, given, share, generator()).backward()
    assert made.grad is None and all(p.grad is not None and p.grad.abs().max() > 0 for p in critic.parameters())
    critic.zero_grad()
    wish(critic, real, made, given, share).backward()
    assert made.grad is not None and made.grad.abs().max() > 0 and all(p.grad is None for p in critic.parameters())


class Square(nn.Module):
    """One score a patch: how its value's square lies, which is all that sharpness is about here."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 1, bias=False))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.layers(x)]


def test_against_the_critic_one_of_two_is_drawn_rather_than_their_mean():
    """Real pictures are all 1 or all -1. Squared error draws 0; the critic wants one of the two."""
    found = {}
    for adversarial in (0.0, 1.0):
        torch.manual_seed(SEED)
        net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.SiLU(), nn.Conv2d(8, 1, 1))
        critic = Square()
        optimizer = torch.optim.AdamW([*net.parameters(), *critic.parameters()], 1e-2, betas=(0.5, 0.95))
        g, ones = generator(), torch.ones(32, 1, 1, 1)
        for _ in range(400):
            real = torch.randint(0, 2, (32, 1, 1, 1), generator=g) * 2 - 1.0
            made = net(torch.randn(32, 1, 1, 1, generator=g))
            loss = (made - real).square().mean() * (1 - adversarial)
            if adversarial:
                loss = loss + critic_loss(critic, real, made, real[:, :0], ones, g, 0.1) + wish(critic, real, made, real[:, :0], ones)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[adversarial] = float(net(torch.randn(200, 1, 1, 1, generator=g)).detach().abs().mean())
    assert found[0.0] < 0.3 and 0.6 < found[1.0] < 1.6, found
