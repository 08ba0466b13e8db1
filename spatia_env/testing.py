"""Does a world remember, repeat and obey? Checks for any Gymnasium env with camera actions and RGB observations.

```python
from spatia_env import testing

def test_my_world():
    env = gym.make("MyWorld-v1")
    adapter = testing.Adapter(actions=lambda motion: [np.array([motion[2], motion[4]])])  # how a motion becomes actions
    testing.assert_deterministic(env, adapter)
    testing.assert_returns_to_view(env, adapter, seed=3, at_least=20.0)
```

Envs with the actions of Spatia-v0 or SpatiaNav-v0 need no adapter. Every ``check_*`` returns a `Check`; its twin ``assert_*`` also
raises AssertionError, with the figures, when it did not pass. An env that shows nothing new when it moves passes none of the memory
checks: a frozen picture is no memory. `spatia eval memory` runs them all over many worlds.

Motions are (6,) arrays: metres right, down, forward, then radians of pitch (up), yaw (to the right) and roll (clockwise), in the
camera's frame. PSNR is in dB; equal pictures count as `EQUAL` dB.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec

import gymnasium as gym
import numpy as np

from spatia_env.camera_walks import EQUAL, Adapter, Seen, adapter_for, back, difference, go, largest, motion, rgb_of, turn, turned_by, walk

__all__ = [
    "CHECKS",
    "EQUAL",
    "Adapter",
    "Check",
    "adapter_for",
    "assert_deterministic",
    "assert_returns_to_view",
    "assert_seed_matters",
    "assert_snapshot_restores",
    "assert_stands_still",
    "assert_static_memory",
    "assert_turns_as_asked",
    "back",
    "check_deterministic",
    "check_returns_to_view",
    "check_seed_matters",
    "check_snapshot_restores",
    "check_stands_still",
    "check_static_memory",
    "check_turns_as_asked",
    "motion",
    "rgb_of",
    "turn",
    "turned_by",
]

P = ParamSpec("P")


@dataclass(frozen=True)
class Check:
    """What a check found. `value` is what was compared with `threshold`; `figures` holds what helps to read it."""

    name: str
    passed: bool
    value: float
    threshold: float
    unit: str
    message: str
    figures: dict[str, float] = field(default_factory=dict)
    views: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)  # the pictures compared

    def __bool__(self) -> bool:
        return self.passed


# -- the checks ------------------------------------------------------------------------------------


def check_deterministic(
    env: gym.Env[Any, Any],
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    motions: Sequence[np.ndarray] | None = None,
    at_most: float = 0.0,
) -> Check:
    """Same seed, same actions: the same views, rewards, ends and poses.

    Another episode with another seed and other actions lies between the two, so that what leaks from episode to episode shows.
    `value`: the largest difference of a view's pixel, 0..255, or infinity where something else differs.
    """
    motions = turn(60, 2) + [motion(yaw=-30)] if motions is None else motions
    first = walk(env, adapter, motions, seed, options, may_end=True)
    walk(env, adapter, motions[:0:-1], seed + 1, options, may_end=True)
    again = walk(env, adapter, motions, seed, options, may_end=True)
    return _same("deterministic", first, again, at_most, f"two episodes with seed {seed} and the same actions")


def check_seed_matters(
    env: gym.Env[Any, Any],
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    motions: Sequence[np.ndarray] | None = None,
    at_least: float = 1.0,
) -> Check:
    """Another seed, the same actions: another episode. `value`: the largest difference of a view's pixel, 0..255.

    For envs that promise chance: what is generated, and where one starts. Not for those that are the same for all seeds by design.
    """
    motions = turn(60, 2) if motions is None else motions
    one, other = (walk(env, adapter, motions, s, options, may_end=True) for s in (seed, seed + 1))
    value = max(largest(a, b) for a, b in zip(one.views, other.views, strict=False))
    message = f"views differ by up to {value:g} of 255 between episodes with seeds {seed} and {seed + 1}"
    return Check("seed_matters", value >= at_least, value, at_least, "of 255", message)


def check_returns_to_view(
    env: gym.Env[Any, Any],
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    away: Sequence[np.ndarray] | None = None,
    at_least: float = 20.0,
    margin: float = 3.0,
) -> Check:
    """Away and back by the same motions undone: the first view again.

    Args:
        away: motions on the way out; by default a turn of 90 degrees in three.
        at_least: PSNR in dB of the last view against the first.
        margin: dB by which the view from farthest away must be less like the first: otherwise nothing was left and nothing is shown.
    """
    away = turn(90, 3) if away is None else away
    seen = walk(env, adapter, [*away, *back(away)], seed, options)
    middle = seen.marks[len(away)]
    return _compared("returns_to_view", seen, (0, -1), middle, at_least, margin, "the first view and the view after coming back")


def check_static_memory(
    env: gym.Env[Any, Any],
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    there: Sequence[np.ndarray] | None = None,
    beyond: Sequence[np.ndarray] | None = None,
    at_least: float = 25.0,
    margin: float = 3.0,
) -> Check:
    """A place that lay out of sight at the start is the same when it is seen again: what was invented has been kept.

    Args:
        there: motions from the start to that place; by default a turn of 120 degrees in four, more than most cameras see at once.
        beyond: motions further on, then undone; by default as much again.
        at_least: PSNR in dB of the second visit against the first.
        margin: dB by which the view from beyond must be less like it.
    """
    there = turn(120, 4) if there is None else there
    beyond = turn(90, 3) if beyond is None else beyond
    seen = walk(env, adapter, [*there, *beyond, *back(beyond)], seed, options)
    first, middle = seen.marks[len(there)], seen.marks[len(there) + len(beyond)]
    return _compared("static_memory", seen, (first, -1), middle, at_least, margin, "two visits of one place")


def check_stands_still(
    env: gym.Env[Any, Any],
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    steps: int = 4,
    at_least: float = 25.0,
    margin: float = 3.0,
) -> Check:
    """A camera that stands still sees the same: no flicker and no drift. `value`: the worst PSNR against the view before standing.

    It first turns to a place that it did not start at, and turns on afterwards: that view must be less alike by `margin` dB.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give at least 1")
    ahead = turn(60, 2)
    seen = walk(env, adapter, [*ahead, *[motion()] * steps, *ahead], seed, options)
    start, end = seen.marks[len(ahead)], seen.marks[len(ahead) + steps]
    worst = min(range(start + 1, end + 1), key=lambda k: seen.psnr(start, k))
    check = _compared("stands_still", seen, (start, worst), -1, at_least, margin, "views of a camera that stands still")
    steady = min(seen.psnr(k, k + 1) for k in range(start, end))
    return replace(check, figures={**check.figures, "psnr_consecutive_worst": steady})


