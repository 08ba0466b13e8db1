"""Stages `vae` and `perception` on prepared clips: the embedded networks' own losses, fed from shards that keep pictures.

Their batches are drawn inside the loss, by a generator seeded for the micro batch, so a batch is but that seed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spatia_model.config import MiniConfig
from spatia_model.data.clips import ClipDataset
from spatia_model.data.procedural import Film, random_piece
from spatia_model.data.schema import Clip, ShardError
from spatia_model.geometry.camera import camera_from_normalised
from spatia_model.training.recipe import Recipe
from spatia_model.training.stage_control import Averaged, open_clips
from spatia_model.types import Projection

HELD = 64  # decoded clips kept in memory


class PixelClips:
    """Clips with pictures as the embedded stages want them: `random_film`, `still` and `pan` for the autoencoder, `pick` for perception.

    Decoding a clip's pictures is the dear part, so decoded clips are kept, and drawn from several times before they are replaced. What is
    drawn depends on the generator alone.
    """

    def __init__(self, data: ClipDataset, need: tuple[str, ...]):
        self.data = data
        first = data[0]
        for name in need:
            if getattr(first, name) is None:
                raise ShardError(f"{data.place} keeps no {name}, which this stage needs: prepare with --pictures png{HINTS.get(name, '')}")
        self._held: OrderedDict[int, Clip] = OrderedDict()

    def __len__(self) -> int:
        return len(self.data)

    def clip(self, rng: np.random.Generator) -> Clip:
        i = int(rng.integers(len(self.data)))
        if i not in self._held:
            if len(self._held) >= HELD:
                self._held.popitem(last=False)
            self._held[i] = self.data[i]
        return self._held[i]

    def random_frames(self, rng: np.random.Generator, frames: int, crop: int) -> np.ndarray:
        """(frames, crop, crop, 3) uint8 from a random place and time; smaller crops where the pictures are smaller."""
        return self.random_film(rng, frames, crop).rgb

    def random_film(self, rng: np.random.Generator, frames: int, crop: int) -> Film:
        """The same, with depth and what moves where the clip has them."""
        clip = self.clip(rng)
        assert clip.frames is not None
        n, h, w, _ = clip.frames.shape
        frames, crop = min(frames, 1 + (n - 1) // 4 * 4), min(crop, h // 8 * 8, w // 8 * 8)
        piece = random_piece(rng, (n, h, w), frames, crop)
        camera = camera_from_normalised(clip.intrinsics[piece[0].start].tolist(), w, h)
        depth, dynamic = (None if whole is None else whole[piece] for whole in (clip.depth, clip.dynamic))
        return Film(clip.frames[piece].numpy(), clip.T_world_camera[piece[0]], camera, (piece[1].start, piece[2].start), depth, dynamic)

    def still(self, rng: np.random.Generator, crop: int) -> np.ndarray:
        return self.random_frames(rng, 1, crop)[0]

    def pan(self, rng: np.random.Generator, frames: int, crop: int) -> np.ndarray:
        """Real camera motion takes the place of pans over stills."""
        found = self.random_frames(rng, frames, crop)
        if len(found) < frames:  # a short clip goes on with its last frame
            found = np.concatenate([found, np.repeat(found[-1:], frames - len(found), 0)])
        return found

    def pick(self, rng: np.random.Generator) -> ClipWalk:
        return ClipWalk(self.clip(rng))


HINTS = {"depth": ", from a source that has depth (worlds, SpatialVID with depths/)"}


class ClipWalk:
    """One clip as `data.windows.Walk` is read: frame numbers count within the window."""

    def __init__(self, clip: Clip):
        self.clip, self.frames = clip, len(clip.frame_numbers)

    def rgb(self, a: int, b: int) -> torch.Tensor:
        return self.clip.frames[a:b]  # type: ignore[index]

    def depth(self, a: int, b: int) -> torch.Tensor:
        return self.clip.depth[a:b].float()  # type: ignore[index]

    def dynamic(self, a: int, b: int) -> torch.Tensor:
        return self.clip.dynamic[a:b]  # type: ignore[index]

    def poses(self, a: int, b: int) -> torch.Tensor:
        return self.clip.T_world_camera[a:b]

    def projection(self, a: int, b: int) -> Projection:
        depth = self.clip.projection_depth[a:b].float()  # type: ignore[index]
        mask = depth > 0
        return Projection(self.clip.projection_frames[a:b], depth, mask, mask.int() - 1)  # type: ignore[index]


class LossModule(nn.Module):
    """A stage of the embedded tier as a module whose forward is its loss, which is what data parallelism wraps."""

    def __init__(self, stage: Any):
        super().__init__()
        self.model = stage.model
        self._stage = [stage]  # in a list: it is no submodule, and would hold the model twice

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rng = np.random.default_rng(batch["seed"])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        loss, figures = self._stage[0].loss(rng, generator, batch["number"])
        return loss, {name: torch.tensor(float(value)) for name, value in figures.items()}


class _OnClips:
    """What both stages share; see `accelerated.Stage`."""

    inner: Any

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.module = LossModule(self.inner)
        if recipe.start_from:
            from spatia_model.training.models import start_from

            start_from(self.module, recipe.start_from)

    def batches(self, rank: int, world: int, start: int) -> Iterator[dict[str, Any]]:
        number = start * world + rank
        while True:
            yield {"seed": [self.recipe.seed, number, 5], "number": number}
            number += world

    def prepare_step(self, step: int, folder: Path, main: bool, averaged: Averaged) -> bool:
        return False

    def validate(self) -> tuple[dict[str, float], np.ndarray | None]:
        return self.inner.validate(), self.inner.sample()

    def export(self, folder: Path) -> None:
        """`weights.safetensors`, and, begun from an embedded model, the whole of it with this part exchanged."""
        from safetensors.torch import save_file

        from spatia_model.training.models import trained_tensors

        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_tensors(self.module), folder / "weights.safetensors")
        if self.recipe.model != "mini":
            from spatia_model.model_folder import load_mini, load_planner, resolve, save_mini

            begun = resolve(self.recipe.model)
            generator, perception, config = load_mini(begun)
            parts = [generator.vae, generator.transformer, generator.text, perception, generator.refiner]
            parts[self.part] = self.module.model
            save_mini(folder, config, generator.options, *parts, load_planner(begun))  # type: ignore[arg-type]

    part = 0


class VAEOnClips(_OnClips):
    """The autoencoder on clips with pictures. With `trainable` "all" its latents change: models trained on the old ones no longer fit."""

    part = 0

    def __init__(self, recipe: Recipe):
        from spatia_model.training.stage_vae import VAEStage

        # With depth, what the latents tell of motion can be compared with the truth.
        train, held_out = (PixelClips(data, ("frames",)) for data in open_clips(recipe, ("frames", "depth", "dynamic")))
        self.inner = VAEStage(train, held_out, train, crop=recipe.crop)  # type: ignore[arg-type]
        if recipe.model != "mini":
            from spatia_model.training.models import load_parts

            self.inner.model = load_parts(recipe.model).vae.float().requires_grad_(True).train()  # type: ignore[union-attr]
        super().__init__(recipe)


class PerceptionOnClips(_OnClips):
    """The perceiver on clips with pictures, depth and motion."""

    part = 3
    COLUMNS = ("frames", "depth", "dynamic", "projection_frames", "projection_depth")

    def __init__(self, recipe: Recipe):
        from spatia_model.training.stage_perception import PerceptionStage

        train, held_out = (PixelClips(data, self.COLUMNS) for data in open_clips(recipe, self.COLUMNS))
        size = train.data[0].height
        if train.data[0].width != size:
            raise ValueError(
                f"perception trains on square pictures, these are {train.data[0].width}x{size}: prepare with --size {size}x{size}"
            )
        mini = MiniConfig(image_size=size)
        stills = 0  # stills without depth are what procedural pictures are for: `spatia train mini`
        self.inner = PerceptionStage(train, held_out, train, mini=mini, batch=recipe.micro_batch, stills=stills)  # type: ignore[arg-type]
        if recipe.model != "mini":
            from spatia_model.model_folder import load_mini, resolve

            self.inner.model = load_mini(resolve(recipe.model))[1].float().requires_grad_(True).train()
        super().__init__(recipe)
