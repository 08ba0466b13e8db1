"""The 5B's loop: `WorldModel` with clips of the released lengths, the release's rendering and matching.

What differs from the embedded tier's loop, which `WorldModel` tells: the memory is drawn anew over the whole window, history included; the
first clip sees the picture alone, is longer, and goes without the LoRA; references are past frames that share most points; frames enter the
map at the reconstruction rate; a path that is too short is padded by standing still.

Where the release rebuilds its cloud of all history before every clip, this one adds each clip to the map it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from spatia_model.config import ReleaseConfig, release_camera
from spatia_model.generator.conditioning import to_frames
from spatia_model.generator.release_pipeline import Generated, ReleaseGenerator, to_whole
from spatia_model.geometry.camera import resize
from spatia_model.geometry.pictures import fit_image
from spatia_model.geometry.point_compositing import average_cells, composite_points
from spatia_model.geometry.visibility import frontmost_points, overlap_counts
from spatia_model.memory.mapping import MappingConfig, map_clip
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.references import KeyframeBank, match_frames, retrieve, visible_surface
from spatia_model.perception.protocols import Perceiver
from spatia_model.types import Camera, Clip, Conditioning, Perception, Projection, WorldState
from spatia_model.world_model import WorldModel
from spatia_model.world_steps import checked_path, fitted, generator_of

# The perceiver's word is taken as it is: the release maps every point that MapAnything is not sure to be wrong about, and takes none away.
MAPPING = MappingConfig(
    tracking="path",
    fuse_stride=1,
    min_confidence=0.0,
    dynamic_dilation=0,
    edge_threshold=1e9,
    sky_depth=1000.0,
    sky_distance=1000.0,
    depth_error=0.0,
    carve=False,
)
_SURFACE_SCALE = 4  # surfaces of keyframes are looked at in pictures smaller by this: their cells are coarse


class ReleaseWorldModel(WorldModel):
    """A world model of the full tier. `begin` and `advance` are those of `WorldModel`; a path may have any length up to a clip's.

    Args:
        generator: conditioning to frames and latents.
        perceiver: frames to depth, confidence and motion; it is given the frames that enter the map.
        config: the loop's numbers.
        mapping: how clips enter the map.
    """

    config: ReleaseConfig  # type: ignore[assignment]
    generator: ReleaseGenerator  # type: ignore[assignment]

    def __init__(self, generator: ReleaseGenerator, perceiver: Perceiver, config: ReleaseConfig, mapping: MappingConfig | None = None):
        self.generator, self.perceiver, self.config = generator, perceiver, config  # type: ignore[assignment]
        self.mapping, self.planner = mapping or MAPPING, None  # what moves is the generator's

    @property
    def camera(self) -> Camera:
        """The camera assumed of a picture whose intrinsics neither the caller nor the perceiver knows."""
        return release_camera(self.config)

    def clip_lengths(self, frames: int) -> list[int]:
        """How a path of so many new poses is cut into clips."""
        return self.config.clip_lengths(frames)

    # -- the loop --------------------------------------------------------------------------------------------------

    def begin(
        self,
        image: Image.Image | torch.Tensor,
        prompt: str = "",
        seed: int = 0,
        camera: Camera | None = None,
        T_world_camera: torch.Tensor | None = None,
    ) -> WorldState:
        """A world from one picture. Arguments as in `WorldModel.begin`; of another shape, the picture's middle is used.

        camera: intrinsics of that middle part (any resolution); None: what the perceiver estimates, or the config's field of view.
        """
        config = self.config
        frame = fit_image(image, config.image_shape)[None]
        pose = torch.eye(4, dtype=torch.float64) if T_world_camera is None else torch.as_tensor(T_world_camera, dtype=torch.float64)
        path = checked_path(pose[None], 1)
        camera = self._estimated_camera(frame, path) if camera is None else resize(camera, config.width, config.height)
        perception = self.perceiver.perceive(frame, path, camera)
        empty = PointMemory.empty(config.voxel_size, max_points=config.max_points)
        memory, _ = map_clip(empty, frame, path, camera, perception, empty.project(path, camera), 0, self.mapping)
        return WorldState(
            camera=camera,
            memory=memory,
            keyframes=self._keep(KeyframeBank(max_keyframes=config.max_keyframes), memory, frame, path, camera, 0),
            frames=frame,
            frames_dynamic=perception.dynamic,
            frames_projection=_no_projection(camera),  # drawn anew with every clip
            T_world_camera=path,
            prompt=prompt,
            clip_count=0,
            frame_count=1,
            rng_state=torch.Generator().manual_seed(seed).get_state(),
        )

    def advance_batch(
        self, states: Sequence[WorldState], paths: Sequence[torch.Tensor], texts: Sequence[str], memory: bool = True
    ) -> list[tuple[WorldState, Clip]]:
        """`advance` for several worlds, one after another: a clip of the 5B fills a GPU.

        A path (T, 4, 4) may have 1 to `first_frames - 1` poses in a world's first clip and 1 to `frames_per_clip` later. One that doesn't
        fill its clip is padded by standing still, and the padding cut off again (a first clip of `frames_per_clip` is a shorter clip).
        """
        if not len(states) == len(paths) == len(texts):
            raise ValueError(f"as many paths and texts as states are needed, got {len(states)}, {len(paths)}, {len(texts)}")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"text must be a string (empty for none), got {[type(text).__name__ for text in texts]}")
        checked = [checked_path(path, self._length(state, path)) for state, path in zip(states, paths, strict=True)]
        return [self._advance(state, path, text, memory) for state, path, text in zip(states, checked, texts, strict=True)]

    def observe(self, state: WorldState, frames: torch.Tensor, path: torch.Tensor, text: str = "") -> tuple[WorldState, Clip]:
        """As `WorldModel.observe`; the clip has no latents, so `video` can't continue through it."""
        frames = fitted(frames, self.config.image_shape)
        path = checked_path(path, len(frames))
        projection = self._draw(state, torch.cat([state.T_world_camera, path]))
        given = Generated(frames, torch.empty(1, 0, 1, 1), 0)
        new, clip = self._remember_clip(state, path, text, projection, (), given, generator_of(state.rng_state), True)
        return new, replace(clip, latents=None)

    def _length(self, state: WorldState, path: Any) -> int:
        """How many poses the path may have: as many as it has, if a clip holds them."""
        longest = self._longest(state)
        try:
            given = len(path)
        except TypeError:
            return longest  # `checked_path` says what is wrong
        return given if 1 <= given <= longest else longest

    def _longest(self, state: WorldState) -> int:
        return self.config.frames_per_clip if state.clip_count else self.config.first_frames - 1

    def _advance(self, state: WorldState, path: torch.Tensor, text: str, memory: bool) -> tuple[WorldState, Clip]:
        new = len(path) if not state.clip_count and len(path) == self.config.frames_per_clip else self._longest(state)
        window = torch.cat([state.T_world_camera, path, path[-1:].expand(new - len(path), -1, -1)])
        projection = self._draw(state, window) if memory else _empty_projection(len(window), state.camera)
        references = self._references(state, window, projection) if memory else ()
        first = not state.clip_count
        given = Conditioning(
            history=state.frames,
            history_dynamic=state.frames_dynamic,
            projection=projection,
            references=state.keyframes.frames(references, state.camera.height, state.camera.width),
            text=join_sentences(state.prompt, text),
            T_world_camera=window,
            lora=self.config.lora_first if first else self.config.lora_later,
        )
        rng = generator_of(state.rng_state)
        made = self.generator.generate_clip(given, rng)
        return self._remember_clip(state, path, text, projection, references, made, rng, memory)

    def _draw(self, state: WorldState, window: torch.Tensor) -> Projection:
        """The memory along the window, in coarser points with every clip."""
        config, memory, device = self.config, state.memory, self.generator.device
        cell = config.render_voxel + config.render_voxel_step * state.clip_count
        points, colors, rows = average_cells(memory.positions.to(device), memory.colors.to(device), cell)
        return composite_points(points, colors, window, state.camera, config.point_radius, config.points_per_pixel, rows)

    def _references(self, state: WorldState, window: torch.Tensor, projection: Projection) -> tuple[int, ...]:
        """Ids of the keyframes that are shown. Frames that are shown as history are none."""
        config = self.config
        stride = config.stride(config.candidate_rate)
        known = [id for id in state.keyframes.ids if id * stride < state.frame_count - len(state.frames)]
        if not known or not config.max_references or not len(state.memory):
            return ()
        if config.matching == "iou":
            bank = replace(state.keyframes, keyframes=state.keyframes.get(known), similarity=None)
            return retrieve(bank, visible_surface(state.memory, projection), config.max_references, config.reference_threshold)
        device = self.generator.device
        points = state.memory.positions.to(device)
        past = torch.stack([keyframe.T_world_camera for keyframe in state.keyframes.get(known)])
        seen = [frontmost_points(points, poses, state.camera) for poses in (window[:: config.stride(config.target_rate)], past)]
        matched = [known[row] for row in match_frames(overlap_counts(*seen)) if row >= 0]
        return tuple(matched[: config.max_references])

    def _remember_clip(
        self,
        state: WorldState,
        path: torch.Tensor,
        text: str,
        projection: Projection,
        references: tuple[int, ...],
        made: Generated,
        rng: torch.Generator,
        memory: bool,
    ) -> tuple[WorldState, Clip]:
        """Perceive and map the frames at the reconstruction rate, keep candidates for references, and move the window on."""
        config, count, past = self.config, len(path), len(state.frames)
        frames = made.frames[:count]
        rows = _every(state.frame_count, count, config.stride(config.map_rate))
        points, keyframes = state.memory, state.keyframes
        perception = _unperceived(count, state.camera)
        if rows and memory:
            shown = points.project(path[rows], state.camera, threads=min(8, torch.get_num_threads()))
            everything = torch.cat([state.frames, frames])
            earlier = everything[[max(0, past + row - config.stride(config.map_rate)) for row in rows]]
            seen = self.perceiver.perceive(frames[rows], path[rows], state.camera, shown, earlier)
            step = state.clip_count + 1
            points, _ = map_clip(points, frames[rows], path[rows], state.camera, seen, shown, step, self.mapping)
            for name in ("depth", "confidence", "dynamic"):
                getattr(perception, name)[rows] = getattr(seen, name).float()
        if memory:
            keyframes = self._keep(keyframes, points, frames, path, state.camera, state.frame_count)
        keep = config.history_frames
        dynamic = torch.cat([state.frames_dynamic, perception.dynamic])[-keep:]
        state = WorldState(
            camera=state.camera,
            memory=points,
            keyframes=keyframes,
            frames=torch.cat([state.frames, frames])[-keep:],
            frames_dynamic=dynamic,
            frames_projection=_no_projection(state.camera),
            T_world_camera=torch.cat([state.T_world_camera, path])[-keep:],
            prompt=state.prompt,
            clip_count=state.clip_count + 1,
            frame_count=state.frame_count + count,
            rng_state=state.rng_state if config.same_noise else rng.get_state(),
        )
        new = Projection(*(getattr(projection, n)[past : past + count] for n in ("rgb", "depth", "mask", "index", "alpha")))
        # The first clip's latents begin with the picture's; later ones leave out the history's.
        first = 0 if state.clip_count == 1 else made.known
        latents = made.latents[:, first : made.known + -(-count // 4)]
        return state, Clip(frames, path, state.camera, new, perception, references, text, latents)

    def _keep(
        self, bank: KeyframeBank, memory: PointMemory, frames: torch.Tensor, path: torch.Tensor, camera: Camera, start: int
    ) -> KeyframeBank:
        """The bank with the frames at the candidate rate; keyframe `id` is frame `id * stride` of the video."""
        rows = _every(start, len(frames), self.config.stride(self.config.candidate_rate))
        small = resize(camera, max(1, camera.width // _SURFACE_SCALE), max(1, camera.height // _SURFACE_SCALE))
        for row in rows:
            bank = bank.add(frames[row], path[row], visible_surface(memory, memory.project(path[row : row + 1], small)))
        return bank

    def _estimated_camera(self, frame: torch.Tensor, path: torch.Tensor) -> Camera:
        """What the perceiver's geometry says of the picture's intrinsics, where it has one."""
        geometry = getattr(self.perceiver, "geometry", None)
        if not callable(getattr(geometry, "estimate", None)):
            return self.camera
        return resize(geometry.estimate(frame, path).camera, self.config.width, self.config.height)  # type: ignore[union-attr]

    # -- the whole video -------------------------------------------------------------------------------------------

    def video(self) -> ReleaseVideo:
        """Decodes a walk's clips as one video: what the release saves at the end."""
        return ReleaseVideo(self.generator)


class ReleaseVideo:
    """A walk's clips as one video, decoded from their latents as if all at once, so that no clip begins anew.

    Example:
        video = world.video()
        for path in paths:
            state, clip = world.advance(state, path)
            frames = video.add(clip)  # after the first clip the picture's own frame is in front
    """

    def __init__(self, generator: ReleaseGenerator):
        self._generator = generator
        self._stream = generator.vae.stream()
        self._count = 0

    @torch.inference_mode()
    def add(self, clip: Clip) -> torch.Tensor:
        """The clip's frames (T, H, W, 3) uint8; with the first clip the picture's own in front (1 + T)."""
        if clip.latents is None:
            raise ValueError("the clip has no latents: give clips of the full tier's `advance`, in order")
        generator = self._generator
        with generator.on_device(generator.vae):
            self._stream.to(generator.device)
            frames = self._stream.add(clip.latents[None].to(generator.device))
        if generator.fit.offload != "none":
            self._stream.to("cpu")
        pixels = to_whole(frames) if generator.config.truncate else to_frames(frames)
        wanted = len(clip.frames) + (0 if self._count else 1)
        self._count += 1
        return pixels[0, :wanted].cpu()


def join_sentences(prompt: str, text: str) -> str:
    """What the world is like and what happens now, as one prompt."""
    return " ".join(part.strip() for part in (prompt, text) if part.strip())


def _every(start: int, count: int, stride: int) -> list[int]:
    """Rows of `count` frames, the first of which is frame `start` of the video, at a stride over the whole video."""
    return list(range(-start % stride, count, stride))


def _no_projection(camera: Camera) -> Projection:
    return _empty_projection(0, camera)


def _empty_projection(frames: int, camera: Camera) -> Projection:
    shape = (frames, camera.height, camera.width)
    return Projection(
        torch.zeros(*shape, 3, dtype=torch.uint8),
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.bool),
        torch.full(shape, -1, dtype=torch.int32),
        torch.zeros(shape, dtype=torch.uint8),
    )


def _unperceived(frames: int, camera: Camera) -> Perception:
    shape = (frames, camera.height, camera.width)
    return Perception(torch.zeros(shape), torch.zeros(shape), torch.zeros(shape))
