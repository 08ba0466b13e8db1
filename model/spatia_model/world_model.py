"""WorldModel: the loop of the paper, told once.

`begin` makes a world of one picture; `advance` walks it one clip further. Both are functions of values: the model keeps
nothing between calls, a `WorldState` holds all there is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.generator.conditioning import fill_holes
from spatia_model.generator.motion import MotionPlanner
from spatia_model.generator.pipeline import ClipGenerator
from spatia_model.generator.text import join_texts
from spatia_model.geometry.camera import resize
from spatia_model.geometry.pictures import fit_image
from spatia_model.memory.entities import Entities, find, followed, observed, unhidden
from spatia_model.memory.free_space import blocks_view
from spatia_model.memory.mapping import MappingConfig, map_clip
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.references import KeyframeBank, retrieve, visible_surface
from spatia_model.memory.static_pixels import dilate, flying_pixels, landed
from spatia_model.memory.surroundings import completed, surroundings_of
from spatia_model.perception.protocols import Perceiver
from spatia_model.types import Camera, Clip, Conditioning, Perception, Projection, WorldState
from spatia_model.workers import each, workers_for
from spatia_model.world_steps import checked_path, concatenate, empty_projection, fitted, generator_of, guessed_level, levelled, select

FIRST_CONFIDENCE = 1.0
ASIDE = 4  # pixels around a first picture's entities that are taken for theirs: what a mask misses would stay behind as a stain
# New places must enter the map although their depth is a guess. What the map shows already was generated from it: fusing it again would
# only blur it with every visit, and where perception disagrees about its depth, perception is more often wrong than the map. So only a
# very sure look far behind a point takes it away (a mover that left).
# Frames are drawn from the projection along the path, so odometry against it finds nothing to correct: the path is believed.
MAPPING = MappingConfig(
    tracking="path", min_confidence=0.08, known_weight=0.0, known_margin=0.5, carve_min_confidence=0.9, carve_margin=0.25
)


@dataclass(frozen=True)
class _Job:
    """One world's next clip, as far as it is known before it is generated."""

    state: WorldState
    path: torch.Tensor  # (T, 4, 4)
    text: str
    projection: Projection  # what the memory shows along the path
    references: tuple[int, ...]  # keyframes that saw the same surfaces
    way: torch.Tensor | None = None  # (E, T, 3) metres by which every entity will have moved, as the text has it
    layer: Projection | None = None  # what is seen of the entities along the path, on their way
    shown: Projection | None = None  # the projection completed by the surroundings: what generator and perceiver see; None: as it is

    @property
    def seen(self) -> Projection:
        return self.projection if self.shown is None else self.shown


