"""Training the autoencoder's decoder against a critic of pictures; the encoder, and so every latent, stays as it is.

Squared and absolute errors leave a blur where the latents do not tell an edge's place to the pixel. The critic sees three frames in
a row, so that what is drawn sharply also moves as things do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from spatia_model.data.procedural import ClipFolder
from spatia_model.generator.vae import CompactVideoVAE
from spatia_model.training.critics import PatchCritic, judged
from spatia_model.training.loop import device_of
from spatia_model.training.pictures import PicturePool
from spatia_model.training.stage_vae import VAEStage, reconstruction_loss

SEEN = 3  # frames in a row that the critic judges
CRITIC_WIDTHS = (48, 96, 128)


class Decoded(nn.Module):
    """Autoencoder and critic in one module, so that one optimiser and one checkpoint hold both. Only the decoder learns."""

    def __init__(self, vae: CompactVideoVAE):
        super().__init__()
        self.vae = vae
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_(name.startswith("dec_"))
        self.critic = PatchCritic(3 * SEEN, widths=CRITIC_WIDTHS, unshuffle=2)


class DecoderStage:
    """World clips, pans and stills as for the autoencoder; latents a little noised, as a denoiser's are."""

    name = "decoder"

    def __init__(
        self,
        vae: CompactVideoVAE,
        clips: ClipFolder,
        validation: ClipFolder,
        pool: PicturePool,
        crop: int = 64,
        batch: tuple[int, int, int] = (4, 1, 4),
        noise: float = 0.2,
        adversarial: float = 0.05,
        gradient: float = 0.5,
        ramp: int = 150,
        flatness: float = 0.01,
    ):
        self.model = Decoded(vae)
        self.plain = VAEStage(clips, validation, pool, vae.config, crop, batch, motion=0.0)
        self.plain.model = vae
        self.noise, self.adversarial, self.gradient, self.ramp, self.flatness = noise, adversarial, gradient, ramp, flatness

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        known = torch.zeros((), device=device_of(self.model))
        real, made = [], []
        for group in self.plain.groups(rng):
            frames = group.frames
            decoded = self._decode(frames, rng, generator)
            off = reconstruction_loss(decoded, frames, self.gradient, self.plain.square, self.plain.between)
            known = known + off * group.share
            if frames.shape[2] > 1:
                at = [int(i) for i in rng.choice(frames.shape[2] - SEEN + 1, 3, replace=False)]
                for i in at:
                    real.append(frames[:, :, i : i + SEEN].flatten(1, 2))
                    made.append(decoded[:, :, i : i + SEEN].flatten(1, 2))
            else:  # time stands still
                real.append(frames.expand(-1, -1, SEEN, -1, -1).flatten(1, 2))
                made.append(decoded.expand(-1, -1, SEEN, -1, -1).flatten(1, 2))
        a, b = torch.cat(real), torch.cat(made)
        critic, opinion = judged(self.model.critic, a, b, a[:, :0], torch.ones_like(a[:, :1]), generator, self.flatness)
        weight = self.adversarial * min(1.0, step / self.ramp)
        figures = {"known": float(known.detach()), "critic": float(critic.detach()), "wish": float(opinion.detach())}
        return known + weight * opinion + critic, figures

    def _decode(self, frames: torch.Tensor, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        vae = self.model.vae
        with torch.no_grad():
            mean = vae.posterior(frames)[0].float()
            level = self.noise * float(rng.random()) ** 2 * vae.latent_std.view(1, -1, 1, 1, 1)
            mean = mean + level * torch.randn(mean.shape, generator=generator).to(mean.device)
        return vae.decode_raw(mean)[0].float()

    def validate(self) -> dict[str, float]:
        return self.plain.validate()

    def sample(self) -> np.ndarray:
        return self.plain.sample()
