"""The values an env is made of between two calls, and how its calls ask for clips without making them.

`reset` and `step` are routines: generators that yield every clip they need (`Wish`) and are sent it (a new world state and the
`Clip`). A single env grants its own wishes one by one; a vector env collects those of all its worlds and has them made in one
batch. So both run the same code, and a world in a batch does what it would do alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from spatia_env.actions import Plan
from spatia_env.trail import Trail

Result = TypeVar("Result")


@dataclass(frozen=True)
class Episode:
    """Everything an episode is between two steps. The env swaps one for the next and never changes one."""

    state: Any  # WorldState, or a TruthState
    trail: Trail  # where the camera has been, for the overview
    steps: int = 0
    ended: bool = False
    task: Mapping[str, Any] | None = None  # state of the task: numbers, strings and arrays


@dataclass(frozen=True)
class Mark:
    """A snapshot: the episode, the env's random generator and, where it keeps state of its own, the task as it was."""

    episode: Episode
    random_state: Mapping[str, Any]
    task: Any


class Wish(NamedTuple):
    """What a routine needs: a clip, or (with `begin`) a world to begin with."""

    state: Any = None
    plan: Plan | None = None
    begin: Callable[[], Any] | None = None


class Outcome(NamedTuple):
    """What a routine ends with; nothing of the env has changed before `commit` is called."""

    episode: Episode
    result: Any  # what reset or step returns
    commit: Callable[[], None]


Granted = tuple[Any, Any]  # world state, and the Clip (None of a world that begins)
Routine = Generator[Wish, Granted, Outcome]


def grant(routine: Generator[Wish, Granted, Result], make: Callable[[Any, Plan], Granted]) -> Result:
    """Run a routine to its end, making one clip after the other."""
    try:
        wish = next(routine)
        while True:
            wish = routine.send((wish.begin(), None) if wish.begin else make(wish.state, wish.plan))  # type: ignore[arg-type]
    except StopIteration as done:
        return done.value


def grant_all(routines: Mapping[int, Routine], make: Callable[[list[int], list[Wish]], list[Granted]]) -> dict[int, Outcome]:
    """Run several routines side by side: clips wished for at the same time are made together.

    `make` gets the keys of the routines that wait and their wishes, in the same order. Every routine is taken to its first wish
    before any clip is made, so bad input raises before there is work.
    """
    ended: dict[int, Outcome] = {}
    waiting: dict[int, Wish] = {}
    for key, routine in routines.items():
        try:
            waiting[key] = next(routine)
        except StopIteration as done:
            ended[key] = done.value
    while waiting:
        clips = make(list(waiting), list(waiting.values()))
        following: dict[int, Wish] = {}
        for key, clip in zip(waiting, clips, strict=True):
            try:
                following[key] = routines[key].send(clip)
            except StopIteration as done:
                ended[key] = done.value
        waiting = following
    return ended


def turned_back(later: Any, earlier: Any) -> Any:
    """The world as `earlier` shows it, with all that `later` remembers: what a scout that came back has left.

    Both are states of one world, `later` further on. Memory, clock and random state are the later one's; the last frames and where
    they were taken are the earlier one's.
    """
    from dataclasses import replace

    views = ("frames", "frames_dynamic", "frames_projection", "T_world_camera", "entities", "depth", "dynamic")
    return replace(later, **{name: getattr(earlier, name) for name in views if hasattr(earlier, name)})


def poses_of(state: Any) -> np.ndarray:
    """(4, 4) float64 T_world_camera of a state's last frame, a copy."""
    return state.T_world_camera[-1].detach().cpu().numpy().astype(np.float64)
