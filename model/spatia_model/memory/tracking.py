"""Where a frame was really taken: RGB-D odometry of new frames against the rendered memory.

Generated frames follow their path only roughly. The path's pose is the first guess; open3d's odometry [Park et al., "Colored Point Cloud
Registration Revisited", ICCV 2017; hybrid term] refines it on one frame, and the correction is kept only when it explains the frames
clearly better.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from spatia_model.geometry import se3
from spatia_model.geometry.camera import pixel_rays
from spatia_model.types import Camera, Perception, Projection


@dataclass(frozen=True)
class Tracking:
    """Refined poses and why they were kept or not."""

    T_world_camera: torch.Tensor  # (T, 4, 4) float64
    accepted: bool
    residual_path: float  # of the path's poses; nan where it was not measured
    residual_refined: float
    reason: str


@functools.cache
def odometry_available() -> bool:
    """True where open3d is installed; warns once where it is not."""
    if importlib.util.find_spec("open3d") is not None:
        return True
    warnings.warn("open3d is not installed: poses are taken from the path. `pip install open3d` refines them", stacklevel=3)
    return False


@functools.cache
def _open3d():
    """open3d, told at its start to use one thread.

    Its loops are small, and its threads spin while they wait, on a busy machine for seconds. One thread also adds up in one order, so
    that a pose is the same in every run.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import open3d
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return open3d


def residual(
    frames: torch.Tensor,
    depth: torch.Tensor,
    weight: torch.Tensor,
    T_path_refined: torch.Tensor,
    projection: Projection,
    camera: Camera,
    stride: int = 2,
    huber: float = 0.1,
) -> tuple[float, float]:
    """How badly frames (T, H, W, 3) with depth (T, H, W) fit the memory rendered at the path's poses, were they taken at path *
    T_path_refined (T, 4, 4).

    Mean over overlapping pixels of colour difference (share of 255) plus relative depth difference, each cut at `huber`; and the share of
    pixels that overlap.
    """
    rays = pixel_rays(camera, depth.device)[::stride, ::stride].reshape(-1, 3)
    z = depth[:, ::stride, ::stride].reshape(len(depth), -1)
    points = se3.transform_points(T_path_refined.float(), rays * z[..., None])  # (T, n, 3) in the frame of the path's camera
    K = camera.K
    ahead = points[..., 2].clamp(min=1e-3)
    x = (points[..., 0] / ahead * float(K[0, 0]) + float(K[0, 2])).floor().long()
    y = (points[..., 1] / ahead * float(K[1, 1]) + float(K[1, 2])).floor().long()
    inside = (points[..., 2] > 0.05) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    pixel = (y.clamp(0, camera.height - 1) * camera.width + x.clamp(0, camera.width - 1)).flatten(1)

    def look_up(image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1, 2).gather(1, pixel if image.ndim == 3 else pixel[..., None].expand(-1, -1, 3))

    use = inside & look_up(projection.mask) & (weight[:, ::stride, ::stride].reshape(z.shape) > 0)
    count = int(use.sum())
    if not count:
        return float("nan"), 0.0
    color = frames[:, ::stride, ::stride].reshape(*z.shape, 3).float()
    photometric = (look_up(projection.rgb).float() - color).abs().mean(-1) / 255
    geometric = (look_up(projection.depth) - points[..., 2]).abs() / ahead
    error = photometric.clamp(max=huber) + geometric.clamp(max=huber)
    return float(error[use].double().mean()), count / use.numel()


