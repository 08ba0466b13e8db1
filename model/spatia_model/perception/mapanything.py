"""Geometry from MapAnything: metric depth of several views at once, with poses and intrinsics given or estimated.

Written against the package's source (facebookresearch/map-anything 1.1, `MapAnything.infer` and `mapanything.utils.inference`):

* a view is a dictionary with `img` (1, 3, h, w) normalised as DINOv2's, `data_norm_type` ["dinov2"], and optionally `intrinsics` (1, 3, 3)
  in pixels, `camera_poses` (1, 4, 4) camera to world in OpenCV axes, `is_metric_scale` (1,) bool. All views have one size, sides a
  multiple of the patch, 14. If any view has a pose, the first has.
* its pixel (0, 0) has its centre at (0, 0), ours at (0.5, 0.5): principal points are shifted by half a pixel at the door.
* out come, per view, `depth_z` (1, h, w, 1) in metres, `conf` (1, h, w) from 1 upwards, `mask` (1, h, w, 1), `camera_poses` (1, 4, 4)
  in the frame of the first camera, `intrinsics` (1, 3, 3).

The release (utils/map_anything_inference.py) scales pictures to 518 pixels of width and rebuilds the whole map, from all frames of the
video so far, before every clip. Here every clip adds its own frames: depth is brought into the memory's scale by the ratio to what the
memory shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from spatia_model.geometry import se3
from spatia_model.perception.optional import at_work, check_frames, pretrained, require
from spatia_model.perception.protocols import Geometry
from spatia_model.types import Camera, Projection

MODEL = "facebook/map-anything"
SIDE, PATCH = 518, 14  # pixels of the longer side, and of a patch: what the model was trained at
NORM = "dinov2"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of that name in uniception's table
CONFIDENCE_WEIGHT = 0.2  # alpha of its confidence loss, conf * error - alpha * log(conf): the error it expects is alpha / conf
CONFIDENT_ERROR = 0.1  # as in perception/compact.py: "confident" means a relative depth error below this
MIN_SHARED = 0.005  # share of pixels that memory and views must have in common for their scales to be compared


class MapAnythingPerceiver:
    """A `GeometryPerceiver` around a loaded `mapanything.models.MapAnything`.

    Args:
        model: the model, or anything with its `infer`.
        device: where it computes.
        offload: keep it on the CPU between calls.
        side: pixels of the longer side of the pictures it sees.
    """

    def __init__(self, model: Any, device: str | torch.device = "cpu", offload: bool = False, side: int = SIDE):
        if side < PATCH:
            raise ValueError(f"side = {side}; expected at least {PATCH} pixels, one patch")
        expected = getattr(getattr(model, "encoder", None), "data_norm_type", NORM)
        if expected != NORM:
            raise ValueError(f"this MapAnything wants pictures normalised as {expected!r}; known here is {NORM!r}: use {MODEL} or its kin")
        self.model, self.device, self.side = model, torch.device(device), side
        self.rest = "cpu" if offload and self.device.type != "cpu" else None
        if self.rest is None and hasattr(model, "to"):
            model.to(self.device)

    @classmethod
    def from_pretrained(
        cls, name: str | Path = MODEL, device: str | torch.device = "cpu", offload: bool = False, side: int = SIDE, strict: bool = True
    ) -> MapAnythingPerceiver:
        """Load by hub id or from a folder. `strict` refuses weights with a missing or unknown tensor instead of leaving it random."""
        models = require("mapanything.models", "mapanything", "the geometry 'mapanything'")
        model = pretrained(models.MapAnything.from_pretrained, name, "the geometry 'mapanything'", strict=strict)
        return cls(model.eval(), device, offload, side)

    def estimate(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor | None = None,
        camera: Camera | None = None,
        prior: Projection | None = None,
        moving: torch.Tensor | None = None,
    ) -> Geometry:
        """See `GeometryPerceiver.estimate`."""
        check_frames(frames)
        count, height, width, _ = frames.shape
        if T_world_camera is not None and T_world_camera.shape != (count, 4, 4):
            raise ValueError(f"T_world_camera is {tuple(T_world_camera.shape)}; expected {(count, 4, 4)}: a pose for every frame, or None")
        if camera is not None and (camera.height, camera.width) != (height, width):
            raise ValueError(f"the camera is of {camera.width}x{camera.height} pixels, the frames are {width}x{height}; resize it")
        size = working_size(height, width, self.side)
        views = make_views(frames, T_world_camera, camera, size)
        with at_work(self.model, self.device, self.rest) as model, torch.inference_mode():
            predictions = model.infer(
                views,
                memory_efficient_inference=True,
                use_amp=self.device.type == "cuda",
                amp_dtype="bf16",
                apply_mask=True,
                mask_edges=True,
                apply_confidence_mask=False,
            )
        if len(predictions) != count:
            raise ValueError(f"MapAnything answered for {len(predictions)} of {count} views")
        depth = torch.stack([p["depth_z"][0, ..., 0] for p in predictions]).float().cpu()  # (T, h, w)
        known = torch.stack([_mask(p) for p in predictions]) & torch.isfinite(depth) & (depth > 0)
        confidence = torch.stack(
            [confidence_of(p["conf"][0]) if "conf" in p else torch.ones_like(d) for p, d in zip(predictions, depth, strict=True)]
        )
        depth, confidence = to_frame_size(depth, confidence.float().cpu(), known, height, width)
        scale = 1.0 if prior is None else scale_to_memory(depth, confidence, prior, moving)
        return Geometry(
            depth * scale,
            confidence,
            _poses(predictions) if T_world_camera is None else T_world_camera.to(torch.float64),
            _camera(predictions, height, width, size) if camera is None else camera,
            scale,
        )


def working_size(height: int, width: int, side: int = SIDE) -> tuple[int, int]:
    """(h, w) that MapAnything sees: `side` pixels on the longer side, multiples of a patch, as near the frame's shape as that allows."""
    longest = max(height, width)
    h, w = (max(1, round(n * side / longest / PATCH)) * PATCH for n in (height, width))
    return h, w


