"""Where the camera has been: bounded, so that an episode of any length costs the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_POSES = 1024


@dataclass(frozen=True)
class Trail:
    """One pose per step (4, 4) camera to world; past `MAX_POSES` every second one is let go, again and again."""

    kept: tuple[np.ndarray, ...] = ()
    last: np.ndarray | None = None
    stride: int = 1
    count: int = 0

    def extended(self, T_world_camera: np.ndarray) -> Trail:
        """A trail that goes on over `T_world_camera` (N, 4, 4)."""
        kept, stride, count, last = self.kept, self.stride, self.count, self.last
        for pose in T_world_camera:
            if count % stride == 0:
                kept = (*kept, pose)
            if len(kept) > MAX_POSES:
                kept, stride = kept[::2], stride * 2
            count, last = count + 1, pose
        return Trail(kept, last, stride, count)

    def poses(self) -> np.ndarray:
        """(N, 4, 4) float64, oldest first, ending where the camera stands."""
        if self.last is None:
            return np.zeros((0, 4, 4))
        ends_there = bool(self.kept) and self.kept[-1] is self.last
        return np.stack([*self.kept] if ends_there else [*self.kept, self.last])
