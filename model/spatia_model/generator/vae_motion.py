"""Motion between frames, for the embedded autoencoder: following things from frame to frame, and moving pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

REACH = 3  # cells of 4 pixels over which a thing is looked for in the frame before
NEAR = 2  # pixels over which two pictures of one frame are laid upon each other
CELL = 4  # pixels


class Follower(nn.Module):
    """Where each place of a frame was one frame earlier.

    Features are compared at many displacements (`match`, as PWC-Net and its kin do), and a few convolutions at half their resolution
    make sense of that: a wall without a pattern goes where its edges go.

    Args:
        features: channels of a frame, at 1/4 of the picture's size.
        looked, matched, found: channels that are compared, that hold the comparison, and that are given back.
    """

    def __init__(self, features: int, looked: int, matched: int, found: int):
        super().__init__()
        self.look = nn.Conv2d(features, looked, 1)
        self.sharpness = nn.Parameter(torch.tensor(2.0))  # log; a small difference of cosines tells much
        self.match = nn.Conv2d((2 * REACH + 1) ** 2 + looked, matched, 3, padding=1)
        self.down = nn.Conv2d(matched, found, 4, stride=2, padding=1)
        self.wide = nn.ModuleList(nn.Conv2d(found, found, 3, padding=d, dilation=d) for d in (1, 2, 1))
        self.step = nn.Conv2d(found, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, T, C, h, w) to what was found (B, T, found, h / 2, w / 2), and steps (B, T, 2, h / 2, w / 2): pixels right and down
        to where things were one frame earlier. Before the first frame, time stood still."""
        b, t = x.shape[:2]
        look = self.look(x.flatten(0, 1))
        look = (look - look.mean((2, 3), keepdim=True)).unflatten(0, (b, t))
        alike = match(look, torch.cat([look[:, :1], look[:, :-1]], 1), REACH)
        likely = torch.softmax(alike.float() * self.sharpness.exp(), 2).to(look.dtype) * 10
        y = F.silu(self.match(torch.cat([likely, look], 2).flatten(0, 1)))
        y = F.silu(self.down(y))
        for wide in self.wide:
            y = y + F.silu(wide(y))
        return y.unflatten(0, (b, t)), self.step(y).unflatten(0, (b, t)) * 4


def match(now: torch.Tensor, before: torch.Tensor, reach: int) -> torch.Tensor:
    """How alike each cell is to the cells about it in another frame.

    Args:
        now, before: features (B, T, C, h, w).
        reach: cells up to which one looks, in both directions.

    Returns:
        (B, T, (2 reach + 1)^2, h, w): cosines, displacements row by row from (-reach, -reach) on; 0 beyond the border.
    """
    b, t = now.shape[:2]
    a, o = (x * torch.rsqrt(x.float().square().sum(1, keepdim=True) + 1e-8).to(x.dtype) for x in (now.flatten(0, 1), before.flatten(0, 1)))
    o = F.pad(o, (reach, reach, reach, reach))
    compared = _shifts if torch.is_grad_enabled() and now.requires_grad else _bands
    return compared(a, o, reach).unflatten(0, (b, t))


def _shifts(a: torch.Tensor, o: torch.Tensor, reach: int) -> torch.Tensor:
    """Products of a (N, C, h, w) and padded o, one displacement after the other."""
    h, w = a.shape[-2:]
    return torch.stack([(a * o[:, :, y : y + h, x : x + w]).sum(1) for y in range(2 * reach + 1) for x in range(2 * reach + 1)], 1)


