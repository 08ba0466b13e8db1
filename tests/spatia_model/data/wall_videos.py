"""Videos of the tests' wall, and tools that know it: what the tests of `spatia prepare` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from spatia_model.data.prepare import run
from spatia_model.data.prepare.build import Settings
from spatia_model.data.prepare.footage import Footage
from spatia_model.data.prepare.tools import Tools
from spatia_model.geometry import se3
from spatia_model.geometry.camera import camera_from_normalised
from spatia_model.types import Camera, Perception
from tests.spatia_model.data import footage_files as files
from tests.spatia_model.tiny import tiny_parts

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = Settings(height=32, width=32, fps=8, frames=13, preceding=5, clips_per_video=2, references=3, voxel=0.02, candidate_rate=2)
NAMES = run.ToolNames("none", "", "")


class WallPerceiver:
    """Knows the wall of the tests: depth in metres of the frame it is shown, whatever unit the poses have; and its poses, when asked."""

    def __init__(self, frames: int = 33, size: int = 32):
        self.poses_known = files.path(frames)
        self.rgb, self.depths = files.wall(self.poses_known, size, size)

    def depth(self, frame: torch.Tensor, pose: torch.Tensor, camera: Camera) -> Perception:
        i = int((self.rgb.float() - frame.float()).abs().mean((1, 2, 3)).argmin())
        d = self.depths[i : i + 1]
        return Perception(d, torch.ones_like(d), torch.zeros_like(d))

    def motion(self, frames: torch.Tensor, poses: torch.Tensor, camera: Camera) -> torch.Tensor:
        return torch.zeros(frames.shape[:3])

    def poses(self, frames: torch.Tensor, camera: Camera | None) -> tuple[torch.Tensor, Camera]:
        some = [int((self.rgb.float() - f.float()).abs().mean((1, 2, 3)).argmin()) for f in frames]
        poses = self.poses_known[some]
        return se3.inverse(poses[:1]) @ poses, camera_from_normalised((*(0.5 / np.tan(files.FOV / 2),) * 2, 0.5, 0.5), 32, 32)


def tools(vae: bool = False, perceiver: bool = True) -> Tools:
    if not vae:
        return Tools(WallPerceiver() if perceiver else None, described={"control": None, "vae": "", "latent_channels": 0})
    return Tools(
        WallPerceiver() if perceiver else None, tiny_parts()[0], None, "pooled", {"control": "pooled", "vae": "tiny", "latent_channels": 4}
    )


def wall_footage(frames: int = 33, **changes) -> Footage:
    poses = files.path(frames)
    rgb, depth = files.wall(poses, 32, 32)
    K = torch.tensor([*(0.5 / np.tan(files.FOV / 2),) * 2, 0.5, 0.5], dtype=torch.float64).repeat(frames, 1)
    values = {
        "name": "wall",
        "times": torch.arange(frames).double() / 8,
        "read": lambda numbers: rgb[list(numbers)],
        "T_world_camera": poses,
        "intrinsics": K,
        "depth": lambda numbers: depth[list(numbers)],
        "dynamic": lambda numbers: torch.zeros(len(numbers), 32, 32),
        "metric": True,
    }
    return Footage(**{**values, **changes})
