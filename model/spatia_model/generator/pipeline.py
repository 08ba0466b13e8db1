"""From conditioning to frames: encode what is known, denoise what is not, decode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from spatia_model.generator.conditioning import encode_references, pooled_control, to_frames, to_model
from spatia_model.generator.refiner import DetailRefiner
from spatia_model.generator.sampler import denoise, draw_noise
from spatia_model.generator.text import TextEncoder
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.vae import VideoVAE
from spatia_model.types import Conditioning, Projection


@dataclass(frozen=True)
class SamplerOptions:
    """How a clip is denoised: `steps` 1..1000, text `guidance` (1: none, half the work), solver and time shift."""

    steps: int = 4
    guidance: float = 1.0
    shift: float = 1.0
    solver: str = "euler"
    renoise: float = 0.0


class ClipGenerator:
    """The embedded tier's generator: VAE, transformer, text encoder and sampler behind one call."""

    def __init__(
        self,
        vae: VideoVAE,
        transformer: SpatiaTransformer,
        text: TextEncoder,
        options: SamplerOptions,
        refiner: DetailRefiner | None = None,
    ):
        self.vae, self.transformer, self.text, self.options, self.refiner = vae, transformer, text, options, refiner

    @torch.inference_mode()
    def generate(
        self,
        conditionings: Sequence[Conditioning],
        rngs: Sequence[torch.Generator],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[torch.Tensor]:
        """New frames (T, H, W, 3) uint8 for each conditioning.

        Worlds with equally many references share one forward pass. `rngs` are CPU generators, one per world; each
        world's noise comes from its own, so results do not depend on the company.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for i, conditioning in enumerate(conditionings):
            groups[len(conditioning.references)].append(i)
        frames: list[torch.Tensor | None] = [None] * len(conditionings)
        for members in groups.values():
            batch = self._generate([conditionings[i] for i in members], [rngs[i] for i in members], progress)
            for i, clip in zip(members, batch, strict=True):
                frames[i] = clip
        return frames  # type: ignore[return-value]

    def _generate(
        self, conditionings: list[Conditioning], rngs: list[torch.Generator], progress: Callable[[int, int], None] | None
    ) -> torch.Tensor:
        device = self.transformer.device
        history = torch.stack([c.history for c in conditionings]).to(device)  # (B, H, h, w, 3)
        known, new = history.shape[1], len(conditionings[0].T_world_camera) - history.shape[1]
        dynamic = torch.stack([c.history_dynamic for c in conditionings]).to(device)
        dynamic = torch.cat([dynamic, dynamic.new_zeros(len(dynamic), new, *dynamic.shape[2:])], 1)
        projection = torch.stack([c.projection.rgb for c in conditionings]).to(device)
        mask = torch.stack([c.projection.mask for c in conditionings]).to(device)
        control = pooled_control(self.vae, projection, mask, dynamic)
        past = to_model(history)
        known_latents = self.vae.encode(past).float()
        references = None
        if len(conditionings[0].references):
            references = torch.stack([encode_references(self.vae, c.references.to(device)) for c in conditionings])
        shape = (known_latents.shape[1], *control.shape[2:])
        noise = draw_noise((len(rngs), *shape), rngs).to(device)
        latents = self._denoise(noise, known_latents, references, control, [c.text for c in conditionings], rngs, progress)
        frames = self.vae.decode(latents, last=new, before=past[:, :, -1])
        if self.refiner is not None:
            frames = self.refiner.refine(frames, projection[:, known:], mask[:, known:])
        frames = to_frames(frames).cpu()
        drawn = [frame if c.entities is None else overlay(frame, c.entities) for frame, c in zip(frames, conditionings, strict=True)]
        return torch.stack(drawn)

    def _denoise(self, noise, known, references, control, texts, rngs, progress) -> torch.Tensor:
        options = self.options
        count = 0 if references is None else references.shape[2]
        conditions = self.transformer.prepare(self.text.encode(texts), control, count)
        negative = None
        if options.guidance != 1.0:
            negative = self.transformer.prepare(self.text.encode([""] * len(texts)), control, count)

        def predictor(given):
            return lambda x, times: self.transformer(x, times, conditions=given)

        return denoise(
            predictor(conditions),
            noise,
            known,
            references,
            steps=options.steps,
            shift=options.shift,
            guidance=options.guidance,
            negative_fn=None if negative is None else predictor(negative),
            solver=options.solver,
            renoise=options.renoise,
            generator=rngs,
            prediction=self.transformer.config.prediction,
            progress=progress,
        )


def overlay(frames: torch.Tensor, entities: Projection) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 with what moves drawn over them, softly at its edge."""
    inside = entities.mask.float().unsqueeze(1)
    share = (inside * F.avg_pool2d(inside, 3, 1, 1, count_include_pad=False))[:, 0, :, :, None]
    return torch.lerp(frames.float(), entities.rgb.float(), share).round().to(torch.uint8)
