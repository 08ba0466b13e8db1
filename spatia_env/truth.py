"""`SpatiaTruthEnv`: the env of `Spatia-v0` with frames from a procedural ground-truth world."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.actions import MAX_ROTATION, MAX_TRANSLATION, ContinuousMotion, NavMotion, Plan
from spatia_env.base import WorldEnv
from spatia_env.inputs import check_flag, check_options, to_numpy
from spatia_env.obstacles import RADIUS, WorldObstacles

if TYPE_CHECKING:
    import torch

    from spatia_model.memory.point_memory import PointMemory
    from spatia_model.types import Camera, Clip

WORLD_SEEDS = 1_000_000  # drawn worlds are 0..999,999: the training range, so that worlds for validation and tests stay unseen
KINDS = ("room", "courtyard")
MAX_MOVERS = 3
MASK_SIZE = 64  # pixels: side of the picture in which things are told apart


@dataclass(frozen=True)
class TruthConfig:
    """The numbers an env needs of the world behind it, as a `WorldModel` has them."""

    image_size: int
    frames_per_clip: int
    fov_x: float
    max_references: int = 0


@dataclass(frozen=True)
class TruthState:
    """All that a ground-truth world is between two clips; named as in `WorldState`."""

    seed: int  # of the world
    kind: str | None
    movers: int | None
    camera: Camera
    memory: PointMemory
    frames: torch.Tensor  # (1, H, W, 3) uint8, the last frame
    T_world_camera: torch.Tensor  # (1, 4, 4) float64, its pose
    frame_count: int
    clip_count: int
    depth: torch.Tensor  # (1, H, W) float32 metres
    dynamic: torch.Tensor  # (1, H, W) bool


class TruthWorlds:
    """Ground-truth worlds behind the two calls of a `WorldModel`: begin and advance.

    Args:
        image_size: side of the frames, pixels.
        supersample: rays per pixel and direction.
        voxel_size: metres, of the memory that true depth is fused into.
    """

    def __init__(self, image_size: int = 128, supersample: int = 2, voxel_size: float = 0.03) -> None:
        from spatia_model.config import MiniConfig

        mini = MiniConfig()
        self.config = TruthConfig(image_size, mini.frames_per_clip, mini.fov_x)
        self.supersample, self.voxel_size = supersample, voxel_size
        self._world: tuple[Any, Any] = (None, None)  # the last world, by what it was generated from

    def world(self, seed: int, kind: str | None, movers: int | None) -> Any:
        """The `spatia_model.worlds` World of these arguments."""
        key = (seed, kind, movers)
        if self._world[0] != key:
            from spatia_model.worlds import World

            self._world = (key, World.generate(seed, kind=kind, movers=movers))
        return self._world[1]

    def begin(self, seed: int, kind: str | None, movers: int | None, start_seed: int) -> TruthState:
        """Stand at a free place of a world. `start_seed` chooses the place and heading."""
        import torch

        from spatia_model.geometry.camera import camera_from_fov
        from spatia_model.memory.point_memory import PointMemory

        size = self.config.image_size
        camera = camera_from_fov(self.config.fov_x, size, size)
        world = self.world(seed, kind, movers)
        pose = torch.as_tensor(world.start_pose(np.random.default_rng(start_seed)), dtype=torch.float64).reshape(1, 4, 4)
        truth = self._render(world, pose, camera, 0)
        memory = _fuse(PointMemory.empty(self.voxel_size), truth, pose, camera, 0)
        return TruthState(seed, kind, movers, camera, memory, truth.rgb, pose, 1, 0, truth.depth, truth.dynamic)

    def advance(self, state: TruthState, T_world_camera: torch.Tensor) -> tuple[TruthState, Clip]:
        """Move along a path (T, 4, 4) while one clip of world time passes."""
        from spatia_model.types import Clip, Perception

        world = self.world(state.seed, state.kind, state.movers)
        path = T_world_camera
        known = state.memory.project(path, state.camera)
        truth = self._render(world, path, state.camera, state.frame_count)
        memory = _fuse(state.memory, truth, path, state.camera, state.clip_count + 1)
        perception = Perception(truth.depth, (truth.depth > 0).float(), truth.dynamic.float())
        clip = Clip(truth.rgb, path, state.camera, known, perception, (), "")
        after = replace(
            state,
            memory=memory,
            frames=truth.rgb[-1:],
            T_world_camera=path[-1:],
            frame_count=state.frame_count + len(path),
            clip_count=state.clip_count + 1,
            depth=truth.depth[-1:],
            dynamic=truth.dynamic[-1:],
        )
        return after, clip

    def _render(self, world: Any, path: torch.Tensor, camera: Camera, first_frame: int) -> Any:
        import torch

        from spatia_model.config import FRAME_RATE

        times = torch.arange(first_frame, first_frame + len(path), dtype=torch.float64) / FRAME_RATE
        return world.render(path, camera, times, supersample=self.supersample)

    def seen_things(self, state: TruthState) -> np.ndarray:
        """(H, W) int32 identities of what a small picture from where the camera stands shows: as `World.identities`, -1 for the sky."""
        import torch

        from spatia_model.config import FRAME_RATE
        from spatia_model.geometry.camera import resize

        time = torch.tensor([max(state.frame_count - 1, 0) / FRAME_RATE], dtype=torch.float64)
        camera = resize(state.camera, MASK_SIZE, MASK_SIZE)
        return self.world(state.seed, state.kind, state.movers).identities(state.T_world_camera[-1:], camera, time)[0].numpy()

    def named_things(self, state: TruthState) -> dict[int, tuple[str, float]]:
        """Name ("tall green bookshelf") and metres from the camera of everything that has a name, by identity."""
        import torch

        from spatia_model.config import FRAME_RATE
        from spatia_model.worlds.captions import NOUNS, SILENT, inside
        from spatia_model.worlds.world import MOVING

        world, here = self.world(state.seed, state.kind, state.movers), to_numpy(state.T_world_camera[-1, :3, 3])
        found: dict[int, tuple[str, float]] = {}
        for identity, thing in enumerate(world.things):
            if thing.noun in NOUNS and thing.noun not in SILENT and inside(world, thing):
                away = np.maximum(np.maximum(np.array(thing.low) - here, here - np.array(thing.high)), 0)
                found[identity] = f"{thing.words} {thing.noun}".strip(), float(np.hypot(away[0], away[2]))
        time = torch.tensor([state.frame_count / FRAME_RATE], dtype=torch.float64)
        for number, mover in enumerate(world.movers):
            away = mover.position(time)[0].numpy() - here
            found[MOVING + number] = mover.name, float(np.hypot(away[0], away[2]))
        return found


def _fuse(memory: PointMemory, truth: Any, path: torch.Tensor, camera: Camera, step: int) -> PointMemory:
    """Fuse what is static and within reach of the true depth."""
    import torch

    from spatia_model.geometry.camera import unproject

    every = slice(-1, None) if len(path) > 1 else slice(None)  # neighbouring frames add nothing at full coverage
    depth, dynamic, rgb = truth.depth[every], truth.dynamic[every], truth.rgb[every]
    points = unproject(depth, path[every], camera).reshape(-1, 3)
    use = ((depth > 0) & (depth < 30) & ~dynamic).reshape(-1)
    footprint = (depth / float(camera.K[0, 0])).reshape(-1)[use]
    confidence = torch.ones(int(use.sum()))
    return memory.fuse(points[use].float(), rgb.reshape(-1, 3)[use], confidence, step, footprint=footprint)


class SpatiaTruthEnv(WorldEnv):
    """`SpatiaEnv` with frames from a procedural ground-truth world: what a perfect world model would show.

    Observation space, action space, reward, end and errors are those of `SpatiaEnv`. With ``discrete=True`` the actions are
    those of `SpatiaNav-v0`. Text is accepted and changes nothing: what happens in the world is settled by its seed.

    ## Start
    At a free place of the world, at eye height, looking about level; chosen by ``reset(seed=...)``. Poses are in the world's frame
    (x right, y down, floor at y = 0).

    ## Arguments
    ```python
    gym.make("SpatiaTruth-v0", world=None, kind=None, movers=None, task=None, max_steps=None, render_mode=None,
             max_translation=0.5, max_rotation=0.5236, discrete=False, image_size=128, supersample=2, solid=True, obstacles=None,
             body_radius=0.2)
    ```
    * `world`: seed of the world; None draws one per episode from 0..999,999, the range models are trained in, so that the worlds
      used for validation (1,000,000..1,999,999) and tests (2,000,000 and up) stay unseen. `reset(options={"world": 7})` for one episode.
    * `kind`: "room", "courtyard" or None for either; `movers`: how many things move, 0..3, None for what the seed says.
    * `solid`: the camera stops `body_radius` (0.2 m) before true walls and furniture; `info["poses"]` tells where it truly went.
    * `obstacles`: how it stops, "block" or "slide"; None: "slide" with discrete motions, as in `SpatiaNav-v0`, else "block".

    ## Info
    As in `SpatiaEnv`, and

    | key       | value                                                                                   |
    |-----------|-----------------------------------------------------------------------------------------|
    | `depth`   | (T, H, W) float32, true depth along the optical axis in metres                           |
    | `dynamic` | (T, H, W) bool, True on moving things                                                    |
    | `world`   | int, the seed of the world                                                              |

    The memory is made from true depth; `references` is empty.

    ## Version history
    * v0: first version
    """

    reset_options = ("world",)

    def __init__(
        self,
        world: int | None = None,
        kind: str | None = None,
        movers: int | None = None,
        task: Any = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
        max_translation: float = MAX_TRANSLATION,
        max_rotation: float = MAX_ROTATION,
        discrete: bool = False,
        image_size: int = 128,
        supersample: int = 2,
        solid: bool = True,
        obstacles: str | None = None,
        body_radius: float = RADIUS,
    ) -> None:
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; choose one of {list(KINDS)}, or None for either")
        _check_whole(movers, "movers", 0, MAX_MOVERS, "None for what the world's seed says")
        _check_whole(image_size, "image_size", 16, 1024)
        _check_whole(supersample, "supersample", 1, 4)
        limits = () if check_flag(discrete, "discrete") else (max_translation, max_rotation)
        motion = NavMotion if discrete else ContinuousMotion
        worlds = TruthWorlds(image_size, supersample)
        if not check_flag(solid, "solid"):
            obstacles = None
        elif obstacles is None:
            obstacles = "slide" if discrete else "block"
        self._setup(worlds, task, max_steps, render_mode, motion, limits, obstacles, body_radius)
        self._world_seed, self._kind, self._mover_count = _check_seed(world), kind, movers

    def _read_options(self, options: dict[str, Any] | None) -> dict[str, Any]:
        options = check_options(options, self.reset_options)
        return {"world": _check_seed(options["world"]) if "world" in options else self._world_seed}

    def _begin(self, start: dict[str, Any], seed: int) -> TruthState:
        drawn = int(self.np_random.integers(WORLD_SEEDS))  # drawn even when not needed: the start does not depend on it
        world = drawn if start["world"] is None else start["world"]
        return self.world.begin(world, self._kind, self._mover_count, seed)

    def _advance(self, state: TruthState, plan: Plan) -> tuple[TruthState, Clip]:
        return self.world.advance(state, plan.T_world_camera)

    def _begin_info(self, state: TruthState) -> dict[str, Any]:
        repeats = (self.frames_per_clip, 1, 1)
        return {"depth": to_numpy(state.depth.repeat(*repeats)), "dynamic": to_numpy(state.dynamic.repeat(*repeats)), "world": state.seed}

    def _step_info(self, state: TruthState, clip: Clip) -> dict[str, Any]:
        return {"depth": to_numpy(clip.perception.depth), "dynamic": to_numpy(clip.perception.dynamic > 0.5), "world": state.seed}

    def _solid(self, state: TruthState, reach: float) -> WorldObstacles:
        return WorldObstacles(self.world.world(state.seed, state.kind, state.movers), self.body_radius)

    def _save_state(self, state: TruthState, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        state.memory.save_ply(folder / "memory.ply")
        tensors = {name: getattr(state, name) for name in _TENSORS} | {"K": state.camera.K}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / "state.safetensors"))
        numbers = {name: getattr(state, name) for name in _NUMBERS}
        (folder / "state.json").write_text(json.dumps(numbers, indent=1) + "\n")

    def _load_state(self, folder: Path) -> TruthState:
        return _load_truth(folder)


_TENSORS = ("frames", "T_world_camera", "depth", "dynamic")
_NUMBERS = ("seed", "kind", "movers", "frame_count", "clip_count")


def _load_truth(folder: Path) -> TruthState:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from spatia_model.memory.point_memory import PointMemory
    from spatia_model.types import Camera

    load: Callable[[str], Any] = load_file
    try:
        tensors = load(str(folder / "state.safetensors"))
        numbers = json.loads((folder / "state.json").read_text())
        height, width = tensors["frames"].shape[1:3]
        camera = Camera(tensors["K"], int(width), int(height))
        memory = PointMemory.load_ply(folder / "memory.ply")
        return TruthState(
            camera=camera, memory=memory, **{name: tensors[name] for name in _TENSORS}, **{name: numbers[name] for name in _NUMBERS}
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({error}); save the episode anew") from error


def _check_seed(world: Any) -> int | None:
    if world is None:
        return None
    if isinstance(world, bool) or not isinstance(world, (int, np.integer)) or not 0 <= world < 2**31:
        raise ValueError(f"world is {world!r}; give the seed of a world, a whole number from 0 to {2**31 - 1:,}, or None to draw one")
    return int(world)


def _check_whole(value: Any, name: str, low: int, high: int, none: str | None = None) -> None:
    if value is None and none is not None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give a whole number from {low} to {high}" + (f", or {none}" if none else ""))
