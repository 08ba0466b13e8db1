"""Detail past the autoencoder: what the memory already shows sharply need not be squeezed through latents.

The embedded VAE keeps one number in twelve, the map's rendering keeps the pixels it saw. A small network
looks at both, decides pixel by pixel how far to trust the rendering (not at all on holes and movers), and corrects what
is left. The released 5B tier has no such part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class RefinerConfig:
    width: int = 32
    blocks: int = 3

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 1:
            raise ValueError(f"the refiner needs a positive width and number of blocks, got {self}")


class DetailRefiner(nn.Module):
    """Frame by frame: decoded picture, projection and mask to the final picture."""

    def __init__(self, config: RefinerConfig | None = None):
        super().__init__()
        self.config = config = config or RefinerConfig()
        w = config.width
        self.stem = nn.Conv2d(7 * 4, w, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for _ in range(config.blocks))
        self.second = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for _ in range(config.blocks))
        self.head = nn.Conv2d(w, 4 * 4, 3, padding=1)
        for conv in (*self.second, self.head):
            nn.init.zeros_(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, decoded: torch.Tensor, projection: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Final frames, not clamped.

        Args:
            decoded: (N, 3, H, W) in [-1, 1], even sides.
            projection: (N, 3, H, W) in [-1, 1].
            mask: (N, 1, H, W) in 0..1, 1 where the memory covers the pixel.

        Returns:
            (N, 3, H, W).
        """
        difference = (projection - decoded) * mask
        x = self.stem(F.pixel_unshuffle(torch.cat([decoded, difference, mask], 1), 2).to(self.stem.weight.dtype))
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.silu(first(x)))
        out = F.pixel_shuffle(self.head(F.silu(x)), 2).to(decoded.dtype)
        return decoded + torch.sigmoid(out[:, 3:]) * difference + out[:, :3]

    def refine(self, decoded: torch.Tensor, projection: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`forward` over videos: decoded (B, 3, T, H, W) in [-1, 1], projection (B, T, H, W, 3) uint8, mask (B, T, H, W) bool."""
        b, _, t, h, w = decoded.shape
        shown = (projection.permute(0, 1, 4, 2, 3).float() / 127.5 - 1).reshape(b * t, 3, h, w)
        frames = self(decoded.transpose(1, 2).reshape(b * t, 3, h, w), shown, mask.reshape(b * t, 1, h, w).float())
        return frames.view(b, t, 3, h, w).transpose(1, 2).clamp(-1, 1)
