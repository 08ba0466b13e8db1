"""The recipe of a training stage: one dataclass, its defaults per stage, the command line made from it, and its file.

Defaults are the paper's where it gives them (Spatia, arXiv 2512.15716): control blocks 8,000 steps at 1e-5 with everything else frozen,
then LoRA of rank 64 for 5,000 steps at 1e-4 with control frozen, AdamW, batch 64, little noise on the preceding latents.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

VERSION = 1
STAGES = ("control", "lora", "vae", "perception")
TRAINABLE = ("control", "lora", "all")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("no", "bf16", "fp16")
ROLLOUT_FRAMES = ("own", "true")
T_BINS = 5


def _is(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """All that decides a run. Equal recipe, data and number of samples per step: equal weights, on one machine bit for bit."""

    stage: str = _is("control", "what is trained: control, lora, vae or perception")
    clips: str = _is("", "folder or URL of clips made by `spatia prepare`")
    validation: str = _is("", "folder or URL of held-out clips; empty: some videos of --clips are held out (--held-out)")
    held_out: float = _is(0.05, "share of videos kept from training for validation when --validation is empty")
    model: str = _is("spatia-mini", "where to start: name or folder of a model, or 'mini' for the embedded architecture from nothing")
    vae: str = _is("", "model whose autoencoder decodes samples; empty: the one of --model")
    trainable: str = _is("control", "control, lora or all (transformer and embedded text encoder)")
    lora_rank: int = _is(64, "rank of the adapters")
    start_from: str = _is("", "weights.safetensors of an earlier stage to begin with")
    # optimisation
    steps: int = _is(8000, "optimiser steps")
    batch: int = _is(64, "clips per step, over all processes")
    micro_batch: int = _is(1, "clips per process and forward pass; the rest is accumulated")
    lr: float = _is(1e-5, "peak learning rate")
    final_lr: float = _is(0.0, "learning rate at the end of a cosine schedule")
    schedule: str = _is("constant", "constant or cosine, after the warm-up")
    warmup: int = _is(100, "steps of linear warm-up")
    weight_decay: float = _is(0.01, "of AdamW")
    beta1: float = _is(0.9, "of AdamW")
    beta2: float = _is(0.999, "of AdamW")
    clip_norm: float = _is(1.0, "largest gradient norm")
    ema: float = _is(0.9995, "decay of the averaged weights, which are what is exported; 0: none")
    precision: str = _is("bf16", "no, bf16 or fp16 (autocast)")
    frozen_bf16: bool = _is(False, "keep frozen weights in bfloat16: half their memory (not with FSDP)")
    checkpointing: bool = _is(False, "recompute activations in the backward pass")
    compile: bool = _is(False, "torch.compile the transformer's blocks")
    seed: int = _is(0, "of the order of the data and of all noise")
    # flow matching
    t_mean: float = _is(0.0, "mean of the normal whose sigmoid is the paper's time t (below 0: more noise)")
    t_std: float = _is(1.0, "its deviation")
    shift: float = _is(1.0, "shift of the noise level, as in the sampler")
    pure_noise: float = _is(0.0, "share of samples at pure noise: few-step samplers begin there")
    history_noise: float = _is(0.05, "largest noise level on the preceding latents (t_aug 0..50 of 1000); they stay marked as clean")
    first_clip: float = _is(0.2, "share of samples that know one frame only, as a world's first clip does")
    drop_text: float = _is(0.1, "share of samples without text")
    drop_projection: float = _is(0.1, "share of samples without the memory's projection")
    drop_references: float = _is(0.1, "share of micro batches without references")
    max_references: int = _is(7, "most references shown; each micro batch draws its number from 0 to this")
    sample_floor: float = _is(0.1, "clean-sample models: the loss is divided by noise level squared plus this")
    moving_weight: float = _is(0.0, "extra weight of moving places")
    uncovered_weight: float = _is(0.0, "extra weight of places that the projection does not cover")
    # the model's own outputs as history and memory
    rollouts: str = _is(
        "", "folder of walks (`spatia train mini --stage data` makes them) that the model is rolled out along; empty: no self-forcing"
    )
    rollout_share: float = _is(0.5, "share of micro batches from rollouts, once there are some")
    rollout_every: int = _is(500, "steps between rollouts")
    rollout_walks: int = _is(8, "walks rolled out each time")
    rollout_clips: int = _is(4, "clips per walk; each clip's history and memory are the model's own")
    rollout_frames: str = _is(
        "own", "own: the model's frames become history and memory; true: the walk's do, the same clips without self-forcing (to compare)"
    )
    rollout_keep: int = _is(2, "how many rollouts' clips are kept in use")
    # pixels
    crop: int = _is(64, "vae: side of the training crops, pixels")
    # running
    workers: int = _is(2, "processes that read clips, per training process")
    checkpoint_steps: int = _is(500, "steps between checkpoints")
    keep: int = _is(3, "checkpoints kept")
    log_every: int = _is(20, "steps between log lines")
    validate_every: int = _is(500, "steps between validations")
    validation_clips: int = _is(8, "clips sampled and measured in each validation")
    sample_steps: int = _is(0, "sampler steps in validation; 0: the model's own number")
    wandb: bool = _is(False, "log to Weights & Biases too (needs wandb)")

    def __post_init__(self) -> None:
        shares = (
            "held_out",
            "first_clip",
            "drop_text",
            "drop_projection",
            "drop_references",
            "rollout_share",
            "pure_noise",
            "history_noise",
        )
        for name in (*shares, "ema"):
            if not 0 <= getattr(self, name) <= 1 or (name in ("ema", "held_out") and getattr(self, name) == 1):
                raise ValueError(f"{name} = {getattr(self, name)}: expected a share in 0..1")
        positive = ("steps", "batch", "micro_batch", "lora_rank", "checkpoint_steps", "keep", "log_every", "validate_every", "crop")
        for name in (*positive, "rollout_every", "rollout_walks", "rollout_clips", "rollout_keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a whole number of at least 1")
        for name in ("warmup", "workers", "seed", "max_references", "validation_clips", "sample_steps", "final_lr", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected 0 or more")
        for name in ("lr", "clip_norm", "t_std", "shift", "sample_floor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number")
        kinds = {"stage": STAGES, "trainable": TRAINABLE, "schedule": SCHEDULES, "precision": PRECISIONS, "rollout_frames": ROLLOUT_FRAMES}
        for name, known in kinds.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(known)}")
        if not self.clips:
            raise ValueError("--clips is missing: give a folder of clips made by `spatia prepare`")

    def accumulation(self, processes: int) -> int:
        """Forward passes per process and step."""
        per_pass = self.micro_batch * processes
        if self.batch % per_pass:
            raise ValueError(f"batch {self.batch}: no multiple of micro_batch {self.micro_batch} x {processes} processes: change either")
        return self.batch // per_pass

    def lr_at(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final_lr + (self.lr - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


# What a stage's recipe differs in from the fields above.
PRESETS: dict[str, dict[str, Any]] = {
    "control": {},
    "lora": {"trainable": "lora", "steps": 5000, "lr": 1e-4, "first_clip": 0.0},
    "vae": {
        "trainable": "all",
        "steps": 5000,
        "lr": 5e-4,
        "schedule": "cosine",
        "final_lr": 2e-5,
        "batch": 16,
        "micro_batch": 16,
        "beta2": 0.95,
    },
    "perception": {
        "trainable": "all",
        "steps": 2500,
        "lr": 5e-4,
        "schedule": "cosine",
        "final_lr": 2e-5,
        "batch": 12,
        "micro_batch": 12,
        "beta2": 0.95,
    },
}
# These may differ between a run and its continuation: they change what is written, not what is learnt.
FREE = frozenset(
    {
        "steps",
        "workers",
        "checkpoint_steps",
        "keep",
        "log_every",
        "validate_every",
        "validation_clips",
        "sample_steps",
        "wandb",
        "micro_batch",
    }
    | {"compile", "checkpointing", "clips", "validation", "vae", "rollouts"}
)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser, stage: str) -> None:
    """One option per field; options not given stay out of the namespace, so that a file may speak first."""
    hints = typing.get_type_hints(Recipe)
    for f in fields(Recipe):
        if f.name == "stage":
            continue
        default = PRESETS[stage].get(f.name, f.default if f.default is not MISSING else None)
        options: dict[str, Any] = {"help": f"{f.metadata['help']} (default: {default})".replace("%", "%%"), "default": argparse.SUPPRESS}
        if hints[f.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": hints[f.name], "metavar": hints[f.name].__name__.upper()}
        parser.add_argument(flag(f.name), **options)


def from_arguments(args: argparse.Namespace, stage: str) -> Recipe:
    """The stage's defaults, under the file of `--config`, under the options given."""
    values: dict[str, Any] = {"stage": stage, **PRESETS[stage]}
    if getattr(args, "config", None):
        values |= read(args.config)
        if values["stage"] != stage:
            raise ValueError(f"{args.config} is a recipe of stage {values['stage']}, not {stage}: run `spatia train {values['stage']}`")
    given = {f.name: getattr(args, f.name) for f in fields(Recipe) if f.name != "stage" and hasattr(args, f.name)}
    return Recipe(**{**values, **given})


