"""Training on the model's own outputs as history and memory, so that errors do not snowball.

Every now and then the averaged weights are rolled out along walks whose truth is known: the loop of `WorldModel` generates, perceives and
maps as it does in use, one clip after another. What the generator was shown before each clip (its own frames as history, the projection of
its own map, its own keyframes as references) is kept together with the true frames as target. Clips of that kind take part in training
beside the ordinary ones: the model learns to come back to the truth from where it really goes. The first clip of a walk is what ordinary
clips show too, and is left out.

What the model invented differs from the truth and is none the worse for it: where its own map shows something else than the truth, the
loss does not count, or the model would learn to disbelieve its memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from spatia_model.config import FRAME_RATE, MiniConfig
from spatia_model.data.clips import ClipDataset
from spatia_model.data.schema import LATENT_COLUMNS, Clip, write_shard
from spatia_model.generator.conditioning import encode_references, pool_mask, pooled_control, to_model
from spatia_model.geometry.camera import normalised_intrinsics
from spatia_model.types import Camera, Conditioning

CONTROL = "pooled"
INVENTED = 0.1  # of the full scale: a cell whose mean colour in the map is farther from the truth's shows another surface


class Generates(Protocol):
    def generate(
        self, conditionings: Sequence[Conditioning], rngs: Sequence[torch.Generator], progress: Any = None
    ) -> list[torch.Tensor]: ...


class Recorder:
    """A generator that keeps what it was shown and passes everything on."""

    def __init__(self, generator: Any):
        self.generator = generator
        self.shown: list[Conditioning] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def generate(self, conditionings: Sequence[Conditioning], rngs: Sequence[torch.Generator], progress: Any = None) -> list[torch.Tensor]:
        self.shown += conditionings
        return self.generator.generate(conditionings, rngs, progress)


class Teacher(Recorder):
    """In place of what the generator would make: the true frames of the clip, which the caller puts into `next`."""

    next: torch.Tensor

    def generate(self, conditionings: Sequence[Conditioning], rngs: Sequence[torch.Generator], progress: Any = None) -> list[torch.Tensor]:
        self.shown += conditionings
        return [self.next.clone() for _ in conditionings]


@dataclass(frozen=True)
class TrueWalk:
    """What a rollout needs of a walk: frames (N, H, W, 3) uint8, motion (N, H, W) bool, poses (N, 4, 4), a caption per clip, the prompt."""

    name: str
    rgb: torch.Tensor
    dynamic: torch.Tensor
    T_world_camera: torch.Tensor
    captions: tuple[str, ...]
    prompt: str


def read_walk(path: Path) -> TrueWalk:
    """A walk of `data.procedural`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        captions = tuple(json.loads(file.metadata()["captions"]))
        return TrueWalk(path.stem, file.get_tensor("rgb"), file.get_tensor("dynamic"), file.get_tensor("T_world_camera"), captions, "")


@dataclass(frozen=True)
class Window:
    """A clip as the rolled-out model met it, and what should have come."""

    conditioning: Conditioning
    target: torch.Tensor  # (T, H, W, 3) uint8: the true new frames
    target_dynamic: torch.Tensor  # (T, H, W) bool
    number: int
    T_world_reference: torch.Tensor  # (R, 4, 4)


def roll_out(world: Any, walk: TrueWalk, start: int, clips: int, seed: int, frames_from: str = "own") -> Iterator[Window]:
    """Walk `clips` clips of the walk from its clip `start` on, in the model's own world, begun from the true frame there.

    `world` is a `WorldModel`; its generator is wrapped, nothing of it changes. `frames_from` "true": history and memory are of the walk's
    true frames, perceived and mapped in the same way; the same windows without self-forcing.
    """
    recorder = Teacher(world.generator) if frames_from == "true" else Recorder(world.generator)
    watched = type(world)(recorder, world.perceiver, world.config, world.mapping)
    step = world.config.frames_per_clip
    first = start * step
    state = watched.begin(walk.rgb[first], walk.prompt, seed, T_world_camera=walk.T_world_camera[first])
    for number in range(start, min(start + clips, len(walk.captions))):
        frames = slice(1 + number * step, 1 + (number + 1) * step)
        before = state
        if isinstance(recorder, Teacher):
            recorder.next = walk.rgb[frames]
        state, clip = watched.advance(state, walk.T_world_camera[frames], walk.captions[number])
        if number > start:  # until then nothing is the model's own
            poses = [before.keyframes.get([i])[0].T_world_camera for i in clip.references]
            yield Window(
                recorder.shown[-1],
                walk.rgb[frames],
                walk.dynamic[frames],
                number,
                torch.stack(poses) if poses else torch.zeros(0, 4, 4, dtype=torch.float64),
            )


