"""A run of the tiny model on fake clips, for tests of the trainer; run as a script, it trains until it is done or killed."""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate.state import AcceleratorState

from spatia_model.training.accelerated import fit
from spatia_model.training.models import Parts
from spatia_model.training.recipe import Recipe
from spatia_model.training.stage_control import ControlStage
from tests.spatia_model.tiny import CONFIG, OPTIONS, tiny_parts

SETTINGS = {
    "trainable": "all",
    "steps": 8,
    "batch": 4,
    "micro_batch": 2,
    "lr": 1e-3,
    "precision": "no",
    "warmup": 2,
    "workers": 0,
    "ema": 0.9,
    "checkpoint_steps": 2,
    "log_every": 4,
    "validate_every": 100,
    "validation_clips": 0,
    "drop_projection": 0.0,
    "max_references": 3,
}


def parts() -> Parts:
    vae, transformer, text, perception, refiner = tiny_parts()
    return Parts(transformer, text, vae, {"steps": 2, "shift": 1.0, "solver": "euler"}, (perception, refiner, CONFIG, OPTIONS, None))


def recipe(clips: Path, **changes) -> Recipe:
    return Recipe(clips=str(clips), **{**SETTINGS, **changes})


def train(clips: Path, out: Path, stop_at: int | None = None, **changes) -> ControlStage:
    """Train; `stop_at`: stop as Ctrl-C does, before that step."""
    AcceleratorState._reset_state(True)
    stage = ControlStage(recipe(clips, **changes), parts())
    if stop_at is not None:
        real = stage.prepare_step

        def prepare_step(step, *rest):
            if step == stop_at:
                raise KeyboardInterrupt
            return real(step, *rest)

        stage.prepare_step = prepare_step
    fit(stage, stage.recipe, out, cpu=True)
    return stage


def go(clips: str, out: str, steps: int) -> None:
    """A whole run with a checkpoint after every step, for a process of its own."""
    train(Path(clips), Path(out), steps=steps, checkpoint_steps=1, keep=2)


if __name__ == "__main__":
    go(sys.argv[1], sys.argv[2], int(sys.argv[3]))