def check_snapshot_restores(
    env: gym.Env[Any, Any],
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    motions: Sequence[np.ndarray] | None = None,
    at_most: float = 0.0,
    snapshot: Callable[[], Any] | None = None,
    restore: Callable[[Any], Any] | None = None,
) -> Check:
    """A world restored from its snapshot goes on as it did before: same views, rewards and ends for the same actions.

    `snapshot` and `restore` default to those of `env.unwrapped`. Between the two runs the world walks another way.
    `value`: the largest difference of a view's pixel, 0..255, or infinity where something else differs.
    """
    snapshot = snapshot or getattr(env.unwrapped, "snapshot", None)
    restore = restore or getattr(env.unwrapped, "restore", None)
    if snapshot is None or restore is None:
        raise ValueError(f"{env} has no snapshot() and restore(mark); give them: check_snapshot_restores(..., snapshot=..., restore=...)")
    adapter = adapter or adapter_for(env)
    motions = turn(60, 2) if motions is None else motions
    walk(env, adapter, [motion(yaw=30)], seed, options)
    mark = snapshot()
    first = go(env, adapter, motions)
    restore(mark)
    go(env, adapter, back(motions))
    restore(mark)
    again = go(env, adapter, motions)
    return _same("snapshot_restores", first, again, at_most, "two runs from one snapshot")


