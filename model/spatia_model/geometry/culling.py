"""Which runs of points a path can see: keeps the cost of a projection at what is in view, not at the size of the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spatia_model.types import Camera


@dataclass(frozen=True)
class Chunks:
    """Consecutive runs of points, each inside a sphere. Run c is points `starts[c]` to `starts[c + 1]`."""

    starts: torch.Tensor  # (C + 1,) int32
    centres: torch.Tensor  # (C, 3) float32 metres
    radii: torch.Tensor  # (C,) float32 metres, infinite where the run has no known bound

    @staticmethod
    def unbounded(count: int, device: torch.device | str, size: int = 1024) -> Chunks:
        """Runs of `size` points that are never culled."""
        starts = torch.arange(0, count + size, size, dtype=torch.int32, device=device).clamp(max=count)
        starts = torch.unique_consecutive(starts)
        runs = max(len(starts) - 1, 0)
        return Chunks(starts, torch.zeros(runs, 3, device=device), torch.full((runs,), torch.inf, device=device))


def visible_chunks(chunks: Chunks, T_camera_world: torch.Tensor, camera: Camera, near: float) -> torch.Tensor:
    """(E, 2) int32 pairs (frame, chunk), frames ascending, of the chunks whose sphere touches each frame's frustum.

    `T_camera_world` is (T, 4, 4), world to camera. Conservative: a chunk outside may be listed, one inside is never left out.
    """
    K = camera.K
    fx, fy, cx, cy = float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])
    # inward normals of the left, right, top and bottom planes, which pass through the camera's centre
    planes = torch.tensor([[fx, 0, cx], [-fx, 0, camera.width - cx], [0, fy, cy], [0, -fy, camera.height - cy]], dtype=torch.float32)
    planes = (planes / planes.norm(dim=1, keepdim=True)).to(chunks.centres.device)
    T = T_camera_world.to(chunks.centres.device, torch.float32)
    R, t = T[:, :3, :3], T[:, :3, 3]
    normals = torch.cat([planes.expand(len(T), 4, 3) @ R, R[:, 2:3]], 1)  # (T, 5, 3) in the world's frame
    offsets = torch.cat([t @ planes.T, t[:, 2:3] - near], 1)  # (T, 5)
    distance = normals @ chunks.centres.T + offsets[..., None]  # (T, 5, C)
    inside = (distance >= -chunks.radii).all(1)  # (T, C)
    return inside.nonzero().int()
