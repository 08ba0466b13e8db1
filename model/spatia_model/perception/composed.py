"""One `Perceiver` from a geometry perceiver and a masker, at the rate that reconstruction needs."""

from __future__ import annotations

import torch

from spatia_model.config import looked_at
from spatia_model.perception.optional import check_frames
from spatia_model.perception.protocols import DynamicMasker, GeometryPerceiver
from spatia_model.types import Camera, Perception, Projection


class ComposedPerceiver:
    """Depth from `geometry`, motion from `masker`, both on every n-th frame of a clip.

    A clip of a video changes little from frame to frame; the release reconstructs from 4 of its 24 frames a second. Frames between get
    no geometry (confidence 0, so that they are never mapped; their depth is what the memory shows) and the mask of the nearest frame
    that was looked at. Map with `MappingConfig(fuse_stride=every)`: it picks the same frames.

    Args:
        geometry: depth and its confidence.
        masker: what moves; None: nothing does.
        every: look at every n-th frame, counted from the last, which is always looked at.
    """

    def __init__(self, geometry: GeometryPerceiver, masker: DynamicMasker | None = None, every: int = 1):
        if every < 1:
            raise ValueError(f"every = {every}; expected a whole number of at least 1: look at every n-th frame")
        self.geometry, self.masker, self.every = geometry, masker, every

    def perceive(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor,
        camera: Camera,
        prior: Projection | None = None,
        previous: torch.Tensor | None = None,
    ) -> Perception:
        """See `Perceiver.perceive`."""
        check_frames(frames)
        count = len(frames)
        rows = looked_at(count, self.every)
        seen = frames[rows]
        moving = torch.zeros(seen.shape[:3]) if self.masker is None else self.masker.masks(seen).float().cpu()
        if moving.shape != seen.shape[:3]:
            raise ValueError(f"the masker gave masks {tuple(moving.shape)} for frames {tuple(seen.shape[:3])}")
        shown = None if prior is None else Projection(prior.rgb[rows], prior.depth[rows], prior.mask[rows], prior.index[rows])
        geometry = self.geometry.estimate(seen, T_world_camera[rows], camera, shown, moving)
        depth = torch.zeros(frames.shape[:3]) if prior is None else prior.depth.float().cpu().clone()
        confidence = torch.zeros(frames.shape[:3])
        depth[rows], confidence[rows] = geometry.depth.float().cpu(), geometry.confidence.float().cpu()
        return Perception(depth, confidence, moving[nearest(count, rows)])


def nearest(count: int, rows: list[int]) -> list[int]:
    """For each of `count` frames the position in `rows` of the nearest row; the later one of two equally near."""
    return [min(range(len(rows)), key=lambda i: (abs(rows[i] - frame), -rows[i])) for frame in range(count)]
