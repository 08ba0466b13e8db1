"""The `spatia` command. Each subcommand's code loads only when it is called, so `spatia --help` is quick."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True)
class Command:
    """A subcommand: a module with ``add_arguments(parser)`` and ``run(args) -> int``."""

    module: str
    help: str
    examples: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "spatia_env.commands.demo",
        "walk through a world from a sample picture and come back: video, point cloud, figures",
        "spatia demo\nspatia demo --image yours.jpg --out outputs/yours",
    ),
    "generate": Command(
        "spatia_env.commands.generate",
        "a long video with memory along a camera path",
        'spatia generate kitchen.jpg --motion "forward 2, left 90, right 90" --prompt "a sunny kitchen" --out outputs/kitchen\n'
        "spatia generate img.jpg --path w2c.txt --intrinsics intrinsics.txt --prompt prompt.txt --out outputs/case",
    ),
    "rollout": Command(
        "spatia_env.commands.rollout",
        "an agent's episodes as a Minari or LeRobot dataset",
        "spatia rollout --agent agents/random_walk.py:RandomWalk --episodes 20 --out outputs/walks-v0\n"
        "spatia rollout --agent agents/random_walk.py:RandomWalk --episodes 20 --out outputs/walks-lerobot --format lerobot\n"
        "spatia rollout --agent mine.py:Agent --agent-option policy=policy.zip --env SpatiaNav-v0 --task explore --num-envs 8 "
        "--episodes 200 --out outputs/explore-v0 --json",
    ),
    "eval closed-loop": Command(
        "spatia_model.evaluation.closed_loop",
        "how alike a place is after walking away and back, on held-out worlds",
        "spatia eval closed-loop --worlds 8 --seed 2000000 --clips 6 --memory on --json",
    ),
    "eval events": Command(
        "spatia_model.evaluation.events",
        "whether things move where and how the text asks",
        "spatia eval events --worlds 8 --json",
    ),
    "eval memory": Command(
        "spatia_env.commands.eval_memory",
        "whether an env remembers, repeats and obeys; ours or any other with camera actions",
        "spatia eval memory --worlds 4 --json\n"
        "spatia eval memory --env SpatiaTruth-v0 --env-args '{\"movers\": 0}' --require\n"
        "spatia eval memory --env my_envs:MyWorld-v1 --adapter my_envs.py:adapter --checks deterministic returns_to_view",
    ),
    "eval camera": Command(
        "spatia_model.evaluation.camera_control",
        "whether the camera goes where it is asked: WorldScore's camera control",
        "spatia eval camera --worlds 8 --json",
    ),
    "eval quality": Command(
        "spatia_model.evaluation.quality",
        "PSNR, SSIM and LPIPS along a walk against the truth",
        "spatia eval quality --worlds 8 --clips 4 --json",
    ),
    "eval ablation": Command(
        "spatia_model.evaluation.ablation",
        "what projection, references, their number and the voxel size are worth",
        "spatia eval ablation --worlds 8 --json\nspatia eval ablation --worlds 4 --references 1 2 3 --voxels 0.03 0.05 0.07",
    ),
    "eval long-horizon": Command(
        "spatia_model.evaluation.long_horizon",
        "closed loops of growing length, with memory and without",
        "spatia eval long-horizon --clips 2 6 20 50 --worlds 4 --json",
    ),
    "eval report": Command(
        "spatia_model.evaluation.full_report",
        "every evaluation of one model in one folder, resumable, with the paper's figures beside",
        "spatia eval report --worlds 4 --out outputs/report",
    ),
    "prepare": Command(
        "spatia_model.data.prepare.cli",
        "training clips from videos, data sets, rollouts or procedural worlds",
        "spatia prepare worlds --worlds 200 --out clips/worlds --processes 2\n"
        "spatia prepare walks runs/mini --out clips/mini\n"
        "spatia prepare realestate10k RealEstate10K/train --frames-from frames --out clips/re10k\n"
        "spatia prepare spatialvid SpatialVID-HQ --tier release --size 480x832 --vae spatia-5b --out clips/hq\n"
        "spatia prepare videos holidays --perceiver today --captions captions.json --out clips/holidays --json\n"
        "spatia prepare rollouts outputs/walks-v0 --pictures png --out clips/walks",
    ),
    "train mini": Command(
        "spatia_model.training.mini_command",
        "train the embedded tier from nothing, on procedural worlds",
        "spatia train mini --out runs/mini",
    ),
    "train control": Command(
        "spatia_model.training.stage_cli",
        "train the control blocks on prepared clips, all else frozen",
        "spatia train control --clips clips/worlds --out runs/control\n"
        "spatia train control --clips clips/worlds --trainable all --steps 2000 --lr 3e-4 --batch 16 --micro-batch 16 --out runs/all\n"
        "accelerate launch --config_file configs/accelerate/fsdp.yaml -m spatia_env.cli train control --clips clips/re10k "
        "--model spatia-5b --checkpointing --out runs/5b-control",
    ),
    "train lora": Command(
        "spatia_model.training.stage_cli",
        "train LoRA adapters on prepared clips, the control blocks frozen",
        "spatia train lora --clips clips/worlds --start-from runs/control/model/weights.safetensors --out runs/lora",
    ),
    "train vae": Command(
        "spatia_model.training.stage_cli",
        "train the embedded autoencoder on prepared clips with pictures",
        "spatia train vae --clips clips/walks --steps 2000 --out runs/vae",
    ),
    "train perception": Command(
        "spatia_model.training.stage_cli",
        "train the embedded perceiver on prepared clips with pictures and depth",
        "spatia train perception --clips clips/worlds-png --out runs/perception",
    ),
    "convert": Command(
        "spatia_env.commands.convert",
        "the released 5B checkpoint into a folder that model= takes, and back",
        "spatia convert --base Wan-AI/Wan2.2-TI2V-5B --spatia Jinjing713/Spatia --out spatia-5b\n"
        "spatia convert --base Wan2.2-TI2V-5B --spatia Spatia --out spatia-5b --dry-run --json\n"
        "spatia convert --check spatia-5b\n"
        "spatia convert --export spatia-5b --out released",
    ),
    "parity": Command(
        "spatia_model.evaluation.parity",
        "check the architecture against recorded activations of the release",
        "spatia parity path/to/fixtures",
    ),
    "doctor": Command(
        "spatia_env.commands.doctor",
        "what this machine can run and what is missing",
        "spatia doctor\nspatia doctor --model spatia-5b\nspatia doctor --json",
    ),
}

GROUPS = {"eval": "measure a model; see `spatia eval --help`", "train": "train a model; see `spatia train --help`"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = _chosen(argv)
    try:
        args = _parser(chosen).parse_args(argv)
        args.argv = argv  # for commands that record how they were called
    except _Unavailable as error:
        print(f"spatia {chosen}: error: {error}", file=sys.stderr)
        return 1
    try:
        status = args.run(args)
        sys.stdout.flush()
        return int(status or 0)
    except KeyboardInterrupt:
        print(f"spatia {chosen}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `spatia ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if args.debug:
            raise
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        print(f"spatia {chosen}: error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        if not kind:
            return 1
        print("(--debug shows where it comes from)", file=sys.stderr)
        return 1


class _Unavailable(Exception):
    """A subcommand whose module cannot be loaded here."""


def _chosen(argv: list[str]) -> str:
    words = [word for word in argv if not word.startswith("-")][:2]
    if " ".join(words) in COMMANDS:
        return " ".join(words)
    return words[0] if words and words[0] in COMMANDS else ""


def _parser(chosen: str) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="spatia",
        description="Spatia: one picture becomes a world that you walk through and that remembers itself.",
        epilog="`spatia COMMAND --help` has arguments and examples of each.",
    )
    from spatia_env import __version__

    top.add_argument("--version", action="version", version=f"spatia {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    groups: dict[str, Any] = {}
    for name, command in COMMANDS.items():
        head, _, tail = name.rpartition(" ")
        into = commands
        if head:
            if head not in groups:
                group = commands.add_parser(head, help=GROUPS[head])
                groups[head] = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
            into = groups[head]
        parser = into.add_parser(
            tail,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog="examples:\n" + "\n".join("  " + line for line in command.examples.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            _fill(parser, command)
    return top


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
    try:
        module = importlib.import_module(command.module)
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        root = missing.partition(".")[0]
        mend = "it is not part of this version" if root in ("spatia_model", "spatia_env") else f"install it: pip install {root}"
        raise _Unavailable(f"this command needs {missing}, which is not here; {mend}") from error
    module.add_arguments(parser)
    known = parser._option_string_actions  # noqa: SLF001 - argparse has no public way to ask
    if "--debug" not in known:
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=module.run)


def entry() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    entry()
