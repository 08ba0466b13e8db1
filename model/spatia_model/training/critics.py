"""Critics: networks that tell what a generator made from what is real, so that it learns to make one sharp picture, not the mean of many.

The generator's and the critic's losses are relativistic (Jolicoeur-Martineau 2018): a made sample is compared with the real one of the
same conditions. The critic's slope at both is kept small, which is what makes such training settle (Mescheder et al. 2018); the slope is
measured by a finite difference along random directions, as in Lin et al. 2025 (arXiv 2501.08316).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


class PatchCritic(nn.Module):
    """Scores patches of pictures or latents at three scales.

    Args:
        channels: of what is judged and its conditions together.
        widths: channels at full, half and quarter resolution.
        unshuffle: side of the pixel blocks that are folded into channels first (pictures: 2, latents: 1).
    """

    def __init__(self, channels: int, widths: Sequence[int] = (96, 128, 128), unshuffle: int = 1):
        super().__init__()
        a, b, c = widths
        self.unshuffle = unshuffle
        self.stem = nn.Conv2d(channels * unshuffle**2, a, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(b, b, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)])
        self.down = nn.ModuleList([nn.Conv2d(a, b, 4, 2, 1), nn.Conv2d(b, c, 4, 2, 1)])
        # Without a bias: only differences between scores count.
        self.scores = nn.ModuleList([nn.Conv2d(width, 1, 3, padding=1, bias=False) for width in widths])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x (N, channels, H, W) to scores (N, 1, h, w) at three scales."""
        x = self.stem(F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x)
        found = []
        for i, block in enumerate(self.blocks):
            x = x + block(F.leaky_relu(x, 0.2))
            found.append(self.scores[i](F.leaky_relu(x, 0.2)))
            if i < len(self.down):
                x = self.down[i](F.leaky_relu(x, 0.2))
        return found


def _judge(critic: nn.Module, x: torch.Tensor, given: torch.Tensor) -> list[torch.Tensor]:
    return [score.float() for score in critic(torch.cat([x, given], 1))]


def _mean(scores: list[torch.Tensor], share: torch.Tensor) -> torch.Tensor:
    """Mean over scales of the mean over patches, each patch counting by its share (N, 1, H, W) of what is asked about."""
    parts = []
    for score in scores:
        weight = F.adaptive_avg_pool2d(share, (score.shape[-2], score.shape[-1]))
        parts.append((score * weight).sum() / weight.sum().clamp(min=1e-6))
    return torch.stack(parts).mean()


def critic_loss(
    critic: nn.Module,
    real: torch.Tensor,
    made: torch.Tensor,
    given: torch.Tensor,
    share: torch.Tensor,
    generator: torch.Generator,
    flatness: float = 1.0,
    reach: float = 0.1,
    scores: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """What the critic minimises.

    Args:
        real, made: (N, C, H, W); no gradient flows into them.
        given: (N, G, H, W) conditions of both.
        share: (N, 1, H, W) in 0..1, where the difference matters.
        flatness: weight of the squared slope.
        reach: of the finite difference, in units of the samples' own spread.
        scores: the critic's of `real`, where they are known.
    """
    real, made = real.detach(), made.detach()
    a, b = _judge(critic, real, given) if scores is None else scores, _judge(critic, made, given)
    loss = _mean([F.softplus(y - x) for x, y in zip(a, b, strict=True)], share)
    for samples, scores in ((real, a), (made, b)):
        step = reach * torch.randn(samples.shape, generator=generator).to(samples)
        moved = _judge(critic, samples + step, given)
        loss = loss + flatness * _mean([((y - x) / reach).square() for x, y in zip(scores, moved, strict=True)], torch.ones_like(share))
    return loss


def wish(
    critic: nn.Module,
    real: torch.Tensor,
    made: torch.Tensor,
    given: torch.Tensor,
    share: torch.Tensor,
    scores: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """What the generator minimises: that the critic prefers `made`. The critic's own weights get no gradient. `scores` as above."""
    frozen = {k: v.detach() for k, v in (*critic.named_parameters(), *critic.named_buffers())}
    x = torch.cat([made, given], 1)
    b = [score.float() for score in functional_call(critic, frozen, (x,))]
    with torch.no_grad():
        a = _judge(critic, real, given) if scores is None else [score.detach() for score in scores]
    return _mean([F.softplus(x - y) for x, y in zip(a, b, strict=True)], share)


def judged(
    critic: nn.Module,
    real: torch.Tensor,
    made: torch.Tensor,
    given: torch.Tensor,
    share: torch.Tensor,
    generator: torch.Generator,
    flatness: float,
    reach: float = 0.05,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`critic_loss` and `wish` of the same pictures; the real ones are scored once."""
    scores = _judge(critic, real.detach(), given)
    loss = critic_loss(critic, real, made, given, share, generator, flatness, reach, scores)
    return loss, wish(critic, real, made, given, share, scores)
