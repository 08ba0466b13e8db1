"""Wrappers around Spatia envs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from spatia_env.actions import NAV_ACTIONS, ContinuousMotion, nav_twist
from spatia_env.tasks.base import image_of, with_image


class DiscreteMotion(gym.ActionWrapper, gym.utils.RecordConstructorArgs):
    """Six discrete motions (those of `SpatiaNav-v0`) on an env with continuous ones.

    0 forward 0.25 m, 1 turn left 15 degrees, 2 turn right, 3 look up 15 degrees, 4 look down, 5 stay.

    Raises:
        ValueError: the env's action space is not that of `Spatia-v0`, or its motion limits are smaller than a motion.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        motion = getattr(env.unwrapped, "motion", None)
        if not isinstance(motion, ContinuousMotion):
            raise ValueError(f"{env} has no continuous camera motion to choose from; wrap Spatia-v0 or SpatiaTruth-v0")
        self._limits = motion.limits
        eye = _torch_eye()
        for number, name in enumerate(NAV_ACTIONS):
            if np.any(np.abs(nav_twist(number, eye)) > self._limits + 1e-9):
                raise ValueError(
                    f"the motion {name} exceeds the env's limits {self._limits.tolist()}; raise max_translation or max_rotation"
                )
        self.action_space = spaces.Discrete(len(NAV_ACTIONS))

    def action(self, action: Any) -> dict[str, Any]:
        """The continuous action that does motion `action` (0..5) from where the camera stands."""
        state = self.env.unwrapped.state  # type: ignore[attr-defined]
        camera = nav_twist(action, state.T_world_camera[-1]) / self._limits
        return {"camera": camera.astype(np.float32), "text": ""}


class FrameByFrame(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Hand out the frames of each clip one per step.

    A clip of T frames becomes T steps. The action of the first is carried out; those of the other T - 1 are not looked at.
    Reward and end of the episode come with the clip's last frame. `info` is that of the clip, with `frame` (which of its
    frames this is) and `acted` (whether this step's action was carried out) added.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._clip: tuple[float, bool, bool, dict[str, Any]] | None = None
        self._shown: Any = None
        self._observation: Any = None
        self._next = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._clip, self._shown, self._observation = None, image_of(observation), observation
        return observation, {**info, "frame": 0, "acted": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        acted = self._clip is None
        if self._clip is None:
            self._observation, reward, terminated, truncated, info = self.env.step(action)
            self._clip, self._next = (float(reward), terminated, truncated, info), 0
        reward, terminated, truncated, info = self._clip
        index = self._next
        is_last = index == len(info["frames"]) - 1
        self._clip, self._next = (None, 0) if is_last else (self._clip, index + 1)
        told = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in info.items()}
        told |= {"frame": index, "acted": acted}
        self._shown = told["frames"][index].copy()
        return with_image(self._observation, self._shown), reward if is_last else 0.0, terminated and is_last, truncated and is_last, told

    def render(self) -> Any:
        """The frame handed out last where the env renders single frames, otherwise what the env renders."""
        return self._shown.copy() if self.render_mode == "rgb_array" and self._shown is not None else self.env.render()


def _torch_eye() -> Any:
    import torch

    return torch.eye(4, dtype=torch.float64)
