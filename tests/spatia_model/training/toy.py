"""A stage small enough to train in a blink, which uses both sources of chance that the loop hands out."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from spatia_model.training.loop import LoopConfig


class Line(nn.Module):
    """A small network that also counts what it has seen, as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + len(x)
        return self.layers(x)[:, 0]


class ToyStage:
    """Fits a sum. `stop_at`: stops before that step; `broken`: a step whose loss is NaN; `joint`: the mean loss of so many processes."""

    name = "toy"

    def __init__(self, stop_at: int | None = None, broken: int | None = None, pause: float = 0.0, joint: int = 0):
        self.model = Line()
        self.stop_at, self.broken, self.pause, self.joint = stop_at, broken, pause, joint
        self.seen: list[tuple[int, float]] = []
        self.validated: list[tuple[bool, dict[str, torch.Tensor]]] = []

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        if self.joint:
            rngs = [np.random.default_rng([config().seed, rank, step]) for rank in range(self.joint)]
            loss = torch.stack([self._one(r, torch.Generator().manual_seed(int(r.integers(2**62)))) for r in rngs]).mean()
        else:
            loss = self._one(rng, generator)
        if step == self.broken:
            loss = loss * float("nan")
        self.seen.append((step, float(loss.detach())))
        return loss, {"step": float(step)}

    def _one(self, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        x = torch.from_numpy(rng.normal(size=(6, 4)).astype(np.float32)) + 0.1 * torch.randn(6, 4, generator=generator)
        return (self.model(x) - x.sum(1)).square().mean()

    def validate(self) -> dict[str, float]:
        self.validated.append((self.model.training, {k: v.clone() for k, v in self.model.state_dict().items()}))
        return {"figure": 1.0}

    def sample(self) -> np.ndarray | None:
        return np.full((2, 3, 3), 7, np.uint8)


def config(**changes) -> LoopConfig:
    settings = {"steps": 30, "lr": 0.01, "warmup": 5, "ema": 0.9, "bf16": False, "seed": 11, "checkpoint_seconds": 0.0, "log_every": 10}
    return LoopConfig(**{**settings, **changes})
