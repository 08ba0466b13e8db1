"""Checks of what the envs are given, and the model behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


NEW_ROLLOUT = "lerobot_new_rollout"  # LeRobot's evaluation marks its resets with this option; it asks for nothing


def load_model(model: Any, device: str) -> Any:
    """A `WorldModel` from a name, a folder or itself."""
    if callable(getattr(model, "begin", None)) and callable(getattr(model, "advance", None)):
        return model
    if not isinstance(model, (str, Path)):
        raise ValueError(f"model is a {type(model).__name__}; give a name ('spatia-mini'), a folder of weights or a WorldModel")
    import torch

    from spatia_model.world_model import WorldModel

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return WorldModel.from_pretrained(model, device=device)


def check_options(options: Any, known: tuple[str, ...]) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(f"options is a {type(options).__name__}; give a dictionary with any of {list(known)}")
    unknown = sorted(str(key) for key in options if key not in (*known, NEW_ROLLOUT))
    if unknown:
        raise ValueError(f"options holds {unknown}; known are {list(known)}")
    return options


def check_flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; give True or False")
    return bool(value)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A numpy copy that shares nothing with the world."""
    return tensor.detach().cpu().numpy().copy()