def check_turns_as_asked(
    env: gym.Env[Any, Any],
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    degrees: float = 15.0,
    at_most: float = 3.0,
    fov_x: float | None = None,
) -> Check:
    """A turn to the right by `degrees` turns the picture by as much.

    The angle is read from the two pictures: a camera that only turns maps one onto the other by a homography, whatever the depth. Of
    all angles up to three times what was asked, in both directions, the one is taken at which the overlap correlates best.

    Args:
        at_most: degrees that the measured angle may differ. `value` is that difference, or infinity where no angle fits.
        fov_x: horizontal field of view in degrees, for envs whose info has no `K`.
    """
    if not 0 < abs(degrees) <= 30:
        raise ValueError(f"degrees is {degrees}; give more than 0 and at most 30, so that both views overlap")
    adapter = adapter or adapter_for(env)
    seen = walk(env, adapter, [motion(yaw=degrees)], seed, options)
    height, width = seen.views[0].shape[:2]
    K = adapter.intrinsics(seen.infos[0])
    if K is None and fov_x is None:
        raise ValueError("the env's info has no K; give the horizontal field of view: fov_x=75")
    if fov_x is not None:
        focal = width / 2 / math.tan(math.radians(fov_x) / 2)
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    angle, agreement = turned_by(seen.views[0], seen.views[-1], np.asarray(K, np.float64), 3 * abs(degrees))
    value = abs(angle - degrees) if agreement >= 0.5 else math.inf
    message = f"asked to turn by {degrees:g} degrees, the picture turned by {angle:.1f} (correlation {agreement:.2f})"
    figures = {"measured_degrees": angle, "correlation": agreement}
    return Check("turns_as_asked", value <= at_most, value, at_most, "degrees", message, figures, _pictures(seen, (0, -1)))


# -- their asserting twins -------------------------------------------------------------------------


def _asserting(check: Callable[P, Check]) -> Callable[P, Check]:
    name = check.__name__.replace("check_", "assert_")

    @functools.wraps(check)
    def asserting(*args: P.args, **kwargs: P.kwargs) -> Check:
        found = check(*args, **kwargs)
        if not found.passed:
            raise AssertionError(f"{name}: {found.message}; {found.value:.4g} {found.unit}, threshold {found.threshold:g}")
        return found

    asserting.__name__ = asserting.__qualname__ = name
    return asserting


assert_deterministic = _asserting(check_deterministic)
assert_seed_matters = _asserting(check_seed_matters)
assert_returns_to_view = _asserting(check_returns_to_view)
assert_static_memory = _asserting(check_static_memory)
assert_stands_still = _asserting(check_stands_still)
assert_snapshot_restores = _asserting(check_snapshot_restores)
assert_turns_as_asked = _asserting(check_turns_as_asked)

CHECKS: dict[str, Callable[..., Check]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


# -- what they share -------------------------------------------------------------------------------


def _same(name: str, first: Seen, again: Seen, at_most: float, between: str) -> Check:
    """Two runs must show and tell the same."""
    what = difference(first, again)
    value = math.inf if what else max(largest(a, b) for a, b in zip(first.views, again.views, strict=True))
    message = what or f"views differ by up to {value:g} of 255 between {between}"
    return Check(name, value <= at_most, value, at_most, "of 255", message, {"steps": len(first.outcomes)})


def _compared(name: str, seen: Seen, pair: tuple[int, int], middle: int, at_least: float, margin: float, what: str) -> Check:
    """Views `pair` must be alike, and view `middle` less like them; where poses are told, the pair must share one."""
    first, last = (index % len(seen.views) for index in pair)
    value, elsewhere = seen.psnr(first, last), seen.psnr(first, middle % len(seen.views))
    figures = {"psnr": value, "psnr_elsewhere": elsewhere}
    pictures = _pictures(seen, (first, middle, last))
    message = f"{what} are alike by {value:.1f} dB, views from elsewhere by {elsewhere:.1f}"
    passed = value >= at_least and value - elsewhere >= margin
    if value - elsewhere < margin:
        message += f": less than {margin:g} dB between them, so the camera went nowhere or all places look the same"
    a, b = seen.poses[first], seen.poses[last]
    if a is not None and b is not None:
        figures["pose_error_m"] = float(np.linalg.norm(a[:3, 3] - b[:3, 3]))
        cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
        figures["pose_error_deg"] = math.degrees(math.acos(float(np.clip(cosine, -1, 1))))
        if figures["pose_error_m"] > 0.02 or figures["pose_error_deg"] > 1:
            passed = False
            message = (
                f"the camera is {figures['pose_error_m']:.2f} m and {figures['pose_error_deg']:.1f} degrees from where it should be "
                "again: something stopped it on the way; choose another seed or other motions"
            )
    return Check(name, passed, value, at_least, "dB", message, figures, pictures)


def _pictures(seen: Seen, indices: Sequence[int]) -> dict[str, np.ndarray]:
    return {str(index % len(seen.views)): seen.views[index] for index in indices}
