"""How a memory holds over many clips, `spatia eval long-horizon`: closed loops of growing length, with memory and without.

In a world all loops begin at the same place, so that they are judged by the same picture.

`spatia eval long-horizon --clips 2 6 20 50 --worlds 4 --json`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from spatia_model.evaluation.ablation import Variant, evaluate_variants
from spatia_model.evaluation.perceptual import Tools, find_tools
from spatia_model.evaluation.report import Progress, print_tables
from spatia_model.evaluation.setting import SEED, add_common_arguments, load_model, model_steps
from spatia_model.world_model import WorldModel

FIGURES = ("psnr_c", "ssim_c", "lpips_c", "match_acc")


def evaluate_long_horizon(
    model: WorldModel,
    worlds: int = 4,
    seed: int = SEED,
    clips: Sequence[int] = (2, 6, 20, 50),
    memory: str = "both",
    tools: Tools | None = None,
    on_walk: Callable[[str, dict[str, float | None]], None] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Figures of the last frame against the first picture, after loops of each length. `memory` is "on", "off" or "both"."""
    if memory not in ("on", "off", "both") or not clips or any(n < 2 for n in clips):
        raise ValueError(f'memory = {memory!r}, clips = {list(clips)}; expected "on", "off" or "both", and loops of at least 2 clips')
    tools = find_tools() if tools is None else tools
    modes = {"on": memory != "off", "off": memory != "on"}
    variants = [Variant(f"memory {mode}", model, mode == "on") for mode, wanted in modes.items() if wanted]
    tables: dict[str, Any] = {variant.name: {} for variant in variants}
    for length in clips:
        for mode, figures in evaluate_variants(variants, worlds, seed, length, tools, False, on_walk, max(clips)).items():
            tables[mode][f"{length} clips"] = figures
    config = {"worlds": worlds, "seed": seed, "clips": list(clips), "memory": memory, "model": name, "steps": model_steps(model)}
    return {"tables": tables, "config": config, "absent": tools.absent}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia eval long-horizon`."""
    add_common_arguments(parser, worlds=4)
    parser.add_argument(
        "--clips", type=int, nargs="+", default=[2, 6, 20, 50], metavar="N", help="lengths of the loops (default: 2 6 20 50)"
    )
    parser.add_argument("--memory", choices=("on", "off", "both"), default="both", help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the tables; 0 when done."""
    model = load_model(args)
    progress = Progress("long horizon", args.worlds * len(args.clips) * (2 if args.memory == "both" else 1))
    result = evaluate_long_horizon(
        model,
        args.worlds,
        args.seed,
        args.clips,
        args.memory,
        find_tools(args.device),
        lambda name, figures: progress.step(f"{name}: psnr_c {figures['psnr_c']:.1f}"),
        str(args.model),
    )
    print_tables(result, args.json, FIGURES)
    return 0
