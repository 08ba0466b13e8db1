"""Thinning the map's surfaces: perception's depth errs by a few percent, so one wall seen by many frames becomes a slab of points.

From a few of the clip's poses, the points of the front surface are averaged per pixel (weighted by confidence) and moved along the line
of sight onto that average; points that then share a voxel become one. Errors of single frames average out, and the map shrinks.
"""

from __future__ import annotations

import torch

from spatia_model.geometry import se3
from spatia_model.geometry.culling import visible_chunks
from spatia_model.geometry.rendering import launcher, make_view
from spatia_model.geometry.warp_runtime import wp
from spatia_model.memory import consolidate_kernels as kernels
from spatia_model.memory.point_memory import PointMemory
from spatia_model.types import Camera

_LEAST_MOVE = 0.25  # of a point's radius
_PASSES = 2  # mean-shift steps from the nearest point to the middle of its surface


def consolidate(
    memory: PointMemory, T_world_camera: torch.Tensor, camera: Camera, tolerance: float, step: int, near: float = 0.2
) -> PointMemory:
    """Returns a memory whose surfaces, as seen from poses (T, 4, 4), are thinner.

    `tolerance`: share of depth within which points of one pixel are one surface seen with errors: two to three standard deviations of the
    depth error. Surfaces less than that apart along a line of sight are drawn together, so it should not be larger than the errors are.
    """
    if not 0 < tolerance < 0.5:
        raise ValueError(f"tolerance = {tolerance}; expected a share of depth above 0 and below 0.5")
    if not len(memory):
        return memory
    device = memory.device
    T_camera_world = se3.inverse(T_world_camera)
    chunks = memory.chunks
    entries = visible_chunks(chunks, T_camera_world, camera, near).contiguous()
    if not len(entries):
        return memory
    lanes = 32 if device.type == "cuda" else 1
    shape = (len(T_world_camera), camera.height, camera.width)
    centre = torch.full(shape, 1e30, device=device)
    sums = torch.zeros(*shape, 2, dtype=torch.int32, device=device)
    run = launcher(device)
    points = wp.from_torch(memory.positions.contiguous(), dtype=wp.vec3)
    confidence, w_sums, w_centre = wp.from_torch(memory.confidence.contiguous()), wp.from_torch(sums), wp.from_torch(centre)
    pose = wp.from_torch(T_camera_world[:, :3].to(device, torch.float32).contiguous())
    view = make_view(camera, near)
    seen = [wp.from_torch(entries), wp.from_torch(chunks.starts), lanes, points]
    size = (len(entries), lanes)
    run(kernels.nearest, size, [*seen, pose, view, w_centre])
    for i in range(_PASSES):
        ahead = 0.0 if i == 0 else tolerance
        run(kernels.layer_sums, size, [*seen, confidence, pose, view, ahead, tolerance, w_centre, w_sums])
        run(kernels.layer_mean, shape, [w_sums, w_centre])

    in_view = torch.zeros(len(chunks.radii), dtype=torch.bool, device=device)
    in_view[entries[:, 1].long()] = True
    rows = in_view.repeat_interleave(chunks.starts.diff().long()).nonzero()[:, 0].int()
    out = memory.positions.clone()
    moved = torch.zeros(len(memory), dtype=torch.int32, device=device)
    eyes = wp.from_torch(T_world_camera[:, :3, 3].to(device, torch.float32).contiguous())
    inputs = [
        wp.from_torch(rows),
        points,
        wp.from_torch(memory.radii),
        _LEAST_MOVE,
        pose,
        eyes,
        view,
        tolerance,
        2 * tolerance,
        w_centre,
        wp.from_torch(out, dtype=wp.vec3),
        wp.from_torch(moved),
    ]
    run(kernels.pull, (len(rows),), inputs)

    # take the moved points out and put them back in their new voxels
    moved_rows = moved.bool()
    back = moved_rows.nonzero()[:, 0]
    rest = memory.keep(~moved_rows)
    # a footprint a little over the voxel keeps each point's level
    return rest.fuse(out[back], memory.colors[back], memory.confidence[back], step, memory.radii[back] * 1.01)
