"""From noise to latents: UniPC as the release runs it, or Euler steps for the embedded tier.

Noise levels are sigma in [0, 1] (1 noise, 0 clean); the network's timestep is 1000 * sigma. Latents are ordered references,
known frames (first image or history), frames to generate; references and known frames have time 0 and are put back
after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from spatia_model.generator.flow import TIMESTEPS, shift_sigma
from spatia_model.generator.transformer import PREDICTIONS, Conditions

# (latents (B, C, R + F, H, W), times (B, R + F) in 0..1000) -> prediction, same shape as the latents
ModelFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Progress = Callable[[int, int], Any]  # (steps done, steps)
Observer = Callable[[int, torch.Tensor], Any]  # (steps done, latents with references in front)
Generators = torch.Generator | Sequence[torch.Generator]

SOLVERS = ("unipc", "euler")


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"steps {steps!r}: give a whole number from 1 to {TIMESTEPS}; the released preset is 40")


def unipc_schedule(steps: int, shift: float, prediction: str = "velocity") -> UniPCMultistepScheduler:
    """The release's solver: order-2 bh2 UniPC in x0 form, ready at its first step (`timesteps` int64, `sigmas` float32).

    Levels are evenly spaced from 0.999 to 0, the 0 dropped, then shifted; diffusers' own grid differs.
    """
    _check_steps(steps)
    shift_sigma(torch.ones(()), shift)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction" if prediction == "velocity" else "sample", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps, sigmas=np.linspace(0.999, 0, steps + 1)[:-1])  # type: ignore[arg-type]
    scheduler.set_begin_index(0)  # the integer timesteps may repeat when there are many steps
    return scheduler


def euler_sigmas(steps: int, shift: float) -> torch.Tensor:
    """Levels (steps + 1,) float64 from 1 to 0, evenly spaced, then shifted."""
    _check_steps(steps)
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def draw_noise(shape: Sequence[int], generator: Generators, like: torch.Tensor | None = None) -> torch.Tensor:
    """Standard normal noise, always drawn on the CPU in float32, then moved: the same on every device.

    Several generators: one per sample of the batch, so that a sample's noise doesn't depend on its company.
    """
    if isinstance(generator, torch.Generator):
        noise = torch.randn(*shape, generator=generator, dtype=torch.float32)
    elif len(generator) == shape[0]:
        noise = torch.stack([torch.randn(*shape[1:], generator=one, dtype=torch.float32) for one in generator])
    else:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}: give one generator, or one per sample")
    return noise if like is None else noise.to(like)


def combine_guidance(positive: torch.Tensor, negative: torch.Tensor, scale: float) -> torch.Tensor:
    """negative + scale * (positive - negative)."""
    return negative + scale * (positive - negative)


def model_fn(
    model: Any,
    conditions: Conditions,
    negative: Conditions | None = None,
    guidance: float = 1.0,
    batched: bool = False,
) -> ModelFn:
    """A `SpatiaTransformer` and its prepared conditions as what `denoise` calls.

    With guidance other than 1 the negative conditions run too: in one batch of twice the size (`batched`) or after each other.
    """
    if guidance == 1.0:
        return lambda latents, times: model(latents, times, conditions=conditions)
    if negative is None:
        raise ValueError(f"guidance {guidance} needs `negative` conditions (an empty or a negative prompt), or give guidance 1")
    if not batched:
        return lambda latents, times: combine_guidance(
            model(latents, times, conditions=conditions), model(latents, times, conditions=negative), guidance
        )
    both = Conditions.cat([conditions, negative])

    def run(latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        positive, other = model(torch.cat([latents] * 2), torch.cat([times] * 2), conditions=both).chunk(2)
        return combine_guidance(positive, other, guidance)

    return run


def _check_part(name: str, part: torch.Tensor | None, noise: torch.Tensor) -> torch.Tensor:
    """The part, or an empty one when None; its batch, channels and image size must be the noise's."""
    if part is None:
        return noise[:, :, :0]
    if part.ndim != 5 or part.shape[:2] != noise.shape[:2] or part.shape[3:] != noise.shape[3:]:
        batch, channels, _, height, width = noise.shape
        raise ValueError(f"{name} {tuple(part.shape)}: give ({batch}, {channels}, frames, {height}, {width}), as the noise has")
    return part.to(noise)


