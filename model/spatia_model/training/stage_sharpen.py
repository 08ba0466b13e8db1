"""Training the denoiser's last sampler step against a critic of pictures.

A denoiser trained by squared error alone draws the mean of all that could lie where the memory knows nothing: a wash. Here it takes the
sampler's own half-way latents, and what it makes of them is decoded and shown to a critic beside the decoded truth. Where the memory
knows, squared error keeps its full weight.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from spatia_model.training.critics import PatchCritic, judged
from spatia_model.training.loop import device_of
from spatia_model.training.stage_decoder import CRITIC_WIDTHS, SEEN
from spatia_model.training.stage_denoiser import DenoiserStage, Generator


class Judged(nn.Module):
    """Generator and critic in one module, so that one optimiser and one checkpoint hold both."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator
        self.critic = PatchCritic(3 * SEEN, CRITIC_WIDTHS, unshuffle=2)


class SharpenStage:
    """Last steps against the critic; now and then the denoiser's own loss, so that the steps before it stay what they are.

    Args:
        denoiser: the trained stage; its model is trained further.
        adversarial: weight of the critic's opinion, reached after `ramp` steps.
        anchor: weight of squared error where the memory knows nothing (1 where it knows).
        plain: share of batches with the denoiser's own loss.
        crop: side, in latent pixels, of the piece of each window that is decoded and judged: where least is covered.
        flatness: see `critic_loss`.
    """

    name = "sharpen"

    def __init__(
        self,
        denoiser: DenoiserStage,
        adversarial: float = 0.2,
        anchor: float = 0.1,
        plain: float = 0.15,
        ramp: int = 50,
        crop: int = 10,
        flatness: float = 0.01,
    ):
        self.denoiser, self.adversarial, self.anchor, self.plain, self.ramp = denoiser, adversarial, anchor, plain, ramp
        self.crop, self.flatness = crop, flatness
        self.model = Judged(denoiser.model)

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if rng.random() < self.plain:
            loss, figures = self.denoiser.loss(rng, generator, 0)
            return loss, {f"plain_{name}": value for name, value in figures.items()}
        stage = self.denoiser
        batch, texts, references = stage.draw(rng)
        batch = {name: tensor.to(device_of(self.model)) for name, tensor in batch.items()}
        made = stage.last_step(batch, texts, references, generator)
        uncovered, moving = (batch[name][:, stage.known :] / 255 for name in ("uncovered", "moving"))
        weight = self.anchor + (1 - self.anchor) * (1 - uncovered) + 4 * moving
        error = (made - batch["target"])[:, :, stage.known :].square().mean(1)
        known = (error * weight).mean()
        real, drawn, share = self._pictures(batch["target"], made, torch.maximum(uncovered, moving), rng)
        critic, opinion = judged(self.model.critic, real, drawn, real[:, :0], share, generator, self.flatness)
        covered = uncovered < 0.25
        figures = {
            "mse_covered": float(error.detach()[covered].mean()),
            "mse_uncovered": float(error.detach()[~covered].mean()),
            "critic": float(critic.detach()),
            "wish": float(opinion.detach()),
        }
        weight_now = self.adversarial * min(1.0, step / self.ramp)
        return known + weight_now * opinion + critic, {k: v for k, v in figures.items() if np.isfinite(v)}

    def _pictures(
        self, target: torch.Tensor, made: torch.Tensor, wanted: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decoded pieces of the truth and of what was made, SEEN frames in a row as channels, and which pixels count.

        `wanted` (B, F, h, w): share of each latent pixel that the memory does not cover, or that moves.
        """
        vae, side = self.denoiser.vae, min(self.crop, *target.shape[-2:])
        total = F.avg_pool2d(wanted.amax(1, keepdim=True), side, 1)  # of every possible piece
        rows: dict[str, list[torch.Tensor]] = {"target": [], "made": [], "wanted": []}
        for i in range(len(target)):
            best = int((total[i].flatten() + 1e-3 * torch.from_numpy(rng.random(total[i].numel())).to(total)).argmax())
            y, x = divmod(best, total.shape[-1])
            for name, tensor in (("target", target), ("made", made), ("wanted", wanted)):
                rows[name].append(tensor[i, ..., y : y + side, x : x + side])
        count = self.denoiser.mini.frames_per_clip
        with torch.no_grad():
            truth = vae.decode_raw(vae.denormalise(torch.stack(rows["target"])), last=count)[0].float()
        drawn = vae.decode_raw(vae.denormalise(torch.stack(rows["made"])), last=count)[0].float()
        share = F.interpolate(torch.stack(rows["wanted"]).amax(1, keepdim=True), size=truth.shape[-2:]).clamp(min=0.05)
        at = int(rng.integers(count - SEEN + 1))
        return truth[:, :, at : at + SEEN].flatten(1, 2), drawn[:, :, at : at + SEEN].flatten(1, 2), share

    def validate(self) -> dict[str, float]:
        return self.denoiser.validate()

    def sample(self) -> np.ndarray:
        return self.denoiser.sample()
