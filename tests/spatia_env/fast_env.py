"""A world that costs nothing, in the shape of `Spatia-v0`, and agents for it: what recording and rollouts are tested with.

`gym.make("tests.spatia_env.fast_env:FastWorld-v0")` makes it in any process.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

FRAMES = 4


class FastWorld(gym.Env[np.ndarray, Any]):
    """Frames are noise that depends on the seed, the actions and nothing else. Episodes end by themselves after 4 to 12 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}
    frames_per_clip = FRAMES

    def __init__(
        self,
        task: str | None = None,
        size: int = 32,
        delay: float = 0.0,
        broken_seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if task not in (None, "wander"):
            raise ValueError(f"task is {task!r}; known are ['wander']")
        self.task, self.size, self.delay, self.render_mode = task, size, delay, render_mode
        self.broken_seed = broken_seed
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        text = spaces.Text(max_length=100_000, min_length=0, charset="abcdefghijklmnopqrstuvwxyz ")
        self.action_space = spaces.Dict({"camera": spaces.Box(-1, 1, (6,), np.float32), "text": text})
        self._length = self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._length, self._step = int(self.np_random.integers(4, 13)), 0
        self._pose = np.eye(4)
        return self._see()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is no action")
        if self.np_random_seed == self.broken_seed:
            raise RuntimeError("out of memory")
        time.sleep(self.delay)
        self._step += 1
        self._pose = self._pose.copy()
        self._pose[:3, 3] += action["camera"][:3]
        observation, info = self._see()
        over = self._step >= self._length
        if over:
            info["is_success"] = bool(self._length % 2)
        return observation, float(action["camera"].sum()), over, False, info

    def _see(self) -> tuple[np.ndarray, dict[str, Any]]:
        frames = self.np_random.integers(0, 256, (FRAMES, self.size, self.size, 3), np.uint8)
        info = {
            "frames": frames,
            "poses": np.repeat(self._pose[None], FRAMES, 0),
            "K": np.array([[20.0, 0, 16], [0, 20, 16], [0, 0, 1]]),
            "coverage": float(self._step) / 10,
            "memory_points": 100 * self._step,
        }
        return frames[-1].copy(), info


class Walker:
    """Draws its actions from its seed, and says what it does."""

    def __init__(self, env: Any, seed: int = 0, words: str = "on we go") -> None:
        self.space, self.words = env.action_space, words
        self.rng = np.random.default_rng(seed)

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        self.count = 0

    def act(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        return {"camera": self.rng.uniform(-1, 1, 6).astype(np.float32), "text": self.words if self.count % 2 else ""}


class Clumsy(Walker):
    """Raises in one episode out of four, returns nonsense in another, and fails before its first step in a third."""

    def __init__(self, env: Any, seed: int = 0) -> None:
        super().__init__(env, seed)
        self.kind = seed % 4

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        super().reset(observation, info)
        if self.kind == 3:
            raise RuntimeError("cannot begin")

    def act(self, observation: Any, info: dict[str, Any]) -> Any:
        action = super().act(observation, info)
        if self.count == 3 and self.kind == 1:
            raise KeyError("lost my way")
        return {"camera": "forwards"} if self.count == 3 and self.kind == 2 else action


class Stubborn(Walker):
    """One object for all episodes: `reseed` is called before each."""

    made = 0

    def __init__(self, env: Any, seed: int = 0) -> None:
        super().__init__(env, seed)
        type(self).made += 1

    def reseed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)


class Odd(gym.Env):
    """Spaces in spaces, and infos that come and go, change their kind, or have no fixed form."""

    observation_space = spaces.Dict(
        {"view": spaces.Box(0, 255, (40, 40, 3), np.uint8), "rest": spaces.Tuple((spaces.Discrete(5), spaces.Box(-1, 1, (), np.float64)))}
    )
    action_space = spaces.MultiDiscrete([3, 4])

    def _see(self, step: int) -> Any:
        view = self.np_random.integers(0, 256, (40, 40, 3), np.uint8)
        return {"view": view, "rest": (self.np_random.integers(5), np.array(self.np_random.random()))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._see(0), {
            "distance": 0,
            "note": "begin",
            "nested": {"a": np.arange(3)},
            "void": np.zeros((2, 0)),
            "thing": object(),
            "ragged": np.zeros(1),
        }

    def step(self, action):
        self.count += 1
        info = {
            "distance": 0.5 * self.count,
            "late": True,
            "nested": {"a": np.arange(3) + self.count, "b": -self.count},
            "void": np.zeros((2, 0)),
        }
        return self._see(self.count), 1, False, self.count == 3, info | {"ragged": np.zeros(1 + self.count), "none": None}


if "FastWorld-v0" not in gym.registry:  # run once as a module, once as an agent file
    gym.register(id="FastWorld-v0", entry_point="tests.spatia_env.fast_env:FastWorld")
