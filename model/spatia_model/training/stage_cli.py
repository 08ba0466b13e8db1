"""`spatia train control|lora|vae|perception`: one stage on prepared clips, on one CPU or under `accelerate launch`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from spatia_model.training import recipe as recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stage is the last word of the parser's name, as in `spatia train lora`."""
    stage = parser.prog.split()[-1]
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run: recipe, checkpoints, logs, strips, and at the end the model"
    )
    parser.add_argument("--config", type=Path, help="a recipe.json to begin from; options given override it")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even where there is a GPU")
    parser.add_argument("--print-config", action="store_true", help="print the recipe as JSON and stop")
    parser.add_argument("--json", action="store_true", help="print the last figures as one JSON object")
    recipes.add_arguments(parser, stage)
    parser.set_defaults(stage=stage)


def run(args: argparse.Namespace) -> int:
    recipe = recipes.from_arguments(args, args.stage)
    if args.print_config:
        from dataclasses import asdict

        print(json.dumps({"version": recipes.VERSION, **asdict(recipe)}, indent=1))
        return 0
    # Imported here: --help should not wait for kernels and networks.
    from spatia_model.training.accelerated import fit

    if args.stage in ("control", "lora"):
        from spatia_model.training.stage_control import ControlStage

        stage = ControlStage(recipe)
    else:
        from spatia_model.training.stage_pixels import PerceptionOnClips, VAEOnClips

        stage = (VAEOnClips if args.stage == "vae" else PerceptionOnClips)(recipe)
    figures = fit(stage, recipe, args.out, args.cpu)
    if args.json and os.environ.get("RANK", "0") == "0":
        print(json.dumps({"out": str(args.out), **figures}))
    else:
        print(f"trained: {args.out / 'model'}", file=sys.stderr)
    return 0