@torch.inference_mode()
def believable(window: Window, spatial: int, temporal: int) -> torch.Tensor:
    """(F, h, w) uint8: share in 255ths of a latent cell's frames in which the own map does not contradict the truth.

    Contradiction: the mean colours of the covered pixels of a cell differ. Where the map covers nothing there is none. Frames of history
    are never a goal: they are the model's own.
    """
    shown, known = window.conditioning.projection, len(window.conditioning.history)
    truth = torch.cat([window.conditioning.history, window.target])
    mask = shown.mask.float()[..., None].cpu()
    difference = ((shown.rgb.float() - truth.float()).cpu() * mask).permute(0, 3, 1, 2) / 255
    pooled = torch.nn.functional.avg_pool2d(torch.cat([difference, mask.permute(0, 3, 1, 2)], 1), spatial)
    off = (pooled[:, :3] / pooled[:, 3:].clamp(min=1e-6)).abs().amax(1)  # (T, h, w); 0 where nothing is covered
    fine = (off <= INVENTED).float()
    fine[:known] = 0
    fine = torch.cat([fine[:1].expand(temporal - 1, -1, -1), fine])  # the first frame is a latent frame of its own
    return (fine.unflatten(0, (-1, temporal)).mean(1) * 255).round().to(torch.uint8)


def to_clip(window: Window, vae: Any, camera: Camera, config: MiniConfig, video: str, prompt: str, caption: str) -> Clip:
    """A window in the form of every other clip: its latents are the model's history followed by the truth."""
    shown = window.conditioning
    device = next(vae.parameters()).device
    known, total = len(shown.history), len(shown.history) + len(window.target)
    dynamic = torch.cat([shown.history_dynamic, torch.zeros(len(window.target), *shown.history_dynamic.shape[1:])])
    frames = torch.cat([shown.history, window.target])[None].to(device)
    mask = shown.projection.mask[None].to(device)
    latents = vae.encode(to_model(frames)).float()[0]
    control = pooled_control(vae, shown.projection.rgb[None].to(device), mask, dynamic[None].to(device))[0]
    channels, count = latents.shape[0], len(shown.references)
    references = torch.zeros(0, channels, *latents.shape[2:])
    if count:
        references = encode_references(vae, shown.references.to(device)).transpose(0, 1)
    moving = torch.cat([(shown.history_dynamic > 0.5), window.target_dynamic.cpu()])
    s, t = vae.spatial_factor, vae.temporal_factor

    def shares(pixels: torch.Tensor) -> torch.Tensor:
        return (pool_mask(pixels[None].float().cpu(), s, t)[0].mean(0) * 255).round().to(torch.uint8)

    def half(x: torch.Tensor) -> torch.Tensor:
        return x.float().cpu().half().contiguous()

    return Clip(
        key=f"{video}-{window.number:05d}",
        video=video,
        number=window.number,
        caption=caption,
        prompt=prompt,
        preceding=known,
        fps=FRAME_RATE,
        height=camera.height,
        width=camera.width,
        frame_numbers=tuple(
            range(window.number * config.frames_per_clip - known + 1, window.number * config.frames_per_clip - known + 1 + total)
        ),
        candidate_frames=(),
        cloud_frame=-1,
        T_world_camera=shown.T_world_camera.clone(),
        intrinsics=torch.tensor(normalised_intrinsics(camera), dtype=torch.float64).repeat(total, 1),
        reference_frames=tuple(range(-count, 0)),  # the model's own frames: no frames of the walk
        reference_poses=window.T_world_reference.clone(),
        reference_iou=torch.ones(count),
        provenance={"source": "self-forced"},
        latents=half(latents),
        projection=half(control[:channels]),
        holes=half(control[channels:]),
        references=half(references),
        moving=shares(moving),
        uncovered=shares(~shown.projection.mask),
        counted=believable(window, s, t),
    )


