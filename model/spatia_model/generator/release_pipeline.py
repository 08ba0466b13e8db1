"""The 5B's clip: encode what is known, denoise with guidance, decode. Behind `ClipGenerator`'s interface.

Follows the release: the projection and its holes as two encoded videos, history encoded anew from decoded frames, references as single
pictures, noise drawn on the CPU, the known frames put back after every step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from spatia_model.config import ReleaseConfig
from spatia_model.generator.conditioning import encode_references, to_frames, to_model
from spatia_model.generator.fitting import Fit, visiting
from spatia_model.generator.sampler import ModelFn, combine_guidance, denoise, draw_noise, model_fn
from spatia_model.generator.text import TextEncoder
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.wan_vae import WanVAE
from spatia_model.types import Conditioning, Projection

Progress = Callable[[int, int], Any]


@dataclass(frozen=True)
class Generated:
    """One clip."""

    frames: torch.Tensor  # (T, H, W, 3) uint8, the new frames
    latents: torch.Tensor  # (C, F, h, w) float32 on the CPU: the window's latents (history's and the padding's too)
    known: int  # of these, latent frames that were given


class ReleaseGenerator:
    """VAE, transformer and text encoder of the 5B behind one call.

    Args:
        config: the loop's numbers; sampler, guidance, prompts.
        fit: how the parts share the device. With `fit.offload` other than "none" the autoencoder waits on the CPU and visits, and with
            "model" the denoiser too: one of the three networks is on the device at a time.
        device: where to compute.
    """

    def __init__(
        self,
        vae: WanVAE,
        transformer: SpatiaTransformer,
        text: TextEncoder,
        config: ReleaseConfig,
        fit: Fit | None = None,
        device: str | torch.device = "cpu",
    ):
        self.vae, self.transformer, self.text, self.config = vae, transformer, text, config
        self.fit, self.device = fit or Fit(), torch.device(device)
        if self.fit.offload == "none":
            vae.to(self.device)

    def generate(
        self, conditionings: Sequence[Conditioning], rngs: Sequence[torch.Generator], progress: Progress | None = None
    ) -> list[torch.Tensor]:
        """New frames (T, H, W, 3) uint8 for each conditioning; one after another, a clip fills a GPU."""
        return [self.generate_clip(c, rng, progress).frames for c, rng in zip(conditionings, rngs, strict=True)]

    @torch.inference_mode()
    def generate_clip(self, given: Conditioning, rng: torch.Generator, progress: Progress | None = None) -> Generated:
        """One clip; its window (history and new frames) must be 1 + 4k long, and so must the history."""
        total, history = len(given.T_world_camera), len(given.history)
        if total % 4 != 1 or history % 4 != 1 or history >= total:
            raise ValueError(f"a window of {total} frames with {history} of history; both must be 1 + 4k, the window longer: pad the path")
        rows = self._rows(given)
        with self.on_device(self.vae):
            known = self.vae.encode(to_model(given.history[None]).to(self.device))
            control = self._control(given.projection)
            references = None
            if len(given.references):
                references = encode_references(self.vae, given.references.to(self.device))[None]
        shape = (1, known.shape[1], 1 + (total - 1) // 4, *known.shape[3:])
        noise = draw_noise(shape, [rng]).to(self.transformer.dtype).float().to(self.device)  # the release holds it in the model's type
        config = self.config
        with self.on_device(self.transformer) if self.fit.offload == "model" else nullcontext():
            latents = denoise(
                self._model(rows, given.lora, control, 0 if references is None else references.shape[2]),
                noise,
                known,
                references,
                steps=config.steps,
                shift=config.shift,
                progress=progress or _progress(),
            )
        with self.on_device(self.vae):
            frames = self.vae.decode(latents, last=total - history)
        pixels = to_whole(frames) if config.truncate else to_frames(frames)
        return Generated(pixels[0].cpu(), latents[0].float().cpu(), known.shape[2])

    def _control(self, projection: Projection) -> torch.Tensor:
        """(1, 2C, F, h, w): the encoded projection beside its encoded holes, 0 where points cover a pixel and 1 where none does."""
        alpha = projection.mask.to(torch.uint8) * 255 if projection.alpha is None else projection.alpha
        holes = (255 - alpha.to(self.device)).float()[None, None].expand(-1, 3, -1, -1, -1) / 255
        seen = self.vae.encode(to_model(projection.rgb[None].to(self.device)))
        return torch.cat([seen, self.vae.encode(holes)], 1)

    def _rows(self, given: Conditioning) -> tuple[torch.Tensor, ...]:
        """Text rows (1, L, width) of the prompt and, where guidance wants it, of the negative prompt."""
        config = self.config
        texts = [given.text + config.prompt_suffix, *([config.negative_prompt] if config.guidance != 1.0 else [])]
        return self.text.encode(texts).split(1)

    def _model(self, rows: Sequence[torch.Tensor], lora: float, control: torch.Tensor, references: int) -> ModelFn:
        config, network = self.config, self.transformer
        shared = {"control": control, "num_references": references, "control_scale": config.control_scale, "lora": lora}
        if self.fit.offload != "group":
            prepared = [network.prepare(context, **shared) for context in rows]
            return model_fn(network, prepared[0], prepared[1] if len(prepared) > 1 else None, config.guidance, self.fit.batched_guidance)

        # Blocks that wait elsewhere are fetched by their own forward, so nothing of them is computed ahead.
        def run(latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            found = [network(latents, times, context, **shared) for context in rows]
            return found[0] if len(found) == 1 else combine_guidance(found[0], found[1], config.guidance)

        return run

    def on_device(self, part: torch.nn.Module) -> AbstractContextManager[None]:
        """The part on the device for a while, where it does not live there."""
        return visiting(part, self.device, self.fit)


def to_whole(x: torch.Tensor) -> torch.Tensor:
    """(B, 3, T, H, W) in [-1, 1] to (B, T, H, W, 3) uint8, fractions cut off as the release does."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def _progress() -> Progress | None:
    """A line that counts on a terminal; a clip takes minutes."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\rdenoising: step {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
