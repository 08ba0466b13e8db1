"""WorldModel: the loop of the paper, told once.

`begin` makes a world of one picture; `advance` walks it one clip further. Both are functions of values: the model keeps
nothing between calls, a `WorldState` holds all there is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.generator.pipeline import ClipGenerator
from spatia_model.generator.text import join_texts
from spatia_model.geometry import se3
from spatia_model.geometry.camera import resize
from spatia_model.geometry.pictures import fit_image
from spatia_model.memory.free_space import blocks_view
from spatia_model.memory.mapping import MappingConfig, map_clip
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.references import KeyframeBank, retrieve, visible_surface
from spatia_model.perception.protocols import Perceiver
from spatia_model.types import Camera, Clip, Conditioning, Perception, Projection, WorldState

FIRST_CONFIDENCE = 1.0
# New places must enter the map although their depth is a guess. What the map shows already was generated from it: fusing it again would
# only blur it with every visit, and where perception disagrees about its depth, perception is more often wrong than the map. So only a
# very sure look far behind a point takes it away (a mover that left).
# Frames are drawn from the projection along the path, so odometry against it finds nothing to correct: the path is believed.
MAPPING = MappingConfig(
    tracking="path", min_confidence=0.08, known_weight=0.0, known_margin=0.5, carve_min_confidence=0.9, carve_margin=0.25
)


class WorldModel:
    """A world model of one tier: generator, perceiver and memory settings. Stateless between calls.

    Args:
        generator: conditioning to frames.
        perceiver: frames to depth, confidence and motion.
        config: window, memory and sampler numbers.
        mapping: how clips enter the map.
    """

    def __init__(self, generator: ClipGenerator, perceiver: Perceiver, config: MiniConfig, mapping: MappingConfig | None = None):
        self.generator, self.perceiver, self.config = generator, perceiver, config
        self.mapping = mapping or MAPPING

    def __deepcopy__(self, memo: dict) -> WorldModel:
        return self  # stateless: Gymnasium copies an env's arguments, and a copy would only hold the weights twice

    @staticmethod
    def from_pretrained(name_or_dir: str | Path = "spatia-mini", device: str = "cpu") -> WorldModel:
        """Load a model by name ("spatia-mini") or from a folder. Calls with equal arguments share one copy of the weights.

        Raises:
            ValueError: no such model, or a file in it is missing, truncated, altered or misshapen (the file is named).
        """
        from spatia_model.model_folder import resolve

        directory = resolve(name_or_dir)
        return _load(directory, device, (directory / "config.json").stat().st_mtime_ns)

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that carry no meaning for this model's text encoder."""
        return self.generator.text.unknown_words(text)

    @property
    def camera(self) -> Camera:
        """The camera assumed of a picture that comes without intrinsics."""
        return mini_camera(self.config)

    # -- the loop --------------------------------------------------------------------------------------------------

    def begin(
        self,
        image: Image.Image | torch.Tensor,
        prompt: str = "",
        seed: int = 0,
        camera: Camera | None = None,
        T_world_camera: torch.Tensor | None = None,
    ) -> WorldState:
        """A world from one picture.

        Args:
            image: PIL image or (H, W, 3) uint8, any size: its middle square is used, at the model's size.
            prompt: what the world is like; added to every clip's text.
            seed: of all noise that will be drawn for this world.
            camera: intrinsics of the middle square (any resolution); None: the tier's field of view.
            T_world_camera: (4, 4) pose of the picture; None: identity, the camera level at the origin.
        """
        size = self.config.image_size
        frame = fit_image(image, size)[None]
        camera = self.camera if camera is None else resize(camera, size, size)
        pose = torch.eye(4, dtype=torch.float64) if T_world_camera is None else torch.as_tensor(T_world_camera, dtype=torch.float64)
        path = _check_path(pose[None], 1)
        perception = self.perceiver.perceive(frame, path, camera)
        # The first picture's depth, right or wrong, is what this world's geometry means: all of it enters the map.
        perception = replace(perception, confidence=perception.confidence.clamp(min=FIRST_CONFIDENCE))
        empty = PointMemory.empty(self.config.voxel_size)
        memory, _ = map_clip(empty, frame, path, camera, perception, empty.project(path, camera), 0, self.mapping)
        projection = memory.project(path, camera)
        keyframes = KeyframeBank().add(frame[0], path[0], visible_surface(memory, projection))
        h = self.config.history_frames
        return WorldState(
            camera=camera,
            memory=memory,
            keyframes=keyframes,
            frames=frame.repeat(h, 1, 1, 1),  # before the picture, time stood still
            frames_dynamic=perception.dynamic.repeat(h, 1, 1),
            frames_projection=_select(projection, [0] * h),
            T_world_camera=path.repeat(h, 1, 1),
            prompt=prompt,
            clip_count=0,
            frame_count=1,
            rng_state=torch.Generator().manual_seed(seed).get_state(),
        )

    def advance(self, state: WorldState, path: torch.Tensor, text: str = "", memory: bool = True) -> tuple[WorldState, Clip]:
        """Generate the next clip along `path` and remember it.

        Args:
            state: where the world is; not changed.
            path: T_world_camera (T, 4, 4), T = config.frames_per_clip, one pose per new frame.
            text: what happens during this clip.
            memory: False shows the generator neither projection nor references, and maps nothing (ablation).

        Returns:
            The new state and the clip.

        Raises:
            ValueError: the path or the text can't be used; it says why.
        """
        return self.advance_batch([state], [path], [text], memory)[0]

    def advance_batch(
        self, states: Sequence[WorldState], paths: Sequence[torch.Tensor], texts: Sequence[str], memory: bool = True
    ) -> list[tuple[WorldState, Clip]]:
        """`advance` for several worlds in one batched forward pass."""
        if not len(states) == len(paths) == len(texts):
            raise ValueError(f"as many paths and texts as states are needed, got {len(states)}, {len(paths)}, {len(texts)}")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"text must be a string (empty for none), got {[type(text).__name__ for text in texts]}")
        paths = [_check_path(path, self.config.frames_per_clip) for path in paths]
        looks = [self._look(state, path, memory) for state, path in zip(states, paths, strict=True)]
        conditionings = [
            self._condition(state, path, text, projection, references, memory)
            for state, path, text, (projection, references) in zip(states, paths, texts, looks, strict=True)
        ]
        rngs = [_generator(state.rng_state) for state in states]
        clips = self.generator.generate(conditionings, rngs)
        return [
            self._remember(state, path, text, projection, references, frames, rng, memory)
            for state, path, text, (projection, references), frames, rng in zip(states, paths, texts, looks, clips, rngs, strict=True)
        ]

    def _look(self, state: WorldState, path: torch.Tensor, memory: bool) -> tuple[Projection, tuple[int, ...]]:
        """What the memory shows along the path, and which keyframes saw the same surfaces."""
        if not memory:
            return _empty_projection(len(path), state.camera), ()
        projection = state.memory.project(path, state.camera, threads=min(2, torch.get_num_threads()))
        visible = visible_surface(state.memory, projection)
        return projection, retrieve(state.keyframes, visible, self.config.max_references, self.config.reference_threshold)

    def _condition(
        self, state: WorldState, path: torch.Tensor, text: str, projection: Projection, references: tuple[int, ...], memory: bool
    ) -> Conditioning:
        past = state.frames_projection if memory else _empty_projection(len(state.frames), state.camera)
        return Conditioning(
            history=state.frames,
            history_dynamic=state.frames_dynamic,
            projection=_concatenate(past, projection),
            references=state.keyframes.frames(references, state.camera.height, state.camera.width),
            text=join_texts(state.prompt, text),
            T_world_camera=torch.cat([state.T_world_camera, path]),
        )

    def _remember(
        self,
        state: WorldState,
        path: torch.Tensor,
        text: str,
        projection: Projection,
        references: tuple[int, ...],
        frames: torch.Tensor,
        rng: torch.Generator,
        memory: bool,
    ) -> tuple[WorldState, Clip]:
        """Perceive the new frames, put what is static into the map, and move the window on."""
        gap, h = self.config.motion_gap, self.config.history_frames
        everything = torch.cat([state.frames, frames])
        earlier = everything[h - gap : h - gap + len(frames)]
        perception = self.perceiver.perceive(frames, path, state.camera, projection if memory else None, earlier)
        step, count = state.clip_count + 1, state.frame_count + len(frames)
        points, keyframes = state.memory, state.keyframes
        if memory:
            perception = self._trusted(state, path, projection, references, perception)
            points, _ = map_clip(points, frames, path, state.camera, perception, projection, step, self.mapping)
            keyframes = keyframes.add(frames[-1], path[-1], visible_surface(points, points.project(path[-1:], state.camera)))
        rows = list(range(-h, 0))
        new = WorldState(
            camera=state.camera,
            memory=points,
            keyframes=keyframes,
            frames=everything[rows],
            frames_dynamic=torch.cat([state.frames_dynamic, perception.dynamic])[rows],
            frames_projection=_select(_concatenate(state.frames_projection, projection), rows),
            T_world_camera=torch.cat([state.T_world_camera, path])[rows],
            prompt=state.prompt,
            clip_count=step,
            frame_count=count,
            rng_state=rng.get_state(),
        )
        return new, Clip(frames, path, state.camera, projection, perception, references, text)

    def _trusted(
        self, state: WorldState, path: torch.Tensor, projection: Projection, references: tuple[int, ...], perception: Perception
    ) -> Perception:
        """Perception without confidence where it would put something between an earlier view and what that view showed."""
        ids = sorted({*references, *state.keyframes.ids[:1]})
        views = torch.stack([keyframe.T_world_camera for keyframe in state.keyframes.get(ids)])
        blocked = blocks_view(state.memory, views, perception.depth, path, state.camera, ~projection.mask)
        return replace(perception, confidence=perception.confidence.masked_fill(blocked, 0.0))


