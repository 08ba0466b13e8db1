"""`SpatiaEnv`: a world that grows from one picture, as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.actions import MAX_ROTATION, MAX_TRANSLATION, ContinuousMotion, Plan, check_text
from spatia_env.base import WorldEnv
from spatia_env.images import load_image
from spatia_env.inputs import check_flag, check_options, check_read_whole, check_recording, load_model
from spatia_env.obstacles import RADIUS

if TYPE_CHECKING:
    from spatia_model.types import Clip

MAX_PROMPT = 2000  # characters


class SpatiaEnv(WorldEnv):
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
    and are named in a warning, once each. The model reads 64 known words (the 5B: 512 tokens), the prompt's first: a longer prompt is a
    ValueError, a text that no longer fits behind the prompt is cut with a warning.

    `SpatiaNav-v0` has `Discrete(6)` instead: 0 forward 0.25 m, 1 turn left 15 degrees, 2 turn right, 3 look up 15 degrees,
    4 look down, 5 stay; level with the ground whatever the pitch, which stays within 60 degrees.

    ## Obstacles
    With ``obstacles="block"`` a step into what the memory knows to be solid ends where it would touch; with ``"slide"`` the camera goes
    on along the surface. It turns as asked in both. `info["collided"]` and `info["poses"]` tell. The body is an upright cylinder of
    `body_radius` around the camera, from 0.1 m above to 0.7 m below it. Off by default here, ``"slide"`` in `SpatiaNav-v0`.

    ## Reward
    0.0 without a task. `task=` may be "explore", "reach-view", "return-home" or "follow-text" (docs/tasks.md), or any callable
    `task(observation, info) -> reward`, `-> (reward, terminated)` or `-> (reward, terminated, metrics)`. Tasks with a goal add it to the
    observation, which becomes a `Dict` with the frame under "image", and to info.

    ## Start
    The camera stands at the origin and looks into the picture: `poses[-1]` is the identity. Whether it looked up or down is guessed from
    the picture (`state.T_level_world`); depth, what moves and `SpatiaNav-v0`'s level motions go by that. `reset(seed=...)` seeds every
    random draw of the episode: same machine, seed and actions give the same frames.

    ## End of an episode
    * Termination: when the task says so; never without one.
    * Truncation: after `max_steps` steps; never when it is None.

    `step` before `reset` or after the end raises `gymnasium.error.ResetNeeded`.

    ## Arguments
    ```python
    gym.make("Spatia-v0", image=None, prompt="", model="spatia-mini", task=None, max_steps=None, render_mode=None,
             max_translation=0.5, max_rotation=0.5236, device="auto", memory=True, obstacles=None, body_radius=0.2)
    ```
    * `image`: path, PIL image or array of any size (RGB, grey, RGBA, EXIF-rotated); None for a bundled sample.
      Its centre is cropped to the model's shape and scaled. Or a function ``image(np_random) -> picture``, called at every reset.
    * `prompt`: a sentence about the place.
    * `model`: a name, a folder of weights, or a `WorldModel` (shared as it is). Several envs share one copy of the weights.
    * `task`, `max_steps`: as above.
    * `render_mode`: `"rgb_array"` (last frame), `"rgb_array_list"` (all frames since the last `render`), `"memory"` (top view of
      the point cloud with the path walked).
    * `max_translation`, `max_rotation`: motion limits per step in metres and radians.
    * `device`: `"auto"`, `"cpu"`, `"cuda"`, ...
    * `memory`: False generates without projection and references, to see what the memory is worth.
    * `obstacles`: None, "block" or "slide"; `body_radius`: metres.

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
    | `collided`      | bool, whether an obstacle changed the motion asked for                                            |

    and what the task adds.

    `env.unwrapped` also has `memory` (the `PointMemory`), `timing` (seconds of the last call), `pose`, `snapshot()` and
    `restore(mark)`, `save(folder)` and `load(folder)`, `edit(function)` for the memory, `edit_entities(function)` for what moves, and
    `observe(frames, poses)`, which takes a recording in place of generated clips.

    ## Errors
    Bad input raises `ValueError` with what was given, what is accepted and how to mend it; the world stays as it was.

    ## Version history
    * v0: first version
    """

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
        obstacles: str | None = None,
        body_radius: float = RADIUS,
    ) -> None:
        limits = (max_translation, max_rotation)
        self._setup(load_model(model, device), task, max_steps, render_mode, ContinuousMotion, limits, obstacles, body_radius)
        self._take(image, prompt, memory)

    def _take(self, image: Any, prompt: str, memory: bool) -> None:
        self._with_memory = check_flag(memory, "memory")
        self._image: np.ndarray | Callable[..., Any] = image if callable(image) else load_image(image, self.image_shape)
        self._prompt = self._check_prompt(prompt)

    def _check_prompt(self, prompt: Any) -> str:
        prompt = check_text(prompt, MAX_PROMPT, "prompt")
        check_read_whole(self.world, "prompt", prompt)
        return prompt

    def _read_options(self, options: dict[str, Any] | None) -> dict[str, Any]:
        options = check_options(options, self.reset_options)
        image = load_image(options["image"], self.image_shape) if "image" in options else self._image
        prompt = self._check_prompt(options["prompt"]) if "prompt" in options else self._prompt
        return {"image": image, "prompt": prompt}

    def _begin(self, start: dict[str, Any], seed: int) -> Any:
        import torch

        self._name_unknown_words(start["prompt"])
        image = start["image"]
        if callable(image):
            image = load_image(image(self.np_random), self.image_shape)
        return self.world.begin(torch.from_numpy(image), prompt=start["prompt"], seed=seed)

    def _advance(self, state: Any, plan: Plan) -> tuple[Any, Clip]:
        return self.world.advance(state, plan.T_world_camera, text=plan.text, memory=self._with_memory)

    def observe(self, frames: Any, poses: Any, text: str = "") -> tuple[Any, dict[str, Any]]:
        """Tell the world what a camera saw: a recording, or what a robot sees. Nothing is generated; memory and what moves go on from it.

        So an episode can begin with a recording instead of one picture: `reset(options={"image": frames[0]})`, then
        `observe(frames[1:], poses[1:])`. No step is counted and no reward given.

        Args:
            frames: (T, H, W, 3) uint8, T of 1 or more, at the model's rate (`metadata["render_fps"]`) and with the intrinsics of
                `info["K"]`, scaled; their middle is used.
            poses: (T, 4, 4) camera to world, in the axes of `info["poses"]`: the first picture's camera is the identity.
            text: what happens in them; kept with the clip.

        Returns:
            Observation of the last frame and info, as `step` gives them; `info["frames"]` and `info["poses"]` are the recording's.

        Raises:
            ValueError: frames or poses can't be used; the world stays as it was.
            ResetNeeded: no episode is going on.
        """
        import torch

        episode = self._running_episode("observe")
        pictures, path = check_recording(frames, poses)
        text = check_text(text, MAX_PROMPT, "text")
        state, clip = self.world.observe(episode.state, torch.from_numpy(pictures), torch.from_numpy(path), text)
        self._commit(replace(episode, state=state, trail=episode.trail.extended(path[-1:])), clip.frames)
        scene = self._scene(state, clip, False, text)
        if self.task is None:
            return scene.observation, dict(scene.info)
        task_state = episode.task or {}
        return self.task.observe(scene, task_state), {**scene.info, **self.task.metrics(scene, task_state)}

    def _save_state(self, state: Any, folder: Path) -> None:
        from spatia_model.world_state import save_state

        save_state(state, folder)

    def _load_state(self, folder: Path) -> Any:
        from spatia_model.world_state import load_state

        return load_state(folder)
