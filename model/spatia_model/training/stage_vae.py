"""Training the embedded autoencoder: world clips, pans over pictures, and stills, far more varied than any one world."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from spatia_model.data.procedural import ClipFolder
from spatia_model.evaluation.metrics import gradient_energy, psnr
from spatia_model.generator.conditioning import to_frames, to_model
from spatia_model.generator.vae import CompactVAEConfig, CompactVideoVAE
from spatia_model.training.loop import device_of
from spatia_model.training.pictures import PicturePool

STANDING = 0.15  # of clips: what stands still must not pulse, and in walks hardly anything does


class VAEStage:
    """Charbonnier and gradient losses on 9-frame clips and on stills (a still is a clip of one frame).

    `decoder_only`: the encoder, and so every latent, stays as it is; the stage is then called "redraw".
    """

    name = "vae"

    def __init__(
        self,
        clips: ClipFolder,
        validation: ClipFolder,
        pool: PicturePool,
        config: CompactVAEConfig | None = None,
        crop: int = 64,
        batch: tuple[int, int, int] = (4, 2, 8),
        kl: float = 1e-4,
        gradient: float = 1.0,
        decoder_only: bool = False,
    ):
        self.model = CompactVideoVAE(config)
        self.clips, self.validation, self.pool = clips, validation, pool
        self.crop, self.batch, self.kl, self.gradient = crop, batch, kl, gradient
        self.decoder_only = decoder_only
        if decoder_only:
            self.name = "redraw"
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.startswith("dec_"))

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        total, figures = torch.zeros((), device=device_of(self.model)), {}
        for name, frames, share in self.groups(rng):
            loss, figures[name] = self._reconstruct(frames, generator)
            total = total + loss * share
        return total, figures

    def groups(self, rng: np.random.Generator) -> Iterator[tuple[str, torch.Tensor, float]]:
        """A batch's clips, then its stills: name, frames (B, 3, T, h, w) in [-1, 1], share of the batch."""
        worlds, pans, stills = self.batch
        clips = [_standing(rng, self.clips.random_frames(rng, 9, self.crop)) for _ in range(worlds)]
        clips += [self.pool.pan(rng, 9, self.crop) for _ in range(pans)]
        images = [self.pool.still(rng, self.crop)[None] for _ in range(stills)]
        for name, group in (("clip", clips), ("still", images)):
            frames = _batch(augment(rng, np.stack(group)), device_of(self.model))
            yield name, frames, len(group) / (len(clips) + len(images))

    def _reconstruct(self, frames: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, float]:
        with torch.set_grad_enabled(not self.decoder_only):
            mean, log_var = self.model.posterior(frames)
        mean, log_var = mean.float(), log_var.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        latents = mean + noise * (0.5 * log_var).exp()
        decoded = self.model.decode_raw(latents)[0].float()
        loss = reconstruction_loss(decoded, frames, self.gradient)
        loss = loss + self.kl * 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        mse = float((decoded - frames).detach().clamp(-2, 2).square().mean())
        return loss, -10 * np.log10(mse / 4 + 1e-10)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        rng, device = np.random.default_rng(1_000_000), device_of(self.model)
        figures: dict[str, list[float]] = {"psnr": [], "gradient_energy": [], "psnr_still": []}
        for _ in range(12):
            frames = _batch(self.validation.random_frames(rng, 9, 128)[None], device)
            decoded = self.model.decode_raw(self.model.posterior(frames)[0])[0].clamp(-1, 1)
            figures["psnr"].append(psnr(decoded, frames))
            figures["gradient_energy"].append(gradient_energy(decoded) / gradient_energy(frames))
            still = _batch(self.pool.still(rng, 128)[None, None], device)
            figures["psnr_still"].append(psnr(self.model.decode_raw(self.model.posterior(still)[0])[0].clamp(-1, 1), still))
        return {k: float(np.mean(v)) for k, v in figures.items()}

    @torch.no_grad()
    def sample(self) -> np.ndarray:
        rng = np.random.default_rng(1_000_001)
        rows = []
        for i in range(6):
            clip = self.validation.random_frames(rng, 9, 128) if i < 3 else self.pool.still(rng, 128)[None]
            frames = _batch(clip[None], device_of(self.model))
            decoded = to_frames(self.model.decode_raw(self.model.posterior(frames)[0])[0])[0].cpu().numpy()
            rows.append(np.concatenate([clip[0], decoded[0], clip[-1], decoded[-1]], 1))
        return np.concatenate(rows, 0)


def reconstruction_loss(decoded: torch.Tensor, frames: torch.Tensor, gradient: float) -> torch.Tensor:
    """Charbonnier error of frames (B, 3, T, h, w), and `gradient` times that of their differences in space and, half as much, in time."""
    error = decoded - frames
    loss = torch.sqrt(error.square() + 4e-4).mean()
    for dim in (2, 3, 4):
        if frames.shape[dim] > 1:
            loss = loss + gradient * error.diff(dim=dim).abs().mean() * (0.5 if dim == 2 else 1.0)
    return loss


def _standing(rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """The clip (T, h, w, 3), or some of the time one of its frames again and again."""
    return clip[rng.integers(len(clip)), None].repeat(len(clip), 0) if rng.random() < STANDING else clip


def augment(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """Mirror and re-expose a batch (B, T, h, w, 3) uint8, the same way over each clip's time."""
    out = []
    for clip in frames:
        if rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if rng.random() < 0.3:
            clip = clip[..., rng.permutation(3)]
        if rng.random() < 0.5:
            gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
            clip = np.clip(clip * gain + rng.uniform(-20, 20), 0, 255).astype(np.uint8)
        out.append(clip)
    return np.stack(out)


@torch.no_grad()
def measure_latents(model: CompactVideoVAE, clips: ClipFolder, samples: int = 64, seed: int = 0) -> None:
    """Set `latent_mean` and `latent_std` from training clips, so that `encode` gives unit variance per channel."""
    rng = np.random.default_rng([seed, 17])
    means = [model.posterior(_batch(clips.random_frames(rng, 9, 128)[None], device_of(model)))[0] for _ in range(samples)]
    z = torch.cat(means).transpose(0, 1).flatten(1)
    model.latent_mean.copy_(z.mean(1))
    model.latent_std.copy_(z.std(1).clamp_min(1e-3))


def _batch(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    return to_model(torch.from_numpy(np.ascontiguousarray(frames)).to(device))
