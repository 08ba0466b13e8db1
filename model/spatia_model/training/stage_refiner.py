"""Training the detail refiner on decoded windows: the autoencoder's blur and the denoiser's small errors, undone where the map knows better."""

from __future__ import annotations

import numpy as np
import torch

from spatia_model.config import MiniConfig
from spatia_model.data.latents import read_window
from spatia_model.data.windows import WindowFolder
from spatia_model.evaluation.metrics import gradient_energy, psnr
from spatia_model.generator.conditioning import to_frames, to_model
from spatia_model.generator.refiner import DetailRefiner, RefinerConfig
from spatia_model.generator.vae import CompactVideoVAE


class RefinerStage:
    """Charbonnier and gradient losses; latents are noised by up to `noise`, so that it learns to mend generated frames too."""

    name = "refiner"

    def __init__(
        self,
        windows: WindowFolder,
        validation: WindowFolder,
        vae: CompactVideoVAE,
        config: RefinerConfig | None = None,
        mini: MiniConfig | None = None,
        batch: int = 3,
        noise: float = 0.35,
    ):
        self.model = DetailRefiner(config)
        self.windows, self.validation, self.vae = windows, validation, vae.eval()
        self.mini, self.batch, self.noise = mini or MiniConfig(), batch, noise

    def _decoded(self, rgb: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        with torch.no_grad():
            latents = self.vae.encode(to_model(rgb[None]))
            latents = latents + level * torch.randn(latents.shape, generator=generator)
            return self.vae.decode(latents, last=self.mini.frames_per_clip).float()

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        h, losses, gains = self.mini.history_frames, [], []
        for _ in range(self.batch):
            walk = self.windows.pick(rng)
            rgb, dynamic, projection = read_window(walk, int(rng.integers(len(walk.captions))), self.mini)
            decoded = self._decoded(rgb, self.noise * float(rng.random()) ** 2, generator)
            out = self.model.refine(decoded, projection.rgb[None, h:], projection.mask[None, h:]).float()
            truth = to_model(rgb[None, h:])
            error = out - truth
            weight = 1 + 2 * dynamic[None, None, h:]
            loss = (torch.sqrt(error.square() + 1e-4) * weight).mean()
            loss = loss + 0.7 * error.diff(dim=3).abs().mean() + 0.7 * error.diff(dim=4).abs().mean()
            losses.append(loss)
            gains.append(psnr(out.detach(), truth) - psnr(decoded, truth))
        return torch.stack(losses).mean(), {"gain_db": float(np.mean(gains))}

    def validate(self) -> dict[str, float]:
        rows: dict[str, list[float]] = {n: [] for n in ("decoded_covered", "covered", "uncovered", "moving", "energy_covered")}
        h = self.mini.history_frames
        for i in range(16):
            walk = self.validation.open(i % len(self.validation))
            rgb, dynamic, projection = read_window(walk, i % len(walk.captions), self.mini)
            decoded = self._decoded(rgb, 0.0, torch.Generator())
            out = self.model.refine(decoded, projection.rgb[None, h:], projection.mask[None, h:])
            truth, mask = to_model(rgb[None, h:]), projection.mask[None, None, h:]
            rows["decoded_covered"].append(psnr(decoded, truth, mask))
            rows["covered"].append(psnr(out, truth, mask))
            rows["uncovered"].append(psnr(out, truth, ~mask))
            rows["moving"].append(psnr(out, truth, dynamic[None, None, h:] > 0.5))
            rows["energy_covered"].append(gradient_energy(out, mask) / gradient_energy(truth, mask))
        return {name: float(np.nanmean(values)) for name, values in rows.items()}

    def sample(self) -> np.ndarray:
        rows, h = [], self.mini.history_frames
        for i in range(6):
            walk = self.validation.open(i % len(self.validation))
            rgb, _, projection = read_window(walk, i % len(walk.captions), self.mini)
            decoded = self._decoded(rgb, 0.15, torch.Generator().manual_seed(i))
            out = self.model.refine(decoded, projection.rgb[None, h:], projection.mask[None, h:])
            rows.append(torch.cat([rgb[-1], projection.rgb[-1], to_frames(decoded)[0, -1], to_frames(out)[0, -1]], 1))
        return torch.cat(rows, 0).numpy()