def make_views(
    frames: torch.Tensor, T_world_camera: torch.Tensor | None, camera: Camera | None, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The views that `MapAnything.infer` takes, one per frame (T, H, W, 3) uint8; see the module's head."""
    h, w = size
    pictures = frames.permute(0, 3, 1, 2).float() / 255
    pictures = F.interpolate(pictures, (h, w), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    pictures = (pictures - mean) / std
    views: list[dict[str, Any]] = [{"img": picture[None], "data_norm_type": [NORM]} for picture in pictures]
    if camera is not None:
        K = camera.K.to(torch.float64).clone()
        K[0] *= w / camera.width
        K[1] *= h / camera.height
        K[:2, 2] -= 0.5
        for view in views:
            view["intrinsics"] = K[None].float()
    if T_world_camera is not None:
        # in float32 far from the world's origin millimetres would be lost; the model looks at poses from the first view anyway
        T_first_camera = se3.inverse(T_world_camera[:1].to(torch.float64)) @ T_world_camera.to(torch.float64)
        for view, pose in zip(views, T_first_camera, strict=True):
            view["camera_poses"] = pose[None].float()
            view["is_metric_scale"] = torch.tensor([True])
    return views


def confidence_of(conf: torch.Tensor) -> torch.Tensor:
    """MapAnything's confidence, 1 upwards, as the probability that the relative error is below 10 %, for a Laplace error.

    Its least, 1, becomes 0.39: pixels it does not mask are believed, as the release believes them all, but count less.
    """
    return 1 - torch.exp(-CONFIDENT_ERROR / CONFIDENCE_WEIGHT * conf.float())


def to_frame_size(
    depth: torch.Tensor, confidence: torch.Tensor, known: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and confidence (T, h, w) at the frames' size; 0 wherever a pixel would be mixed from one that is not `known`.

    Inverse depth is interpolated: on a plane, however steep, that is exact.
    """
    inverse = torch.where(known, 1 / depth.clamp(min=1e-6), torch.zeros_like(depth))
    parts = torch.stack([inverse, torch.where(known, confidence, torch.zeros_like(confidence)), known.float()], 1)
    inverse, confidence, whole = F.interpolate(parts, (height, width), mode="bilinear", align_corners=False).unbind(1)
    sure = whole > 1 - 1e-4
    zero = torch.zeros_like(inverse)
    return torch.where(sure, 1 / inverse.clamp(min=1e-9), zero), torch.where(sure, confidence, zero)


def scale_to_memory(depth: torch.Tensor, confidence: torch.Tensor, prior: Projection, moving: torch.Tensor | None = None) -> float:
    """What to multiply `depth` (T, H, W) by to agree with the memory: the median of their ratio, weighted by confidence.

    One number for all views, for their depths come from one reconstruction. 1 where too little is shared to tell.
    """
    shared = prior.mask.cpu() & (prior.depth.cpu() > 0) & (depth > 0) & (confidence > 0)
    if moving is not None:
        shared &= moving.cpu() <= 0.5
    if int(shared.sum()) < max(16, MIN_SHARED * shared.numel()):
        return 1.0
    ratio = (prior.depth.cpu()[shared].double() / depth[shared].double()).log()
    order = ratio.argsort()
    weight = confidence[shared].double()[order].cumsum(0)
    middle = int(torch.searchsorted(weight, weight[-1] / 2))
    return float(ratio[order][middle].exp())


def _mask(prediction: dict[str, torch.Tensor]) -> torch.Tensor:
    """(h, w) bool: what MapAnything calls unambiguous and no edge; all, for a variant that predicts no mask."""
    if "mask" in prediction:
        return prediction["mask"][0, ..., 0].bool().cpu()
    return torch.ones(prediction["depth_z"].shape[1:3], dtype=torch.bool)


def _poses(predictions: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Estimated T_world_camera (T, 4, 4) float64, the first camera being the world."""
    poses = se3.orthonormalise(torch.cat([p["camera_poses"] for p in predictions]).double().cpu())
    return se3.inverse(poses[:1]) @ poses


def _camera(predictions: list[dict[str, torch.Tensor]], height: int, width: int, size: tuple[int, int]) -> Camera:
    """The mean of the estimated intrinsics, as the release takes it, at the frames' size."""
    K = torch.cat([p["intrinsics"] for p in predictions]).double().cpu().mean(0)
    K[:2, 2] += 0.5
    K[0] *= width / size[1]
    K[1] *= height / size[0]
    return Camera(K, width, height)
