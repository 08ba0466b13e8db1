"""`SpatiaEnv`: a world that grows from one picture, as a Gymnasium environment."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from spatia_env import saving, tasks
from spatia_env.actions import MAX_ROTATION, MAX_TRANSLATION, ContinuousMotion, Plan, check_text
from spatia_env.images import load_image
from spatia_env.inputs import check_flag, check_options, load_model, to_numpy
from spatia_env.trail import Trail

if TYPE_CHECKING:
    import torch

    from spatia_model.memory.point_memory import PointMemory
    from spatia_model.types import Clip

MAX_PROMPT = 2000  # characters
_MAX_LISTED_WORDS = 256  # unknown words an env remembers having named
_MAX_KEPT_FRAMES = 4096  # frames `rgb_array_list` keeps when nobody calls render()


@dataclass(frozen=True)
class Episode:
    """Everything an episode is between two steps. The env swaps one for the next and never changes one."""

    state: Any  # WorldState, or a TruthState
    trail: Trail  # where the camera has been, for the overview
    steps: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Mark:
    """A snapshot: the episode, the env's random generator and the task as they were."""

    episode: Episode
    random_state: Mapping[str, Any]
    task: Any


class SpatiaEnv(gym.Env[np.ndarray, Any]):
    """Walk through a world that grows from one picture, remembers what it showed, and responds to text.

    ## Description
    The first picture becomes the first view of a world. Each step is one clip: the camera moves along a path, a video
    diffusion model draws what it sees, given a 3D point cloud of what was seen before (the memory), the last frames and
    matching earlier frames; what was drawn then joins the memory. Returning to a place shows the same place.

    ## Observation space
    `Box(0, 255, (H, W, 3), uint8)`: the last frame of the clip, RGB (H = W = 128 for `spatia-mini`).

    ## Action space
    `Dict(camera=Box(-1, 1, (6,), float32), text=Text(0..240 characters of English letters, digits and punctuation))`.

    | index | camera motion of one step, in the camera's frame | +1 means                                 |
    |-------|--------------------------------------------------|------------------------------------------|
    | 0     | right                                            | `max_translation` to the right (0.5 m)   |
    | 1     | down                                             | `max_translation` downwards              |
    | 2     | forward                                          | `max_translation` forward                |
    | 3     | pitch                                            | looks up by `max_rotation` (30 degrees)  |
    | 4     | yaw                                              | turns right by `max_rotation`            |
    | 5     | roll                                             | tilts clockwise by `max_rotation`        |

    The motion is spread evenly over the clip (constant velocity). `text` says what happens in the clip
    ("a red ball rolls to the left"); the empty string says nothing. Words outside the model's vocabulary carry no meaning
    and are named in a warning, once each.

    `SpatiaNav-v0` has `Discrete(6)` instead: 0 forward 0.25 m, 1 turn left 15 degrees, 2 turn right, 3 look up 15 degrees,
    4 look down, 5 stay; level with the ground whatever the pitch, which stays within 60 degrees.

    ## Reward
    0.0 without a task. With `task=`, what the task says: any callable `task(observation, info) -> reward` or
    `-> (reward, terminated)`.

    ## Start
    The camera stands at the origin and looks into the picture: `poses[-1]` is the identity. `reset(seed=...)` seeds every
    random draw of the episode: same machine, seed and actions give the same frames.

    ## End of an episode
    * Termination: when the task says so; never without one.
    * Truncation: after `max_steps` steps; never when it is None.

    `step` before `reset` or after the end raises `gymnasium.error.ResetNeeded`.

    ## Arguments
    ```python
    gym.make("Spatia-v0", image=None, prompt="", model="spatia-mini", task=None, max_steps=None, render_mode=None,
             max_translation=0.5, max_rotation=0.5236, device="auto", memory=True)
    ```
    * `image`: path, PIL image or array of any size (RGB, grey, RGBA, EXIF-rotated); None for a bundled sample.
      Its centre is cropped to a square and scaled.
    * `prompt`: a sentence about the place.
    * `model`: a name, a folder of weights, or a `WorldModel` (shared as it is). Several envs share one copy of the weights.
    * `task`, `max_steps`: as above.
    * `render_mode`: `"rgb_array"` (last frame), `"rgb_array_list"` (all frames since the last `render`), `"memory"` (top view of
      the point cloud with the path walked).
    * `max_translation`, `max_rotation`: motion limits per step in metres and radians.
    * `device`: `"auto"`, `"cpu"`, `"cuda"`, ...
    * `memory`: False generates without projection and references, to see what the memory is worth.

    `reset(options={"image": ..., "prompt": ...})` starts this one episode from another picture or prompt.

    ## Info
    | key             | value                                                                                             |
    |-----------------|---------------------------------------------------------------------------------------------------|
    | `frames`        | (T, H, W, 3) uint8, the new frames of the clip; after `reset` the first frame T times             |
    | `poses`         | (T, 4, 4) float64, camera to world (x right, y down, z forward; metres), one per frame            |
    | `K`             | (3, 3) float64, intrinsics in pixels                                                              |
    | `coverage`      | float, share of the clip's pixels that the memory knew before it was drawn; 0.0 after `reset`     |
    | `memory_points` | int, points in the memory                                                                         |
    | `references`    | (max_references,) int64, ids of earlier frames shown to the model, -1 for none                    |

    `env.unwrapped` also has `memory` (the `PointMemory`), `timing` (seconds of the last call), `pose`, `snapshot()` and
    `restore(mark)`, `save(folder)` and `load(folder)`, and `edit(function)`.

    ## Errors
    Bad input raises `ValueError` with what was given, what is accepted and how to mend it; the world stays as it was.

    ## Version history
    * v0: first version
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list", "memory"], "render_fps": 8}
    reset_options = ("image", "prompt")

    def __init__(
        self,
        image: Any = None,
        prompt: str = "",
        model: Any = "spatia-mini",
        task: Any = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
        max_translation: float = MAX_TRANSLATION,
        max_rotation: float = MAX_ROTATION,
        device: str = "auto",
        memory: bool = True,
    ) -> None:
        self._setup(load_model(model, device), task, max_steps, render_mode, ContinuousMotion, (max_translation, max_rotation))
        self._with_memory = check_flag(memory, "memory")
        self._image = load_image(image, self.image_size)
        self._prompt = check_text(prompt, MAX_PROMPT, "prompt")

    def _setup(
        self, world: Any, task: Any, max_steps: Any, render_mode: Any, motion: Callable[..., Any], limits: tuple[float, ...]
    ) -> None:
        """What all Spatia envs share: the world behind them, spaces and the state of no episode yet."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode is {render_mode!r}; choose None or one of {self.metadata['render_modes']}")
        if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, (int, np.integer)) or max_steps < 1):
            raise ValueError(f"max_steps is {max_steps!r}; give a whole number of at least 1, or None for no end")
        self.world = world
        self.render_mode = render_mode
        self.max_steps = max_steps
        self.image_size = int(world.config.image_size)
        self.frames_per_clip = int(world.config.frames_per_clip)
        self.motion = motion(self.frames_per_clip, *limits)
        self.action_space = self.motion.space
        self.observation_space = spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        self.timing: dict[str, float] = {}
        self._task = tasks.check_task(task)
        self._episode: Episode | None = None
        self._shown: list[np.ndarray] = []
        self._named_words: set[str] = set()

    # -- the five calls of an env ------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode. `options` may hold `image` and `prompt` for this episode alone; weights are not loaded again."""
        start_time = perf_counter()
        start = self._read_options(options)  # raises before anything has changed
        super().reset(seed=seed)
        state = self._begin(start, int(self.np_random.integers(2**31)))
        frames, poses = state.frames[-1:], state.T_world_camera[-1:]
        repeats = (self.frames_per_clip, 1, 1)
        info = self._info(state, frames.repeat(*repeats, 1), poses.repeat(*repeats), 0.0, ()) | self._begin_info(state)
        observation = to_numpy(frames[-1])
        tasks.start(self._task, observation, info, self.np_random)
        self._episode = Episode(state, Trail().extended(to_numpy(poses)))
        self._shown = []
        self._keep_frames(frames)
        self.timing = {"reset": perf_counter() - start_time}
        return observation, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the camera by `action`, let one clip of world time pass, and see what is there."""
        start_time = perf_counter()
        before = self._running_episode("step")
        plan = self.motion.plan(action, before.state.T_world_camera[-1])
        self._name_unknown_words(plan.text)
        state, clip = self._advance(before.state, plan)
        info = self._info(state, clip.frames, clip.T_world_camera, clip.coverage, clip.references) | self._step_info(clip)
        observation = to_numpy(clip.frames[-1])
        reward, terminated = tasks.judge(self._task, observation, info)
        steps = before.steps + 1
        truncated = self.max_steps is not None and bool(steps >= self.max_steps)
        trail = before.trail.extended(to_numpy(clip.T_world_camera[-1:]))
        self._episode = Episode(state, trail, steps, ended=terminated or truncated)
        self._keep_frames(clip.frames)
        self.timing = {"step": perf_counter() - start_time}
        return observation, reward, terminated, truncated, info

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

    def overview(self, size: int = 384) -> np.ndarray:
        """Top view of the memory with the path walked, (size, size, 3) uint8."""
        import torch

        from spatia_model.geometry.overview import top_view

        episode = self._current_episode("overview")
        return np.array(top_view(episode.state.memory, torch.from_numpy(episode.trail.poses()), size))

    def snapshot(self) -> Mark:
        """Remember this moment. Cheap: states are values. Branch a world by restoring one mark several times."""
        return Mark(self._current_episode("snapshot"), copy.deepcopy(self.np_random.bit_generator.state), copy.deepcopy(self._task))

    def restore(self, mark: Mark) -> None:
        """Go back to a moment that `snapshot` of this env (or of one with the same model) remembered."""
        if not isinstance(mark, Mark) or not isinstance(mark.episode, Episode):
            raise ValueError(f"restore was given a {type(mark).__name__}; give what snapshot() returned")
        self._check_fits(mark.episode.state)
        self.np_random.bit_generator.state = copy.deepcopy(mark.random_state)
        self._task = copy.deepcopy(mark.task)
        self._episode = mark.episode
        self._shown = []

    def save(self, folder: str | Path) -> Path:
        """Write the episode to `folder` (safetensors, PLY and JSON); `load` in any process goes on with bit-equal frames."""
        episode = self._current_episode("save")
        header = {
            "env": type(self).__name__,
            "image_size": self.image_size,
            "steps": episode.steps,
            "ended": episode.ended,
            "random_state": self.np_random.bit_generator.state,
        }
        return saving.save_episode(Path(folder), header, episode.trail, lambda place: self._save_state(episode.state, place))

    def load(self, folder: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Go on with an episode that `save` wrote. Returns observation and info as `reset` does."""
        header, trail, state = saving.load_episode(Path(folder), type(self).__name__, self._load_state)
        self._check_fits(state)
        random = np.random.default_rng()
        try:
            random.bit_generator.state = header["random_state"]
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{folder} holds a damaged random state ({error}); save the episode anew") from error
        self.np_random = random
        self._episode = Episode(state, trail, int(header["steps"]), bool(header["ended"]))
        self._shown = []
        frames, poses = state.frames[-1:], state.T_world_camera[-1:]
        repeats = (self.frames_per_clip, 1, 1)
        info = self._info(state, frames.repeat(*repeats, 1), poses.repeat(*repeats), 0.0, ()) | self._begin_info(state)
        return to_numpy(frames[-1]), info

    def edit(self, function: Callable[[PointMemory], PointMemory]) -> None:
        """Edit the world by editing its memory: `function` takes the `PointMemory` and returns the one to go on with."""
        episode = self._running_episode("edit")
        edited = function(episode.state.memory)
        if not isinstance(edited, type(episode.state.memory)):
            raise ValueError(
                f"the edit returned a {type(edited).__name__}; return a {type(episode.state.memory).__name__}, the memory as it shall be"
            )
        self._episode = replace(episode, state=replace(episode.state, memory=edited))

    # -- the world behind the env: what SpatiaTruthEnv does otherwise -------------------------------

    def _read_options(self, options: dict[str, Any] | None) -> dict[str, Any]:
        options = check_options(options, self.reset_options)
        image = load_image(options["image"], self.image_size) if "image" in options else self._image
        prompt = check_text(options["prompt"], MAX_PROMPT, "prompt") if "prompt" in options else self._prompt
        return {"image": image, "prompt": prompt}

    def _begin(self, start: dict[str, Any], seed: int) -> Any:
        import torch

        self._name_unknown_words(start["prompt"])
        return self.world.begin(torch.from_numpy(start["image"]), prompt=start["prompt"], seed=seed)

    def _advance(self, state: Any, plan: Plan) -> tuple[Any, Clip]:
        return self.world.advance(state, plan.T_world_camera, text=plan.text, memory=self._with_memory)

    def _save_state(self, state: Any, folder: Path) -> None:
        from spatia_model.world_state import save_state

        save_state(state, folder)

    def _load_state(self, folder: Path) -> Any:
        from spatia_model.world_state import load_state

        return load_state(folder)

    def _begin_info(self, state: Any) -> dict[str, Any]:
        return {}

    def _step_info(self, clip: Clip) -> dict[str, Any]:
        return {}

    # -- small things ------------------------------------------------------------------------------

    def _info(self, state: Any, frames: torch.Tensor, poses: torch.Tensor, coverage: float, references: tuple[int, ...]) -> dict[str, Any]:
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

    def _keep_frames(self, frames: torch.Tensor) -> None:
        if self.render_mode == "rgb_array_list":
            self._shown = [*self._shown, *to_numpy(frames)][-_MAX_KEPT_FRAMES:]

    def _check_fits(self, state: Any) -> None:
        size = tuple(state.frames.shape[1:3])
        if size != (self.image_size, self.image_size):
            raise ValueError(
                f"that world has frames of {size[1]} x {size[0]} pixels, this env's model makes {self.image_size}: "
                "use the model it was made with"
            )

    def _name_unknown_words(self, text: str) -> None:
        lookup = getattr(self.world, "unknown_words", None)
        if not text or lookup is None or len(self._named_words) >= _MAX_LISTED_WORDS:
            return
        new = [word for word in lookup(text) if word not in self._named_words]
        if new:
            self._named_words.update(new)
            listed = ", ".join(repr(word) for word in new[:8]) + (" ..." if len(new) > 8 else "")
            warnings.warn(f"these words carry no meaning for the model and are passed over: {listed}", stacklevel=3)