@functools.lru_cache(maxsize=4)
def _load(directory: Path, device: str, written: int) -> WorldModel:
    """`written` is only part of the cache's key: a model that was saved anew is read anew."""
    from spatia_model.model_folder import load_mini

    return WorldModel(*load_mini(directory, device))


def _generator(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def _check_path(path: torch.Tensor, frames: int) -> torch.Tensor:
    try:
        path = torch.as_tensor(path, dtype=torch.float64).clone()  # the caller may go on using its own
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the path must be numbers, T_world_camera ({frames}, 4, 4), got {type(path).__name__}: {error}") from error
    if path.shape != (frames, 4, 4):
        raise ValueError(f"the path must be T_world_camera ({frames}, 4, 4), one pose per new frame, got {tuple(path.shape)}")
    if not torch.isfinite(path).all():
        raise ValueError("the path holds NaN or infinite numbers: give finite poses")
    if not torch.equal(path[:, 3], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(frames, 4)):
        raise ValueError("the last row of every pose must be 0 0 0 1: give T_world_camera, column vectors, not transposed")
    R = path[:, :3, :3]
    error = (R @ R.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().max()
    if error > 1e-3 or (torch.linalg.det(R) < 0).any():
        raise ValueError(f"the path holds poses that are not rotations (off by {float(error):.2g}, or mirrored): orthonormalise them")
    return se3.orthonormalise(path) if error > 1e-9 else path


def _empty_projection(frames: int, camera: Camera) -> Projection:
    shape = (frames, camera.height, camera.width)
    return Projection(
        torch.zeros(*shape, 3, dtype=torch.uint8),
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.bool),
        torch.full(shape, -1, dtype=torch.int32),
    )


def _select(projection: Projection, rows: list[int]) -> Projection:
    return Projection(projection.rgb[rows], projection.depth[rows], projection.mask[rows], projection.index[rows])


def _concatenate(a: Projection, b: Projection) -> Projection:
    return Projection(*(torch.cat([getattr(a, n), getattr(b, n)]) for n in ("rgb", "depth", "mask", "index")))
