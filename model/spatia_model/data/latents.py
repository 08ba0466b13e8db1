"""Windows as the denoiser sees them: latents of frames, control and references, made once with a frozen encoder.

Per walk one file: `target` (clips, C, F, h, w) and `control` (clips, C + 8, F, h, w) float16 over history and target,
`references` (clips, K, C, h, w) float16 with `reference_count` (clips,), `moving` (clips, F, h, w) uint8: share of moving
pixels in 255ths, `uncovered` likewise: share of pixels that the memory does not cover.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch

from spatia_model.config import MiniConfig
from spatia_model.data.procedural import ClipFolder, run_jobs, write_atomic
from spatia_model.data.windows import Walk, WindowFolder
from spatia_model.generator.conditioning import encode_references, pool_mask, pooled_control, to_model
from spatia_model.generator.vae import VideoVAE
from spatia_model.types import Projection


def window_frames(clip: int, config: MiniConfig) -> torch.Tensor:
    """Frame numbers (window,) of a clip's history and target; before the walk began, time stood still."""
    return torch.arange(-config.history_frames + 1, config.frames_per_clip + 1).add(clip * config.frames_per_clip).clamp(min=0)


def read_window(walk: Walk, clip: int, config: MiniConfig) -> tuple[torch.Tensor, torch.Tensor, Projection]:
    """rgb (T, H, W, 3), dynamic (T, H, W) and projection of one clip's window, as the world loop would present it."""
    frames = window_frames(clip, config)
    a, b = int(frames[0]), int(frames[-1]) + 1
    rows = frames - a
    projection = walk.projection(a, b)
    shown = Projection(*(getattr(projection, name)[rows] for name in ("rgb", "depth", "mask", "index")))
    return walk.rgb(a, b)[rows], walk.dynamic(a, b)[rows].float(), shown


def mirrored(caption: str) -> str:
    """The caption of the mirrored picture: left and right change places."""
    return re.sub(r"\b(left|right)\b", lambda m: "right" if m[1] == "left" else "left", caption)


@torch.inference_mode()
def encode_walk(walk: Walk, vae: VideoVAE, config: MiniConfig, mirror: bool = False) -> dict[str, torch.Tensor]:
    """All clips of one walk, or of its mirror image."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.flip(2) if mirror else x  # (T, H, W, ...): columns

    k, s, t = config.max_references, vae.spatial_factor, vae.temporal_factor
    rows: dict[str, list[torch.Tensor]] = {n: [] for n in ("target", "control", "references", "reference_count", "moving", "uncovered")}
    for clip in range(len(walk.captions)):
        rgb, dynamic, projection = read_window(walk, clip, config)
        rgb, dynamic, shown, mask = turned(rgb), turned(dynamic), turned(projection.rgb), turned(projection.mask)
        known = dynamic.clone()
        known[config.history_frames :] = 0
        if clip == 0 and walk.overlooked:
            known[:] = 0
        rows["target"].append(vae.encode(to_model(rgb[None])).float()[0])
        rows["control"].append(pooled_control(vae, shown[None], mask[None], known[None])[0])
        ids = walk.references(clip)
        references = torch.zeros(k, *rows["target"][-1][:, 0].shape)
        if ids:
            references[: len(ids)] = encode_references(vae, turned(torch.cat([walk.rgb(i, i + 1) for i in ids]))).transpose(0, 1)
        rows["references"].append(references)
        rows["reference_count"].append(torch.tensor(len(ids)))
        rows["moving"].append(pool_mask(dynamic[None], s, t)[0].mean(0))
        rows["uncovered"].append(pool_mask((~mask)[None], s, t)[0].mean(0))
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    for name in ("moving", "uncovered"):
        stacked[name] = (stacked[name] * 255).round().to(torch.uint8)
    return {n: v.half() if v.is_floating_point() else v for n, v in stacked.items()}


def make_latents(folder: WindowFolder, out: Path, vae: VideoVAE, config: MiniConfig, processes: int = 1) -> None:
    """Encode every walk and its mirror image that have no latents yet."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = []
    for index, path in enumerate(folder.windows.files):
        jobs += [(folder, index, out / f"{path.stem}{suffix}.safetensors", vae, config) for suffix in ("", "-mirror")]
    run_jobs(_encode, [job for job in jobs if not job[2].exists()], processes, f"latents in {out.name}")


def _encode(args: tuple[WindowFolder, int, Path, VideoVAE, MiniConfig]) -> None:
    folder, index, path, vae, config = args
    torch.set_num_threads(1)
    walk, mirror = folder.open(index), path.stem.endswith("mirror")
    captions = [mirrored(c) if mirror else c for c in walk.captions]
    with torch.autocast("cpu", torch.bfloat16):  # stored in 16 bits anyway
        tensors = encode_walk(walk, vae, config, mirror)
    write_atomic(path, tensors, {"captions": json.dumps(captions), "prompt": walk.prompt})


class LatentFolder:
    """Random windows from a folder of latents."""

    def __init__(self, directory: Path):
        self.files = ClipFolder(directory)

    def window(self, rng: np.random.Generator, least_references: int = 0) -> tuple[dict[str, torch.Tensor], str, str]:
        """One window's tensors, its world's prompt and its clip's text; only windows with at least so many references."""
        for _ in range(100):
            handle = self.files.pick(rng)
            counts = handle.get_tensor("reference_count")
            fitting = (counts >= least_references).nonzero()[:, 0]
            if len(fitting):
                clip = int(fitting[rng.integers(len(fitting))])
                names = ("target", "control", "references", "moving", "uncovered")
                described = handle.metadata()
                tensors = {n: handle.get_slice(n)[clip : clip + 1][0].float() for n in names}
                return tensors, described["prompt"], json.loads(described["captions"])[clip]
        raise ValueError(f"no window in {self.files.directory} has {least_references} references")
