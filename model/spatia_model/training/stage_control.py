"""Stages `control` and `lora`: the denoiser on prepared clips, for the embedded tier and the 5B alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from spatia_model.data.clips import BatchOrder, ClipDataset
from spatia_model.data.schema import LATENT_COLUMNS
from spatia_model.evaluation.metrics import psnr
from spatia_model.generator.conditioning import to_frames
from spatia_model.generator.sampler import denoise, draw_noise
from spatia_model.training import models
from spatia_model.training.flow_module import TEXT_ROWS, Batch, FlowModule, collate, draw
from spatia_model.training.recipe import T_BINS, Recipe

VALIDATION_NOISE = 1_000_000
Averaged = Callable[[], AbstractContextManager[None]]


class ControlStage:
    """See `accelerated.Stage`.

    Raises:
        ValueError: clips and model do not fit: latents, control or text rows of another kind.
    """

    def __init__(self, recipe: Recipe, parts: models.Parts | None = None):
        self.recipe = recipe
        self.parts = parts = parts or models.load_parts(recipe.model, recipe.vae)
        self.module = FlowModule(parts.transformer, parts.text, recipe)
        adapted = recipe.start_from and models.has_adapters(recipe.start_from)
        if recipe.start_from and not adapted:  # before adapters rename what they wrap
            models.start_from(self.module, recipe.start_from)
        models.choose(parts, recipe)
        if adapted:
            models.start_from(self.module, recipe.start_from)
        self.clips, self.held_out = open_clips(recipe, LATENT_COLUMNS)
        self.empty = _empty(self.clips.place)
        self.context_rows = TEXT_ROWS if parts.text is None else 0
        self._check()
        self.rollouts: Any = None
        if recipe.rollouts:
            from spatia_model.training.self_forcing import Rollouts

            self.rollouts = Rollouts(recipe, parts)

    def _check(self) -> None:
        config = self.parts.transformer.config
        clip = self.clips[0]
        if clip.latents is None or clip.holes is None:
            raise ValueError(f"{self.clips.place} holds no latents: prepare the clips with an autoencoder (--vae)")
        channels = clip.latents.shape[0]
        if channels != config.in_channels or channels + clip.holes.shape[0] != config.vace_in_channels:
            control = channels + clip.holes.shape[0]
            raise ValueError(
                f"{self.clips.place} has latents of {channels} channels and control of {control}; {self.recipe.model} reads "
                f"{config.in_channels} and {config.vace_in_channels}: prepare with the autoencoder of that model"
            )
        if self.context_rows and (clip.context is None or clip.context.shape[1] != config.text_dim):
            had = "none" if clip.context is None else f"{clip.context.shape[1]} wide"
            raise ValueError(
                f"{self.clips.place} has text rows: {had}; {self.recipe.model} reads rows {config.text_dim} wide: prepare with --text"
            )

    # -- batches ---------------------------------------------------------------------------------------------------------

    def batches(self, rank: int, world: int, start: int) -> Iterator[Batch]:
        recipe = self.recipe
        ordinary = self._loader(self.clips, rank, world, start)
        pool = self.rollouts.pool() if self.rollouts is not None else None
        own = None if pool is None else iter(self._loader(pool, rank, world, start))
        it = iter(ordinary)
        number = start * world + rank  # of the micro batch, counted over all processes
        while True:
            batch = next(it)
            if own is not None:
                replacement = next(own)
                if np.random.default_rng([recipe.seed, number, 3]).random() < recipe.rollout_share:
                    batch = replacement
            yield draw(batch, recipe, (recipe.seed, number, 1), self.empty)
            number += world

    def _loader(self, clips: ClipDataset, rank: int, world: int, start: int) -> DataLoader:
        recipe = self.recipe
        order = BatchOrder(clips.entries, recipe.micro_batch, recipe.seed, rank, world, start)
        return DataLoader(
            clips,
            batch_sampler=order,
            num_workers=recipe.workers,
            collate_fn=functools.partial(collate, context_rows=self.context_rows),
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if recipe.workers else None,
            persistent_workers=bool(recipe.workers),
            generator=torch.Generator().manual_seed(0),  # so that starting a loader draws nothing from the global generator
        )

    def prepare_step(self, step: int, folder: Path, main: bool, averaged: Averaged) -> bool:
        return self.rollouts is not None and self.rollouts.refresh(step, folder, main, averaged)

    # -- validation ------------------------------------------------------------------------------------------------------

    def validate(self) -> tuple[dict[str, float], np.ndarray | None]:
        """Loss at fixed times and noise, and, where there is an autoencoder, PSNR of sampled clips on covered and uncovered pixels."""
        figures: dict[str, list[float]] = {}
        rows = []
        count = min(self.recipe.validation_clips, len(self.held_out))
        for i in np.linspace(0, len(self.held_out) - 1, count).round().astype(int) if count else []:
            batch = self._plain(int(i))
            for name, value in self._losses(batch, int(i)).items():
                figures.setdefault(name, []).append(value)
            if self.parts.vae is not None:
                measured, strip = self._sampled(batch, int(i))
                for name, value in measured.items():
                    figures.setdefault(name, []).append(value)
                if len(rows) < 4:
                    rows.append(strip)
        means = {name: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan for name, values in figures.items()}
        return means, np.concatenate(rows, 0) if rows else None

    def _plain(self, i: int) -> Batch:
        """One validation clip with nothing dropped, on the model's device."""
        with torch.autocast("cpu", enabled=False):  # clips are float16, which autocast on a CPU does not stack
            batch = collate([self.held_out[i]], self.context_rows)
        prompts, captions = batch.pop("prompts"), batch.pop("captions")
        batch["texts"] = [" . ".join(filter(None, (prompts[0], captions[0])))]
        batch["references"] = batch["references"][:, :, : self.recipe.max_references]
        device = next(self.module.parameters()).device
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _losses(self, batch: Batch, i: int) -> dict[str, float]:
        found = {}
        generator = torch.Generator().manual_seed(VALIDATION_NOISE + i)
        noise = torch.randn(batch["latents"].shape, generator=generator).to(batch["latents"].device)
        for k in range(T_BINS):
            t = torch.full((1,), 1 - (k + 0.5) / T_BINS, device=noise.device)
            loss, _ = self.module({**batch, "t": t, "noise": noise, "history_level": torch.zeros_like(t)})
            found[f"loss_t{k}"] = float(loss)
        found["loss"] = float(np.mean(list(found.values())))
        return found

    def _sampled(self, batch: Batch, i: int) -> tuple[dict[str, float], np.ndarray]:
        """A clip as the model draws it, against the truth: figures, and a strip of three frames (truth, projection, sample)."""
        transformer, sampler = self.parts.transformer, self.parts.sampler
        data, known = batch["latents"].float(), int(batch["known"][0])
        context = batch["context"].float() if self.parts.text is None else self.parts.text.encode(batch["texts"])  # type: ignore[operator]
        control = torch.cat([batch["projection"].float(), batch["holes"].float()], 1)
        references = batch["references"].float() if batch["references"].shape[2] else None
        lora = 1.0 if self.recipe.trainable == "lora" else 0.0
        count = batch["references"].shape[2]
        latents = denoise(
            lambda x, times: self.module({"predict": (x, times, context, control, count, 1.0, lora)}),
            draw_noise(data.shape, torch.Generator().manual_seed(VALIDATION_NOISE + i), data),
            data[:, :, :known],
            references,
            **{**sampler, "steps": self.recipe.sample_steps or sampler["steps"]},
            prediction=transformer.config.prediction,
        )
        vae = self.parts.vae.to(data.device)  # type: ignore[union-attr]
        new = 4 * (data.shape[2] - known)
        truth, made, shown = (vae.decode(x.float(), new).float().clamp(-1, 1).cpu() for x in (data, latents, batch["projection"]))
        hole = batch["uncovered"][:, known:].float().cpu() / 255
        hole = (
            hole.repeat_interleave(4, 1)
            .repeat_interleave(truth.shape[3] // hole.shape[2], 2)
            .repeat_interleave(truth.shape[4] // hole.shape[3], 3)
        )
        covered = (hole < 0.25)[:, None]
        figures = {"psnr": psnr(made, truth), "psnr_covered": psnr(made, truth, covered), "psnr_uncovered": psnr(made, truth, ~covered)}
        figures["psnr_projection"] = psnr(shown, truth, covered)
        frames = [0, new // 2, new - 1]
        strip = torch.cat([torch.cat([to_frames(x)[0, f] for x in (truth, shown, made)], 1) for f in frames], 1)
        return figures, strip.numpy()

    # -- out -------------------------------------------------------------------------------------------------------------

    def export(self, folder: Path) -> None:
        """`weights.safetensors` (what was trained), `lora.safetensors` in the release's form, or a whole embedded model."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(models.trained_tensors(self.module), folder / "weights.safetensors")
        if self.recipe.trainable == "lora":
            from spatia_model.generator.lora import save_lora

            save_lora(self.parts.transformer, folder / "lora.safetensors")
        elif self.parts.mini is not None:
            from spatia_model.model_folder import save_mini

            perception, refiner, config, options, planner = self.parts.mini
            drawing = (self.parts.vae, self.parts.transformer, self.parts.text)
            save_mini(folder, config, options, *drawing, perception, refiner, planner)  # type: ignore[arg-type]
        elif self.recipe.trainable == "all":
            self.parts.transformer.save_pretrained(str(folder / "transformer"))


def open_clips(recipe: Recipe, columns: tuple[str, ...]) -> tuple[ClipDataset, ClipDataset]:
    """Training and validation clips; without a place of their own the latter are whole videos that are kept from training."""
    everything = ClipDataset(recipe.clips, columns)
    if recipe.validation:
        return everything, ClipDataset(recipe.validation, columns)
    videos = sorted({entry.video for entry in everything.entries})
    if len(videos) < 2 or not recipe.held_out:
        return everything, everything
    rng = np.random.default_rng([VALIDATION_NOISE, len(videos)])
    held = {videos[i] for i in rng.permutation(len(videos))[: max(1, round(recipe.held_out * len(videos)))]}
    return ClipDataset(recipe.clips, columns, set(videos) - held), ClipDataset(recipe.clips, columns, held)


def _empty(place: str) -> dict[str, torch.Tensor] | None:
    path = Path(place) / "empty.safetensors"
    return load_file(path) if path.is_file() else None
