"""Picture quality along a walk against the truth, as novel view synthesis is scored, and `spatia eval quality`.

`spatia eval quality --worlds 8 --clips 4 --json`

A walk through a test world that does not return. `psnr` (dB), `ssim` and `lpips` are means over its frames (whole frames, movers
included), the last where its package is installed; `*_first`, `*_last` those of the first and of the last clip; `psnr_vae` the
autoencoder's ceiling. What a world holds beyond the first picture no model can know: these figures compare models on the same worlds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from spatia_model.evaluation.metrics import psnr, ssim
from spatia_model.evaluation.perceptual import Tools, find_tools
from spatia_model.evaluation.report import Progress, print_report, summarise
from spatia_model.evaluation.setting import SEED, Figures, Walk, add_walk_arguments, load_model, vae_reconstruction, walk_worlds
from spatia_model.world_model import WorldModel

UNITS = {
    "psnr": "dB",
    "ssim": "",
    "lpips": "",
    "psnr_first": "dB, first clip",
    "psnr_last": "dB, last clip",
    "ssim_first": "",
    "ssim_last": "",
    "psnr_vae": "dB, ceiling",
}


def quality_figures(model: WorldModel, walked: Walk, tools: Tools) -> Figures:
    """The figures of one walk."""
    frames, truth, step = walked.frames, walked.truth.rgb[1:], model.config.frames_per_clip
    each = torch.tensor([psnr(a, b, span=255) for a, b in zip(frames, truth, strict=True)])
    rebuilt = vae_reconstruction(model, walked.truth.rgb)
    return {
        "psnr": float(each.mean()),
        "ssim": ssim(frames, truth),
        "lpips": None if tools.lpips is None else tools.lpips(frames, truth),
        "psnr_first": float(each[:step].mean()),
        "psnr_last": float(each[-step:].mean()),
        "ssim_first": ssim(frames[:step], truth[:step]),
        "ssim_last": ssim(frames[-step:], truth[-step:]),
        "psnr_vae": None if rebuilt is None else psnr(rebuilt, truth, span=255),
    }


def evaluate_quality(
    model: WorldModel,
    worlds: int = 16,
    seed: int = SEED,
    clips: int = 4,
    memory: bool = True,
    tools: Tools | None = None,
    on_world: Callable[[Figures], None] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """All figures over worlds `seed`, `seed` + 1, ...; the same arguments give the same figures."""
    used = find_tools() if tools is None else tools
    found, config = walk_worlds(model, lambda walked: quality_figures(model, walked, used), 19, worlds, seed, clips, memory, on_world, name)
    return {**summarise(found, list(UNITS)), "config": config, "details": {}, "absent": used.absent}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia eval quality`."""
    add_walk_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when done."""
    model, progress = load_model(args), Progress("quality", args.worlds)
    result = evaluate_quality(
        model,
        args.worlds,
        args.seed,
        args.clips,
        args.memory == "on",
        find_tools(args.device),
        lambda figures: progress.step(f"psnr {figures['psnr']:.1f}"),
        str(args.model),
    )
    print_report(result, args.json, UNITS)
    return 0