@torch.no_grad()
def denoise(
    model_fn: ModelFn,
    noise: torch.Tensor,
    known_latents: torch.Tensor | None = None,
    reference_latents: torch.Tensor | None = None,
    steps: int = 40,
    shift: float = 5.0,
    guidance: float = 1.0,
    negative_fn: ModelFn | None = None,
    solver: str = "unipc",
    prediction: str = "velocity",
    renoise: float = 0.0,
    generator: Generators | None = None,
    progress: Progress | None = None,
    observe: Observer | None = None,
    stop: int | None = None,
) -> torch.Tensor:
    """Latents (B, C, F, H, W) from noise of that shape; the first K frames come back as the known ones.

    Args:
        model_fn: predicts from latents with references in front and per-frame times; see the function of that name.
        known_latents: (B, C, K, H, W) clean first frames, K < F, or None.
        reference_latents: (B, C, R, H, W) clean reference frames, or None; cut off at the end.
        steps: 1 to 1000 network evaluations (twice that with guidance).
        shift: flow shift; above 1 spends more steps at high noise.
        guidance: negative + guidance * (positive - negative), with `negative_fn` predicting the negative; 1 is off.
        solver: "unipc" (the release's) or "euler".
        prediction: what the model gives: "velocity" (noise - data) or "sample" (clean latents).
        renoise: Euler only, 0..1: the share of noise that is drawn afresh after each step from `generator`. 0 is the plain
            ODE; 1 with a "sample" model is consistency sampling.
        generator: CPU generator, or one per sample.
        progress: called after each step with (steps done, steps).
        observe: called after each step with (steps done, latents with the references in front).
        stop: return what there is after so many of the steps, still noisy; None: all of them.
    """
    if noise.ndim != 5:
        raise ValueError(f"noise {tuple(noise.shape)}: give (B, C, F, H, W)")
    known, references = _check_part("known_latents", known_latents, noise), _check_part("reference_latents", reference_latents, noise)
    first, start = references.shape[2], references.shape[2] + known.shape[2]
    if known.shape[2] >= noise.shape[2]:
        raise ValueError(f"{known.shape[2]} known frames of {noise.shape[2]}: leave at least one frame to generate")
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r}: give one of {SOLVERS}")
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r}: give one of {PREDICTIONS}")
    if guidance != 1.0 and negative_fn is None:
        raise ValueError(f"guidance {guidance} needs `negative_fn`, or give guidance 1")
    if not 0.0 <= renoise <= 1.0 or (renoise and (solver != "euler" or generator is None)):
        raise ValueError(f"renoise {renoise}: give 0 to 1, with solver 'euler' and a `generator` when above 0")

    if stop is not None and not 1 <= stop <= steps:
        raise ValueError(f"stop {stop}: give 1 to {steps}, the number of steps, or None")

    scheduler = unipc_schedule(steps, shift, prediction) if solver == "unipc" else None
    sigmas = euler_sigmas(steps, shift).tolist() if scheduler is None else []
    clean = torch.cat([references, known], dim=2)
    x = torch.cat([clean, noise[:, :, known.shape[2] :]], dim=2)
    for step in range(stop or steps):
        time = float(scheduler.timesteps[step]) if scheduler is not None else TIMESTEPS * sigmas[step]
        times = torch.full((x.shape[0], x.shape[2]), time, dtype=torch.float32, device=x.device)
        times[:, :start] = 0
        output = model_fn(x, times)
        if guidance != 1.0 and negative_fn is not None:
            output = combine_guidance(output, negative_fn(x, times), guidance)
        if scheduler is not None:
            x = scheduler.step(output, scheduler.timesteps[step], x, return_dict=False)[0]
        else:
            x = _euler_step(x, output, sigmas[step], sigmas[step + 1], prediction, renoise, generator)
        x = torch.cat([clean, x[:, :, start:]], dim=2)
        if progress is not None:
            progress(step + 1, steps)
        if observe is not None:
            observe(step + 1, x)
    return x[:, :, first:]


def _euler_step(
    x: torch.Tensor,
    output: torch.Tensor,
    sigma: float,
    following: float,
    prediction: str,
    renoise: float,
    generator: Generators | None,
) -> torch.Tensor:
    sample = output if prediction == "sample" else x - sigma * output
    if following == 0.0:
        return sample
    eps = (x - (1 - sigma) * sample) / sigma  # the noise that x and the predicted sample imply
    if renoise and generator is not None:
        eps = (1 - renoise**2) ** 0.5 * eps + renoise * draw_noise(x.shape, generator, x)
    return (1 - following) * sample + following * eps
