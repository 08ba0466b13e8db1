"""A walk made of random numbers, in memory or as files, for tests that need no rendering."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from spatia_model.data.windows import Walk
from tests.spatia_model.tiny import SEED, SIZE, picture, walk

CLIPS = 3


def tensors(seed: int = SEED, clips: int = CLIPS, size: int = SIZE) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a walk's file and its memory's file hold."""
    generator = torch.Generator().manual_seed(seed)
    n = 1 + 8 * clips
    rgb = torch.stack([picture(seed, size, size).roll(i, 1) for i in range(n)])
    mask = torch.rand(n, size, size, generator=generator) > 0.3
    references = torch.full((clips, 3), -1, dtype=torch.int32)
    for clip in range(clips):
        references[clip, : min(clip, 2) + 1] = torch.arange(min(clip, 2) + 1) * 8
    return (
        {
            "rgb": rgb,
            "depth": (1 + 4 * torch.rand(n, size, size, generator=generator)).half(),
            "dynamic": torch.rand(n, size, size, generator=generator) > 0.8,
            "T_world_camera": torch.cat([torch.eye(4, dtype=torch.float64)[None], walk(0, frames=8 * clips)]),
        },
        {
            "projection_rgb": rgb.roll(1, 0) * mask.unsqueeze(-1),
            "projection_depth": (1 + 4 * torch.rand(n, size, size, generator=generator)).half() * mask,
            "references": references,
        },
    )


def write(folder: Path, seed: int = SEED, clips: int = CLIPS, size: int = SIZE) -> None:
    """`folder`/walks and `folder`/windows with one walk more."""
    name = f"{seed:07d}.safetensors"
    walked, remembered = tensors(seed, clips, size)
    for place in ("walks", "windows"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    captions = json.dumps([f"a ball rolls to the {('left', 'right')[i % 2]}" for i in range(clips)])
    save_file(walked, folder / "walks" / name, metadata={"seed": str(seed), "captions": captions, "prompt": "a room"})
    save_file(
        {k: v.contiguous() for k, v in remembered.items()}, folder / "windows" / name, metadata={"seed": str(seed), "overlooked": "0"}
    )


class _Slices:
    """A safetensors handle over tensors."""

    def __init__(self, held: dict[str, torch.Tensor], captions: list[str]):
        self.held, self.captions = held, captions

    def get_slice(self, name: str):
        tensor = self.held[name]

        class Slice:
            def get_shape(self):
                return list(tensor.shape)

            def __getitem__(self, key):
                return tensor[key].clone()

        return Slice()

    def metadata(self):
        return {"captions": json.dumps(self.captions)}


def fake_walk(seed: int = SEED, mirrored: bool = False) -> Walk:
    """A walk in memory, or its mirror image."""
    captions = ["a ball rolls to the right" if mirrored else "a ball rolls to the left"] * CLIPS
    parts = [{k: v.flip(2) if mirrored and v.ndim > 2 and v.shape[-1] != 4 else v for k, v in part.items()} for part in tensors(seed)]
    return Walk(*(_Slices(part, captions) for part in parts))
