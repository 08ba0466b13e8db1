"""Recorded rollouts of the env (Minari, as `spatia rollout` writes them) and procedural worlds as footage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatia_model.config import FRAME_RATE, MiniConfig, mini_camera
from spatia_model.data.prepare.footage import BadFootage, Footage
from spatia_model.geometry.camera import camera_from_fov, normalised_intrinsics
from spatia_model.types import GroundTruth

TRAINING_SEEDS = 1_000_000


class Rollouts:
    """A Minari dataset folder: one HDF5 file per episode with `infos/frames`, `infos/poses`, `infos/K` and the actions' text."""

    def __init__(self, root: Path, fps: float = FRAME_RATE):
        self.fps = fps
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; give a dataset that `spatia rollout --format minari` has written")
        self.files = {path.stem: path for path in sorted(root.rglob("episode_*.hdf5"))}
        if not self.files:
            raise ValueError(f"{root} holds no episodes (data/episodes/episode_*.hdf5): record some with `spatia rollout --format minari`")

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> Footage:
        try:
            import h5py
        except ImportError as error:
            raise ImportError("rollouts in Minari's form need the package h5py: pip install h5py") from error
        path = self.files[name]
        try:
            with h5py.File(path, "r") as file:
                episode: Any = file["episode"]
                missing = [key for key in ("frames", "poses", "K") if key not in episode["infos"]]
                if missing:
                    raise BadFootage(f"{path.name} has no infos/{missing[0]}: record with all infos kept")
                poses = np.asarray(episode["infos"]["poses"], np.float64)  # (steps + 1, T, 4, 4), the first row is the reset's
                K = np.asarray(episode["infos"]["K"], np.float64)[0]
                height, width = episode["infos"]["frames"].shape[2:4]
                text = _texts(episode["actions"])
        except (OSError, KeyError) as error:
            raise BadFootage(f"{path.name} is not a whole episode: {error}") from error
        steps, per_step = len(poses) - 1, poses.shape[1]
        if steps < 1:
            raise BadFootage(f"{path.name} holds no step")
        poses = np.concatenate([poses[0, -1:], poses[1:].reshape(-1, 4, 4)])
        normalised = torch.tensor([K[0, 0] / width, K[1, 1] / height, K[0, 2] / width, K[1, 2] / height], dtype=torch.float64)
        return Footage(
            name,
            torch.arange(len(poses), dtype=torch.float64) / self.fps,
            _EpisodeFrames(path, per_step),
            torch.from_numpy(poses),
            normalised.repeat(len(poses), 1),
            captions=tuple((i * per_step / self.fps, line) for i, line in enumerate(text[:steps])),
            metric=True,
            provenance={"source": "rollouts", "file": path.name},
        )


def _texts(actions: Any) -> list[str]:
    if "text" not in getattr(actions, "keys", list)():
        return []
    return [line.decode() if isinstance(line, bytes) else str(line) for line in actions["text"][:]]


class _EpisodeFrames:
    def __init__(self, path: Path, per_step: int):
        self.path, self.per_step = path, per_step

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        import h5py

        with h5py.File(self.path, "r") as file:
            frames: Any = file["episode/infos/frames"]
            rows: dict[int, np.ndarray] = {}
            out = []
            for number in numbers:
                row, frame = (0, self.per_step - 1) if number == 0 else (1 + (number - 1) // self.per_step, (number - 1) % self.per_step)
                if row not in rows:
                    if row >= len(frames):
                        raise BadFootage(f"{self.path.name} has poses of step {row}, but no frames")
                    rows = {row: frames[row]}
                out.append(torch.from_numpy(rows[row][frame].copy()))
        return torch.stack(out)


class Worlds:
    """Procedural worlds: a random walk in each, rendered with exact poses, depth and motion. One world per seed."""

    def __init__(self, seeds: range, frames: int, height: int, width: int, fov_x: float | None = None, validation: bool = False):
        low, high = (TRAINING_SEEDS, 2 * TRAINING_SEEDS) if validation else (0, TRAINING_SEEDS)
        if not len(seeds) or seeds[0] < low or seeds[-1] >= high:
            raise ValueError(
                f"seeds {seeds.start}..{seeds.stop - 1}: expected {low:,} to {high - 1:,}, which are kept apart from all others"
            )
        self.seeds, self.frames, self.height, self.width = seeds, frames, height, width
        self.camera = (
            camera_from_fov(fov_x or MiniConfig().fov_x, width, height)
            if (height, width) != (128, 128) or fov_x
            else mini_camera(MiniConfig())
        )

    def names(self) -> list[str]:
        return [f"world-{seed:07d}" for seed in self.seeds]

    def open(self, name: str) -> Footage:
        from spatia_model.worlds import World
        from spatia_model.worlds.trajectories import sample_path

        seed = int(name.removeprefix("world-"))
        world, step = World.generate(seed), 8
        path = sample_path(world, np.random.default_rng([seed, 1]), -(-(self.frames - 1) // step), step)
        times = torch.arange(len(path), dtype=torch.float64) / FRAME_RATE
        captions = [
            (float(times[a]), world.describe(path[a : a + step + 1], self.camera, times[a : a + step + 1]))
            for a in range(0, len(path) - 1, step)
        ]
        rendered = _Rendered(world, path, times, self.camera)
        return Footage(
            name,
            times,
            rendered.rgb,
            path,
            torch.tensor(normalised_intrinsics(self.camera), dtype=torch.float64).repeat(len(path), 1),
            rendered.depth,
            rendered.dynamic,
            tuple(captions),
            world.caption(),
            metric=True,
            provenance={"source": "worlds", "seed": seed, "licence": "Apache-2.0"},
        )


class _Rendered:
    """The walk, rendered once when it is first looked at."""

    def __init__(self, world: Any, path: torch.Tensor, times: torch.Tensor, camera: Any):
        self.world, self.path, self.times, self.camera = world, path, times, camera
        self._truth: GroundTruth | None = None

    def truth(self) -> GroundTruth:
        if self._truth is None:
            truth: GroundTruth = self.world.render(self.path, self.camera, self.times, threads=1)
            self._truth = truth
        return self._truth

    def rgb(self, numbers: Sequence[int]) -> torch.Tensor:
        return self.truth().rgb[list(numbers)]

    def depth(self, numbers: Sequence[int]) -> torch.Tensor:
        return self.truth().depth[list(numbers)]

    def dynamic(self, numbers: Sequence[int]) -> torch.Tensor:
        return self.truth().dynamic[list(numbers)].float()
