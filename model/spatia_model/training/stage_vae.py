"""Training the embedded autoencoder: world clips, pans over pictures, and stills, far more varied than any one world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from spatia_model.data.procedural import ClipFolder
from spatia_model.evaluation.metrics import gradient_energy, psnr
from spatia_model.generator.conditioning import to_frames, to_model
from spatia_model.generator.vae import TEMPORAL, CompactVAEConfig, CompactVideoVAE
from spatia_model.training.loop import device_of
from spatia_model.training.pictures import PicturePool
from spatia_model.training.true_motion import Motion, all_pairs, motion_between, pattern

STANDING = 0.15  # of clips: what stands still must not pulse, and in walks hardly anything does


FRAMES = 9  # of a clip


@dataclass(frozen=True)
class Group:
    """Samples of one kind: frames (B, 3, T, h, w) in [-1, 1], their share of the batch, and how things move, where that is known."""

    name: str
    frames: torch.Tensor
    share: float
    motion: Motion | None = None


class VAEStage:
    """Charbonnier, squared and gradient losses on 9-frame clips and on stills (a still is a clip of one frame); in clips of worlds, whose
    depth and cameras are known, the motion that the latents tell is compared with the true one.

    `keeps`: an autoencoder whose latents are to stay valid. The stage goes on from it, is called "redraw", and pays `near` for every
    squared standard deviation by which latents leave its own.
    """

    name = "vae"

    def __init__(
        self,
        clips: ClipFolder,
        validation: ClipFolder,
        pool: PicturePool,
        config: CompactVAEConfig | None = None,
        crop: int = 80,
        batch: tuple[int, int, int] = (4, 1, 5),
        kl: float = 1e-4,
        gradient: float = 1.0,
        square: float = 4.0,
        between: float = 3.0,
        motion: float = 0.1,
        keeps: CompactVideoVAE | None = None,
        near: float = 0.1,
    ):
        self.model = CompactVideoVAE(config)
        self.clips, self.validation, self.pool = clips, validation, pool
        self.crop, self.batch, self.kl, self.gradient, self.motion = crop, batch, kl, gradient, motion
        self.square, self.between = square, between
        self.keeps, self.near = keeps, near
        if keeps is not None:
            self.name = "redraw"
            self.model.load_state_dict(keeps.state_dict())

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        total, figures = torch.zeros((), device=device_of(self.model)), {}
        for group in self.groups(rng):
            loss, found = self._reconstruct(group, generator)
            total = total + loss * group.share
            figures |= found
        return total, figures

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """A batch's clips, then its stills."""
        worlds, pans, stills = self.batch
        count, device = worlds + pans + stills, device_of(self.model)
        drawn = [self._clip(rng) for _ in range(worlds)]
        panned = [self.pool.pan(rng, FRAMES, self.crop) for _ in range(pans)]
        clips = [clip for clip, _ in drawn] + panned
        motions = [motion for _, motion in drawn] + [Motion.none(len(all_pairs(len(p))), p.shape[1], known=False) for p in panned]
        for i, clip in enumerate(clips):
            if rng.random() < 0.5:
                clips[i], motions[i] = clip[:, :, ::-1], motions[i].mirrored()
        frames = _batch(np.stack([expose(rng, clip) for clip in clips]), device)
        yield Group("clip", frames, len(clips) / count, Motion.stack(motions).to(device))
        images = [expose(rng, self.pool.still(rng, self.crop)[None]) for _ in range(stills)]
        yield Group("still", _batch(np.stack(images), device), stills / count)

    def _clip(self, rng: np.random.Generator) -> tuple[np.ndarray, Motion]:
        """Frames (T, h, w, 3) of a walk and how its things move, or some of the time one of its frames again and again."""
        film = self.clips.random_film(rng, FRAMES, self.crop)
        rgb, pairs = film.rgb, all_pairs(len(film.rgb))
        if rng.random() < STANDING:
            return rgb[rng.integers(len(rgb)), None].repeat(len(rgb), 0), Motion.none(len(pairs), rgb.shape[1])
        if not self.motion or film.depth is None or film.dynamic is None or not pairs:
            return rgb, Motion.none(len(pairs), rgb.shape[1], known=False)
        return rgb, motion_between(film.depth, film.dynamic, film.T_world_camera, film.camera, film.corner, pairs)

    def _reconstruct(self, group: Group, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        frames = group.frames
        mean, log_var, found = self.model.posterior_motion(frames)
        mean, log_var = mean.float(), log_var.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        latents = mean + noise * (0.5 * log_var).exp()
        decoded, _, told = self.model.decode_motion(latents)
        decoded = decoded.float()
        loss = reconstruction_loss(decoded, frames, self.gradient, self.square, self.between)
        loss = loss + self.kl * 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        mse = float((decoded - frames).detach().clamp(-2, 2).square().mean())
        figures = {group.name: -10 * np.log10(mse / 4 + 1e-10)}
        if self.keeps is not None:
            with torch.no_grad():
                then = self.keeps.to(frames.device).posterior(frames)[0].float()
            left = ((mean - then) / self.model.latent_std.view(1, -1, 1, 1, 1)).square().mean()
            loss = loss + self.near * left
            figures[f"left_{group.name}"] = float(left.detach()) ** 0.5
        if self.motion and group.motion is not None and frames.shape[2] > 1:
            clear = pattern(frames)[:, [here for here, _ in all_pairs(frames.shape[2])]]
            steps = F.interpolate(found.flatten(0, 1), size=clear.shape[-2:], mode="bilinear").unflatten(0, found.shape[:2])
            off = group.motion.off(torch.cat([told[:, 1:].flatten(1, 2), steps], 1), clear)
            loss = loss + self.motion * off
            figures["off"] = float(off.detach())
        return loss, figures

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        rng, device = np.random.default_rng(1_000_000), device_of(self.model)
        figures: dict[str, list[float]] = {"psnr": [], "gradient_energy": [], "psnr_still": []}
        for _ in range(12):
            frames = _batch(self.validation.random_frames(rng, FRAMES, 128)[None], device)
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
            clip = self.validation.random_frames(rng, FRAMES, 128) if i < 3 else self.pool.still(rng, 128)[None]
            frames = _batch(clip[None], device_of(self.model))
            decoded = to_frames(self.model.decode_raw(self.model.posterior(frames)[0])[0])[0].cpu().numpy()
            rows.append(np.concatenate([clip[0], decoded[0], clip[-1], decoded[-1]], 1))
        return np.concatenate(rows, 0)


def reconstruction_loss(
    decoded: torch.Tensor, frames: torch.Tensor, gradient: float, square: float = 0.0, between: float = 1.0
) -> torch.Tensor:
    """Charbonnier error of frames (B, 3, T, h, w), `square` times the squared one, and `gradient` times the error of their differences in
    space and, half as much, in time.

    `between`: the weight of frames between anchors, which are the harder ones; anchors and a first frame have 1.
    """
    error = decoded - frames
    weight = torch.where(torch.arange(frames.shape[2], device=frames.device) % TEMPORAL == 0, 1.0, between)
    weight = (weight / weight.mean()).view(-1, 1, 1)
    loss = ((torch.sqrt(error.square() + 4e-4) + square * error.square()) * weight).mean()
    for dim in (3, 4):
        loss = loss + gradient * (error.diff(dim=dim).abs() * weight).mean()
    if frames.shape[2] > 1:
        loss = loss + gradient * error.diff(dim=2).abs().mean() * 0.5
    return loss


def expose(rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """A clip (T, h, w, 3) uint8 in other colours and light, the same over its time."""
    if rng.random() < 0.3:
        clip = clip[..., rng.permutation(3)]
    if rng.random() < 0.5:
        gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
        clip = np.clip(clip * gain + rng.uniform(-20, 20), 0, 255).astype(np.uint8)
    return clip


@torch.no_grad()
def measure_latents(model: CompactVideoVAE, clips: ClipFolder, samples: int = 64, seed: int = 0) -> None:
    """Set `latent_mean` and `latent_std` from training clips, so that `encode` gives unit variance per channel."""
    rng = np.random.default_rng([seed, 17])
    means = [model.posterior(_batch(clips.random_frames(rng, FRAMES, 128)[None], device_of(model)))[0] for _ in range(samples)]
    z = torch.cat(means).transpose(0, 1).flatten(1)
    model.latent_mean.copy_(z.mean(1))
    model.latent_std.copy_(z.std(1).clamp_min(1e-3))


def _batch(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    return to_model(torch.from_numpy(np.ascontiguousarray(frames)).to(device))