def _odometry(frame: torch.Tensor, depth: torch.Tensor, projection: Projection, row: int, camera: Camera) -> torch.Tensor | None:
    """T_path_frame (4, 4) of one frame against the rendered memory, or None where open3d finds none."""
    o3d = _open3d()
    K = camera.K
    # open3d's pixel centres are at whole numbers
    intrinsic = o3d.camera.PinholeCameraIntrinsic(
        camera.width, camera.height, float(K[0, 0]), float(K[1, 1]), float(K[0, 2]) - 0.5, float(K[1, 2]) - 0.5
    )

    def image(rgb: torch.Tensor, z: torch.Tensor):
        color = o3d.geometry.Image(np.ascontiguousarray(rgb.cpu().numpy()))  # type: ignore[call-overload]
        metres = o3d.geometry.Image(np.ascontiguousarray(z.cpu().float().numpy()))  # type: ignore[call-overload]
        return o3d.geometry.RGBDImage.create_from_color_and_depth(
            color, metres, depth_scale=1.0, depth_trunc=30.0, convert_rgb_to_intensity=True
        )

    option = o3d.pipelines.odometry.OdometryOption(
        iteration_number_per_pyramid_level=o3d.utility.IntVector([10, 5]), depth_diff_max=0.2, depth_min=0.1, depth_max=30.0
    )
    found, T, _ = o3d.pipelines.odometry.compute_rgbd_odometry(
        image(frame, depth),
        image(projection.rgb[row], projection.depth[row]),
        intrinsic,
        np.eye(4),
        o3d.pipelines.odometry.RGBDOdometryJacobianFromHybridTerm(),
        option,
    )
    if not found or not np.isfinite(T).all():
        return None
    # where something else loaded OpenMP with more threads, sums come in any order: rounding hides it
    twist = se3.log(torch.from_numpy(np.array(T, dtype=np.float64)))
    return se3.exp((twist * 1e6).round() / 1e6)


def track(
    frames: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    perception: Perception,
    weight: torch.Tensor,
    projection: Projection,
    rows: list[int],
    *,
    min_overlap: float,
    min_gain: float,
    max_translation: float,
    max_rotation: float,
) -> Tracking:
    """Refines a clip's poses (T, 4, 4) with one odometry run against `projection`, the memory rendered at these poses.

    Only frames `rows` are looked at; weight (rows, H, W) is 0 on pixels that move or that nothing is known of. The correction is measured
    on the latest of them that overlaps the memory by `min_overlap` (share of its pixels) and spread over the clip at constant velocity.
    It is
    accepted when it is
    at most `max_translation` (m) and `max_rotation` (rad) and lowers the residual by the share `min_gain`.
    """
    nan = float("nan")

    def keep(reason: str, before: float = nan, after: float = nan) -> Tracking:
        return Tracking(T_world_camera, False, before, after, reason)

    usable = (projection.mask[rows] & (weight > 0)).flatten(1).float().mean(1)
    enough = (usable >= min_overlap).nonzero()[:, 0].tolist()
    if not enough:
        return keep("too little overlap with the memory")
    if not odometry_available():
        return keep("open3d is not installed")
    row = rows[enough[-1]]
    depth = torch.where(weight[enough[-1]] > 0, perception.depth[row], torch.zeros_like(perception.depth[row]))
    T_path_frame = _odometry(frames[row], depth, projection, row, camera)
    if T_path_frame is None:
        return keep("odometry found no motion that fits")
    if float(T_path_frame[:3, 3].norm()) > max_translation or float(se3.rotation_angle(T_path_frame)) > max_rotation:
        return keep("the correction is too large to be believed")
    # the clip starts where the last one ended, so the error grows from nothing
    share = torch.arange(1, len(frames) + 1, dtype=torch.float64) / (row + 1)
    correction = se3.exp(se3.log(T_path_frame)[None] * share[:, None]).to(T_world_camera.device)
    identity = torch.eye(4, dtype=torch.float64, device=T_world_camera.device).expand(len(rows), 4, 4)
    seen = Projection(projection.rgb[rows], projection.depth[rows], projection.mask[rows], projection.index[rows])
    looked = frames[rows], perception.depth[rows], weight
    before, _ = residual(*looked, identity, seen, camera)
    after, overlap = residual(*looked, correction[rows], seen, camera)
    if overlap < 0.5 * min_overlap or not after < before * (1 - min_gain):
        return keep("the correction does not explain the frames clearly better", before, after)
    return Tracking(T_world_camera @ correction, True, before, after, "accepted")
