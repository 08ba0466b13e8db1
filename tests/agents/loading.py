"""Agents are files, not modules of a package: this loads one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(name: str, folder: str = "agents") -> ModuleType:
    """`agents/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"spatia_test_{folder}_{name}", ROOT / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def small_truth(**arguments):
    """A true world that is quick to draw: a room where nothing moves."""
    import gymnasium as gym

    import spatia_env  # noqa: F401

    return gym.make("SpatiaTruth-v0", **{"world": 2_000_003, "kind": "room", "movers": 0, "image_size": 16, "supersample": 1, **arguments})
