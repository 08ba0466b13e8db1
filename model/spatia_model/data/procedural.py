"""Clips of procedural worlds on disk: one safetensors file per world, read by slices.

A file holds a whole walk: `rgb` (N, H, W, 3) uint8, `depth` (N, H, W) float16 metres, `dynamic` (N, H, W) bool,
`T_world_camera` (N, 4, 4) float64, N = 1 + 8 clips, 8 frames a second; its metadata holds the world's seed and the
caption of each clip, and the whole world's ("prompt").
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spatia_model.config import FRAME_RATE, MiniConfig, mini_camera
from spatia_model.types import Camera
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import pose_from, sample_path
from spatia_model.worlds.watching import watching_walk


def walk(seed: int, clips: int, config: MiniConfig) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Render one world along a random collision-free path; returns tensors and metadata (see the module's docstring)."""
    world = World.generate(seed)
    rng = np.random.default_rng([seed, 1])
    path = sample_path(world, rng, clips, config.frames_per_clip)
    return _rendered(world, path, torch.arange(len(path), dtype=torch.float64) / FRAME_RATE, clips, config)


def watch(seed: int, clips: int, config: MiniConfig) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """As `walk`, but the camera stays before something that moves. Where there is nothing to watch: an ordinary walk."""
    found = watching_walk(seed, clips, config.frames_per_clip, mini_camera(config))
    return walk(seed, clips, config) if found is None else _rendered(*found, clips, config)


