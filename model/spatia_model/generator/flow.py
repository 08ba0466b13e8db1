"""Flow matching: times, noisy latents, targets, and conversions between what a network may predict.

Two clocks run in opposite directions; both are used, so every argument says which one it is:

* `t` is the paper's: x_t = (1 - t) * noise + t * data, so t = 0 is noise and t = 1 is data.
* `sigma` = 1 - t is the sampler's noise level; the network's timestep is 1000 * sigma, so 0 means clean.

The velocity here is the released weights': v = dx/dsigma = noise - data, minus the paper's u = X - x_0 = dx/dt. The loss
is the same.
"""

from __future__ import annotations

import torch

TIMESTEPS = 1000


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """More noise for shift > 1: shift * s / (1 + (shift - 1) * s). 0 and 1 stay."""
    if shift <= 0:
        raise ValueError(f"shift {shift}: give a positive number; 1 changes nothing, 5 is the released preset")
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_times(
    batch: int,
    generator: torch.Generator | None = None,
    distribution: str = "logit_normal",
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
) -> torch.Tensor:
    """Training times t (batch,) float32 in (0, 1), drawn on the CPU.

    `logit_normal`: t = sigmoid(N(mean, std)), the paper's; mean < 0 favours noise. `uniform`: evenly. `shift` then acts on
    sigma = 1 - t as the sampler's does.
    """
    if distribution == "logit_normal":
        t = torch.sigmoid(mean + std * torch.randn(batch, generator=generator))
    elif distribution == "uniform":
        t = torch.rand(batch, generator=generator)
    else:
        raise ValueError(f"distribution {distribution!r}: give 'logit_normal' or 'uniform'")
    return 1 - shift_sigma(1 - t, shift)


def _over(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Per sample (B,) or per latent frame (B, F), shaped to multiply latents (B, C, F, H, W)."""
    if value.ndim == 2:
        return value[:, None, :, None, None].to(like)
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like)


def interpolate(x0_noise: torch.Tensor, x1_data: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - t) * noise + t * data. Latents (B, C, F, H, W); t (B,) or per latent frame (B, F), 1 where a frame is clean."""
    time = _over(t, x1_data)
    return (1 - time) * x0_noise + time * x1_data


def timestep(t: torch.Tensor) -> torch.Tensor:
    """The network's timestep 1000 * (1 - t) of the paper's time t; same shape."""
    return TIMESTEPS * (1 - t)


def velocity_target(x0_noise: torch.Tensor, x1_data: torch.Tensor) -> torch.Tensor:
    """What a velocity network learns: noise - data."""
    return x0_noise - x1_data


def velocity_to_sample(x_t: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Clean latents from a velocity: x_t - (1 - t) * v."""
    return x_t - (1 - _over(t, x_t)) * velocity


def sample_to_velocity(x_t: torch.Tensor, sample: torch.Tensor, t: torch.Tensor, smallest: float = 1e-3) -> torch.Tensor:
    """Velocity from predicted clean latents: (x_t - sample) / (1 - t). Undefined at t = 1; the divisor is kept >= `smallest`."""
    return (x_t - sample) / (1 - _over(t, x_t)).clamp_min(smallest)