def _bands(a: torch.Tensor, o: torch.Tensor, reach: int) -> torch.Tensor:
    """The same, faster and without gradients: each row of cells times a whole row of the other frame, of which a band is kept."""
    n, c, h, w = a.shape
    side = 2 * reach + 1
    rows = a.permute(0, 2, 3, 1).reshape(n * h, w, c)
    others = o.transpose(1, 2).contiguous()  # (N, h + 2 reach, C, w + 2 reach)
    bands = []
    for y in range(side):
        whole = torch.bmm(rows, others[:, y : y + h].reshape(n * h, c, w + 2 * reach))
        bands.append(whole.as_strided((n * h, w, side), (w * (w + 2 * reach), w + 2 * reach + 1, 1)))
    return torch.stack(bands, 2).view(n, h, w, side**2).permute(0, 3, 1, 2)


def displaced(pictures: torch.Tensor, motion: torch.Tensor, sampling: str = "bilinear") -> torch.Tensor:
    """Pictures seen through a field of displacements; beyond the border, its colours.

    Args:
        pictures: (N, S, 3, H, W).
        motion: (N, S, 2, h, w) pixels right and down, from each place to where its colour is; a smaller field is enlarged.
        sampling: "bilinear", or "bicubic", which keeps fine patterns that the former washes out at half pixels.

    Returns:
        (N, S, 3, H, W).
    """
    n, s, _, height, width = pictures.shape
    field = motion.flatten(0, 1).float()
    if field.shape[-2:] != (height, width):
        field = F.interpolate(field, size=(height, width), mode="bilinear", align_corners=False)
    y = torch.arange(height, device=field.device) + 0.5
    x = torch.arange(width, device=field.device) + 0.5
    grid = torch.stack([(field[:, 0] + x) * (2 / width) - 1, (field[:, 1] + y[:, None]) * (2 / height) - 1], -1)
    out = F.grid_sample(pictures.flatten(0, 1).float(), grid, mode=sampling, padding_mode="border", align_corners=False)
    return out.to(pictures.dtype).unflatten(0, (n, s))


class Aligner(nn.Module):
    """Puts right where two pictures of a frame, moved there from the frames before and after, do not meet.

    Motion that is found by features, or told by a latent, is off by parts of a pixel; the two pictures show by how much. They are compared
    at small displacements, as bidirectional interpolators do (BMBC, RIFE), and a few convolutions tell what to add to either motion.
    """

    def __init__(self, features: int, width: int, blocks: int):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(4.0))  # log; of differences in brightness
        self.stem = nn.Conv2d(features + 2 * 3 * CELL**2 + (2 * NEAR + 1) ** 2, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * blocks))
        self.out = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Features (N, C, h, w) and moved pictures (N, 2, 3, 4h, 4w) to what either motion lacks: (N, 2, 2, h, w) float32, in pixels."""
        unlike = disagreement(moved)
        likely = torch.softmax(-unlike * self.sharpness.exp(), 1).to(features.dtype) * 5
        x = self.stem(torch.cat([features, F.pixel_unshuffle(moved.flatten(1, 2), CELL).to(features.dtype), likely], 1))
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = x + second(F.silu(first(F.silu(x))))
        return self.out(F.silu(x)).float().unflatten(1, (2, 2))


def disagreement(moved: torch.Tensor) -> torch.Tensor:
    """How unlike two pictures are in each cell when the second is shifted.

    Args:
        moved: (N, 2, 3, H, W).

    Returns:
        (N, (2 NEAR + 1)^2, H / 4, W / 4) float32: mean differences in brightness, displacements row by row from (-NEAR, -NEAR) on; at the
        border, its colours go on.
    """
    height, width = moved.shape[-2:]
    first, second = moved.float().mean(2).unbind(1)
    second = F.pad(second[:, None], (NEAR, NEAR, NEAR, NEAR), mode="replicate")[:, 0]
    cells = (len(moved), height // CELL, CELL, width // CELL, CELL)
    unlike = []
    for y in range(2 * NEAR + 1):
        for x in range(2 * NEAR + 1):
            apart = (first - second[:, y : y + height, x : x + width]).abs()
            unlike.append(apart.view(cells).sum(2).sum(3))  # rows first: half the time of a pooling layer
    return torch.stack(unlike, 1) / CELL**2