def views(seed: int, count: int, config: MiniConfig, anywhere: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """`count` pictures of one world, each from another place at another time: many rooms teach more about depth than many frames.

    Every other one is what a first picture may be; the others look anywhere, as a walk comes to: at walls an arm's length away, too.
    Without `anywhere` all are first pictures.
    """
    world, rng = World.generate(seed), np.random.default_rng([seed, 29])
    tilts = [pose_from(0.0, 0.0, 0.0, 0.0, float(rng.normal(0, 0.1)), float(rng.normal(0, 0.02))) for _ in range(count)]
    poses = torch.stack([(_anywhere if anywhere and i % 2 else World.start_pose)(world, rng) @ tilt for i, tilt in enumerate(tilts)])
    times = torch.from_numpy(rng.uniform(0, 48, count))
    return _pictures(world, poses, times, config), {"seed": str(seed)}


def _anywhere(world: World, rng: np.random.Generator) -> torch.Tensor:
    cells = world.free_cells()
    x, z = cells[int(rng.integers(len(cells)))].tolist()
    height = min(float(rng.uniform(1.1, 1.65)), world.plan.height - 0.5)
    return pose_from(x, -height, z, float(rng.uniform(-math.pi, math.pi)), float(rng.normal(-0.06, 0.06)), 0.0)


def _pictures(world: World, poses: torch.Tensor, times: torch.Tensor, config: MiniConfig) -> dict[str, torch.Tensor]:
    truth = world.render(poses, mini_camera(config), times, threads=1)
    return {"rgb": truth.rgb, "depth": truth.depth.half(), "dynamic": truth.dynamic, "T_world_camera": poses}


def _rendered(
    world: World, path: torch.Tensor, times: torch.Tensor, clips: int, config: MiniConfig
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    captions = []
    for clip in range(clips):
        window = slice(clip * config.frames_per_clip, (clip + 1) * config.frames_per_clip + 1)
        captions.append(world.describe(path[window], mini_camera(config), times[window]))
    return _pictures(world, path, times, config), {"seed": str(world.seed), "captions": json.dumps(captions), "prompt": world.caption()}


def write_atomic(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_suffix(f".partial{os.getpid()}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
    os.replace(temporary, path)


def _make(args: tuple[int, int, MiniConfig, Path, str]) -> None:
    seed, clips, config, directory, kind = args
    torch.set_num_threads(1)
    path = directory / f"{seed:07d}.safetensors"
    if not path.exists():
        write_atomic(path, *{"walk": walk, "watch": watch, "views": views}[kind](seed, clips, config))


def make_walks(
    directory: Path, seeds: range, clips: int = 7, config: MiniConfig | None = None, processes: int = 1, kind: str = "walk"
) -> None:
    """Render the worlds of `seeds` into `directory`; files that exist are kept, so an interrupted run goes on.

    `kind`: "walk", "watch" or "views", the function of that name; of views, `clips` says how many.
    """
    directory.mkdir(parents=True, exist_ok=True)
    jobs = [(seed, clips, config or MiniConfig(), directory, kind) for seed in seeds]
    run_jobs(_make, jobs, processes, f"worlds in {directory.name}")


def run_jobs(function, jobs: list, processes: int, label: str) -> None:
    """Run `function` over `jobs` with progress on stderr, in this process or in several."""
    started = time.monotonic()

    def progress(done: int) -> None:
        if done % 20 == 0 or done == len(jobs):
            pace = (time.monotonic() - started) / done
            print(f"{label}: {done}/{len(jobs)}, {pace * (len(jobs) - done) / 60:.1f} min left", file=sys.stderr, flush=True)

    if processes <= 1:
        for i, job in enumerate(jobs):
            function(job)
            progress(i + 1)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for i, _ in enumerate(pool.map(function, jobs)):
            progress(i + 1)


@dataclass(frozen=True)
class Film:
    """A piece of a video: rgb (T, h, w, 3) uint8, T_world_camera (T, 4, 4), the whole picture's camera, the piece's first row and column.

    Where they are known, depth (T, h, w) in metres, and dynamic (T, h, w) bool, what moves by itself.
    """

    rgb: np.ndarray
    T_world_camera: torch.Tensor
    camera: Camera
    corner: tuple[int, int]
    depth: torch.Tensor | None = None
    dynamic: torch.Tensor | None = None


class ClipFolder:
    """Random access to a folder of walks. New files are noticed every now and then, so making and training can overlap."""

    def __init__(self, directory: Path, refresh_seconds: float = 60.0):
        self.directory, self.refresh_seconds = Path(directory), refresh_seconds
        self._handles: dict[Path, Any] = {}
        self._refresh()

    def _refresh(self) -> None:
        self.files = sorted(self.directory.glob("*.safetensors"))
        self._looked = time.monotonic()
        if not self.files:
            raise ValueError(f"{self.directory} holds no clips: make them first (spatia train mini --stage data)")

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> Any:
        """A safetensors handle: `get_slice(name)[a:b]`, `get_tensor(name)`, `metadata()`."""
        path = self.files[index]
        if path not in self._handles:
            if len(self._handles) > 2000:
                self._handles.clear()
            self._handles[path] = safe_open(path, framework="pt")
        return self._handles[path]

    def pick(self, rng: np.random.Generator) -> Any:
        if time.monotonic() - self._looked > self.refresh_seconds:
            self._refresh()
        return self.open(int(rng.integers(len(self.files))))

    def random_frames(self, rng: np.random.Generator, frames: int, crop: int) -> np.ndarray:
        """(frames, crop, crop, 3) uint8 from a random place and time of a random world."""
        rgb = self.pick(rng).get_slice("rgb")
        time, rows, columns = random_piece(rng, rgb.get_shape()[:3], frames, crop)
        return rgb[time, rows, columns].numpy()

    def random_film(self, rng: np.random.Generator, frames: int, crop: int) -> Film:
        """The same with what is known of depth and camera."""
        clip = self.pick(rng)
        shape = clip.get_slice("rgb").get_shape()[:3]
        piece = random_piece(rng, shape, frames, crop)
        rgb, depth, dynamic = (clip.get_slice(name)[piece] for name in ("rgb", "depth", "dynamic"))
        camera = mini_camera(MiniConfig(image_size=shape[1]))
        corner = (piece[1].start, piece[2].start)
        return Film(rgb.numpy(), clip.get_tensor("T_world_camera")[piece[0]], camera, corner, depth, dynamic)


def random_piece(rng: np.random.Generator, shape: Sequence[int], frames: int, crop: int) -> tuple[slice, slice, slice]:
    """A random time and square of a video (T, H, W): frames, rows, columns."""
    t, y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip(shape, (frames, crop, crop), strict=True))
    return slice(t, t + frames), slice(y, y + crop), slice(x, x + crop)
