"""Training the embedded perceiver on procedural walks, with and without the memory's prior and evidence of motion.

Without evidence, what moves is to be told by its looks: a single picture's balls and boxes, which may roll and slide away, have no place
in the map. Pictures of nothing in particular are there so that little else is taken for such a thing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.data.procedural import ClipFolder
from spatia_model.data.windows import WindowFolder
from spatia_model.evaluation.metrics import blur
from spatia_model.geometry.camera import resize, unproject
from spatia_model.geometry.neighbours import opened
from spatia_model.geometry.visibility import frontmost_points
from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig, mirror, stack_inputs
from spatia_model.training.loop import device_of
from spatia_model.training.pictures import PicturePool
from spatia_model.types import Camera, Projection
from spatia_model.worlds.trajectories import pose_from

FAR = 45.0  # metres; beyond it depth is sky, judged on being far, not on how far
LOST = math.log(6)  # beyond, an error's cost grows with its logarithm: a few pixels would drown the rest


class PerceptionStage:
    """Laplace likelihood of log depth, cross-entropy of motion.

    Args:
        views: pictures of more worlds; a share `first` of the batch is drawn from them, `remembered` of these with part of it in the map.
        batch, stills: samples from worlds and of pictures of nothing in particular, per step.
        only: "first" for pictures with nothing to go by but their looks and no others, "again" for all but these. Of a model that has a
            network of its own for first pictures, these go to that one.
    """

    def __init__(
        self,
        windows: WindowFolder,
        validation: WindowFolder,
        pool: PicturePool,
        config: CompactPerceptionConfig | None = None,
        mini: MiniConfig | None = None,
        views: ClipFolder | None = None,
        batch: int = 12,
        stills: int = 3,
        first: float = 0.6,
        remembered: float = 0.35,
        only: str = "",
    ):
        if only not in ("", "first", "again"):
            raise ValueError(f"only must be '', 'first' or 'again', got {only!r}")
        self.name = only or "perception"
        self.only = only
        self.model = CompactPerception(config)
        self.windows, self.validation, self.pool, self.views = windows, validation, pool, views
        self.mini = mini or MiniConfig()
        self.camera = mini_camera(self.mini)
        self.batch, self.stills, self.first = batch, stills, first
        self.remembered = {"first": 0.0, "again": 1.0}.get(only, remembered)

    def loss(self, rng: np.random.Generator, generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        def sample():
            return self._view_sample(rng) if self.views is not None and rng.random() < self.first else self._world_sample(rng)

        worlds = [sample() for _ in range(self.batch)]
        samples = worlds + [self._still_sample(rng) for _ in range(self.stills)]
        x, depth, dynamic, known = (torch.cat(part).to(device_of(self.model)) for part in zip(*samples, strict=True))
        log_depth, log_scale, logit = self._see(x)
        log_truth = depth.clamp(0.05, FAR).log()
        over = log_depth.clamp(max=math.log(FAR)) - log_truth
        error = over.abs()
        relative = relative_cost(over)
        likelihood = error.detach() * (-log_scale).exp() + log_scale  # tells how sure, not how far: else sure pixels drown the rest
        motion = F.binary_cross_entropy_with_logits(logit, dynamic, weight=1 + 2 * dynamic)
        # only between pixels whose depth is known: else what is flat by chance would teach that clutter is flat
        both = [known.narrow(d, 1, known.shape[d] - 1) * known.narrow(d, 0, known.shape[d] - 1) for d in (1, 2)]
        edges = sum(((log_depth - log_truth).diff(dim=d).abs() * pair).mean() for d, pair in zip((1, 2), both, strict=True))
        loss = (likelihood * known).mean() * 0.3 + ((error + 2 * relative) * known).mean() + 0.5 * edges + 6.0 * motion
        if self.model.first is not None:  # a network that no sample was for: data parallelism waits for every weight's gradient
            loss = loss + 0 * sum(p.sum() for p in self.model.parameters())
        known_error = float((error * known).detach().sum() / known.sum().clamp_min(1))
        return loss, {"log_error": known_error, "motion": float(motion.detach())}

    def _world_sample(self, rng: np.random.Generator, plain: bool = False, prior: bool = True, evidence: bool = True):
        walk = self.validation.pick(rng) if plain else self.windows.pick(rng)
        i = int(rng.integers(self.mini.motion_gap, walk.frames))
        if not plain:
            prior, evidence = self._told(rng, 0.4)
        rgb, depth, dynamic = walk.rgb(i, i + 1), walk.depth(i, i + 1), walk.dynamic(i, i + 1).float()
        earlier = walk.rgb(i - self.mini.motion_gap, i - self.mini.motion_gap + 1) if evidence else None
        projection = walk.projection(i, i + 1) if prior else None
        if not plain:
            gain = _gain(rng)
            rgb, earlier = degrade(rng, _expose(rgb, gain)), None if earlier is None else degrade(rng, _expose(earlier, gain))
            projection = None if projection is None else replace(projection, rgb=_expose(projection.rgb, gain))
            scale = float(np.exp(rng.uniform(-0.3, 0.3))) if prior and projection is not None and projection.coverage > 0.2 else 1.0
            depth = depth * scale
            if projection is not None:
                projection = Projection(projection.rgb, projection.depth * scale, projection.mask, projection.index)
        x = stack_inputs(rgb, walk.poses(i, i + 1), self.camera, projection, earlier, self.model.config.extends)
        return (x, depth, dynamic, torch.ones_like(depth)) if plain else _varied(rng, x, depth, dynamic)

    def _view_sample(self, rng: np.random.Generator):
        """One picture and nothing else, or what the map of a place close by would show of it."""
        assert self.views is not None
        handle = self.views.pick(rng)
        i = int(rng.integers(handle.get_slice("rgb").get_shape()[0]))
        rgb, depth, dynamic, pose = (handle.get_slice(name)[i : i + 1] for name in ("rgb", "depth", "dynamic", "T_world_camera"))
        rgb, depth, projection = _expose(rgb, _gain(rng)), depth.float(), None
        if rng.random() < self.remembered:
            projection = partly_remembered(rng, rgb, depth, dynamic, pose, self.camera)
            rgb = degrade(rng, rgb)
        return _varied(rng, stack_inputs(rgb, pose, self.camera, projection, None, self.model.config.extends), depth, dynamic.float())

    def _still_sample(self, rng: np.random.Generator):
        """A picture of nothing in particular whose memory shows the same: keep the memory's depth, call nothing moving."""
        size = self.mini.image_size
        frames = torch.from_numpy(self.pool.pan(rng, 3, size))
        field = torch.from_numpy(rng.normal(0, 0.5, (1, 1, 4, 4)).astype(np.float32))
        depth = torch.exp(F.interpolate(field, size=(size, size), mode="bicubic", align_corners=False)[:, 0] + rng.uniform(0, 1.8))
        holes = torch.from_numpy(rng.normal(0, 1, (1, 1, 6, 6)).astype(np.float32))
        mask = F.interpolate(holes, size=(size, size), mode="bicubic", align_corners=False)[:, 0] > rng.uniform(-2.5, 0.5)
        rgb = frames[2:3]
        memory = degrade(rng, rgb, 1.0)
        noisy = depth * torch.exp(0.01 * torch.from_numpy(rng.normal(0, 1, tuple(depth.shape)).astype(np.float32)))
        index = torch.zeros_like(mask, dtype=torch.int32)
        prior, evidence = self._told(rng, 0.8)
        projection = Projection(memory * mask.unsqueeze(-1), noisy * mask, mask, index) if prior else None
        earlier = frames[int(rng.integers(0, 3))][None] if evidence else None
        pose = torch.eye(4, dtype=torch.float64)[None]
        x = stack_inputs(degrade(rng, rgb), pose, self.camera, projection, earlier, self.model.config.extends)
        known = mask.float() if projection is not None else torch.zeros_like(depth)
        return x, depth, torch.zeros_like(depth), known

    def _told(self, rng: np.random.Generator, chance: float) -> tuple[bool, bool]:
        """Whether a sample has the memory's prior, and an earlier frame."""
        prior, evidence = bool(rng.random() < (0.8 if self.only == "again" else chance)), bool(rng.random() < 0.6)
        if self.only == "first":
            return False, False
        return prior, evidence or (self.only == "again" and not prior)

    def _see(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The model's outputs, each sample's from the network that it is for."""
        if self.model.first is None:
            return self.model(x)
        told = (x[:, 7] > 0).flatten(1).any(1) | (x[:, :3] != x[:, 8:11]).flatten(1).any(1)
        parts = [network(x[rows]) for network, rows in ((self.model, told), (self.model.first, ~told)) if rows.any()]
        order = torch.cat([told.nonzero()[:, 0], (~told).nonzero()[:, 0]]).argsort()
        return tuple(torch.cat(part)[order] for part in zip(*parts, strict=True))

    def _look(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part.cpu() for part in self._see(x.to(device_of(self.model))))

    def validate(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        kinds = [("prior", True)] * (self.only != "first") + [("empty", False)] * (self.only != "again")
        for name, told in kinds:
            rng = np.random.default_rng(1_000_000)
            errors, unknown, hits, unions = [], [], 0.0, 0.0
            for _ in range(64):
                x, depth, dynamic, _ = self._world_sample(rng, plain=True, prior=told, evidence=told)
                log_depth, _, logit = self._look(x)
                near = (depth < FAR) & (dynamic < 0.5)
                error = (log_depth.exp() - depth).abs() / depth
                errors.append(float(error[near].mean()))
                unknown.append(float(error[near & (x[:, 7] < 0.5)].mean()))
                moving = logit > 0
                hits += float((moving & (dynamic > 0.5)).sum())
                unions += float((moving | (dynamic > 0.5)).sum())
            figures[f"abs_rel_{name}"] = float(np.nanmean(errors))
            if told:
                figures["abs_rel_off_prior"] = float(np.nanmean(unknown))  # of what the map does not show
            figures[f"dynamic_iou_{name}"] = hits / max(unions, 1)
        rng = np.random.default_rng(1_000_002)
        stills = torch.cat([self._still_sample(rng)[0] for _ in range(32)])
        figures["called_still"] = float((self._look(stills)[2] > 0).float().mean())
        return figures

    def sample(self) -> np.ndarray:
        rng = np.random.default_rng(1_000_003)
        rows = []
        for _ in range(6):
            told = self.only != "first"
            x, depth, dynamic, _ = self._world_sample(rng, plain=True, prior=told, evidence=told)
            log_depth, log_scale, logit = self._look(x)

            def grey(v: torch.Tensor) -> np.ndarray:
                return np.repeat((v[0].clamp(0, 1) * 255).to(torch.uint8).numpy()[..., None], 3, -1)

            def picture(v: torch.Tensor) -> np.ndarray:
                return ((v[0].permute(1, 2, 0) + 1) * 127.5).to(torch.uint8).numpy()

            parts = [picture(x[:, :3]), picture(x[:, 3:6]), grey(0.8 / depth), grey(0.8 / log_depth.exp())]
            rows.append(np.concatenate([*parts, grey(1 - log_scale.exp() * 5), grey(dynamic), grey(logit.sigmoid())], 1))
        return np.concatenate(rows, 0)


def relative_cost(over: torch.Tensor) -> torch.Tensor:
    """What it costs to be exp(over) times too far: the relative error, up to `LOST`. A lamp taken for sky costs more than the reverse."""
    return (over.clamp(max=LOST).exp() - 1).abs() + (over - LOST).clamp(min=0) * math.exp(LOST)


def partly_remembered(
    rng: np.random.Generator, rgb: torch.Tensor, depth: torch.Tensor, dynamic: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera
) -> Projection:
    """What a map would show of a picture of which it saw what is visible from a place close by: not what has just come into view.

    rgb (1, H, W, 3) uint8, depth (1, H, W) metres, dynamic (1, H, W) bool, T_world_camera (1, 4, 4). Its depth is a little wrong, smoothly.
    """
    right, down, ahead = (rng.normal(0, 0.25, 3) * (1, 0.2, 1)).tolist()
    yaw, pitch = (rng.normal(0, 0.3, 2) * (1, 0.3)).tolist()
    seen = seen_from(depth, T_world_camera, T_world_camera @ pose_from(right, down, ahead, yaw, pitch, 0.0), camera)
    mask = seen if rng.random() < 0.5 else seen & ~dynamic  # the map has been told of what moves, or overlooked it
    field = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.02), (1, 1, 6, 6)).astype(np.float32))
    error = F.interpolate(field, size=depth.shape[1:], mode="bicubic", align_corners=False)[:, 0]
    error = error + 0.005 * torch.from_numpy(rng.normal(0, 1, tuple(depth.shape)).astype(np.float32))
    memory = degrade(rng, rgb, 1.0) * mask.unsqueeze(-1)
    return Projection(memory, depth * error.exp() * mask, mask, torch.where(mask, 0, -1).int())


def seen_from(depth: torch.Tensor, T_world_camera: torch.Tensor, T_world_other: torch.Tensor, camera: Camera) -> torch.Tensor:
    """(1, H, W) bool: which pixels of depth (1, H, W) seen from a pose (1, 4, 4) the same camera sees from another (1, 4, 4)."""
    points = unproject(depth, T_world_camera, camera).reshape(-1, 3)
    coarse = resize(camera, camera.width // 2, camera.height // 2)  # else what is behind shows between points
    unseen = ~frontmost_points(points, T_world_other, coarse, tolerance=0.15).reshape(depth.shape)
    return opened(unseen.float()) < 0.5  # slanted surfaces have no stripes


def _varied(rng: np.random.Generator, x: torch.Tensor, depth: torch.Tensor, dynamic: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A sample with another field of view, or mirrored, some of the time; all its depth is known."""
    if rng.random() < 0.4:
        x, depth, dynamic = zoom(rng, x, depth, dynamic)
    if rng.random() < 0.5:
        x, depth, dynamic = mirror(x), depth.flip(-1), dynamic.flip(-1)
    return x, depth, dynamic, torch.ones_like(depth)


def zoom(
    rng: np.random.Generator, x: torch.Tensor, depth: torch.Tensor, dynamic: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Another field of view: a random window, a third of the sides or more, at full size again. Rays are among the inputs: all still fits.

    x (1, 14, H, W), depth and dynamic (1, H, W). What is known or not keeps its edges, the rest is interpolated.
    """
    size = depth.shape[-1]
    side = int(rng.integers(size // 3, size + 1))
    top, left = int(rng.integers(size - side + 1)), int(rng.integers(size - side + 1))
    window = torch.cat([x, depth.unsqueeze(1), dynamic.unsqueeze(1)], 1)[..., top : top + side, left : left + side]
    nearest = F.interpolate(window, size=(size, size), mode="nearest-exact")
    smooth = F.interpolate(window, size=(size, size), mode="bilinear")
    channels = [c for c in range(x.shape[1]) if c < 3 or c >= 8]  # the frames and the rays; the memory's part has holes
    nearest[:, channels] = smooth[:, channels]
    return nearest[:, :-2], nearest[:, -2], nearest[:, -1]


def _gain(rng: np.random.Generator) -> np.ndarray:
    """(3,) Another exposure and other lamps, some of the time."""
    return rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3) if rng.random() < 0.5 else np.ones(3)


def _expose(frames: torch.Tensor, gain: np.ndarray) -> torch.Tensor:
    return (frames * torch.from_numpy(gain).float()).clamp(0, 255).to(torch.uint8)


def degrade(rng: np.random.Generator, frames: torch.Tensor, chance: float = 0.5) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 made to look generated: some blur, some noise, some of the time."""
    if rng.random() > chance:
        return frames
    x = blur(frames.permute(0, 3, 1, 2).float(), float(rng.uniform(0.4, 1.0)))
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 5), tuple(x.shape)).astype(np.float32))
    return (x + noise).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
