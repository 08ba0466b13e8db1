"""Detail beside the trunk: a few convolutions on the latent grid.

The embedded tier's tokens are 4x4 patches, so one holds fewer numbers than its patch and neighbours meet only in attention. These
convolutions see every latent pixel: what the trunk predicts, what it read there, and how noisy it is. The released model has no such
part; its patches are 2x2 and its tokens wide.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DetailHead(nn.Module):
    """Correction of the predicted clean latents, frame by frame.

    Args:
        latents: channels C of the latents.
        control: channels of the control latents.
        features: channels that the trunk hands over at latent resolution.
        width: of the convolutions.
    """

    def __init__(self, latents: int, control: int, features: int, width: int, blocks: int = 2):
        super().__init__()
        self.stem = nn.Conv2d(3 * latents + control + features + 1, width, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.out = nn.Conv2d(width, latents, 3, padding=1)

    def initialise(self) -> None:
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=5**0.5)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        for conv in (*self.second, self.out):
            nn.init.zeros_(conv.weight)  # type: ignore[arg-type]

    def forward(
        self,
        noised: torch.Tensor,
        prediction: torch.Tensor,
        first_before: torch.Tensor,
        control: torch.Tensor,
        features: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """The corrected prediction (B, C, F, h, w).

        Every frame also sees what the trunk predicts for the frame before it, else details would be drawn anew in each.

        Args:
            noised, prediction, control, features: (B, channels, F, h, w).
            first_before: (B, C, 1, h, w), the trunk's prediction of the frame before the first of these.
            noise: (B, F) in 0..1.
        """
        b, _, f, h, w = prediction.shape
        before = torch.cat([first_before, prediction[:, :, :-1]], 2)
        level = noise[:, None, :, None, None].expand(b, 1, f, h, w)
        parts = [part.to(prediction.dtype) for part in (noised, prediction, before, control, features, level)]
        x = torch.cat(parts, 1).transpose(1, 2).flatten(0, 1).to(self.stem.weight.dtype)
        x = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            y = x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-4).to(x.dtype)
            x = x + second(F.silu(first(y)))
        return prediction + self.out(F.silu(x)).unflatten(0, (b, f)).transpose(1, 2).to(prediction.dtype)
