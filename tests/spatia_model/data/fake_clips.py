"""Clips of random numbers in the shape of the tiny model: 13 frames of 32 pixels, 4 latent frames of 4x4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spatia_model.data.schema import Clip, write_shard
from tests.spatia_model.tiny import SIZE, picture, walk

METADATA = {"control": "pooled", "latent_channels": 4, "vae": "tiny", "sources": ["fake"]}


def clip(number: int = 0, video: str = "v0", references: int = 2, size: int = SIZE, pixels: bool = True, **changes: Any) -> Clip:
    g = torch.Generator().manual_seed(1000 * number + hash(len(video)) % 97 + size)
    t, c, side = 13, 4, size // 8
    poses = torch.cat([torch.eye(4, dtype=torch.float64)[None], walk(0, frames=t - 1)])

    def latents(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).half()

    values: dict[str, Any] = {
        "key": f"{video}-{number}",
        "video": video,
        "number": number,
        "caption": f"a red ball rolls to the {('left', 'right')[number % 2]}",
        "prompt": "a room",
        "preceding": 5,
        "fps": 8.0,
        "height": size,
        "width": size,
        "frame_numbers": tuple(range(8 * number, 8 * number + t)),
        "candidate_frames": (0, 3, 50),
        "cloud_frame": 3,
        "T_world_camera": poses,
        "intrinsics": torch.tensor([0.65, 0.65, 0.5, 0.5], dtype=torch.float64).repeat(t, 1),
        "reference_frames": tuple(range(50, 50 + references)),
        "reference_poses": poses[:references],
        "reference_iou": torch.linspace(0.9, 0.1, references),
        "provenance": {"source": "fake", "seed": number},
        "latents": latents(c, 4, side, side),
        "projection": latents(c, 4, side, side),
        "holes": torch.rand(8, 4, side, side, generator=g).half(),
        "references": latents(references, c, side, side),
        "moving": torch.randint(0, 256, (4, side, side), generator=g, dtype=torch.uint8),
        "uncovered": torch.randint(0, 2, (4, side, side), generator=g, dtype=torch.uint8) * 255,
    }
    if pixels:
        frames = torch.stack([picture(number, size, size).roll(i, 1) for i in range(t)])
        mask = torch.rand(t, size, size, generator=g) > 0.3
        values |= {
            "frames": frames,
            "projection_frames": frames * mask.unsqueeze(-1),
            "projection_depth": (1 + torch.rand(t, size, size, generator=g)).half() * mask,
            "reference_images": frames[:references],
            "depth": (1 + 4 * torch.rand(t, size, size, generator=g)).half(),
            "dynamic": torch.rand(t, size, size, generator=g) > 0.8,
        }
    return Clip(**{**values, **changes})


def write(folder: Path, videos: int = 2, clips: int = 3, **changes: Any) -> Path:
    """`folder` with one shard per video."""
    for v in range(videos):
        rows = [clip(10 * v + n, f"v{v}", references=min(n, 2), **changes) for n in range(clips)]
        write_shard(folder / f"{v:05d}.parquet", rows, METADATA)
    return folder
