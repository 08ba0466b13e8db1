"""How things move between the frames of a clip, from depth and cameras: what the autoencoder has to find, and its latents to tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from spatia_model.generator.vae import TEMPORAL
from spatia_model.generator.vae_motion import CELL
from spatia_model.types import Camera

FARTHEST = 48.0  # pixels: what comes from farther away is nowhere in a clip
PLAIN = 0.02  # weight of a place without any pattern; an edge from black to white has 2


def told_pairs(frames: int) -> list[tuple[int, int]]:
    """Of which frames to which `CompactVideoVAE.decode_motion` tells motion, in its order, the first latent left out."""
    group = [(t, 0) for t in range(1, TEMPORAL + 1)] + [(t, TEMPORAL) for t in range(1, TEMPORAL)]
    return [(first + here, first + there) for first in range(0, frames - 1, TEMPORAL) for here, there in group]


def all_pairs(frames: int) -> list[tuple[int, int]]:
    """`told_pairs`, and then each frame but the first to the one before, as `CompactVideoVAE.posterior_motion` finds it."""
    return told_pairs(frames) + [(t, t - 1) for t in range(1, frames)]


@dataclass(frozen=True)
class Motion:
    """`way` (..., P, 2, h, w): for P pairs of frames, pixels right and down from each cell of the one to where its surface is in the other;
    `known` (..., P, 1, h, w): where that is so."""

    way: torch.Tensor
    known: torch.Tensor

    @classmethod
    def none(cls, pairs: int, side: int, known: bool = True) -> Motion:
        """Everything stands still (or nobody knows), in pictures of `side` pixels."""
        cells = side // CELL
        return cls(torch.zeros(pairs, 2, cells, cells), torch.full((pairs, 1, cells, cells), known))

    @classmethod
    def stack(cls, motions: list[Motion]) -> Motion:
        return cls(torch.stack([m.way for m in motions]), torch.stack([m.known for m in motions]))

    def mirrored(self) -> Motion:
        """Left and right exchanged."""
        return Motion(self.way.flip(-1) * self.way.new_tensor([-1.0, 1.0]).view(2, 1, 1), self.known.flip(-1))

    def to(self, device: torch.device) -> Motion:
        return Motion(self.way.to(device), self.known.to(device))

    def off(self, told: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """How many pixels `told`, of the shape of `way`, is off where motion is known, a mean weighed by `weight`; 0 if that is nowhere."""
        share = self.known * weight
        return ((told - self.way).abs() * share).sum() / (2 * share.sum()).clamp(min=1e-6)


def pattern(frames: torch.Tensor) -> torch.Tensor:
    """How much there is to see in each cell of frames (B, 3, T, H, W): (B, T, 1, H / 4, W / 4), mean slope of the colours, and PLAIN.

    Where a wall is plain nobody can tell how it moved, nor need anyone.
    """
    x = frames.transpose(1, 2)
    slope = F.pad(x.diff(dim=-1).abs(), (0, 1)) + F.pad(x.diff(dim=-2).abs(), (0, 0, 0, 1))
    return F.avg_pool2d(slope.mean(2).flatten(0, 1)[:, None], CELL).unflatten(0, x.shape[:2]) + PLAIN


def motion_between(
    depth: torch.Tensor,
    dynamic: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    corner: tuple[int, int],
    pairs: list[tuple[int, int]],
) -> Motion:
    """The motion of static surfaces in a clip.

    Args:
        depth: (T, h, w) z-depth in metres, 0 where there is none; a piece of the camera's picture.
        dynamic: (T, h, w) bool, what moves by itself: its motion is not known.
        T_world_camera: (T, 4, 4).
        corner: row and column of the piece in the picture.
        pairs: of which frame to which.
    """
    half = CELL // 2
    z, still = depth[:, half::CELL, half::CELL].double(), ~dynamic[:, half::CELL, half::CELL]
    K, poses = camera.K.double(), T_world_camera.double()
    v = torch.arange(z.shape[1], dtype=torch.float64) * CELL + half + 0.5 + corner[0]
    u = torch.arange(z.shape[2], dtype=torch.float64) * CELL + half + 0.5 + corner[1]
    rays = torch.stack([((u - K[0, 2]) / K[0, 0]).expand(len(v), -1), ((v - K[1, 2]) / K[1, 1])[:, None].expand(-1, len(u))])
    here, there = torch.tensor(pairs).unbind(1)
    T_there_here = torch.linalg.solve(poses[there], poses[here])  # (P, 4, 4)
    points = torch.cat([rays * z[:, None], z[:, None]], 1)[here].flatten(2)  # (P, 3, h * w)
    moved = (T_there_here[:, :3, :3] @ points + T_there_here[:, :3, 3:]).unflatten(2, z.shape[1:])
    focal = torch.stack([K[0, 0], K[1, 1]]).view(2, 1, 1)
    way = focal * (moved[:, :2] / moved[:, 2:].clamp(min=1e-6) - rays)
    known = (still & (z > 0))[here].unsqueeze(1) & (moved[:, 2:] > 0.05) & (way.abs().amax(1, keepdim=True) < FARTHEST)
    return Motion(torch.where(known, way, torch.zeros_like(way)).float(), known)
