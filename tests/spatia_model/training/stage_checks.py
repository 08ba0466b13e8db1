"""What the tests of stages share: their folders' parts, draws, and what every stage must do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from spatia_model.config import MiniConfig
from spatia_model.data.windows import WindowFolder
from spatia_model.training.pictures import PicturePool
from tests.spatia_model.tiny import SEED

CONFIG = MiniConfig(image_size=32)
PROMPT, CAPTIONS = "a room with red walls", ["a ball rolls", "a box slides", "a blue ball"]


def draw(step: int = 0) -> tuple[np.random.Generator, torch.Generator, int]:
    return np.random.default_rng([SEED, step]), torch.Generator().manual_seed(SEED + step), step


def pool(run: Path) -> PicturePool:
    return PicturePool(run / "pictures.npy")


def windows(run: Path) -> WindowFolder:
    return WindowFolder(run / "walks", run / "windows")


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(SEED)) * 0.05)


def assert_learns(stage, steps: int = 3) -> None:
    """Finite, the same for the same draw, different for another, and with a gradient for every weight."""
    randomise(stage.model)
    loss, figures = stage.loss(*draw())
    assert torch.isfinite(loss) and all(np.isfinite(v) for v in figures.values()) and figures
    same, other = stage.loss(*draw())[0], stage.loss(*draw(1))[0]
    assert float(loss.detach()) == float(same.detach()) != float(other.detach())
    for step in range(steps):
        stage.loss(*draw(step))[0].backward()
    for name, p in stage.model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name
