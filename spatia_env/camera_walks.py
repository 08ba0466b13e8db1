"""Walks through any env with camera actions, seen as pictures: what `spatia_env.testing` compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from spatia_env.actions import NAV_FORWARD, NAV_TURN, ContinuousMotion
from spatia_env.compare import psnr
from spatia_env.wrappers import FrameByFrame

EQUAL = 100.0  # dB


def rgb_of(observation: Any, info: dict[str, Any]) -> np.ndarray:
    """The picture in an observation: itself, or under a usual key of a dictionary."""
    if isinstance(observation, dict):
        for key in ("rgb", "image", "pixels", "observation"):
            if key in observation:
                return np.asarray(observation[key])
        raise ValueError(f"the observation has the keys {sorted(observation)}; say which is the picture: Adapter(view=...)")
    return np.asarray(observation)


def _last_of(key: str) -> Callable[[dict[str, Any]], np.ndarray | None]:
    return lambda info: np.asarray(info[key])[-1] if key in info else None


@dataclass(frozen=True)
class Adapter:
    """How the checks talk to an env.

    Attributes:
        actions: a motion (6,) in metres and radians -> the list of actions that carry it out, one env step each.
        view: (observation, info) -> (H, W, 3) uint8.
        pose: info -> (4, 4) camera to world, or None. Where poses are told, coming back is checked, too.
        moving: info -> (H, W) bool, pixels that may differ because something moves there, or None.
        intrinsics: info -> (3, 3) K in pixels, or None.
    """

    actions: Callable[[np.ndarray], Sequence[Any]]
    view: Callable[[Any, dict[str, Any]], np.ndarray] = rgb_of
    pose: Callable[[dict[str, Any]], np.ndarray | None] = _last_of("poses")
    moving: Callable[[dict[str, Any]], np.ndarray | None] = _last_of("dynamic")
    intrinsics: Callable[[dict[str, Any]], np.ndarray | None] = lambda info: info.get("K")


def adapter_for(env: gym.Env[Any, Any]) -> Adapter:
    """The adapter of an env with the actions of Spatia-v0 or SpatiaNav-v0. Raises ValueError for another."""
    motion = getattr(env.unwrapped, "motion", None)
    repeats, inner = 1, env
    while isinstance(inner, gym.Wrapper):
        if isinstance(inner, FrameByFrame):  # the action of a clip's first frame counts, the others are not looked at
            repeats = env.unwrapped.frames_per_clip  # type: ignore[attr-defined]
        inner = inner.env
    if motion is not None and isinstance(env.action_space, spaces.Discrete):
        return Adapter(lambda twist: [action for action in _nav_actions(twist) for _ in range(repeats)])
    if isinstance(motion, ContinuousMotion) and isinstance(env.action_space, spaces.Dict):
        limits = motion.limits
        return Adapter(lambda twist: [action for action in _camera_actions(twist, limits) for _ in range(repeats)])
    raise ValueError(
        f"{env} does not have the actions of Spatia-v0 or SpatiaNav-v0; give an adapter that says how a motion becomes its actions: "
        "Adapter(actions=lambda motion: [...])"
    )


def motion(
    right: float = 0.0, down: float = 0.0, forward: float = 0.0, pitch: float = 0.0, yaw: float = 0.0, roll: float = 0.0
) -> np.ndarray:
    """A motion (6,) from metres and degrees."""
    return np.array([right, down, forward, *np.radians([pitch, yaw, roll])])


def turn(degrees: float, steps: int) -> list[np.ndarray]:
    """A turn to the right in equal steps, as motions."""
    return [motion(yaw=degrees / steps)] * steps


def back(motions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The way back: each motion undone, the last first."""
    return [-each for each in reversed(motions)]


@dataclass
class Seen:
    """What a walk showed: view k after k env steps; `marks[n]` is the number of env steps after n motions."""

    views: list[np.ndarray] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    poses: list[np.ndarray | None] = field(default_factory=list)
    moving: list[np.ndarray | None] = field(default_factory=list)
    outcomes: list[tuple[float, bool, bool]] = field(default_factory=list)
    marks: list[int] = field(default_factory=lambda: [0])

    def add(self, adapter: Adapter, observation: Any, info: dict[str, Any]) -> None:
        view = adapter.view(observation, info)
        if view.dtype != np.uint8 or view.ndim != 3 or view.shape[-1] != 3:
            raise ValueError(f"the view has shape {view.shape} and dtype {view.dtype}; give (H, W, 3) uint8: Adapter(view=...)")
        self.views.append(view.copy())
        self.infos.append({key: info[key] for key in ("K",) if key in info})
        self.poses.append(adapter.pose(info))
        self.moving.append(adapter.moving(info))

    def psnr(self, a: int, b: int) -> float:
        """PSNR in dB of views a and b on pixels that are static in both, at most `EQUAL`."""
        use = np.ones(self.views[a].shape[:2], bool)
        for mask in (self.moving[a], self.moving[b]):
            use &= True if mask is None else ~mask
        return min(EQUAL, psnr(self.views[a], self.views[b], use))


