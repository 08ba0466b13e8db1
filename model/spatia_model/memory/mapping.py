"""Mapping: a new clip enters the memory (paper, section 3.2, "update"). Track, mask what moves, carve, fuse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from spatia_model.config import looked_at
from spatia_model.geometry.camera import check_path, unproject
from spatia_model.memory.consolidation import consolidate
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.static_pixels import dilate, fusing_weight
from spatia_model.memory.tracking import Tracking, track
from spatia_model.types import Camera, Perception, Projection


@dataclass(frozen=True)
class MappingConfig:
    """How frames become memory. Lengths in metres, angles in radians."""

    tracking: str = "odometry"  # "odometry": refine the path's poses where that helps; "path": believe the path
    min_overlap: float = 0.35  # share of a frame that the memory must cover for odometry
    min_gain: float = 0.1  # share by which the correction must lower the residual
    max_translation: float = 0.15
    max_rotation: float = math.radians(4)
    fuse_stride: int = 2  # every n-th frame is fused; the last one always is
    min_confidence: float = 0.3  # of a pixel's depth
    dynamic_threshold: float = 0.5
    dynamic_dilation: int = 2  # pixels around what moves that stay out, too
    edge_threshold: float = 0.15  # relative depth jump from which a pixel is an edge
    sky_depth: float = 40.0  # deeper is sky
    sky_distance: float = 50.0  # where the sky is put, so that the map is bounded
    depth_error: float = 0.06  # surfaces are thinned by this share of depth: 2 to 3 standard deviations of perception's error; 0: never
    consolidate_stride: int = 4  # every n-th frame takes part in that
    known_weight: float = 1.0  # share of its weight that a pixel keeps when the memory already shows its surface
    known_margin: float = 0.1  # relative depth difference up to which it is the same surface
    carve: bool = True
    carve_stride: int = 2
    carve_margin: float = 0.06  # share of depth
    carve_min_confidence: float = 0.5

    def __post_init__(self) -> None:
        if self.tracking not in ("odometry", "path"):
            raise ValueError(f'tracking = "{self.tracking}"; expected "odometry" or "path"')
        for name in ("fuse_stride", "carve_stride", "consolidate_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; expected a whole number of at least 1")
        for name in (
            "min_overlap",
            "min_gain",
            "min_confidence",
            "dynamic_threshold",
            "depth_error",
            "known_weight",
            "known_margin",
            "carve_margin",
            "carve_min_confidence",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}; expected a share in 0..1")
        for name in ("max_translation", "max_rotation", "edge_threshold", "sky_depth", "sky_distance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}; expected a positive number")
        if self.dynamic_dilation < 0:
            raise ValueError(f"dynamic_dilation = {self.dynamic_dilation}; expected 0 or more pixels")
        if self.sky_distance < self.sky_depth:
            raise ValueError(
                f"sky_distance = {self.sky_distance} is nearer than sky_depth = {self.sky_depth}: the sky would look like a wall"
            )


@dataclass(frozen=True)
class MappingReport:
    """What a clip did to the memory."""

    T_world_camera: torch.Tensor  # (T, 4, 4) float64: the poses that were believed
    tracking: Tracking | None  # None: not tried
    points_before: int
    points_carved: int
    points_after: int
    fused_pixels: int
    dynamic_share: float  # of all pixels, left out because they move


def map_clip(
    memory: PointMemory,
    frames: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    perception: Perception,
    projection: Projection | None,
    step: int,
    config: MappingConfig | None = None,
) -> tuple[PointMemory, MappingReport]:
    """Returns the memory with a clip's static, confident pixels in it, and a report.

    frames (T, H, W, 3) uint8; T_world_camera (T, 4, 4): the path as asked; projection: `memory` seen along that path (None for the first
    frames); step: clip number, kept as `last_seen`.
    """
    config = config or MappingConfig()
    _check(frames, T_world_camera, camera, perception, projection)
    rows = looked_at(len(frames), config.fuse_stride)
    moves = dilate(perception.dynamic > config.dynamic_threshold, config.dynamic_dilation)
    weight = fusing_weight(
        Perception(perception.depth[rows], perception.confidence[rows], perception.dynamic[rows]),
        camera,
        min_confidence=config.min_confidence,
        dynamic_threshold=config.dynamic_threshold,
        dynamic_dilation=config.dynamic_dilation,
        edge_threshold=config.edge_threshold,
        sky_depth=config.sky_depth,
    )
    poses, tracking = T_world_camera, None
    if config.tracking == "odometry" and projection is not None and len(memory):
        tracking = track(
            frames,
            T_world_camera,
            camera,
            perception,
            torch.where(perception.depth[rows] < config.sky_depth, weight, torch.zeros_like(weight)),
            projection,
            rows,
            min_overlap=config.min_overlap,
            min_gain=config.min_gain,
            max_translation=config.max_translation,
            max_rotation=config.max_rotation,
        )
        poses = tracking.T_world_camera

    before = len(memory)
    depth = torch.where(perception.depth >= config.sky_depth, torch.full_like(perception.depth, config.sky_distance), perception.depth)
    if config.carve and before:
        looked = looked_at(len(frames), config.carve_stride)
        sure = torch.where(moves, torch.zeros_like(depth), perception.confidence)[looked]
        memory = memory.carve(depth[looked], sure, poses[looked], camera, step, config.carve_margin, config.carve_min_confidence)
    carved = before - len(memory)

    if projection is not None and config.known_weight < 1:
        shown = projection.depth[rows]
        known = projection.mask[rows] & ((depth[rows] - shown).abs() <= config.known_margin * shown)
        weight = torch.where(known, weight * config.known_weight, weight)
    points = unproject(depth[rows], poses[rows], camera).reshape(-1, 3)
    pixel = depth[rows] * (2.0 / float(camera.K[0, 0] + camera.K[1, 1]))
    used = weight.reshape(-1)
    memory = memory.fuse(points, frames[rows].reshape(-1, 3), used, step, pixel.reshape(-1))
    if config.depth_error > 0:
        memory = consolidate(memory, poses[looked_at(len(frames), config.consolidate_stride)], camera, config.depth_error, step)
    report = MappingReport(poses, tracking, before, carved, len(memory), int((used > 0).sum()), float(moves.float().mean()))
    return memory, report


def _check(
    frames: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera, perception: Perception, projection: Projection | None
) -> None:
    check_path(T_world_camera)
    shape = (len(T_world_camera), camera.height, camera.width)
    if tuple(frames.shape) != (*shape, 3) or frames.dtype != torch.uint8:
        raise ValueError(f"frames are {tuple(frames.shape)} {frames.dtype}; expected {(*shape, 3)} uint8 for this path and camera")
    for name in ("depth", "confidence", "dynamic"):
        given = getattr(perception, name)
        if tuple(given.shape) != shape:
            raise ValueError(f"perception.{name} has shape {tuple(given.shape)}; expected {shape}")
        if not bool(torch.isfinite(given).all()):
            raise ValueError(f"perception.{name} holds NaN or infinite values; the perceiver's weights or input are broken")
    if projection is not None and tuple(projection.mask.shape) != shape:
        raise ValueError(f"projection covers {tuple(projection.mask.shape)}; expected {shape}: the memory seen along this very path")
