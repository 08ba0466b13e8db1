"""`WorldEnv`: what all Spatia envs share. `reset` and `step` read as recipes; the world behind them is the subclass's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from spatia_env import obstacles as solid
from spatia_env import saving
from spatia_env.actions import Plan, twist_path
from spatia_env.episode import Episode, Mark, Outcome, Routine, Wish, grant
from spatia_env.inputs import image_shape, to_numpy, too_long
from spatia_env.tasks import Scene, Task, make_task
from spatia_env.trail import Trail

if TYPE_CHECKING:
    import torch

    from spatia_model.memory.entities import Entities
    from spatia_model.memory.point_memory import PointMemory
    from spatia_model.types import Clip

_MAX_LISTED_WORDS = 256  # unknown words an env remembers having named
_MAX_KEPT_FRAMES = 4096  # frames `rgb_array_list` keeps when nobody calls render()


class WorldEnv(gym.Env[Any, Any]):
    """The mechanics of `SpatiaEnv` and its kin, whose docstrings say what they promise."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list", "memory"], "render_fps": 8}
    reset_options: tuple[str, ...] = ()
    _with_memory = True  # whether the world is shown its own memory

    def _setup(
        self,
        world: Any,
        task: Any,
        max_steps: Any,
        render_mode: Any,
        motion: Callable[..., Any],
        limits: tuple[float, ...],
        obstacles: str | None,
        body_radius: float,
    ) -> None:
        """The world behind the env, spaces and the state of no episode yet."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode is {render_mode!r}; choose None or one of {self.metadata['render_modes']}")
        if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, (int, np.integer)) or max_steps < 1):
            raise ValueError(f"max_steps is {max_steps!r}; give a whole number of at least 1, or None for no end")
        solid.check_obstacles(obstacles, body_radius)
        self.world = world
        self.render_mode = render_mode
        self.max_steps = max_steps
        self.obstacles, self.body_radius = obstacles, float(body_radius)
        self.image_shape = image_shape(world.config)
        self.frames_per_clip = int(world.config.frames_per_clip)
        self.motion = motion(self.frames_per_clip, *limits)
        self.action_space = self.motion.space
        self.task: Task | None = make_task(task)
        image = spaces.Box(0, 255, (*self.image_shape, 3), np.uint8)
        self.observation_space = image if self.task is None else self.task.observation_space(image)
        self.timing: dict[str, float] = {}
        self._episode: Episode | None = None
        self._shown: list[np.ndarray] = []
        self._named_words: set[str] = set()

    # -- the five calls of an env ------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode. `options` may hold `reset_options` for this episode alone; weights are not loaded again."""
        start_time = perf_counter()
        outcome = grant(self.reset_routine(seed, options), self._advance)
        outcome.commit()
        self.timing = {"reset": perf_counter() - start_time}
        return outcome.result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the camera by `action`, let one clip of world time pass, and see what is there."""
        start_time = perf_counter()
        outcome = grant(self.step_routine(action), self._advance)
        outcome.commit()
        self.timing = {"step": perf_counter() - start_time}
        return outcome.result

    def render(self) -> Any:
        """What `render_mode` asks for: the last frame, all frames since the last call, or the overview of the memory."""
        episode = self._current_episode("render")
        if self.render_mode == "rgb_array":
            return to_numpy(episode.state.frames[-1])
        if self.render_mode == "rgb_array_list":
            shown, self._shown = self._shown, []
            return shown
        if self.render_mode == "memory":
            return self.overview()
        warnings.warn(
            "render() shows nothing because render_mode is None; choose one: gym.make(..., render_mode='rgb_array')", stacklevel=2
        )
        return None

    def close(self) -> None:
        """Let go of the world. The env can be reset again."""
        self._episode = None
        self._shown = []

    # -- the same as routines, for whoever grants the wishes of many envs at once --------------------

    def reset_routine(self, seed: int | None, options: dict[str, Any] | None) -> Routine:
        """`reset` as a routine (see `spatia_env.episode`)."""
        start = self._read_options(options)  # raises before anything has changed
        super().reset(seed=seed)
        noise = int(self.np_random.integers(2**31))
        state, _ = yield Wish(begin=lambda: self._begin(start, noise))
        task_state: Mapping[str, Any] | None = None
        if self.task is not None:
            routine = self.task.start(self._first_scene(state), self.np_random)
            try:
                twist = next(routine)
                while True:  # a scout walks
                    path = twist_path(state.T_world_camera[-1], twist, self.frames_per_clip)
                    plan, collided = self._walkable(state, Plan(path, ""))
                    state, clip = yield Wish(state, plan)
                    twist = routine.send(self._scene(state, clip, collided, ""))
            except StopIteration as done:
                state, task_state = done.value
        episode = Episode(state, Trail().extended(to_numpy(state.T_world_camera[-1:])), task=task_state)
        return Outcome(episode, self._told(episode), lambda: self._commit(episode, state.frames[-1:], anew=True))

    def step_routine(self, action: Any) -> Routine:
        """`step` as a routine (see `spatia_env.episode`)."""
        before = self._running_episode("step")
        plan = self._planned(action, before.state)
        self._name_unknown_words(plan.text)
        self._tell_what_is_cut(getattr(before.state, "prompt", ""), plan.text)
        plan, collided = self._walkable(before.state, plan)
        state, clip = yield Wish(before.state, plan)
        scene = self._scene(state, clip, collided, plan.text)
        observation, info, reward, terminated, task_state = scene.observation, dict(scene.info), 0.0, False, before.task
        if self.task is not None:
            verdict = self.task.judge(scene, before.task or {})
            reward, terminated, task_state = verdict.reward, verdict.terminated, verdict.state
            observation = self.task.observe(scene, task_state)
            info |= verdict.metrics
        steps = before.steps + 1
        truncated = self.max_steps is not None and bool(steps >= self.max_steps)
        trail = before.trail.extended(to_numpy(clip.T_world_camera[-1:]))
        episode = Episode(state, trail, steps, terminated or truncated, task_state)
        result = observation, float(reward), bool(terminated), truncated, info
        return Outcome(episode, result, lambda: self._commit(episode, clip.frames))

    def _commit(self, episode: Episode, frames: torch.Tensor, anew: bool = False) -> None:
        self._episode = episode
        if anew:
            self._shown = []
        if self.render_mode == "rgb_array_list":
            self._shown = [*self._shown, *to_numpy(frames)][-_MAX_KEPT_FRAMES:]

    # -- beyond Gymnasium --------------------------------------------------------------------------

    @property
    def memory(self) -> PointMemory:
        """The point cloud the world remembers itself by."""
        return self._current_episode("memory").state.memory

    @property
    def pose(self) -> np.ndarray:
        """(4, 4) float64 T_world_camera of the last frame."""
        return to_numpy(self._current_episode("pose").state.T_world_camera[-1])

    @property
    def state(self) -> Any:
        """The world's `WorldState`: a value, never changed in place."""
        return self._current_episode("state").state

    @property
    def task_description(self) -> str:
        """What the agent is asked to do, in words: the instruction of follow-text, otherwise the task's name."""
        state = self._episode.task if self._episode is not None else None
        return str((state or {}).get("instruction") or ("" if self.task is None else self.task.name.replace("-", " ")))

    @property
    def _max_episode_steps(self) -> int | None:
        """What LeRobot's evaluation asks every env for."""
        return None if self.max_steps is None else int(self.max_steps)

    def overview(self, size: int = 384) -> np.ndarray:
        """Top view of the memory with the path walked, (size, size, 3) uint8."""
        import torch

        from spatia_model.geometry.overview import top_view

        episode = self._current_episode("overview")
        return np.array(top_view(episode.state.memory, torch.from_numpy(episode.trail.poses()), size))

    def snapshot(self) -> Mark:
        """Remember this moment. Cheap: states are values. Branch a world by restoring one mark several times."""
        stateful = self.task is not None and self.task.stateful
        return Mark(
            self._current_episode("snapshot"),
            copy.deepcopy(self.np_random.bit_generator.state),
            copy.deepcopy(self.task) if stateful else None,
        )

    def restore(self, mark: Mark) -> None:
        """Go back to a moment that `snapshot` of this env (or of one with the same model and task) remembered."""
        if not isinstance(mark, Mark) or not isinstance(mark.episode, Episode):
            raise ValueError(f"restore was given a {type(mark).__name__}; give what snapshot() returned")
        self._check_fits(mark.episode.state)
        self.np_random.bit_generator.state = copy.deepcopy(mark.random_state)
        if mark.task is not None:
            self.task = copy.deepcopy(mark.task)
        self._episode = mark.episode
        self._shown = []

    def save(self, folder: str | Path) -> Path:
        """Write the episode to `folder` (safetensors, PLY and JSON); `load` in any process goes on with bit-equal frames."""
        episode = self._current_episode("save")
        header = {
            "env": type(self).__name__,
            "image_shape": list(self.image_shape),
            "steps": episode.steps,
            "ended": episode.ended,
            "random_state": self.np_random.bit_generator.state,
        }
        task = saving.pack_task(self.task, episode.task)
        return saving.save_episode(Path(folder), header, episode.trail, task, lambda place: self._save_state(episode.state, place))

    def load(self, folder: str | Path) -> tuple[Any, dict[str, Any]]:
        """Go on with an episode that `save` of an env with the same task wrote. Returns observation and info as `reset` does."""
        header, trail, task_state, state = saving.load_episode(Path(folder), type(self).__name__, self.task, self._load_state)
        self._check_fits(state)
        random = np.random.default_rng()
        try:
            random.bit_generator.state = header["random_state"]
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{folder} holds a damaged random state ({error}); save the episode anew") from error
        self.np_random = random
        self._episode = Episode(state, trail, int(header["steps"]), bool(header["ended"]), task_state)
        self._shown = []
        return self._told(self._episode)

    def edit(self, function: Callable[[PointMemory], PointMemory]) -> None:
        """Edit the world by editing its memory: `function` takes the `PointMemory` and returns the one to go on with.

        What moves is not in the memory: see `edit_entities`.
        """
        episode = self._running_episode("edit")
        edited = function(episode.state.memory)
        if not isinstance(edited, type(episode.state.memory)):
            raise ValueError(
                f"the edit returned a {type(edited).__name__}; return a {type(episode.state.memory).__name__}, the memory as it shall be"
            )
        self._episode = replace(episode, state=replace(episode.state, memory=edited))

    def edit_entities(self, function: Callable[[Entities], Entities]) -> None:
        """Edit what moves: `function` takes the `Entities` and returns those to go on with.

        For instance `lambda entities: entities.only(entities.centres[:, 2] < 3)`.
        """
        episode = self._running_episode("edit_entities")
        known = getattr(episode.state, "entities", None)
        if known is None:
            raise ValueError("this world keeps no entities beside its memory: only models with a motion planner do, such as spatia-mini")
        edited = function(known)
        if not isinstance(edited, type(known)):
            raise ValueError(f"the edit returned a {type(edited).__name__}; return a {type(known).__name__}, the entities as they shall be")
        self._episode = replace(episode, state=replace(episode.state, entities=edited))

    # -- the world behind the env --------------------------------------------------------------------

    def _read_options(self, options: dict[str, Any] | None) -> dict[str, Any]:
        raise NotImplementedError

    def _begin(self, start: dict[str, Any], seed: int) -> Any:
        raise NotImplementedError

    def _advance(self, state: Any, plan: Plan) -> tuple[Any, Clip]:
        raise NotImplementedError

    def _save_state(self, state: Any, folder: Path) -> None:
        raise NotImplementedError

    def _load_state(self, folder: Path) -> Any:
        raise NotImplementedError

    def _begin_info(self, state: Any) -> dict[str, Any]:
        return {}

    def _step_info(self, state: Any, clip: Clip) -> dict[str, Any]:
        return {}

    def _solid(self, state: Any, reach: float) -> solid.Solid:
        """What is solid within `reach` metres of the camera: here, the points of the memory."""
        centre = to_numpy(state.T_world_camera[-1, :3, 3]).astype(np.float64)
        return solid.MemoryObstacles(state.memory, centre, reach, self.body_radius, getattr(state, "entities", None))

    # -- small things --------------------------------------------------------------------------------

    def _planned(self, action: Any, state: Any) -> Plan:
        """The action as a path, level where the world is: +y of a world that began with a tilted picture is not down."""
        here, turn = state.T_world_camera[-1], getattr(state, "T_level_world", None)
        if turn is None:
            return self.motion.plan(action, here)
        plan = self.motion.plan(action, turn @ here)
        return replace(plan, T_world_camera=turn.inverse() @ plan.T_world_camera)

    def _walkable(self, state: Any, plan: Plan) -> tuple[Plan, bool]:
        """The plan as far as a body can go, and whether it hit something."""
        if self.obstacles is None:
            return plan, False
        here = state.T_world_camera[-1]
        reach = float((plan.T_world_camera[:, :3, 3] - here[:3, 3]).norm(dim=1).max())
        if reach < 1e-9:
            return plan, False
        path, collided = solid.walk(plan.T_world_camera, here, self._solid(state, reach), self.obstacles)
        return Plan(path, plan.text), collided

    def _first_scene(self, state: Any) -> Scene:
        """A world that stands still, as `reset` and `load` show it."""
        frames, poses = state.frames[-1:], state.T_world_camera[-1:]
        repeats = (self.frames_per_clip, 1, 1)
        info = self._info(state, frames.repeat(*repeats, 1), poses.repeat(*repeats), 0.0, ()) | self._begin_info(state)
        return Scene(to_numpy(frames[-1]), info, state, self.world)

    def _scene(self, state: Any, clip: Clip, collided: bool, text: str) -> Scene:
        info = self._info(state, clip.frames, clip.T_world_camera, clip.coverage, clip.references, collided)
        return Scene(to_numpy(clip.frames[-1]), info | self._step_info(state, clip), state, self.world, text)

    def _told(self, episode: Episode) -> tuple[Any, dict[str, Any]]:
        """Observation and info of an episode that stands still."""
        scene = self._first_scene(episode.state)
        if self.task is None:
            return scene.observation, dict(scene.info)
        task_state = episode.task or {}
        return self.task.observe(scene, task_state), {**scene.info, **self.task.metrics(scene, task_state)}

    def _info(
        self, state: Any, frames: torch.Tensor, poses: torch.Tensor, coverage: float, references: tuple[int, ...], collided: bool = False
    ) -> dict[str, Any]:
        # A fixed length lets vector envs stack it.
        ids = np.full(int(self.world.config.max_references), -1, dtype=np.int64)
        ids[: len(references)] = references[: len(ids)]
        return {
            "frames": to_numpy(frames),
            "poses": to_numpy(poses),
            "K": to_numpy(state.camera.K),
            "coverage": float(coverage),
            "memory_points": len(state.memory),
            "references": ids,
            "collided": collided,
        }

    def _current_episode(self, call: str) -> Episode:
        if self._episode is None:
            raise ResetNeeded(f"there is no world yet: call reset() before {call}")
        return self._episode

    def _running_episode(self, call: str) -> Episode:
        episode = self._current_episode(call)
        if episode.ended:
            raise ResetNeeded(f"the episode has ended after {episode.steps} steps: call reset() before {call}")
        return episode

    def _check_fits(self, state: Any) -> None:
        size = tuple(state.frames.shape[1:3])
        if size != self.image_shape:
            raise ValueError(
                f"that world has frames of {size[1]} x {size[0]} pixels, this env's model makes "
                f"{self.image_shape[1]} x {self.image_shape[0]}: use the model it was made with"
            )

    def _tell_what_is_cut(self, prompt: str, text: str) -> None:
        told = too_long(self.world, prompt, text) if text else ""
        if told:  # every text of the action space is an action, so this is no error
            warnings.warn(f"prompt and text together have {told}: shorten them, or the text's end is lost", stacklevel=5)

    def _name_unknown_words(self, text: str) -> None:
        lookup = getattr(self.world, "unknown_words", None)
        if not text or lookup is None or len(self._named_words) >= _MAX_LISTED_WORDS:
            return
        new = [word for word in lookup(text) if word not in self._named_words]
        if new:
            self._named_words.update(new)
            listed = ", ".join(repr(word) for word in new[:8]) + (" ..." if len(new) > 8 else "")
            warnings.warn(f"these words carry no meaning for the model and are passed over: {listed}", stacklevel=5)
