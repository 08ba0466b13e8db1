"""Causal video autoencoders: the protocol both tiers share, and the embedded tier's own network.

1 + 4k frames become 1 + k latent frames (FACTS: the causal video VAE of Wan2.2 maps them the same way). The embedded
network is much lighter than Wan's: 2D convolutions, and time as video codecs have it. Of the four frames of a latent the
last, the anchor, is drawn with the anchor before it at hand, moved to where its things are now; the three between them are
drawn from both anchors, moved likewise. How things moved is told by the latents: the encoder follows them from frame to frame
(`vae_motion.Follower`). Streaming is exact: the only state is one latent's features and the last anchor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from spatia_model.generator.vae_motion import Aligner, Follower, displaced

SAMPLINGS = ("bilinear", "bicubic")
TEMPORAL = 4  # frames per latent frame
MOTIONS = 2 * TEMPORAL - 1  # of a latent: all its frames from the anchor before, and the three between from its own anchor


class VideoVAE(Protocol):
    """What the world loop needs of an autoencoder, whichever tier it belongs to."""

    latent_channels: int
    spatial_factor: int
    temporal_factor: int

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, 3, 1 + 4k, H, W) in [-1, 1] to normalised latents (B, C, 1 + k, H / s, W / s)."""
        ...

    def decode(self, latents: torch.Tensor, last: int | None = None, before: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised latents (B, C, 1 + k, h, w) to frames (B, 3, 1 + 4k, h * s, w * s) in [-1, 1]; only the last `last` if given.

        `before` (B, 3, H, W) in [-1, 1]: the frame before these last ones, where it is known; an autoencoder that draws frames from
        earlier ones takes it instead of its own, others pass over it.
        """
        ...


@dataclass(frozen=True)
class CompactVAEConfig:
    """Sizes of the embedded autoencoder.

    Args:
        widths: channels of frames at 1/4 size, of pairs of frames at 1/8, of latents at 1/8.
        encoder_blocks: of frames, pairs, latents.
        decoder_blocks: of latents, anchors, frames between.
        between: channels in which the latent tells something of each frame between.
        align_blocks: of what puts motion right, in encoder and decoder; 0: it stays as it is found and told.
        sampling: how pictures that frames are drawn from are moved there: "bilinear" or "bicubic".
        follower: channels in which the encoder compares frames, thinks about what it finds, and concludes.
    """

    latent_channels: int = 64
    widths: tuple[int, int, int] = (64, 96, 128)
    encoder_blocks: tuple[int, int, int] = (1, 1, 2)
    decoder_blocks: tuple[int, int, int] = (1, 3, 3)
    between: int = 48
    align_blocks: int = 2
    sampling: str = "bicubic"
    follower: tuple[int, int, int] = (32, 48, 64)

    def __post_init__(self) -> None:
        for name in ("widths", "encoder_blocks", "decoder_blocks", "follower"):
            value = tuple(getattr(self, name))
            if len(value) != 3 or min(value) < 1:
                raise ValueError(f"{name} must be three positive numbers, got {value}")
            object.__setattr__(self, name, value)
        for name in ("latent_channels", "between"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.align_blocks < 0:
            raise ValueError(f"align_blocks must be 0 or more, got {self.align_blocks}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {self.sampling!r}")

    def to_dict(self) -> dict:
        return asdict(self)


class FrameMemory:
    """Last frame's features of every temporal block, in call order: the state of causal streaming."""

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


class Painter(nn.Module):
    """Draws frames of 1/4 size cells: from features and pictures that were moved there, `sources` of them, it says how far to take each
    picture, pixel by pixel, and what to add."""

    def __init__(self, features: int, width: int, sources: int, blocks: int):
        super().__init__()
        self.sources = sources
        self.stem = nn.Conv2d(features + 48 * sources, width, 3, padding=1)
        self.blocks = _stage(width, blocks, temporal=False)
        self.out = nn.Conv2d(width, 16 * (3 + sources), 3, padding=1)

    def forward(self, features: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """features (N, C, h, w), moved (N, sources, 3, 4h, 4w) to frames (N, 3, 4h, 4w)."""
        shown = F.pixel_unshuffle(moved.flatten(1, 2), 4).to(features.dtype)
        x = self.stem(torch.cat([features, shown], 1))[:, None]
        x = _run(self.blocks, x, FrameMemory())[:, 0]
        drawn = F.pixel_shuffle(self.out(F.silu(x)), 4)
        share = torch.sigmoid(drawn[:, 3:])
        return drawn[:, :3] + (share.unsqueeze(2) * moved.to(drawn.dtype)).sum(1)


def _stage(width: int, blocks: int, temporal: bool = True) -> nn.ModuleList:
    return nn.ModuleList(TemporalBlock(width, temporal=temporal and i == 0) for i in range(blocks))


def _run(stage: nn.ModuleList, x: torch.Tensor, memory: FrameMemory) -> torch.Tensor:
    for block in stage:
        x = block(x, memory)
    return x


def _fold(x: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, T, C, H, W) to (B, T / frames, frames * C, H, W)."""
    b, t, c, h, w = x.shape
    return x.reshape(b, t // frames, frames * c, h, w)


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
        self.enc_follow = Follower(a, *config.follower)
        self.enc_align = Aligner(0, config.follower[1], config.align_blocks) if config.align_blocks else None
        self.enc_down = conv(2 * a, b, 4, stride=2, padding=1)  # two frames at 1/4 to one at 1/8
        self.enc_join = conv(2 * (config.follower[2] + 2), b, 1)
        self.enc_pairs = _stage(b, config.encoder_blocks[1])
        self.enc_merge = conv(2 * b, c, 3, padding=1)
        self.enc_latent = _stage(c, config.encoder_blocks[2])
        self.enc_out = conv(c, 2 * z, 3, padding=1)  # mean and log-variance
        nn.init.constant_(self.enc_out.bias[z:], -5.0)  # type: ignore[index]  # start almost without noise, else nothing gets through
        self.dec_in = conv(z, c, 3, padding=1)
        self.dec_latent = _stage(c, config.decoder_blocks[0])
        self.dec_up = conv(c, 4 * a, 3, padding=1)
        self.dec_motion = nn.ModuleList([conv(a, a, 3, padding=1), conv(a, 2 * MOTIONS, 3, padding=1)])
        self.dec_anchor = Painter(a, a, 1, config.decoder_blocks[1])
        self.dec_tell = conv(a, (TEMPORAL - 1) * config.between, 3, padding=1)
        self.dec_align = Aligner(config.between, a, config.align_blocks) if config.align_blocks else None
        self.dec_between = Painter(config.between, a, 2, config.decoder_blocks[2])
        self.latent_mean: torch.Tensor
        self.latent_std: torch.Tensor
        self.register_buffer("latent_mean", torch.zeros(z))
        self.register_buffer("latent_std", torch.ones(z))

    def posterior(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance (B, z, 1 + k, h, w) of frames (B, 3, 1 + 4k, H, W) in [-1, 1]."""
        mean, log_var, _ = self.posterior_motion(frames)
        return mean, log_var

    def posterior_motion(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`posterior`, and where the encoder takes things to have been one frame earlier: (B, 4k, 2, h, w), pixels right and down."""
        _check_frames(frames, self.spatial_factor)
        memory = FrameMemory()
        x = _each(self.enc_in, _each(nn.PixelUnshuffle(4), frames.transpose(1, 2)))
        x = _run(self.enc_frames, x, memory)
        found, steps = self._follow(x, frames.transpose(1, 2))
        found = torch.cat([found, steps / 4], 2)
        # The first frame counts as four equal ones. At frame rate their features are equal too: computed once, repeated.
        x, found = (torch.cat([part[:, :1].expand(-1, TEMPORAL - 1, -1, -1, -1), part], 1) for part in (x, found))
        x = _each(self.enc_down, _fold(x, 2)) + _each(self.enc_join, _fold(found, 2))
        x = _run(self.enc_pairs, x, memory)
        x = _each(self.enc_merge, _fold(x, 2))
        x = _each(self.enc_out, _run(self.enc_latent, x, memory))
        mean, log_var = x.transpose(1, 2).chunk(2, 1)
        return mean, log_var.clamp(-20, 10), steps[:, 1:].float()

    def _follow(self, x: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the follower finds in features (B, T, C, h, w), its steps put right by the frames (B, T, 3, 4h, 4w) themselves."""
        found, steps = self.enc_follow(x)
        if self.enc_align is not None and frames.shape[1] > 1:
            now, before, way = (part.flatten(0, 1)[:, None] for part in (frames[:, 1:], frames[:, :-1], steps[:, 1:]))
            missing = self.enc_align(now.new_zeros(len(now), 0, *x.shape[-2:]), torch.cat([now, displaced(before, way)], 1))[:, 1]
            later = steps[:, 1:] + F.avg_pool2d(missing, 2).unflatten(0, (len(steps), -1)).to(steps.dtype)
            steps = torch.cat([steps[:, :1], later], 1)
        return found, steps

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        mean = self.posterior(frames.to(self.enc_in.weight.dtype))[0].float()
        return (mean - self.latent_mean.view(1, -1, 1, 1, 1)) / self.latent_std.view(1, -1, 1, 1, 1)

    def decode(self, latents: torch.Tensor, last: int | None = None, before: torch.Tensor | None = None) -> torch.Tensor:
        """Frames in [-1, 1]; with `last` only the last so many of them, equal to those of the whole and cheaper.

        With `before` (B, 3, H, W), the frame before these last ones (a multiple of four, but not all), they are drawn from that one.
        """
        return self.decode_motion(self.denormalise(latents), None, last, before)[0].float().clamp(-1, 1)

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
        frames, state, _ = self.decode_motion(x, memory, last)
        return frames, state

    def decode_motion(
        self, x: torch.Tensor, memory: list[torch.Tensor] | None = None, last: int | None = None, before: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """As `decode_raw`, or from `before` as `decode` has it, and how things move: (B, n, 7, 2, 2h, 2w) float32, pixels right and down.

        From each of a latent's frames 1 to 4 to where its things were in the anchor before, then from frames 1 to 3 to where they will be
        in its own anchor. Those of a stream's very first latent mean nothing; those of frames between are put right where these
        are drawn.
        """
        total = TEMPORAL * (x.shape[2] - 1) + 1
        if last is not None and not 1 <= last <= total:
            raise ValueError(f"last must be between 1 and the {total} frames that these latents hold, got {last}")
        if before is not None and (last is None or last % TEMPORAL or last == total):
            raise ValueError(f"the frame before the last {last} of {total} can't be given: it has to be the end of a latent's four")
        state = FrameMemory(memory[:-1] if memory else None)
        x = _run(self.dec_latent, _each(self.dec_in, x.transpose(1, 2)), state)
        x = _each(nn.PixelShuffle(2), _each(self.dec_up, x))  # (B, n, a, 2h, 2w)
        motion = _each(self.dec_motion[1], F.silu(_each(self.dec_motion[0], x))).float() * 4
        motion = motion.unflatten(2, (MOTIONS, 2))
        known = memory[-1][:, 0] if memory else None
        if before is not None and last is not None:  # what lies before it need not be drawn
            x, motion, known = x[:, -last // TEMPORAL :], motion[:, -last // TEMPORAL :], before.to(x.dtype)
        anchors = self._anchors(x, motion[:, :, TEMPORAL - 1], known)
        first = len(anchors) - x.shape[1]  # 1 where an anchor from before is known
        wanted = x.shape[1] - 1 + first if last is None else min(x.shape[1] - 1 + first, -(-last // TEMPORAL))
        frames = torch.stack(anchors[-wanted - 1 :], 1)  # (B, wanted + 1, 3, H, W)
        if wanted:
            between, ways = self._between(x[:, -wanted:], motion[:, -wanted:], frames)
            motion = torch.cat([motion[:, :-wanted], ways], 1)
            groups = torch.cat([between, frames[:, 1:, None]], 2).flatten(1, 2)
            frames = groups if first else torch.cat([frames[:, :1], groups], 1)
        frames = frames.transpose(1, 2)
        if last is not None:
            frames = frames[:, :, -last:]
        return frames, [*state.features, anchors[-1][:, None]], motion

    def _anchors(self, x: torch.Tensor, motion: torch.Tensor, before: torch.Tensor | None) -> list[torch.Tensor]:
        """The last frame (B, 3, H, W) of every latent, from features (B, n, a, 2h, 2w); first of them `before`, where it is known."""
        anchors = [] if before is None else [before]
        for i in range(x.shape[1]):
            if anchors:
                moved = displaced(anchors[-1][:, None], motion[:, i, None], self.config.sampling)
            else:
                moved = x.new_zeros(len(x), 1, 3, 4 * x.shape[-2], 4 * x.shape[-1])
            anchors.append(self.dec_anchor(x[:, i], moved))
        return anchors

    def _between(self, x: torch.Tensor, motion: torch.Tensor, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The three frames (B, n, 3, 3, H, W) of each latent before its last one, and the motion put right; anchors (B, n + 1, 3, H, W)."""
        b, n = x.shape[:2]
        told = _each(self.dec_tell, x).unflatten(2, (TEMPORAL - 1, -1)).flatten(0, 2)
        pairs = torch.stack([anchors[:, :-1], anchors[:, 1:]], 2)[:, :, None].expand(-1, -1, TEMPORAL - 1, -1, -1, -1, -1).flatten(0, 2)
        ways = torch.stack([motion[:, :, : TEMPORAL - 1], motion[:, :, TEMPORAL:]], 3).flatten(0, 2)  # (B * n * 3, 2, 2, 2h, 2w)
        if self.dec_align is not None:
            ways = ways + self.dec_align(told, displaced(pairs, ways))
        drawn = self.dec_between(told, displaced(pairs, ways, self.config.sampling))
        back, on = ways.unflatten(0, (b, n, TEMPORAL - 1)).unbind(3)
        return drawn.unflatten(0, (b, n, TEMPORAL - 1)), torch.cat([back, motion[:, :, TEMPORAL - 1 : TEMPORAL], on], 2)


def _check_frames(frames: torch.Tensor, factor: int) -> None:
    if frames.ndim != 5 or frames.shape[1] != 3:
        raise ValueError(f"frames must be (B, 3, T, H, W), got {tuple(frames.shape)}")
    t, h, w = frames.shape[2:]
    if (t - 1) % TEMPORAL or h % factor or w % factor:
        raise ValueError(
            f"the VAE takes 1 + {TEMPORAL}k frames with sides divisible by {factor}, got {t} frames of {h}x{w}: pad or crop them"
        )