class Rollouts:
    """The pool of self-forced clips of a run: shards under out/rollouts/step-N, each made once, by the weights of that step.

    They are kept on disk, so a resumed run trains on the very clips that the interrupted one made.
    """

    def __init__(self, recipe: Any, parts: Any):
        if parts.mini is None or parts.vae is None:
            raise ValueError("rollouts need an embedded model (perceiver and autoencoder at hand): they walk through its own worlds")
        self.recipe, self.parts = recipe, parts
        self.files = sorted(Path(recipe.rollouts).glob("*.safetensors"))
        if not self.files:
            raise ValueError(f"{recipe.rollouts} holds no walks: make some with `spatia train mini --stage data --out ...` (its walks/)")
        self.folders: list[Path] = []

    def refresh(self, step: int, folder: Path, main: bool, averaged: Callable[[], AbstractContextManager[None]]) -> bool:
        """Roll out when it is time; True when the pool is another one than before."""
        every = self.recipe.rollout_every
        wanted = [folder / "rollouts" / f"step-{s:07d}" for s in range(every, step + 1, every)][-self.recipe.rollout_keep :]
        if wanted == self.folders:
            return False
        if main:
            for place in wanted:
                at = int(place.name.removeprefix("step-"))
                if not (place / "clips.parquet").exists():
                    if at != step:
                        raise ValueError(f"{place} is gone, and its clips cannot be made again: take another --out")
                    with averaged():
                        self.make(place, step)
            # the oldest checkpoint that is kept may still be gone back to
            horizon = self.recipe.keep * self.recipe.checkpoint_steps + (self.recipe.rollout_keep + 1) * every
            for old in (folder / "rollouts").glob("step-*"):
                if int(old.name.removeprefix("step-")) < step - horizon:
                    shutil.rmtree(old, ignore_errors=True)
        self.folders = wanted
        return True

    def pool(self) -> ClipDataset | None:
        if not self.folders:
            return None
        found = [ClipDataset(folder, LATENT_COLUMNS) for folder in self.folders]
        return found[0] if len(found) == 1 else Union(found)

    def make(self, place: Path, step: int) -> None:
        """Roll the weights in the model out and write the shard, whole or not at all."""
        from spatia_model.generator.pipeline import ClipGenerator
        from spatia_model.world_model import WorldModel

        perceiver, refiner, config, options, planner = self.parts.mini
        transformer = self.parts.transformer
        was_training = transformer.training
        transformer.eval()
        for part in (self.parts.vae, self.parts.text, perceiver, refiner):
            if part is not None:
                part.to(transformer.device)
        generator = ClipGenerator(self.parts.vae, transformer, self.parts.text, options, refiner)
        world = WorldModel(generator, perceiver, config, planner=planner)
        rng = np.random.default_rng([self.recipe.seed, step, 11])
        clips: list[Clip] = []
        try:
            for i in range(self.recipe.rollout_walks):
                walk = read_walk(self.files[int(rng.integers(len(self.files)))])
                length = min(self.recipe.rollout_clips, len(walk.captions))
                start = int(rng.integers(len(walk.captions) - length + 1))
                for window in roll_out(world, walk, start, length, int(rng.integers(2**31)), self.recipe.rollout_frames):
                    video = f"{walk.name}-s{step}-{i}"
                    clips.append(to_clip(window, self.parts.vae, world.camera, config, video, walk.prompt, walk.captions[window.number]))
        finally:
            transformer.train(was_training)
        if not clips:
            raise ValueError(
                f"rollouts of {self.recipe.rollout_clips} clip(s) leave nothing of the model's own: give --rollout-clips 2 or more"
            )
        metadata = {"control": CONTROL, "latent_channels": self.parts.vae.latent_channels, "vae": "own", "sources": ["self-forced"]}
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_shard(temporary / "clips.parquet", clips, metadata)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(temporary, place)
        whose = "of the model's own" if self.recipe.rollout_frames == "own" else "along true frames"
        print(f"rollouts: {len(clips)} clips {whose} at step {step}", file=sys.stderr, flush=True)


class Union(ClipDataset):
    """Several data sets as one."""

    def __init__(self, parts: Sequence[ClipDataset]):
        self.parts = list(parts)
        self.place, self.metadata = self.parts[0].place, self.parts[0].metadata
        self._where = [(d, i) for d, part in enumerate(self.parts) for i in range(len(part))]
        self.entries = [replace(self.parts[d].entries[i], shard=d) for d, i in self._where]

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __getitem__(self, index: int) -> Clip:
        part, row = self._where[index]
        return self.parts[part][row]
