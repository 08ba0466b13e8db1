"""Causal video autoencoders: the protocol both tiers share, and the embedded tier's own network.

1 + 4k frames become 1 + k latent frames (FACTS: the causal video VAE of Wan2.2 maps them the same way). The embedded
network is much lighter than Wan's: per-frame 2D convolutions, and time is seen only through the features of the
previous frame, which makes streaming exact: the only state is one frame of features per temporal block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

TEMPORAL = 4  # frames per latent frame


class VideoVAE(Protocol):
    """What the world loop needs of an autoencoder, whichever tier it belongs to."""

    latent_channels: int
    spatial_factor: int
    temporal_factor: int

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, 3, 1 + 4k, H, W) in [-1, 1] to normalised latents (B, C, 1 + k, H / s, W / s)."""
        ...

    def decode(self, latents: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """Normalised latents (B, C, 1 + k, h, w) to frames (B, 3, 1 + 4k, h * s, w * s) in [-1, 1]; only the last `last` if given."""
        ...


@dataclass(frozen=True)
class CompactVAEConfig:
    """Widths are per stage: full frame rate at 1/4 size, half rate at 1/8, latent rate at 1/8."""

    latent_channels: int = 32
    widths: tuple[int, int, int] = (64, 96, 128)
    encoder_blocks: tuple[int, int, int] = (1, 1, 2)
    decoder_blocks: tuple[int, int, int] = (3, 2, 2)

    def __post_init__(self) -> None:
        for name in ("widths", "encoder_blocks", "decoder_blocks"):
            value = tuple(getattr(self, name))
            if len(value) != 3 or min(value) < 1:
                raise ValueError(f"{name} must be three positive numbers, got {value}")
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict:
        return asdict(self)


class FrameMemory:
    """Last frame's features of every temporal block, in call order: all the state that causal streaming needs."""

    def __init__(self, features: list[torch.Tensor] | None = None):
        self._old: Iterator[torch.Tensor] | None = iter(features) if features else None
        self.features: list[torch.Tensor] = []

    def previous(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, C, H, W) shifted by one frame; before the first frame, time stood still."""
        first = x[:, :1] if self._old is None else next(self._old)
        self.features.append(x[:, -1:])
        return torch.cat([first, x[:, :-1]], 1)


class TemporalBlock(nn.Module):
    """Residual block; its first convolution also sees half the previous frame's channels."""

    def __init__(self, width: int, temporal: bool):
        super().__init__()
        self.shared = width // 2 if temporal else 0
        self.conv1 = nn.Conv2d(width + self.shared, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        # A residual branch that starts at zero keeps deep stacks stable.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, memory: FrameMemory) -> torch.Tensor:
        b, t = x.shape[:2]
        y = x
        if self.shared:
            y = torch.cat([x, memory.previous(x[:, :, : self.shared])], 2)
        y = y.flatten(0, 1)
        y = y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-4)  # per pixel, so nothing depends on the picture's size
        y = self.conv2(F.silu(self.conv1(y)))
        return x + y.unflatten(0, (b, t))


def _stage(width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(TemporalBlock(width, temporal=i == 0) for i in range(blocks))


def _fold(x: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, T, C, H, W) to (B, T / frames, frames * C, H, W)."""
    b, t, c, h, w = x.shape
    return x.reshape(b, t // frames, frames * c, h, w)


def _unfold(x: torch.Tensor, frames: int) -> torch.Tensor:
    b, t, c, h, w = x.shape
    return x.reshape(b, t * frames, c // frames, h, w)


def _each(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class CompactVideoVAE(nn.Module):
    """The embedded tier's autoencoder: 8x8 spatial, 4x temporal, causal.

    `encode` returns the posterior mean, normalised per channel with the statistics measured after training
    (`latent_mean`, `latent_std`), so that the denoiser sees unit variance.
    """

    spatial_factor = 8
    temporal_factor = TEMPORAL

    def __init__(self, config: CompactVAEConfig | None = None):
        super().__init__()
        self.config = config = config or CompactVAEConfig()
        a, b, c = config.widths
        z = self.latent_channels = config.latent_channels
        conv = nn.Conv2d
        self.enc_in = conv(48, a, 3, padding=1)
        self.enc_frames = _stage(a, config.encoder_blocks[0])
        self.enc_down = conv(2 * a, b, 4, stride=2, padding=1)  # two frames at 1/4 to one at 1/8
        self.enc_pairs = _stage(b, config.encoder_blocks[1])
        self.enc_merge = conv(2 * b, c, 3, padding=1)
        self.enc_latent = _stage(c, config.encoder_blocks[2])
        self.enc_out = conv(c, 2 * z, 3, padding=1)  # mean and log-variance
        nn.init.constant_(self.enc_out.bias[z:], -5.0)  # type: ignore[index]  # start almost without noise, else nothing gets through
        self.dec_in = conv(z, c, 3, padding=1)
        self.dec_latent = _stage(c, config.decoder_blocks[0])
        self.dec_split = conv(c, 2 * b, 3, padding=1)
        self.dec_pairs = _stage(b, config.decoder_blocks[1])
        self.dec_up = conv(b, 2 * a * 4, 3, padding=1)
        self.dec_frames = _stage(a, config.decoder_blocks[2])
        self.dec_out = conv(a, 48, 3, padding=1)
        self.latent_mean: torch.Tensor
        self.latent_std: torch.Tensor
        self.register_buffer("latent_mean", torch.zeros(z))
        self.register_buffer("latent_std", torch.ones(z))

    def posterior(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance (B, z, 1 + k, h, w) of frames (B, 3, 1 + 4k, H, W) in [-1, 1]."""
        _check_frames(frames, self.spatial_factor)
        memory = FrameMemory()
        x = _each(self.enc_in, _each(nn.PixelUnshuffle(4), frames.transpose(1, 2)))
        x = self._run(self.enc_frames, x, memory)
        # The first frame counts as four equal ones. At frame rate their features are equal too: computed once, repeated.
        x = torch.cat([x[:, :1].expand(-1, TEMPORAL - 1, -1, -1, -1), x], 1)
        x = _each(self.enc_down, _fold(x, 2))
        x = self._run(self.enc_pairs, x, memory)
        x = _each(self.enc_merge, _fold(x, 2))
        x = _each(self.enc_out, self._run(self.enc_latent, x, memory))
        mean, log_var = x.transpose(1, 2).chunk(2, 1)
        return mean, log_var.clamp(-20, 10)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        mean = self.posterior(frames.to(self.enc_in.weight.dtype))[0].float()
        return (mean - self.latent_mean.view(1, -1, 1, 1, 1)) / self.latent_std.view(1, -1, 1, 1, 1)

    def decode(self, latents: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """Frames in [-1, 1]; with `last` only the last so many of them, equal to those of the whole and cheaper."""
        return self.decode_raw(self.denormalise(latents), None, last)[0].float().clamp(-1, 1)

    def decode_stream(self, latents: torch.Tensor, memory: list[torch.Tensor] | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Decode the next latents (B, C, n, h, w) of a stream; `memory` is None at its start, else what the call before returned.

        Equal to one long `decode`. Returns frames in [-1, 1] (1 + 4(n - 1) of them at the start, else 4n).
        """
        frames, state = self.decode_raw(self.denormalise(latents), memory)
        return frames.float().clamp(-1, 1), state

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as `encode` gives them to what `decode_raw` takes."""
        x = latents * self.latent_std.view(1, -1, 1, 1, 1) + self.latent_mean.view(1, -1, 1, 1, 1)
        return x.to(self.dec_in.weight.dtype)

    def decode_raw(
        self, x: torch.Tensor, memory: list[torch.Tensor] | None = None, last: int | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`decode_stream` on latents that are not normalised, without clamping: what training differentiates."""
        total = TEMPORAL * (x.shape[2] - 1) + 1
        if last is not None and not 1 <= last <= total:
            raise ValueError(f"last must be between 1 and the {total} frames that these latents hold, got {last}")
        if last == total:
            last = None
        state = FrameMemory(memory)
        x = self._run(self.dec_latent, _each(self.dec_in, x.transpose(1, 2)), state)
        x = self._run(self.dec_pairs, _unfold(_each(self.dec_split, x), 2), state)
        if last is not None:  # frame-rate blocks look one frame back, no further
            x = x[:, -(last // 2 + 2) :]
        x = _unfold(_each(nn.PixelShuffle(2), _each(self.dec_up, x)), 2)
        if last is not None:
            x = x[:, -(last + 1) :]
        x = _each(self.dec_out, self._run(self.dec_frames, x, state))
        x = _each(nn.PixelShuffle(4), x).transpose(1, 2)
        if last is not None:
            return x[:, :, -last:], state.features
        return (x[:, :, TEMPORAL - 1 :] if memory is None else x), state.features

    @staticmethod
    def _run(stage: nn.ModuleList, x: torch.Tensor, memory: FrameMemory) -> torch.Tensor:
        for block in stage:
            x = block(x, memory)
        return x


def _check_frames(frames: torch.Tensor, factor: int) -> None:
    if frames.ndim != 5 or frames.shape[1] != 3:
        raise ValueError(f"frames must be (B, 3, T, H, W), got {tuple(frames.shape)}")
    t, h, w = frames.shape[2:]
    if (t - 1) % TEMPORAL or h % factor or w % factor:
        raise ValueError(
            f"the VAE takes 1 + {TEMPORAL}k frames with sides divisible by {factor}, got {t} frames of {h}x{w}: pad or crop them"
        )
