"""Rollouts: an agent acts for N episodes, and each goes into a dataset as it ends.

Episode i depends on ``seed + i`` alone: its world is reset with that seed, and its agent is made with it (or told it, if it has
`reseed`). How many worlds run side by side, in what order they end and how often the run was interrupted change nothing.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from spatia_env.agent_file import find_modules_here, load_module, told
from spatia_env.recording.face import EnvFace, EpisodeSummary
from spatia_env.recording.folder import DatasetWriter, EpisodeSink

Step = tuple[Any, float, bool, bool, dict[str, Any]]


# -- where -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnvRequest:
    """How to make the env. A value: it can be sent to another process.

    Args:
        env_id: a registered id, or ``module:Id``.
        options: keyword arguments of the env.
        task: None, a task's name, a JSON object with its name and arguments, or ``FILE:callable``.
        max_steps: an episode is truncated after so many steps; None for what the env itself says.
    """

    env_id: str
    options: dict[str, Any] = field(default_factory=dict)
    task: str | None = None
    max_steps: int | None = None

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword arguments that the env takes. Raises ValueError for an unknown id."""
        import spatia_env  # noqa: F401 - registers its ids

        module, _, name = self.env_id.rpartition(":")
        try:
            if module:
                find_modules_here()
                importlib.import_module(module)
            spec = gym.spec(name)
            creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        except (gym.error.Error, ImportError, AttributeError) as error:
            raise ValueError(f"there is no env {self.env_id!r} ({error}); give a registered id, or module:Id") from error
        assert creator is not None
        return dict(inspect.signature(creator).parameters)

    def arguments(self) -> dict[str, Any]:
        """What `gym.make` is called with. Raises ValueError for an option that the env does not take."""
        known = self.parameters()
        options = dict(self.options)
        if self.task is not None:
            options["task"] = resolve_task(self.task)
            if str(gym.spec(self.env_id.rpartition(":")[2]).entry_point).startswith("spatia_env."):
                from spatia_env.tasks import make_task

                make_task(options["task"])  # raises for what is no task, before any weights are loaded
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
        unknown = sorted(name for name in options if name not in known and not takes_any)
        if unknown:
            raise ValueError(f"{self.env_id} takes no {', '.join(unknown)}; it takes {sorted(known)}")
        if self.max_steps is not None:
            options["max_steps" if "max_steps" in known else "max_episode_steps"] = self.max_steps
        return options

    def make(self) -> gym.Env[Any, Any]:
        """One env. Raises ValueError when it refuses its arguments."""
        arguments = self.arguments()
        try:
            return gym.make(self.env_id, **arguments)
        except (TypeError, gym.error.Error) as error:
            raise ValueError(f"{self.env_id} cannot be made ({error})") from error

    def face(self, env: gym.Env[Any, Any]) -> EnvFace:
        """The face of an env that `make` made."""
        return EnvFace.of(env, self.task.replace("-", " ") if isinstance(self.task, str) and self.task.isprintable() else "")

    def worlds(self, count: int, first: gym.Env[Any, Any], whole: bool) -> Worlds:
        """`count` worlds side by side: in batches where the env knows how to, unless the agent wants `whole` envs.

        `first` is an env that `make` made; it is one of the worlds, or closed.
        """
        face = self.face(first)
        if count > 1 and not whole and self._is_batched():
            first.close()
            arguments = self.arguments()
            made = gym.make_vec(
                self.env_id,
                num_envs=count,
                vectorization_mode="vector_entry_point",
                autoreset_mode=gym.vector.AutoresetMode.DISABLED,
                **arguments,
            )
            return BatchedWorlds(made, face)
        return SingleWorlds([first, *(self.make() for _ in range(count - 1))], face)

    def _is_batched(self) -> bool:
        """Whether the id's vector env is ours: others may not let a world rest."""
        entry_point = gym.spec(self.env_id.rpartition(":")[2]).vector_entry_point
        return isinstance(entry_point, str) and entry_point.startswith("spatia_env.")