def read(path: str | Path) -> dict[str, Any]:
    """The values of a recipe file. ValueError for a file that is none, or that has a field this version does not know."""
    try:
        values = json.loads(Path(path).read_text())
        version = values.pop("version")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no recipe ({error}): give a recipe.json that a run has written") from error
    if version > VERSION:
        raise ValueError(f"{path} is a recipe of version {version}; this package reads up to {VERSION}: update spatia")
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{path}: unknown setting {', '.join(unknown)}; `spatia train {values.get('stage', 'control')} --help` lists all")
    return values


def write(recipe: Recipe, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps({"version": VERSION, **asdict(recipe)}, indent=1) + "\n")
    os.replace(temporary, path)


def check_continuation(earlier: dict[str, Any], recipe: Recipe, where: str) -> None:
    """ValueError when a run's folder was made with other settings that change what is learnt."""
    now = asdict(recipe)
    changed = [
        f"{name} was {earlier[name]!r}, now {now[name]!r}" for name in sorted(earlier) if name not in FREE and earlier[name] != now[name]
    ]
    if changed:
        raise ValueError(f"{where} holds another run: {'; '.join(changed)}. Take another --out, or the settings it was begun with")


__all__ = ["PRESETS", "Recipe", "add_arguments", "check_continuation", "from_arguments", "read", "replace", "write"]
