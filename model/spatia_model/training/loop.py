"""The loop every training stage shares: steps, EMA, gradient averaging, checkpoints, validation, samples.

A stage says what is trained and what a batch's loss is; the loop does the rest. Batches are drawn from a generator
seeded by (seed, rank, step), so a resumed run sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from spatia_model.training.optimizer import OPTIMIZERS, MuonAdamW, PlainAdamW
from spatia_model.training.starting import start_from

Optimizer = MuonAdamW | PlainAdamW


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast. `lr` follows a linear warm-up and then a cosine down to `final_lr`."""

    steps: int = 1000
    lr: float = 1e-3
    final_lr: float = 2e-5
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: str = "adamw"  # or "muon": see optimizer.py
    clip_norm: float = 1.0
    ema: float = 0.999
    seed: int = 0
    bf16: bool = True
    checkpoint_seconds: float = 120.0
    log_every: int = 20
    validate_every: int = 500
    start_from: str = ""  # a checkpoint of the same stage, or a model's folder, whose weights a fresh run begins with, as far as they fit

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or not 0 <= self.ema < 1:
            raise ValueError(f"steps must be >= 1, lr > 0 and 0 <= ema < 1, got {self}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        object.__setattr__(self, "betas", tuple(self.betas))

    def lr_at(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_lr + (self.lr - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Stage(Protocol):
    """One thing that is trained."""

    name: str

    @property
    def model(self) -> nn.Module:
        """Its trainable parameters are optimised; all of its state is saved."""
        ...

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Draw a batch and return its loss and figures to log. Runs under autocast when the loop uses bf16."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on validation worlds, with the averaged weights in `model`."""
        ...

    def sample(self) -> np.ndarray | None:
        """A picture (H, W, 3) uint8 to look at, or None."""
        ...


def fit(stage: Stage, config: LoopConfig, directory: Path, device: str = "cpu") -> nn.Module:
    """Train `stage` to the end, resuming from `directory` when it holds a checkpoint. Returns the averaged model.

    With `torch.distributed` initialised, gradients are averaged over the processes; rank 0 writes.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    directory.mkdir(parents=True, exist_ok=True)
    model = stage.model.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[config.optimizer](model, config.lr, config.betas, config.weight_decay)
    average = deepcopy(model).eval()
    checkpoint = directory / f"{stage.name}.pt"
    if config.start_from and not checkpoint.exists():
        start_from(Path(config.start_from), model, stage.name)
        average.load_state_dict(model.state_dict())
    step = _resume(checkpoint, model, average, optimizer, stage.name)
    if step and rank == 0:
        _say(f"{stage.name}: resumed at step {step}")
    started = saved = time.monotonic()
    first, smooth = step, {}
    while step < config.steps:
        optimizer.set_lr(config.lr_at(step))
        rng = np.random.default_rng([config.seed, rank, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=config.bf16):
            loss, figures = stage.loss(rng, generator, step)
        loss.backward()
        if world > 1:
            _average_gradients(parameters, world)
        norm = float(nn.utils.clip_grad_norm_(parameters, config.clip_norm))
        if math.isfinite(norm):  # one broken batch must not poison the weights
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        _update_average(average, model, min(config.ema, (1 + step) / (10 + step)))
        figures = {"loss": float(loss.detach()), "grad": norm, **figures}
        for key, value in figures.items():
            smooth[key] = value if key not in smooth else 0.95 * smooth[key] + 0.05 * value
        if rank == 0:
            if step % config.log_every == 0:
                pace = (time.monotonic() - started) / (step - first)
                left = (config.steps - step) * pace / 60
                text = " ".join(f"{k} {v:.4g}" for k, v in smooth.items())
                _say(f"{stage.name} {step}/{config.steps} {text} | {pace:.2f} s/step, {left:.0f} min left")
            if step % config.validate_every == 0 or step == config.steps:
                _report(stage, model, average, directory, step)
            if time.monotonic() - saved > config.checkpoint_seconds or step == config.steps:
                save_checkpoint(checkpoint, model, average, optimizer, step, config)
                saved = time.monotonic()
    stage.model.load_state_dict(average.state_dict())
    return stage.model


def device_of(model: nn.Module) -> torch.device:
    """Where a model lives, and so where its batches must go. Batches are drawn on the CPU, the same for every device."""
    return next(model.parameters()).device


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)
    for a, p in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(p)


def _report(stage: Stage, model: nn.Module, average: nn.Module, directory: Path, step: int) -> None:
    """Validate and draw a sample with the averaged weights, then put the trained ones back."""
    current = deepcopy(model.state_dict())
    model.load_state_dict(average.state_dict())
    model.eval()
    with torch.no_grad():
        figures = stage.validate()
        picture = stage.sample()
    model.load_state_dict(current)
    model.train()
    if picture is not None:
        Image.fromarray(picture).save(directory / f"{stage.name}-{step:06d}.png")
    with (directory / f"{stage.name}.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, **figures}) + "\n")
    _say(f"{stage.name} step {step} validation: " + " ".join(f"{k} {v:.4g}" for k, v in figures.items()))


def save_checkpoint(path: Path, model: nn.Module, average: nn.Module, optimizer: Optimizer, step: int, config: LoopConfig) -> None:
    """Write everything a resumed run needs, atomically: a reader never sees half a file."""
    temporary = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save({**state, "config": json.dumps(asdict(config))}, temporary)
    os.replace(temporary, path)


def _resume(path: Path, model: nn.Module, average: nn.Module, optimizer: Optimizer, name: str) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, TypeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be resumed for stage {name} ({error}): remove it to start that stage afresh") from error
    return int(state["step"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
