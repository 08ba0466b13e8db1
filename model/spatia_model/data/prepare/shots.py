"""Which parts of a video are usable: no cut, no black, no still picture, no camera that stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from spatia_model.geometry import se3

THUMB = (36, 64)  # height and width at which shots are judged


@dataclass(frozen=True)
class ShotRules:
    """Differences are of grey values in 0..255, mean over a thumbnail.

    cut: a frame differs from the one before by this much, and by `contrast` times what frames around it do.
    """

    cut: float = 18.0
    contrast: float = 3.0
    dark: float = 8.0  # mean grey below this is black
    still: float = 0.15  # mean difference between frames of a window below this is a frozen picture
    min_translation: float = 0.02  # of the camera over a window, in units of the scene's depth; with min_rotation: one of both is enough
    min_rotation: float = 0.05  # radians


def thumbnails(frames: Iterable[torch.Tensor]) -> torch.Tensor:
    """Frames (H, W, 3) uint8 to grey thumbnails (N, 36, 64) float32."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    out = []
    for frame in frames:
        step = max(1, frame.shape[0] // (2 * THUMB[0]))
        grey = (frame[::step, ::step].float() @ weights)[None, None]
        out.append(F.adaptive_avg_pool2d(grey, THUMB)[0, 0])
    return torch.stack(out)


def cuts(thumbs: torch.Tensor, rules: ShotRules) -> list[int]:
    """Frame numbers that begin a new shot (without 0)."""
    difference = thumbs.diff(dim=0).abs().mean((1, 2))
    found = []
    for i, value in enumerate(difference.tolist()):
        around = torch.cat([difference[max(0, i - 4) : i], difference[i + 1 : i + 5]])
        usual = float(around.median()) if len(around) else 0.0
        if value > rules.cut and value > rules.contrast * usual:
            found.append(i + 1)
    return found


def shots(thumbs: torch.Tensor, rules: ShotRules) -> list[range]:
    """Frame ranges between cuts, black frames at their ends and within left out."""
    bounds = [0, *cuts(thumbs, rules), len(thumbs)]
    lit = (thumbs.mean((1, 2)) >= rules.dark).tolist()
    found = []
    for a, b in zip(bounds, bounds[1:], strict=False):
        start = None
        for i in range(a, b + 1):
            if i < b and lit[i]:
                start = i if start is None else start
            elif start is not None:
                found.append(range(start, i))
                start = None
    return found


def rejected(thumbs: torch.Tensor, poses: torch.Tensor | None, depth: float, rules: ShotRules) -> str:
    """Why a window of frames (T, 36, 64) is no use, or "". `depth`: typical distance of the scene in the poses' scale."""
    if float(thumbs.diff(dim=0).abs().mean()) < rules.still:
        return "frozen picture"
    if poses is not None:
        moved = float((poses[:, :3, 3] - poses[0, :3, 3]).norm(dim=1).max())
        turned = float(se3.rotation_angle(se3.inverse(poses[:1]) @ poses).max())
        if moved < rules.min_translation * depth and turned < rules.min_rotation:
            return "camera stands still"
    return ""