def resolve_task(task: str) -> Any:
    """A task's name as it is; JSON as the mapping it is; ``FILE:name`` as the object of that name, called if it is a class."""
    if task.lstrip().startswith("{"):
        try:
            return json.loads(task)
        except ValueError as error:
            raise ValueError(f"task {task!r} is no JSON ({error}); give a name, or an object with name and arguments") from error
    path, mark, name = task.rpartition(":")
    if not mark or not path.endswith(".py"):
        return task
    if not Path(path).expanduser().is_file():
        raise ValueError(f"task {task!r}: {path!r} is no file (looked from {Path.cwd()})")
    found = getattr(load_module(path), name, None)
    if not callable(found):
        raise ValueError(f"{path} has no task {name}; give the name of a function or class in it")
    return found() if inspect.isclass(found) else found


class Worlds(Protocol):
    """Several worlds side by side, each at its own step of its own episode."""

    count: int
    face: EnvFace

    def seen_by(self, slot: int) -> Any:
        """What the agent of a world gets as its `env`."""
        ...

    def reset(self, seeds: dict[int, int]) -> dict[int, tuple[Any, dict[str, Any]]]:
        """Start anew in the worlds named, whatever went on there."""
        ...

    def step(self, actions: dict[int, Any]) -> dict[int, Step]:
        """One step in the worlds named; the others stay as they are."""
        ...

    def close(self) -> None: ...


class SingleWorlds:
    """Envs of their own, stepped one after the other."""

    def __init__(self, envs: list[gym.Env[Any, Any]], face: EnvFace | None = None) -> None:
        self.envs, self.count = envs, len(envs)
        self.face = EnvFace.of(envs[0]) if face is None else face

    def seen_by(self, slot: int) -> Any:
        return self.envs[slot]

    def reset(self, seeds: dict[int, int]) -> dict[int, tuple[Any, dict[str, Any]]]:
        return {slot: self.envs[slot].reset(seed=seed) for slot, seed in seeds.items()}

    def step(self, actions: dict[int, Any]) -> dict[int, Step]:
        found: dict[int, Step] = {}
        for slot, action in actions.items():
            observation, reward, terminated, truncated, info = self.envs[slot].step(action)
            found[slot] = (observation, float(reward), bool(terminated), bool(truncated), info)
        return found

    def close(self) -> None:
        for env in self.envs:
            env.close()


class BatchedWorlds:
    """A `SpatiaVectorEnv` in the mode DISABLED: all worlds that go on share a forward pass, the others rest."""

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any], face: EnvFace) -> None:
        self.envs, self.count, self.face = envs, envs.num_envs, face
        self._begun = False
        self._idle_action = envs.single_action_space.sample()  # for worlds that rest; nobody looks at it

    def seen_by(self, slot: int) -> Any:
        return SimpleNamespace(action_space=self.envs.single_action_space, observation_space=self.envs.single_observation_space)

    def reset(self, seeds: dict[int, int]) -> dict[int, tuple[Any, dict[str, Any]]]:
        mask = np.zeros(self.count, np.bool_)
        mask[list(seeds)] = True
        options = {"reset_mask": mask} if self._begun else None  # the first time, all begin
        each_seed: Any = [seeds.get(slot) for slot in range(self.count)]
        observations, infos = self.envs.reset(seed=each_seed, options=options)
        self._begun = True
        each = list(iterate(self.envs.observation_space, observations))
        return {slot: (each[slot], info_of(infos, slot)) for slot in seeds}

    def step(self, actions: dict[int, Any]) -> dict[int, Step]:
        if not actions:
            return {}
        if idle := [slot for slot in range(self.count) if slot not in actions]:
            self.envs.rest(idle)  # type: ignore[attr-defined]
        space = self.envs.single_action_space
        each = [actions.get(slot, self._idle_action) for slot in range(self.count)]
        batch = concatenate(space, each, create_empty_array(space, n=self.count, fn=np.zeros))
        observations, rewards, terminated, truncated, infos = self.envs.step(batch)
        seen = list(iterate(self.envs.observation_space, observations))
        return {
            slot: (seen[slot], float(rewards[slot]), bool(terminated[slot]), bool(truncated[slot]), info_of(infos, slot))
            for slot in actions
        }

    def close(self) -> None:
        self.envs.close()


def info_of(infos: dict[str, Any], slot: int) -> dict[str, Any]:
    """One world's info out of a vector env's, where ``_key`` says which worlds have `key`."""
    found: dict[str, Any] = {}
    for key, value in infos.items():
        has = infos.get(f"_{key}")
        if not isinstance(has, np.ndarray) or not has[slot]:
            continue
        found[key] = info_of(value, slot) if isinstance(value, dict) else value[slot]
    return found