class WorldModel:
    """A world model of one tier: generator, perceiver and memory settings. Stateless between calls.

    Args:
        generator: conditioning to frames.
        perceiver: frames to depth, confidence and motion.
        config: window, memory and sampler numbers.
        mapping: how clips enter the map.
        planner: where the text makes things go; None: what moves is left to the generator.
    """

    def __init__(
        self,
        generator: ClipGenerator,
        perceiver: Perceiver,
        config: MiniConfig,
        mapping: MappingConfig | None = None,
        planner: MotionPlanner | None = None,
    ):
        self.generator, self.perceiver, self.config, self.planner = generator, perceiver, config, planner
        self.mapping = mapping or MAPPING

    def __deepcopy__(self, memo: dict) -> WorldModel:
        return self  # stateless: Gymnasium copies an env's arguments, and a copy would only hold the weights twice

    @staticmethod
    def from_pretrained(name_or_dir: str | Path = "spatia-mini", device: str = "cpu", **options: Any) -> WorldModel:
        """Load a model by name ("spatia-mini"), from a folder, or by hub id. Calls with equal arguments share one copy of the weights.

        Args:
            name_or_dir: what to load. Folders that `spatia convert` wrote give the 5B.
            device: where to compute.
            options: of the 5B alone; see `spatia_model.release_folder.load_release`.

        Raises:
            ValueError: no such model, or a file in it is missing, truncated, altered or misshapen (the file is named).
        """
        from spatia_model.model_folder import resolve

        directory = resolve(name_or_dir)
        if not (directory / "config.json").is_file():
            from spatia_model.release_folder import load_shared

            return load_shared(directory, device, **options)
        if options:
            raise ValueError(f"{sorted(options)} are options of the 5B; {str(name_or_dir)!r} takes none")
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
            T_world_camera: (4, 4) pose of the picture, +y of the world down; None: identity, and how far from level that is is guessed
                by the perceiver, if it can (`WorldState.T_level_world`).
        """
        size = self.config.image_size
        frame = fit_image(image, size)[None]
        camera = self.camera if camera is None else resize(camera, size, size)
        pose = torch.eye(4, dtype=torch.float64) if T_world_camera is None else torch.as_tensor(T_world_camera, dtype=torch.float64)
        path = checked_path(pose[None], 1)
        T_level_world = guessed_level(self.perceiver, frame, camera) if T_world_camera is None else None
        perception = self.perceiver.perceive(frame, levelled(path, T_level_world), camera)
        # The first picture's depth, right or wrong, is what this world's geometry means: all of it enters the map.
        # What lies between two surfaces, where a blurred depth edge would hang it in the air, goes to the one it looks like.
        out = flying_pixels(perception.depth, self.mapping.edge_threshold, self.mapping.sky_depth)
        depth = landed(perception.depth, frame, out)
        perception = replace(perception, depth=depth, confidence=perception.confidence.clamp(min=FIRST_CONFIDENCE))
        background, entities, hidden = frame, None, perception.dynamic
        if self.planner is not None:
            moves = perception.dynamic > self.mapping.dynamic_threshold
            entities = find(frame[0], depth[0], moves[0], path[0], camera)
            hidden = dilate(moves, ASIDE)
            background, perception = _behind(frame, perception, hidden)
        empty = PointMemory.empty(self.config.voxel_size)
        mapping = replace(self.mapping, edge_threshold=math.inf)
        memory, _ = map_clip(empty, background, path, camera, perception, empty.project(path, camera), 0, mapping)
        projection = memory.project(path, camera)
        keyframes = KeyframeBank().add(background[0], path[0], visible_surface(memory, projection))
        h = self.config.history_frames
        around = None
        if self.config.surroundings:
            far = torch.where(perception.depth >= self.mapping.sky_depth, self.mapping.sky_distance, perception.depth)
            around = surroundings_of(background[0], far[0], path[0], camera, self.config.voxel_size, T_level_world)
        return WorldState(
            camera=camera,
            memory=memory,
            keyframes=keyframes,
            frames=frame.repeat(h, 1, 1, 1),  # before the picture, time stood still
            frames_dynamic=hidden.float().repeat(h, 1, 1),
            frames_projection=select(projection, [0] * h),
            T_world_camera=path.repeat(h, 1, 1),
            prompt=prompt,
            clip_count=0,
            frame_count=1,
            rng_state=torch.Generator().manual_seed(seed).get_state(),
            entities=entities,
            surroundings=around,
            T_level_world=T_level_world,
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

    def observe(self, state: WorldState, frames: torch.Tensor, path: torch.Tensor, text: str = "") -> tuple[WorldState, Clip]:
        """Take what a camera saw along `path` for the next clip: nothing is generated, but all is remembered as if it had been.

        So a world begins with a recording instead of a picture, or is told what a robot saw. What moves goes on as it did.

        Args:
            state: where the world is; not changed.
            frames: (T, H, W, 3) uint8, T of 1 or more, 8 a second; of another size or shape, their middle is used.
            path: T_world_camera (T, 4, 4) of the frames, in metres and in the world of `state`.
            text: kept with the clip.

        Returns:
            The new state and the clip: `frames` at the model's size, what the memory showed before, and what was perceived.

        Raises:
            ValueError: frames or path can't be used; it says why.
        """
        frames = fitted(frames, self.config.image_size)
        path = checked_path(path, len(frames))
        projection = state.memory.project(path, state.camera)
        job = _Job(state, path, text, projection, ())  # what the surroundings invent is no evidence
        perception = self._perceive(job, frames, True)
        new, clip = self._remember(job, frames, perception, generator_of(state.rng_state), True)
        if state.entities is None:
            return new, clip
        looked, moves = perception.confidence.flatten(1).amax(1) > 0, perception.dynamic > self.mapping.dynamic_threshold
        entities = observed(state.entities, frames, perception.depth, looked, moves, path, state.camera)
        return replace(new, entities=entities), clip

    def advance_batch(
        self, states: Sequence[WorldState], paths: Sequence[torch.Tensor], texts: Sequence[str], memory: bool = True
    ) -> list[tuple[WorldState, Clip]]:
        """`advance` for several worlds, which share the networks' forward passes.

        On the CPU the worlds are dealt out to `torch.get_num_threads()` workers, each with a batch of its own and single-threaded
        arithmetic: small batches gain little from more threads, whole worlds gain all. On a GPU all worlds are one batch, and the
        workers keep their maps. A world's clip does not depend on its company but for how the machine's arithmetic rounds.
        """
        if not len(states) == len(paths) == len(texts):
            raise ValueError(f"as many paths and texts as states are needed, got {len(states)}, {len(paths)}, {len(texts)}")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"text must be a string (empty for none), got {[type(text).__name__ for text in texts]}")
        paths = [checked_path(path, self.config.frames_per_clip) for path in paths]
        count = min(torch.get_num_threads(), len(states))
        workers = workers_for(count) if count > 1 else None
        jobs = each(workers, lambda state, path, text: self._look(state, path, text, memory), states, paths, texts)
        if workers is None or not self._on_cpu:
            return self._clips(jobs, memory, workers)
        # Worlds with equally many references share a pass: keep them together.
        order = sorted(range(len(jobs)), key=lambda i: len(jobs[i].references))
        parts = [order[k * len(order) // count : (k + 1) * len(order) // count] for k in range(count)]
        done = each(workers, lambda part: self._clips([jobs[i] for i in part], memory), parts)
        found = {i: clip for part, clips in zip(parts, done, strict=True) for i, clip in zip(part, clips, strict=True)}
        return [found[i] for i in range(len(jobs))]

    @property
    def _on_cpu(self) -> bool:
        transformer = getattr(self.generator, "transformer", None)
        return transformer is None or transformer.device.type == "cpu"

    def _clips(self, jobs: list[_Job], memory: bool, workers: ThreadPoolExecutor | None = None) -> list[tuple[WorldState, Clip]]:
        """Generate the clips of several worlds in one batch, perceive them, and map every world's."""
        rngs = [generator_of(job.state.rng_state) for job in jobs]
        clips = self.generator.generate([self._condition(job, memory) for job in jobs], rngs)
        seen = [self._perceive(job, frames, memory) for job, frames in zip(jobs, clips, strict=True)]
        return each(workers, self._remember, jobs, clips, seen, rngs, [memory] * len(jobs))

    def _look(self, state: WorldState, path: torch.Tensor, text: str, memory: bool) -> _Job:
        """What the memory shows along the path, which keyframes saw the same surfaces, and where what moves will be."""
        if not memory:
            return _Job(state, path, text, empty_projection(len(path), state.camera), ())
        threads = min(2, torch.get_num_threads())
        projection = state.memory.project(path, state.camera, threads=threads)
        visible = visible_surface(state.memory, projection)
        references = retrieve(state.keyframes, visible, self.config.max_references, self.config.reference_threshold)
        way = layer = shown = None
        if state.surroundings is not None:
            shown = completed(projection, state.surroundings, path, state.camera, threads)
        if self.planner is not None and state.entities is not None and len(state.entities):
            way = self.planner.plan(state.entities, join_texts(state.prompt, text), state.T_world_camera[-1], state.T_level_world)
            layer = unhidden(state.entities.project(way, path, state.camera), projection)
        return _Job(state, path, text, projection, references, way, layer, shown)

    def _condition(self, job: _Job, memory: bool) -> Conditioning:
        state = job.state
        past = state.frames_projection if memory else empty_projection(len(state.frames), state.camera)
        history, moved = state.frames, state.frames_dynamic
        if self.planner is not None:  # what moves is drawn apart: the generator's past is as still as its memory
            history, moved = self._still(history, moved, past), torch.zeros_like(moved)
        return Conditioning(
            history=history,
            history_dynamic=moved,
            projection=concatenate(past, job.seen),
            references=state.keyframes.frames(job.references, state.camera.height, state.camera.width),
            text=join_texts(state.prompt, job.text),
            T_world_camera=torch.cat([state.T_world_camera, job.path]),
            entities=job.layer,
        )

    def _still(self, frames: torch.Tensor, dynamic: torch.Tensor, projection: Projection) -> torch.Tensor:
        """Frames (T, H, W, 3) that show the memory where something moves, as far as it is known what lies there."""
        moves = dilate(dynamic > self.mapping.dynamic_threshold, self.mapping.dynamic_dilation)
        return torch.where((moves & projection.mask)[..., None], projection.rgb, frames)

    def _perceive(self, job: _Job, frames: torch.Tensor, memory: bool) -> Perception:
        """Geometry and motion of the new frames."""
        gap, h = self.config.motion_gap, self.config.history_frames
        earlier = torch.cat([job.state.frames, frames])[h - gap : h - gap + len(frames)]
        path = levelled(job.path, job.state.T_level_world)
        return self.perceiver.perceive(frames, path, job.state.camera, job.seen if memory else None, earlier)

    def _remember(
        self, job: _Job, frames: torch.Tensor, perception: Perception, rng: torch.Generator, memory: bool
    ) -> tuple[WorldState, Clip]:
        """Put what is static of the new frames into the map, and move the window on."""
        state, path, projection, references = job.state, job.path, job.projection, job.references
        step, count = state.clip_count + 1, state.frame_count + len(frames)
        points, keyframes, entities = state.memory, state.keyframes, state.entities
        if memory and entities is not None:
            entities, perception = self._followed(job, entities, frames, perception)
        if memory:
            perception = self._trusted(state, path, projection, references, perception)
            points, _ = map_clip(points, frames, path, state.camera, perception, projection, step, self.mapping)
            seen = points.project(path[-1:], state.camera)
            last = frames[-1:] if self.planner is None else self._still(frames[-1:], perception.dynamic[-1:], seen)
            keyframes = keyframes.add(last[0], path[-1], visible_surface(points, seen))
        rows = list(range(-self.config.history_frames, 0))
        new = WorldState(
            camera=state.camera,
            memory=points,
            keyframes=keyframes,
            frames=torch.cat([state.frames, frames])[rows],
            frames_dynamic=torch.cat([state.frames_dynamic, perception.dynamic])[rows],
            frames_projection=select(concatenate(state.frames_projection, projection), rows),
            T_world_camera=torch.cat([state.T_world_camera, path])[rows],
            prompt=state.prompt,
            clip_count=step,
            frame_count=count,
            rng_state=rng.get_state(),
            entities=entities,
            surroundings=state.surroundings,
            T_level_world=state.T_level_world,
        )
        return new, Clip(frames, path, state.camera, projection, perception, references, job.text)

    def _followed(self, job: _Job, entities: Entities, frames: torch.Tensor, perception: Perception) -> tuple[Entities, Perception]:
        """The entities where the clip shows them to be, and a perception that calls their pixels moving."""
        way = torch.zeros(len(entities), len(frames), 3) if job.way is None else job.way
        if job.layer is None:
            return entities.moved(way), perception
        moves = perception.dynamic > self.mapping.dynamic_threshold
        return (
            followed(entities, way, job.layer, frames[-1], perception.depth[-1], moves[-1], job.path[-1], job.state.camera),
            replace(perception, dynamic=torch.maximum(perception.dynamic, job.layer.mask.float())),
        )

    def _trusted(
        self, state: WorldState, path: torch.Tensor, projection: Projection, references: tuple[int, ...], perception: Perception
    ) -> Perception:
        """Perception without confidence where it would put something between an earlier view and what that view showed."""
        ids = sorted({*references, *state.keyframes.ids[:1]})
        views = torch.stack([keyframe.T_world_camera for keyframe in state.keyframes.get(ids)])
        unknown = ~projection.mask & (perception.confidence > 0)
        blocked = blocks_view(state.memory, views, perception.depth, path, state.camera, unknown)
        return replace(perception, confidence=perception.confidence.masked_fill(blocked, 0.0))


