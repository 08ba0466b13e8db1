"""Fixtures shared by all tests: pictures, and worlds to put behind an env."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `tests.fakes`

WEIGHTS = ROOT / "model" / "spatia_model" / "pretrained" / "spatia-mini"

# One thread: the tests are many small things, and two workers side by side beat one with two threads.
torch.set_num_threads(1)


def has_weights() -> bool:
    return any(WEIGHTS.glob("*.safetensors"))


needs_weights = pytest.mark.skipif(not has_weights(), reason="the embedded weights of spatia-mini are not in this checkout")


@pytest.fixture
def picture() -> np.ndarray:
    """A landscape-format picture (90, 120, 3) uint8 with structure in it."""
    y, x = np.mgrid[0:90, 0:120]
    stack = [128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 128 + 60 * np.sin((x + y) / 5)]
    return np.stack(stack, -1).astype(np.uint8)


@pytest.fixture
def fake():
    """A world without weights."""
    from tests.fakes import FakeWorld

    return FakeWorld()


@pytest.fixture(params=["fake", pytest.param("spatia-mini", marks=[pytest.mark.weights, needs_weights])])
def world(request: pytest.FixtureRequest):
    """The fake, and the real embedded model where its weights are."""
    if request.param == "fake":
        from tests.fakes import FakeWorld

        return FakeWorld()
    from spatia_model.world_model import WorldModel

    return WorldModel.from_pretrained("spatia-mini")
