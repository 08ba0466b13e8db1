"""What every task is: a fixed description, and a state that is a value.

A built-in task keeps nothing of an episode in itself. Its state is a dictionary of numbers, strings and arrays that lies in the
env's `Episode`; so one task may serve many envs, snapshots cost nothing, and a saved episode holds it.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from spatia_env.episode import poses_of

State = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """What a task may look at, after `reset` or a step."""

    observation: np.ndarray  # (H, W, 3) uint8, the last frame
    info: Mapping[str, Any]  # of the world, as in the env's docstring
    state: Any  # WorldState or TruthState
    world: Any  # the WorldModel, or the TruthWorlds of SpatiaTruth-v0
    text: str = ""  # of the action that led here

    @property
    def pose(self) -> np.ndarray:
        """(4, 4) float64 T_world_camera of the last frame."""
        return poses_of(self.state)


@dataclass(frozen=True)
class Verdict:
    """What a task makes of a step."""

    reward: float
    terminated: bool
    state: State
    metrics: Mapping[str, Any] = field(default_factory=dict)  # go into info


Start = tuple[Any, State]
Scouting = Generator[np.ndarray, Scene, Start]


class Task:
    """Base of the built-in tasks, and of yours where a callable is not enough.

    Subclass it, set `name`, and give `begin` and `judge`. The constructor's arguments must be numbers, strings, booleans or None, kept
    under their own names: `describe` reads them, for saved episodes and dataset cards.
    """

    name: ClassVar[str] = ""

    def observation_space(self, image: spaces.Box) -> spaces.Space[Any]:
        """The env's observation space, of that of its frames."""
        return image

    def observe(self, scene: Scene, state: State) -> Any:
        """The observation of a scene. It has to be in `observation_space`."""
        return scene.observation

    def start(self, scene: Scene, np_random: np.random.Generator) -> Scouting:
        """Begin an episode: a generator that may walk the camera before the agent does.

        It yields twists (6,) (metres and radians in the camera's frame, one clip each) and is sent the scene after each. It returns the
        state of the world from which the agent starts, and the task's state. This one walks nowhere and calls `begin`.
        """
        return scene.state, self.begin(scene, np_random)
        yield  # makes it a generator

    def begin(self, scene: Scene, np_random: np.random.Generator) -> State:
        """The task's state at the start of an episode."""
        return {}

    def judge(self, scene: Scene, state: State) -> Verdict:
        """What a step is worth, whether it ends the episode, and the task's state after it."""
        raise NotImplementedError

    def metrics(self, scene: Scene, state: State) -> Mapping[str, Any]:
        """What `reset` puts into info: the keys that `judge` gives, as they are before the first step."""
        return {}

    @property
    def stateful(self) -> bool:
        """Whether the object itself changes during an episode (so that a snapshot has to copy it)."""
        return False

    def describe(self) -> dict[str, Any]:
        """Name and arguments, fit for JSON; `make_task` takes it back."""
        arguments = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {"name": self.name, **{name: getattr(self, name) for name in arguments}}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.describe().items() if key != "name")
        return f"{type(self).__name__}({arguments})"


class CallableTask(Task):
    """Any callable as a task.

    ``task(observation, info) -> reward``, ``-> (reward, terminated)`` or ``-> (reward, terminated, metrics)`` with a dictionary that
    goes into info. If it has a method ``reset(observation, info, np_random)``, that is called at the start of every episode;
    `np_random` is the env's generator. Snapshots copy the callable. A saved episode holds its state if it has ``state_dict()`` and
    ``load_state_dict(state)`` (numbers, strings and arrays by name).
    """

    name = "callable"

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def describe(self) -> dict[str, Any]:
        shown = getattr(self.function, "__qualname__", None) or type(self.function).__qualname__
        return {"name": self.name, "function": shown}

    @property
    def stateful(self) -> bool:
        return True

    def begin(self, scene: Scene, np_random: np.random.Generator) -> State:
        reset = getattr(self.function, "reset", None)
        if callable(reset):
            reset(scene.observation, scene.info, np_random)
        return {}

    def judge(self, scene: Scene, state: State) -> Verdict:
        given = self.function(scene.observation, dict(scene.info))
        parts = given if isinstance(given, tuple) else (given,)
        terminated = parts[1] if len(parts) > 1 else False
        metrics = parts[2] if len(parts) > 2 else {}
        try:
            reward = float(parts[0]) if len(parts) in (1, 2, 3) else math.nan  # type: ignore[arg-type]
        except (TypeError, ValueError):
            reward = math.nan
        if not math.isfinite(reward) or not isinstance(terminated, (bool, np.bool_)) or not isinstance(metrics, Mapping):
            raise ValueError(
                f"the task returned {given!r}; return a finite reward, (reward, terminated) with a bool, or (reward, terminated, metrics) "
                "with a dictionary"
            )
        taken = sorted(str(key) for key in metrics if key in scene.info)
        if taken:
            raise ValueError(f"the task's metrics hold {taken}, which info has already; give them other names")
        return Verdict(reward, bool(terminated), state, metrics)

    def state_dict(self) -> dict[str, Any]:
        """What the callable keeps of an episode, for a saved one."""
        own = getattr(self.function, "state_dict", None)
        if callable(own):
            return dict(own())  # type: ignore[arg-type]
        if getattr(self.function, "__dict__", None) and not inspect.isroutine(self.function):
            warnings.warn(
                f"the task {self.function!r} has no state_dict() and load_state_dict(state): what it has counted is not saved", stacklevel=4
            )
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = getattr(self.function, "load_state_dict", None)
        if callable(own):
            own(dict(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> CallableTask:
        return CallableTask(copy.deepcopy(self.function, memo))


def check_number(value: Any, name: str, low: float, high: float, unit: str = "", none: bool = False) -> None:
    """Raise ValueError unless `value` is a finite number from `low` to `high` (or None, where that is allowed)."""
    if value is None and none:
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give {unit or 'a number'} from {low:g} to {high:g}" + (", or None" if none else ""))


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {list(choices)}")


def with_image(observation: Any, frame: np.ndarray) -> Any:
    """The same observation with another frame (H, W, 3) in the place of its own."""
    if isinstance(observation, dict):
        return {**{key: value.copy() for key, value in observation.items()}, "image": frame.copy()}
    return np.concatenate([frame, observation[..., 3:]], -1)


def image_of(observation: Any) -> np.ndarray:
    """The frame (H, W, 3) in an observation of any task."""
    return observation["image"] if isinstance(observation, dict) else observation[..., :3]
