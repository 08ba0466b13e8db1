"""What a dataset says of the env it was recorded from, and of each episode in it."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec


@dataclass(frozen=True)
class EnvFace:
    """An env as a dataset describes it: spaces, the spec to make it again, and its pace.

    Args:
        env_id: such as "Spatia-v0"; "" for an env that was not made by `gym.make`.
        spec: the env's spec as JSON; None where an argument of the env (a picture, a model) cannot be written down.
        steps_per_second: how many steps are one second of world time.
        task: what the agent was asked to do, in a sentence; used where the info of an episode names no `instruction`.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    env_id: str = ""
    spec: str | None = None
    steps_per_second: float = 1.0
    task: str = ""

    @staticmethod
    def of(env: gym.Env[Any, Any], task: str = "") -> EnvFace:
        """The face of an env, wrappers and all."""
        spec = env.spec
        return EnvFace(
            env.observation_space,
            env.action_space,
            spec.id if spec is not None else "",
            spec_json(spec),
            steps_per_second(env),
            task,
        )


@dataclass
class EpisodeSummary:
    """An episode in a line."""

    index: int
    seed: int | None = None
    steps: int = 0
    total_reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool | None = None  # what the last info said under `is_success`; None where it says nothing
    error: str | None = None  # why the episode was closed before its end
    task: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without what is None."""
        found = asdict(self)
        found |= found.pop("extra")
        return {key: value for key, value in found.items() if value is not None}


def spec_json(spec: Any) -> str | None:
    """The spec of an env as JSON, or None (with no warning) where it holds what JSON cannot."""
    if spec is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium warns of what it cannot write, and goes on without
            text = spec.to_json()
            return text if EnvSpec.from_json(text).kwargs == spec.kwargs else None
    except Exception:  # to_json raises many kinds for kwargs of any type; the dataset then says that it has no spec
        return None


def steps_per_second(env: Any) -> float:
    """Steps per second of world time: `render_fps`, shared among the frames of a clip where a step is a clip."""
    fps = (env.metadata or {}).get("render_fps") or 1
    frames = getattr(env.unwrapped, "frames_per_clip", 1)
    return float(fps) / float(frames or 1)


def told_success(info: dict[str, Any]) -> bool | None:
    """`info["is_success"]` as a bool, None where the info has none."""
    value = info.get("is_success")
    return bool(value) if isinstance(value, (bool, np.bool_, int, float)) else None
