"""`spatia train mini`: every stage from nothing to a folder of weights, resumable at any point."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from spatia_model.devices import computes_bfloat16
from spatia_model.training.loop import LoopConfig

STAGES = (
    *("data", "vae", "redraw", "decoder", "perception", "first", "again", "latents"),
    *("denoiser", "sharpen", "refiner", "motions", "motion", "export"),
)
TRAINED = tuple(stage for stage in STAGES if stage not in ("data", "latents", "motions", "export"))
BRANCHES = {"first": "perception", "again": "perception"}  # stages that begin with another one's weights
VALIDATION_SEED = 1_000_000

EPILOG = """examples:
  spatia train mini --out runs/mini                        all stages, default sizes (hours on a CPU)
  spatia train mini --out runs/tiny --worlds 8 \\
    --steps vae=20,redraw=20,decoder=20,perception=20,first=20,again=20,denoiser=20,sharpen=20,refiner=20,motion=20
  spatia train mini --out runs/mini --stage denoiser --processes 2
"""


def add_arguments(parser: argparse.ArgumentParser, preset: bool = True) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if preset:
        parser.add_argument("preset", choices=["mini"], help="what to train")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: data, checkpoints, pictures, and at the end the model")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only these stages (may be given several times)")
    parser.add_argument("--worlds", type=int, default=1500, help="training worlds (seeds from --seed up; all below 1,000,000)")
    parser.add_argument(
        "--watched", type=int, help="more worlds, seen for two clips by a camera before something that moves (default: as many as --worlds)"
    )
    parser.add_argument(
        "--views", type=int, help="still more worlds, of which perception sees six pictures each (default: as many as --worlds)"
    )
    parser.add_argument("--validation-worlds", type=int, default=24, help="worlds with seeds from 1,000,000 up")
    parser.add_argument("--pictures", type=int, default=1500, help="still pictures for the VAE and perception")
    parser.add_argument("--clips", type=int, default=4, help="clips per world")
    parser.add_argument("--steps", default="", help="steps per stage, such as vae=4000,perception=2000,denoiser=6000")
    parser.add_argument("--batch", default="", help="batch per stage, such as perception=12,denoiser=16")
    parser.add_argument("--lr", default="", help="learning rate per stage, such as vae=1e-3")
    parser.add_argument(
        "--start-from",
        type=Path,
        help="folder of an earlier run, or a model (spatia-mini, or a folder): fresh stages begin with the averaged weights it holds",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="training processes, gradients averaged (one thread each)")
    parser.add_argument("--threads", type=int, default=0, help="threads per process (0: cores / processes)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-bf16", action="store_true", help="train in float32, as is done anyway on a CPU that only imitates bfloat16")


def run(args: argparse.Namespace) -> int:
    args.watched, args.views = (args.worlds if given is None else given for given in (args.watched, args.views))
    counts = (args.worlds - 1, args.watched, args.views, args.seed)
    if min(counts) < 0 or sum(counts) >= VALIDATION_SEED:
        raise ValueError(
            f"training seeds lie in 0..999,999, and every world has its own: --seed {args.seed} --worlds {args.worlds} "
            f"--watched {args.watched} --views {args.views} leaves that range"
        )
    if args.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {args.processes}")
    for name, stages in (("steps", TRAINED), ("batch", ("perception", "first", "again", "denoiser", "sharpen")), ("lr", TRAINED)):
        for stage, value in _numbers(getattr(args, name), name).items():
            if stage not in stages or not 0 < value < math.inf or (name != "lr" and value != int(value)):
                kind = "number" if name == "lr" else "whole number"
                raise ValueError(f"--{name} takes a positive {kind} for {', '.join(stages)}, got {stage}={value:g}")
    if args.validation_worlds < 1 or args.validation_worlds > VALIDATION_SEED or args.pictures < 1 or args.clips < 1:
        raise ValueError(
            f"--validation-worlds (up to 1,000,000), --pictures and --clips must be at least 1, "
            f"got {args.validation_worlds}, {args.pictures}, {args.clips}"
        )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {args.out} ({error.strerror}): give a folder you may write to") from error
    for stage in args.stage or STAGES:
        print(f"== {stage}", file=sys.stderr, flush=True)
        if stage in TRAINED and args.processes > 1:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 1000))
            mp.spawn(_worker, (stage, args), nprocs=args.processes)  # type: ignore[attr-defined]
        else:
            torch.set_num_threads(args.threads or os.cpu_count() or 1)
            _stage(stage, args)
    return 0


def _worker(rank: int, stage: str, args: argparse.Namespace) -> None:
    # SIGINT tells it that the launcher died. A shell's background jobs are born deaf to that, and it would train on alone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // args.processes))
    if args.device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo", rank=rank, world_size=args.processes)
    _stage(stage, args)
    dist.destroy_process_group()


def _numbers(text: str, option: str) -> dict[str, float]:
    try:
        return {k.strip(): float(v) for k, v in (part.split("=") for part in text.split(",") if part.strip())}
    except ValueError as error:
        raise ValueError(f"--{option} takes stage=number pairs such as vae=4000,denoiser=6000, got {text!r}") from error


def _stage(name: str, args: argparse.Namespace) -> None:
    # Imported here: the ray-caster and the map load kernels, which --help should not wait for.
    from spatia_model.training import mini_run

    run_stage = getattr(mini_run, name)
    run_stage(args.out, args)


def loop_config(args: argparse.Namespace, stage: str, default: LoopConfig) -> LoopConfig:
    """A stage's loop settings with the command line's on top."""
    steps, lr = _numbers(args.steps, "steps").get(stage), _numbers(args.lr, "lr").get(stage)
    return replace(
        default,
        steps=int(steps) if steps else default.steps,
        lr=lr or default.lr,
        seed=args.seed,
        start_from=_earlier(args.start_from, stage) or default.start_from,
        bf16=not args.no_bf16 and computes_bfloat16(args.device),
        validate_every=max(1, min(default.validate_every, int(steps or default.steps))),
    )


def _earlier(start_from: Path | None, stage: str) -> str:
    """What a stage begins with: its checkpoint in an earlier run's folder, or that of the stage it branches off, or a model's folder; empty
    where there is none."""
    if start_from is None:
        return ""
    if start_from.is_dir() and not (start_from / "config.json").exists():
        paths = (start_from / f"{name}.pt" for name in (stage, BRANCHES.get(stage, stage)))
        return next((str(path) for path in paths if path.exists()), "")
    from spatia_model.model_folder import resolve

    return str(resolve(start_from))
