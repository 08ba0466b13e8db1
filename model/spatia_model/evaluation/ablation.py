"""What each part of the memory is worth, `spatia eval ablation`; and how long it holds, `spatia eval long-horizon` (`long_horizon.py`).

`spatia eval ablation --worlds 8 --json`

Every variant walks the same closed loops (`trajectories.out_and_back`): neither, projection only, references only, both; K references;
voxels of the map. Without projection the generator is shown an empty one, while the map goes on being built, for references are found by
it. Figures as in the paper's table: `psnr_c`, `ssim_c`, `lpips_c` and `match_acc` of the last frame against the first picture,
`camera_control` (`camera_control.py`).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from spatia_model.evaluation.camera_control import walk_control
from spatia_model.evaluation.metrics import psnr, ssim
from spatia_model.evaluation.perceptual import Tools, find_tools, match_accuracy
from spatia_model.evaluation.report import Progress, print_tables, summarise
from spatia_model.evaluation.setting import SEED, Walk, add_common_arguments, check_counts, frame_times, load_model, model_steps, walk
from spatia_model.types import Conditioning, Projection
from spatia_model.world_model import WorldModel
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import out_and_back

FIGURES = ("psnr_c", "ssim_c", "lpips_c", "match_acc", "camera_control")


@dataclass(frozen=True)
class Variant:
    """A model with a part of its memory changed."""

    name: str
    model: WorldModel
    memory: bool = True


class WithoutProjection:
    """A generator that is shown no projection: everywhere a hole. All else is the generator's own."""

    def __init__(self, generator: Any):
        self.generator = generator

    def generate(self, conditionings: Sequence[Conditioning], rngs: Sequence[torch.Generator], *args: Any, **kwargs: Any) -> Any:
        hidden = [replace(c, projection=_holes(c.projection)) for c in conditionings]
        return self.generator.generate(hidden, rngs, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)


def _holes(projection: Projection) -> Projection:
    return Projection(
        torch.zeros_like(projection.rgb),
        torch.zeros_like(projection.depth),
        torch.zeros_like(projection.mask),
        torch.full_like(projection.index, -1),
    )


def changed(model: WorldModel, *, generator: Any = None, **config: Any) -> WorldModel:
    """The same model, sharing every part, with another generator or other numbers in its config."""
    other = copy.copy(model)
    other.generator = generator or model.generator
    other.config = replace(model.config, **config)
    return other


def memory_variants(model: WorldModel) -> list[Variant]:
    """The paper's four: neither, projection only, references only, both."""
    return [
        Variant("neither", model, memory=False),
        Variant("projection only", changed(model, max_references=0)),
        Variant("references only", changed(model, generator=WithoutProjection(model.generator))),
        Variant("both", model),
    ]


def loop_figures(variant: Variant, walked: Walk, tools: Tools, camera: bool = True) -> dict[str, float | None]:
    """The figures of one walk that ends where it began."""
    first, last = walked.truth.rgb[0], walked.frames[-1]
    return {
        "psnr_c": psnr(last, first, span=255),
        "ssim_c": ssim(last, first),
        "lpips_c": None if tools.lpips is None else tools.lpips(last[None], first[None]),
        "match_acc": None if tools.matcher is None else match_accuracy(first, last, tools.matcher),
        "camera_control": walk_control(variant.model, walked)["camera_control"] if camera else None,
    }


def evaluate_variants(
    variants: Sequence[Variant],
    worlds: int,
    seed: int,
    clips: int,
    tools: Tools,
    camera: bool = True,
    on_walk: Callable[[str, dict[str, float | None]], None] | None = None,
    longest: int | None = None,
) -> dict[str, dict[str, float | None]]:
    """Figures with their uncertainty per variant, all on the same loops and noise.

    Longer loops need more room and begin elsewhere; with `longest`, loops of any length begin where one of so many clips does.
    """
    check_counts(worlds=(worlds, 1), seed=(seed, 0), clips=(clips, 2))
    found: dict[str, list[dict[str, float | None]]] = {variant.name: [] for variant in variants}
    for number in range(seed, seed + worlds):
        world = World.generate(number)
        step = variants[0].model.config.frames_per_clip
        start = None if longest in (None, clips) else out_and_back(world, np.random.default_rng([number, 11]), longest, step)[0]
        path = out_and_back(world, np.random.default_rng([number, 11]), clips, step, start=start)
        count = len(path) if camera else 1  # the others ask for the start alone, and rendering is the dear part of a long walk
        truth = world.render(path[:count], variants[0].model.camera, frame_times(count))
        for variant in variants:
            walked = walk(variant.model, world, path, seed=number, memory=variant.memory, truth=truth)
            figures = loop_figures(variant, walked, tools, camera)
            found[variant.name].append(figures)
            if on_walk is not None:
                on_walk(variant.name, figures)
    return {name: summarise(figures, FIGURES) for name, figures in found.items()}


def evaluate_ablation(
    model: WorldModel,
    worlds: int = 8,
    seed: int = SEED,
    clips: int = 4,
    references: Sequence[int] = (1, 2, 3),
    voxels: Sequence[float] = (),
    tools: Tools | None = None,
    on_walk: Callable[[str, dict[str, float | None]], None] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Three tables: memory's parts, number of references, voxel size in metres. The last two may be left empty."""
    if any(k < 1 for k in references) or any(not v > 0 for v in voxels):
        raise ValueError(f"references = {list(references)}, voxels = {list(voxels)}; expected whole numbers from 1, and metres above 0")
    tools = find_tools() if tools is None else tools
    tables = {
        "memory": memory_variants(model),
        "references": [Variant(f"K = {k}", changed(model, max_references=k)) for k in references],
        "voxel": [Variant(f"{v:g} m", changed(model, voxel_size=v)) for v in voxels],
    }
    # one pass over the worlds, so that each is built once
    flat = [Variant(f"{table}/{v.name}", v.model, v.memory) for table, variants in tables.items() for v in variants]
    found = evaluate_variants(flat, worlds, seed, clips, tools, on_walk=on_walk)
    return {
        "tables": {table: {v.name: found[f"{table}/{v.name}"] for v in variants} for table, variants in tables.items() if variants},
        "config": {"worlds": worlds, "seed": seed, "clips": clips, "model": name, "steps": model_steps(model)},
        "absent": tools.absent,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia eval ablation`."""
    add_common_arguments(parser, worlds=8)
    parser.add_argument("--clips", type=int, default=4, help="clips of a loop, at least 2 (default: %(default)s)")
    parser.add_argument("--references", type=int, nargs="*", default=[1, 2, 3], metavar="K", help="numbers of references (default: 1 2 3)")
    parser.add_argument("--voxels", type=float, nargs="*", default=[], metavar="M", help="voxel sizes of the map in metres (default: none)")


def run(args: argparse.Namespace) -> int:
    """Print the tables; 0 when done."""
    model = load_model(args)
    progress = Progress("ablation", args.worlds * (4 + len(args.references) + len(args.voxels)))
    result = evaluate_ablation(
        model,
        args.worlds,
        args.seed,
        args.clips,
        args.references,
        args.voxels,
        find_tools(args.device),
        lambda name, figures: progress.step(f"{name}: psnr_c {figures['psnr_c']:.1f}"),
        str(args.model),
    )
    print_tables(result, args.json, FIGURES)
    return 0