@functools.lru_cache(maxsize=4)
def _load(directory: Path, device: str, written: int) -> WorldModel:
    """`written` is only part of the cache's key: a model that was saved anew is read anew."""
    from spatia_model.model_folder import load_mini, load_planner

    return WorldModel(*load_mini(directory, device), planner=load_planner(directory, device))


def _behind(frame: torch.Tensor, perception: Perception, hidden: torch.Tensor) -> tuple[torch.Tensor, Perception]:
    """The first picture without what moves: `hidden` (1, H, W) bool holds what lies beside it, and depth likewise.

    Nobody will ever see what was there; a hole would be filled with the entity itself, which the generator knows from the past. It is no
    nearer than what hid it, though a nearer thing may stand beside: else it would hide the entity.
    """
    if not bool(hidden.any()) or bool(hidden.all()):
        return frame, perception
    known = (~hidden).float().unsqueeze(1)
    seen = torch.cat([frame.permute(0, 3, 1, 2).float() / 127.5 - 1, 1 / perception.depth.unsqueeze(1)], 1)
    filled = fill_holes(seen, known)
    background = ((filled[:, :3] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    depth = torch.maximum(1 / filled[:, 3].clamp(min=1e-3), torch.where(hidden, perception.depth, 0.0))
    return background, replace(perception, depth=depth, dynamic=torch.zeros_like(perception.dynamic))
