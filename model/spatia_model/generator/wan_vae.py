"""The full tier's autoencoder: Wan2.2's causal video VAE (diffusers), behind the same two methods as the embedded one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, unpatchify
from torch import nn

# fmt: off
LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on

# FACTS section 2; the means and stds are published with Wan2.2's VAE.
WAN22_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "latents_mean": list(LATENTS_MEAN),
    "latents_std": list(LATENTS_STD),
}


class WanVAE(nn.Module):
    """`VideoVAE` over a diffusers `AutoencoderKLWan`. Deterministic: encoding takes the posterior's mode.

    Latents are normalised by the config's means and stds, in float32 whatever the network's type.
    """

    def __init__(self, network: AutoencoderKLWan):
        super().__init__()
        self.network = network
        config: Any = network.config
        self.latent_channels: int = config.z_dim
        self.spatial_factor: int = config.scale_factor_spatial
        self.temporal_factor: int = config.scale_factor_temporal
        self._mean, self._std = tuple(config.latents_mean), tuple(config.latents_std)
        if not len(self._mean) == len(self._std) == self.latent_channels:
            raise ValueError(
                f"{len(self._mean)} latent means and {len(self._std)} stds for z_dim {self.latent_channels}: give one of each per channel"
            )

    @classmethod
    def wan22(cls, **changes: Any) -> WanVAE:
        """The released architecture with random weights; `changes` override its config (tests take tiny widths)."""
        return cls(AutoencoderKLWan(**{**WAN22_VAE, **changes}))

    @classmethod
    def from_pretrained(cls, folder: str, **arguments: Any) -> WanVAE:
        """From a diffusers folder or hub id, for instance "Wan-AI/Wan2.2-TI2V-5B-Diffusers" with subfolder="vae"."""
        return cls(AutoencoderKLWan.from_pretrained(folder, **arguments))  # type: ignore[arg-type]

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def shaped(values: tuple[float, ...]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None, None]

        return shaped(self._mean), shaped(self._std)

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, 3, 1 + 4k, H, W) in [-1, 1] -> normalised latents (B, C, 1 + k, H / s, W / s) float32."""
        time, space = self.temporal_factor, self.spatial_factor
        if frames.ndim != 5 or frames.shape[1] != 3 or frames.shape[2] % time != 1 or frames.shape[3] % space or frames.shape[4] % space:
            raise ValueError(
                f"frames {tuple(frames.shape)}: give (B, 3, T, H, W) with T = 1 + {time}k and H, W multiples of {space}; crop or pad first"
            )
        latents = self.network.encode(frames.to(self.network.dtype)).latent_dist.mode().float()  # type: ignore[union-attr]
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, last: int | None = None, before: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised latents (B, C, 1 + k, h, w) -> frames (B, 3, 1 + 4k, h * s, w * s) float32 in [-1, 1]; only the last `last` if given.

        Latent frames are decoded one after another, and of their frames only the last are kept: every frame depends on all earlier
        ones, so `last` saves memory but no work. `before` is not looked at.
        """
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents {tuple(latents.shape)}: give (B, {self.latent_channels}, F, h, w)")
        total = self.temporal_factor * (latents.shape[2] - 1) + 1
        if last is not None and not 1 <= last <= total:
            raise ValueError(f"last must be between 1 and the {total} frames that these latents hold, got {last}")
        stream = self.stream()
        kept: list[torch.Tensor] = []
        start = 0
        for i in range(latents.shape[2]):
            frames = stream.add(latents[:, :, i : i + 1])
            start += frames.shape[2]
            if last is None or start > total - last:
                kept.append(frames)
        decoded = torch.cat(kept, 2)
        return decoded if last is None else decoded[:, :, -last:].clone()

    def stream(self) -> VideoStream:
        """A decoder that remembers: latents given in parts, of several clips too, come out as if decoded at once."""
        return VideoStream(self)


class VideoStream:
    """Decodes a video's latents in parts. The parts' frames together are those of one long decode, bit for bit.

    The network is causal and remembers the last two feature frames of every convolution; those are kept here.
    """

    def __init__(self, vae: WanVAE):
        self.vae = vae
        convolutions = sum(isinstance(module, WanCausalConv3d) for module in vae.network.decoder.modules())
        self._memory: list[Any] = [None] * convolutions
        self._first = True

    def to(self, device: str | torch.device) -> None:
        """Move what is remembered, gigabytes for large frames, to where the network is, or to the CPU until the next part."""
        self._memory = [kept.to(device) if isinstance(kept, torch.Tensor) else kept for kept in self._memory]

    @torch.no_grad()
    def add(self, latents: torch.Tensor) -> torch.Tensor:
        """The next normalised latents (B, C, F, h, w) -> their frames (B, 3, T, H, W) float32 in [-1, 1].

        T is 4F, but 4F - 3 for the first part: the first latent frame is one frame.
        """
        vae, network = self.vae, self.vae.network
        if latents.ndim != 5 or latents.shape[1] != vae.latent_channels or not latents.shape[2]:
            raise ValueError(f"latents {tuple(latents.shape)}: give (B, {vae.latent_channels}, F, h, w)")
        mean, std = vae._statistics(latents)
        parts = []
        for i in range(latents.shape[2]):  # one at a time: the network remembers one latent frame's step
            z = (latents[:, :, i : i + 1].float() * std + mean).to(network.dtype)
            x = network.decoder(network.post_quant_conv(z), feat_cache=self._memory, feat_idx=[0], first_chunk=self._first)
            self._first = False
            if network.config.patch_size is not None:  # type: ignore[attr-defined]
                x = unpatchify(x, patch_size=network.config.patch_size)  # type: ignore[attr-defined]
            parts.append(x.clamp(-1.0, 1.0).float())
        return torch.cat(parts, 2)
