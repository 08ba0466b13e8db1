"""Reward and termination of a step.

A task is any callable ``task(observation, info) -> reward`` or ``-> (reward, terminated)``. If it has a method
``reset(observation, info, np_random)``, that is called at the start of every episode; `np_random` is the env's generator.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Task(Protocol):
    """The shape of a task; a plain function will do."""

    def __call__(self, observation: np.ndarray, info: dict[str, Any]) -> float | tuple[float, bool]: ...


def check_task(task: Any) -> Any:
    """Return `task` if it can be one. Raises ValueError otherwise."""
    if task is not None and not callable(task):
        raise ValueError(
            f"task is a {type(task).__name__}; give None (reward 0.0), or a callable task(observation, info) -> (reward, terminated)"
        )
    return task


def start(task: Task | None, observation: np.ndarray, info: dict[str, Any], np_random: np.random.Generator) -> None:
    """Tell the task that an episode begins."""
    reset = getattr(task, "reset", None)
    if callable(reset):
        reset(observation, info, np_random)


def judge(task: Task | None, observation: np.ndarray, info: dict[str, Any]) -> tuple[float, bool]:
    """Reward and termination of the step that led to `observation`. Raises ValueError if the task returns something else."""
    if task is None:
        return 0.0, False
    verdict = task(observation, info)
    reward, terminated = verdict if isinstance(verdict, tuple) and len(verdict) == 2 else (verdict, False)
    try:
        reward = float(reward)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward) or not isinstance(terminated, (bool, np.bool_)):
        raise ValueError(f"the task returned {verdict!r}; return a finite reward, or (reward, terminated) with a bool")
    return reward, bool(terminated)
