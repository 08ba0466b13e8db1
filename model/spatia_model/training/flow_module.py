"""The loss of the video denoiser on prepared clips: flow matching with conditions dropped at random.

`collate` makes a batch of clips, `draw` adds the chance, `FlowModule` computes the loss. The same three for the embedded tier and the 5B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from spatia_model.data.schema import Clip
from spatia_model.generator.flow import interpolate, sample_times, timestep, velocity_target
from spatia_model.generator.text import join_texts
from spatia_model.training.recipe import T_BINS, Recipe

Batch = dict[str, Any]
TEXT_ROWS = 512  # of the released model: shorter texts are followed by zero rows, which take part in attention
MASKS = 4  # pooled coverage masks in front of pooled motion masks


def collate(clips: Sequence[Clip], context_rows: int = 0) -> Batch:
    """Clips of one shape as tensors on the CPU: half precision stays, to be widened where it is used.

    References are cut to what all clips of the batch have.
    """
    count = min(len(clip.reference_frames) for clip in clips)

    def stacked(parts: list) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):  # which cannot stack half precision
            return torch.stack(parts)

    batch: Batch = {name: stacked([getattr(clip, name) for clip in clips]) for name in ("latents", "projection", "holes")}
    batch["references"] = stacked([clip.references[:count] for clip in clips]).transpose(1, 2)  # type: ignore[index]  # (B, C, R, h, w)
    shape = batch["latents"][:, 0].shape  # (B, F, h, w)
    for name in ("moving", "uncovered"):
        given = [getattr(clip, name) for clip in clips]
        batch[name] = torch.stack([torch.zeros(shape[1:], dtype=torch.uint8) if g is None else g for g in given])
    given = [clip.counted for clip in clips]
    batch["counted"] = torch.stack([torch.full(shape[1:], 255, dtype=torch.uint8) if g is None else g for g in given])
    batch["known"] = torch.tensor([1 + (clip.preceding - 1) // 4 for clip in clips])  # latent frames of history
    batch["captions"] = [clip.caption for clip in clips]
    batch["prompts"] = [clip.prompt for clip in clips]
    if context_rows:
        missing = [clip.key for clip in clips if clip.context is None]
        if missing:
            raise ValueError(f"clip {missing[0]} has no text rows, which this model needs: prepare with --text, or train another model")
        batch["context"] = torch.stack([_padded(clip.context, context_rows) for clip in clips])  # type: ignore[arg-type]
    return batch


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    out = rows.new_zeros(count, rows.shape[1])
    out[: len(rows)] = rows[:count]
    return out


def draw(batch: Batch, recipe: Recipe, seed: Sequence[int], empty: dict[str, torch.Tensor] | None = None) -> Batch:
    """The batch with its chance: times, noise, and what is dropped. All from `seed`, on the CPU.

    `empty`: what stands for no projection (`projection`, `holes`, each (C, F, h, w)) and no text (`context`, (L, D)).
    """
    rng = np.random.default_rng(list(seed))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    batch = dict(batch)
    b = len(batch["latents"])
    t = sample_times(b, generator, mean=recipe.t_mean, std=recipe.t_std, shift=recipe.shift)
    pure = torch.rand(b, generator=generator) < recipe.pure_noise
    batch["t"] = torch.where(pure, torch.zeros(()), t)
    batch["noise"] = torch.randn(batch["latents"].shape, generator=generator)
    batch["history_level"] = recipe.history_noise * torch.rand(b, generator=generator)
    first = torch.rand(b, generator=generator) < recipe.first_clip
    batch["known"] = torch.where(first, torch.ones_like(batch["known"]), batch["known"])
    available = batch["references"].shape[2]
    shown = min(available, int(rng.integers(recipe.max_references + 1)))
    if rng.random() < recipe.drop_references:
        shown = 0
    batch["references"] = batch["references"][:, :, :shown]
    no_projection = rng.random(b) < recipe.drop_projection
    if no_projection.any():
        if empty is None:
            raise ValueError(
                "these clips have no empty.safetensors, which stands for 'no projection': prepare them again, or set --drop-projection 0"
            )
        _drop_projection(batch, no_projection, empty)
    no_text = rng.random(b) < recipe.drop_text
    texts = [join_texts(p if rng.random() < 0.5 else "", c) for p, c in zip(batch.pop("prompts"), batch.pop("captions"), strict=True)]
    batch["texts"] = ["" if dropped else text for text, dropped in zip(texts, no_text, strict=True)]
    if "context" in batch and no_text.any():
        nothing = None if empty is None else empty.get("context")
        context = batch["context"].clone()
        for i in np.flatnonzero(no_text):
            context[i] = 0 if nothing is None else _padded(nothing.to(context.dtype), context.shape[1])
        batch["context"] = context
    return batch


def _drop_projection(batch: Batch, dropped: np.ndarray, empty: dict[str, torch.Tensor]) -> None:
    for name in ("projection", "holes", "uncovered"):
        batch[name] = batch[name].clone()
    if empty["projection"].shape != batch["projection"].shape[1:]:
        raise ValueError(
            f"empty.safetensors is of {tuple(empty['projection'].shape)}, the clips of {tuple(batch['projection'].shape[1:])}: "
            "clips of several shapes need --drop-projection 0"
        )
    pooled = batch["holes"].shape[1] == 2 * MASKS and batch["holes"].shape[1] != batch["projection"].shape[1]
    rows = MASKS if pooled else batch["holes"].shape[1]  # where history moves is no memory: it stays
    for i in np.flatnonzero(dropped):
        batch["projection"][i] = empty["projection"].to(batch["projection"].dtype)
        batch["holes"][i, :rows] = empty["holes"][:rows].to(batch["holes"].dtype)
        batch["uncovered"][i] = 255


class FlowModule(nn.Module):
    """Transformer and, in the embedded tier, its text encoder; forward is the loss.

    The paper's loss |v - u|^2 for velocity models; for clean-sample models the squared error over (noise level^2 + sample_floor), which is
    the same up to the floor. Only frames to be generated count, and of them what the clip says.
    """

    def __init__(self, transformer: nn.Module, text: nn.Module | None, recipe: Recipe):
        super().__init__()
        self.transformer, self.recipe = transformer, recipe
        self.text = text

    def forward(self, batch: Batch) -> Any:
        """(loss, figures) of a batch; or, of {"predict": arguments}, what the transformer says: sharded weights are whole only in here."""
        if "predict" in batch:
            return self.transformer(*batch["predict"])
        error, sigma = self.errors(batch)  # (B, F, h, w), (B,)
        target = self._targets(batch)  # (B, F) bool
        moving, uncovered = (batch[name].float() / 255 for name in ("moving", "uncovered"))
        weight = 1 + self.recipe.moving_weight * moving + self.recipe.uncovered_weight * uncovered
        counted = target[:, :, None, None] * (batch["counted"].float() / 255)
        weight = weight * counted
        pixels = error.shape[2] * error.shape[3]
        each = (error * weight).sum((1, 2, 3)) / (target.sum(1).clamp(min=1) * pixels)
        if self.transformer.config.prediction == "sample":  # type: ignore[union-attr]
            each = each / (sigma.square() + self.recipe.sample_floor)
        return each.mean(), self._parts(error.detach(), each.detach(), sigma, counted > 0.5, batch["uncovered"])

    def errors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared errors (B, F, h, w), mean over channels, and noise levels sigma (B,)."""
        data, t = batch["latents"].float(), batch["t"]
        known = ~self._targets(batch)
        frame_time = torch.where(known, 1 - batch["history_level"][:, None], t[:, None])  # the paper's t: 1 is clean
        noised = interpolate(batch["noise"], data, frame_time)
        times = torch.where(known, torch.zeros_like(frame_time), timestep(t)[:, None])  # history counts as clean, little noise or not
        references = batch["references"].float()
        count = references.shape[2]
        control = torch.cat([batch["projection"].float(), batch["holes"].float()], 1)  # widened first: autocast joins no float16
        context = batch["context"].float() if self.text is None else self.text.encode(batch["texts"])  # type: ignore[operator]
        out = self.transformer(
            torch.cat([references, noised], 2),
            torch.cat([times.new_zeros(len(times), count), times], 1),
            context,
            control,
            count,
            lora=1.0 if self.recipe.trainable == "lora" else 0.0,
        )[:, :, count:].float()
        goal = data if self.transformer.config.prediction == "sample" else velocity_target(batch["noise"], data)  # type: ignore[union-attr]
        return (out - goal).square().mean(1), 1 - t

    def _targets(self, batch: Batch) -> torch.Tensor:
        frames = torch.arange(batch["latents"].shape[2], device=batch["known"].device)
        return frames >= batch["known"][:, None]

    @staticmethod
    def _parts(
        error: torch.Tensor, each: torch.Tensor, sigma: torch.Tensor, counted: torch.Tensor, uncovered: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss per fifth of the noise level, squared error where the projection covers (nearly) all and where it does not."""
        parts = {}
        for i in range(T_BINS):
            inside = (sigma >= i / T_BINS) & ((sigma < (i + 1) / T_BINS) | (i == T_BINS - 1))
            parts[f"loss_t{i}"] = each[inside].mean()  # NaN where there is none
        parts["mse_covered"] = error[counted & (uncovered < 64)].mean()
        parts["mse_uncovered"] = error[counted & (uncovered >= 64)].mean()
        return parts