# -- the loop --------------------------------------------------------------------------------------------


@dataclass
class _Seat:
    """What goes on in one world."""

    agent: Any
    sink: EpisodeSink
    observation: Any
    info: dict[str, Any]


def collect(
    worlds: Worlds,
    agent: type,
    options: dict[str, Any],
    writer: DatasetWriter,
    indices: Iterable[int],
    seed: int,
) -> Generator[EpisodeSummary, None, None]:
    """Run the episodes `indices` and yield each as soon as it is finished and on disk.

    An agent that raises, or returns what is no action, ends its own episode: it is kept up to there, truncated, with the error in its
    metadata. An error of the env ends the collection; finished episodes stay.
    """
    waiting = iter(indices)
    seats: dict[int, _Seat] = {}
    agents: dict[int, Any] = {}
    free = list(range(worlds.count))
    try:
        while True:
            while batch := list(zip(free, waiting, strict=False)):
                begun = worlds.reset({slot: seed + index for slot, index in batch})
                free = free[len(batch) :]
                for slot, index in batch:
                    observation, info = begun[slot]
                    sink = writer.begin(index, seed + index, observation, info)
                    try:
                        agents[slot] = seated(agent, agents.get(slot), worlds.seen_by(slot), seed + index, options)
                        agents[slot].reset(observation, info)
                    except (Exception, SystemExit) as error:
                        free.append(slot)
                        yield sink.finish(told(error))
                    else:
                        seats[slot] = _Seat(agents[slot], sink, observation, info)
            if not seats:
                return
            actions, over = {}, []
            for slot, seat in sorted(seats.items()):
                try:
                    actions[slot] = as_action(worlds.face.action_space, seat.agent.act(seat.observation, seat.info))
                except (Exception, SystemExit) as error:
                    over.append((slot, told(error)))
            for slot, (observation, reward, terminated, truncated, info) in worlds.step(actions).items():
                seat = seats[slot]
                seat.sink.add(actions[slot], observation, reward, terminated, truncated, info)
                seat.observation, seat.info = observation, info
                if terminated or truncated:
                    over.append((slot, None))
            free = sorted([*free, *(slot for slot, _ in over)])
            for slot, error in sorted(over):
                yield seats.pop(slot).sink.finish(error)
    finally:
        for seat in seats.values():
            seat.sink.discard()


def seated(agent: type, before: Any, env: Any, seed: int, options: dict[str, Any]) -> Any:
    """The agent of an episode: a new one, or the world's last one told the new seed if it can be."""
    if before is not None and callable(getattr(before, "reseed", None)):
        before.reseed(seed)
        return before
    return agent(env, seed=seed, **options)


def as_action(space: spaces.Space[Any], action: Any) -> Any:
    """`action` as an element of `space`: lists and other number types become the space's own.

    Raises:
        ValueError: it is none; says what was given and what is accepted.
    """
    if isinstance(space, spaces.Dict) and isinstance(action, dict) and set(action) == set(space.spaces):
        return {key: as_action(child, action[key]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple) and isinstance(action, (tuple, list)) and len(action) == len(space.spaces):
        return tuple(as_action(child, value) for child, value in zip(space.spaces, action, strict=True))
    cast: Any = action
    is_element = True
    arrays = (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)
    try:
        if isinstance(space, spaces.Discrete) and np.ndim(cast) == 0 and np.asarray(cast).dtype.kind in "iu":
            cast = np.int64(cast)
        elif isinstance(space, arrays):
            cast = np.asarray(action)
            is_element = cast.dtype.kind in "iufb"
            cast = cast.astype(space.dtype) if is_element else cast
    except (TypeError, ValueError):  # a ragged list, a number out of range
        is_element = False
    if not is_element or not space.contains(cast):
        given = repr(action)
        raise ValueError(f"the agent returned {given if len(given) <= 200 else given[:197] + '...'}; an action is an element of {space}")
    return cast


def missing(writer: DatasetWriter, episodes: int) -> list[int]:
    """Which of the episodes 0..episodes-1 are still to be run."""
    return [index for index in range(episodes) if index not in writer.summaries]


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