def walk(
    env: gym.Env[Any, Any],
    adapter: Adapter | None,
    motions: Sequence[np.ndarray],
    seed: int,
    options: dict[str, Any] | None,
    may_end: bool = False,
) -> Seen:
    adapter = adapter or adapter_for(env)
    seen = Seen()
    seen.add(adapter, *env.reset(seed=seed, options=options))
    return go(env, adapter, motions, seen, may_end)


def go(env: gym.Env[Any, Any], adapter: Adapter, motions: Sequence[np.ndarray], seen: Seen | None = None, may_end: bool = False) -> Seen:
    seen = Seen() if seen is None else seen
    actions = [adapter.actions(np.asarray(each, np.float64)) for each in motions]
    left = sum(map(len, actions))
    for one_motion in actions:
        for action in one_motion:
            observation, reward, terminated, truncated, info = env.step(action)
            seen.add(adapter, observation, info)
            seen.outcomes.append((float(reward), bool(terminated), bool(truncated)))
            left -= 1
            if (terminated or truncated) and left:
                if may_end:
                    return seen
                raise ValueError(f"the episode ended {left} steps before the check's last; raise the env's max_steps, or give it no task")
        seen.marks.append(len(seen.outcomes))
    return seen


def turned_by(before: np.ndarray, after: np.ndarray, K: np.ndarray, reach: float) -> tuple[float, float]:
    """By how many degrees a camera turned to the right between two pictures (H, W, 3), and how well they then correlate (-1..1).

    Looks from -reach to reach degrees, every half and then every tenth of a degree; at least a fifth of the picture must overlap.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    gray: list[np.ndarray] = [gaussian_filter(picture.astype(np.float64).mean(-1), 1.0) for picture in (before, after)]
    height, width = before.shape[:2]
    v, u = np.mgrid[0:height:2, 0:width:2]
    rays = np.linalg.inv(K) @ np.stack([u.ravel() + 0.5, v.ravel() + 0.5, np.ones(u.size)])
    there = gray[1][v.ravel(), u.ravel()]

    def correlation(degrees: float) -> float:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        x, y, z = K @ (np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ rays)  # in the camera before the turn
        x, y = x / np.maximum(z, 1e-6) - 0.5, y / np.maximum(z, 1e-6) - 0.5
        inside = (z > 1e-6) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        if inside.mean() < 0.2:
            return -1.0
        here = map_coordinates(gray[0], [y[inside], x[inside]], order=1)
        a, b = here - here.mean(), there[inside] - there[inside].mean()
        size = math.sqrt(float((a @ a) * (b @ b)))
        return float(a @ b) / size if size > 1e-6 else -1.0

    best = max(np.arange(-reach, reach + 0.25, 0.5), key=correlation)
    best = max(np.arange(best - 0.5, best + 0.55, 0.1), key=correlation)
    return float(best), correlation(float(best))


def difference(a: Seen, b: Seen) -> str:
    """What differs between two walks besides pictures, in words; empty when nothing does."""
    if len(a.views) != len(b.views):
        return f"one run took {len(a.views)} views, the other {len(b.views)}: the episodes ended at different steps"
    if a.outcomes != b.outcomes:
        step = next(k for k, (x, y) in enumerate(zip(a.outcomes, b.outcomes, strict=True)) if x != y)
        return f"reward, terminated or truncated of step {step + 1} differ: {a.outcomes[step]} and {b.outcomes[step]}"
    for step, (x, y) in enumerate(zip(a.poses, b.poses, strict=True)):
        if x is not None and y is not None and not np.array_equal(x, y):
            return f"poses of view {step} differ by up to {np.abs(x - y).max():.3g}"
    return ""


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int64) - b).max())


def _camera_actions(twist: np.ndarray, limits: np.ndarray) -> list[dict[str, Any]]:
    parts = max(1, math.ceil(float(np.max(np.abs(twist) / limits)) - 1e-6))
    return [{"camera": np.clip(twist / parts / limits, -1, 1).astype(np.float32), "text": ""}] * parts


def _nav_actions(twist: np.ndarray) -> list[int]:
    """Actions of SpatiaNav-v0 for a motion along one of its axes, in whole steps."""
    for index, unit, more, less in ((2, NAV_FORWARD, 0, None), (3, NAV_TURN, 3, 4), (4, NAV_TURN, 2, 1)):
        count = round(float(twist[index]) / unit)
        action = more if count > 0 else less
        others = np.delete(twist, index)
        if count and action is not None and abs(twist[index] - count * unit) < 1e-6 and not np.any(np.abs(others) > 1e-9):
            return [action] * abs(count)
    if not np.any(np.abs(twist) > 1e-9):
        return [5]
    raise ValueError(
        f"SpatiaNav-v0 cannot move by {np.round(twist, 3).tolist()} (metres and radians); give motions that walk forward by multiples of "
        f"{NAV_FORWARD} m, or turn or look by multiples of {math.degrees(NAV_TURN):.0f} degrees"
    )
