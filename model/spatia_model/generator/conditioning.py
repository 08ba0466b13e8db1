"""From what the memory and the recent past show to what the denoiser reads.

Control is the projection video's latents beside its holes (FACTS section 2). The release encodes the hole video with
the VAE too; the embedded tier pools it to the latent grid instead, which keeps exact hole shares and saves a pass, and
adds a third part the release has not: where the last frames moved. The background projected behind a mover counts as
covered, so without that mark control would erase the mover. It also fills the projection's holes with what lies beside
them: black edges would cost the VAE the pixels around, and a small denoiser a good part of what it can learn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spatia_model.generator.vae import VideoVAE


def to_model(frames: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, 3) uint8 to (B, 3, T, H, W) float32 in [-1, 1]."""
    return (frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).contiguous()


def to_frames(x: torch.Tensor) -> torch.Tensor:
    """(B, 3, T, H, W) in [-1, 1] to (B, T, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def pool_mask(mask: torch.Tensor, spatial: int, temporal: int) -> torch.Tensor:
    """Shares of a per-frame mask on the latent grid.

    Args:
        mask: (B, 1 + 4k, H, W), bool or in 0..1; the first frame counts for `temporal` frames, as in the VAE.

    Returns:
        (B, temporal, 1 + k, H / spatial, W / spatial) float32: one channel per frame of a latent frame.
    """
    b, t, h, w = mask.shape
    if (t - 1) % temporal or h % spatial or w % spatial:
        raise ValueError(f"a mask of 1 + {temporal}k frames with sides divisible by {spatial} is needed, got {tuple(mask.shape)}")
    x = F.avg_pool2d(mask.float(), spatial)  # frames are channels here
    x = torch.cat([x[:, :1].expand(-1, temporal - 1, -1, -1), x], 1)
    return x.unflatten(1, (-1, temporal)).transpose(1, 2)


def fill_holes(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pictures whose holes hold the colours beside them, ever broader averages the deeper the hole.

    Along each row first: a turn of the camera uncovers the picture's sides, where floors, walls and ceilings go on. Rows without a
    single known pixel take from the rows about them. A picture that knows nothing is 0 (grey).

    Args:
        x: (N, C, H, W) in [-1, 1].
        mask: (N, 1, H, W) in 0..1, 1 where x counts. H and W are even.
    """
    half, share = _halve(x * mask, (2, 3)), _halve(mask, (2, 3))  # what fills holes is smooth: a quarter of the pixels will do
    rows = _pull_push(half, share, (3,))
    known = (share.amax(-1, keepdim=True) > 0).to(x.dtype).expand_as(share)
    if not known.all():
        rows = known * rows + (1 - known) * _pull_push(rows * known, known, (2, 3))
    return torch.lerp(_double(rows, (2, 3)), x, mask)


def _pull_push(weighted: torch.Tensor, weight: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Weighted means at every scale (pull), each filled in where it knows nothing from the next broader one (push)."""
    mean = weighted / weight.clamp(min=1e-6)
    if any(weight.shape[dim] % 2 for dim in dims):
        return mean
    broad = _pull_push(_halve(weighted, dims), _halve(weight, dims), dims)
    return torch.lerp(_double(broad, dims), mean, weight)


def _halve(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Means of neighbours; several times faster on a CPU than pooling by so little."""
    for dim in dims:
        x = x.unflatten(dim, (-1, 2))
        x = (x.select(dim + 1, 0) + x.select(dim + 1, 1)) / 2
    return x


def _double(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Twice the size, linear between the pixels' centres, the edges repeated."""
    for dim in dims:
        count = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, count - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, count - 1), x.narrow(dim, count - 1, 1)], dim)
        x = torch.stack([torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25)], dim + 1).flatten(dim, dim + 1)
    return x


def pooled_control(vae: VideoVAE, projection: torch.Tensor, mask: torch.Tensor, dynamic: torch.Tensor) -> torch.Tensor:
    """The embedded tier's control (B, C + 8, F, h, w).

    Args:
        projection: (B, T, H, W, 3) uint8, history and target frames.
        mask: (B, T, H, W) bool, True where the memory covers the pixel.
        dynamic: (B, T, H, W) in 0..1, probability of motion; zeros for target frames.
    """
    shown = to_model(projection)
    shape = shown.transpose(1, 2).shape
    filled = fill_holes(shown.transpose(1, 2).flatten(0, 1), mask.flatten(0, 1).unsqueeze(1).to(shown.dtype))
    latents = vae.encode(filled.view(shape).transpose(1, 2).contiguous()).float()
    s, t = vae.spatial_factor, vae.temporal_factor
    return torch.cat([latents, pool_mask(mask, s, t), pool_mask(dynamic, s, t)], 1)


def encoded_control(vae: VideoVAE, projection: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The release's control (B, 2C, F, h, w): VAE of the projection beside VAE of the hole video (255 - coverage, in [0, 1])."""
    holes = (~mask).float().unsqueeze(1).expand(-1, 3, -1, -1, -1)
    return torch.cat([vae.encode(to_model(projection)).float(), vae.encode(holes).float()], 1)


def encode_references(vae: VideoVAE, references: torch.Tensor) -> torch.Tensor:
    """Single frames (R, H, W, 3) uint8 to latents (C, R, h, w); each is its own one-frame video."""
    latents = vae.encode(to_model(references.unsqueeze(1)))  # (R, C, 1, h, w)
    return latents[:, :, 0].transpose(0, 1).float()
