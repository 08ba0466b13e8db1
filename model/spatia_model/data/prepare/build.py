"""One video to clips: shots, windows, masks, a cloud of one candidate frame, its projection, references, latents (paper, section 3.3)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from spatia_model.data.prepare.footage import BadFootage, Footage, fit_frames, fit_intrinsics, fit_maps
from spatia_model.data.prepare.scale import find_scale
from spatia_model.data.prepare.shots import ShotRules, rejected, shots, thumbnails
from spatia_model.data.prepare.tools import Tools
from spatia_model.data.schema import Clip
from spatia_model.geometry.camera import camera_from_normalised, unproject
from spatia_model.memory.point_memory import PointMemory
from spatia_model.memory.references import KeyframeBank, retrieve, visible_surface
from spatia_model.memory.static_pixels import fusing_weight
from spatia_model.types import Camera, Perception, Projection


@dataclass(frozen=True)
class Settings:
    """How clips are cut and what is kept of them."""

    height: int = 704
    width: int = 1248
    fps: float = 24.0
    frames: int = 81  # of a window: history and targets
    preceding: int = 9
    clips_per_video: int = 4
    candidate_rate: float = 2.0  # frames a second that may become references, or the cloud
    max_candidates: int = 48
    references: int = 7
    threshold: float = 0.04  # least overlap of a reference
    voxel: float = 0.01  # metres, or shares of a hundredth of the scene's depth when the scale is unknown
    min_coverage: float = 0.05  # of the targets by the projection: less is no memory
    sky: float = 40.0  # metres; deeper enters no cloud
    pictures: str = "none"  # png, jpeg or none: pixels beside the latents
    seed: int = 0
    rules: ShotRules = field(default_factory=ShotRules)

    def __post_init__(self) -> None:
        if self.frames < 5 or (self.frames - 1) % 4 or self.preceding < 1 or (self.preceding - 1) % 4 or self.preceding >= self.frames:
            raise ValueError(f"a window has 1 + 4k frames and fewer preceding ones, also 1 + 4k; got {self.frames} and {self.preceding}")
        if self.pictures not in ("none", "png", "jpeg"):
            raise ValueError(f"pictures = {self.pictures!r}: expected png, jpeg or none")
        for name in ("height", "width", "fps", "clips_per_video", "candidate_rate", "max_candidates", "voxel"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number")


@dataclass
class Built:
    """What became of a video."""

    clips: list[Clip] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)  # windows by reason
    panels: list[np.ndarray] = field(default_factory=list)  # to look at


def seed_of(settings: Settings, name: str) -> list[int]:
    """The chance of a video depends on its name, not on the company."""
    return [settings.seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")]


def build(footage: Footage, settings: Settings, tools: Tools) -> Built:
    """All clips of one video.

    Raises:
        BadFootage: the video cannot be used at all.
    """
    rng, out = np.random.default_rng(seed_of(settings, footage.name)), Built()
    numbers = resample(footage.times, settings.fps)
    thumbs = thumbnails(_stream(footage, numbers))
    usable = shots(thumbs, settings.rules)
    found = [shot for shot in usable if len(shot) >= settings.frames]
    if not found:
        longest = max(map(len, usable), default=0)
        raise BadFootage(f"no shot of {settings.frames} frames at {settings.fps:g} a second: the longest has {longest}")
    windows = list(_windows(found, settings))
    count = min(settings.clips_per_video, len(windows))
    first = int(rng.integers(len(windows) - count + 1))  # windows that follow on each other, so that a video stays a sequence
    keep = range(first, first + count)
    by_shot: dict[int, Footage] = {}
    for i in keep:
        which, start = windows[i]
        shot = found[which]
        if which not in by_shot:
            by_shot[which] = footage if footage.T_world_camera is not None else _with_poses(footage, [numbers[k] for k in shot], tools)
        reason = _one(by_shot[which], settings, tools, rng, numbers, thumbs, shot, start, i, out)
        if reason:
            out.dropped[reason] += 1
    return out


def resample(times: torch.Tensor, fps: float) -> list[int]:
    """Frame numbers at about `fps` a second: the nearest of each tick, none twice. A video that is slower is taken as it is."""
    native = (len(times) - 1) / float(times[-1] - times[0])
    if native <= fps * 1.05:
        return list(range(len(times)))
    ticks = torch.arange(float(times[0]), float(times[-1]) + 1e-9, 1 / fps, dtype=times.dtype)
    after = torch.searchsorted(times, ticks).clamp(1, len(times) - 1)
    nearest = torch.where((ticks - times[after - 1]) <= (times[after] - ticks), after - 1, after)
    return torch.unique(nearest).tolist()


def _stream(footage: Footage, numbers: list[int]) -> Iterator[torch.Tensor]:
    """Frames one by one; a video file is decoded once."""
    files = getattr(footage.read, "frames", None)
    if files is not None:
        wanted = set(numbers)
        for i, frame in enumerate(files()):
            if i in wanted:
                yield torch.from_numpy(np.array(frame[..., :3]))
        return
    for a in range(0, len(numbers), 16):
        yield from footage.read(numbers[a : a + 16])


def _windows(found: list[range], settings: Settings) -> Iterator[tuple[int, int]]:
    """(shot, first position) of windows that follow on each other: the next one's history is this one's end."""
    step = settings.frames - settings.preceding
    for which, shot in enumerate(found):
        for start in range(shot.start, shot.stop - settings.frames + 1, step):
            yield which, start


def _with_poses(footage: Footage, numbers: list[int], tools: Tools) -> Footage:
    """Poses and intrinsics of a shot by the perceiver, from about 4 frames a second, at most 100."""
    if tools.perceiver is None:
        raise BadFootage("this video has no poses, and there is no perceiver to estimate them")
    seconds = float(footage.times[numbers[-1]] - footage.times[numbers[0]])
    some = np.unique(np.linspace(0, len(numbers) - 1, int(np.clip(4 * seconds, 2, 100))).round().astype(int))
    frames = footage.read([numbers[i] for i in some])
    given = None
    if footage.intrinsics is not None:
        given = camera_from_normalised(footage.intrinsics[numbers[0]].tolist(), frames.shape[2], frames.shape[1])
    poses, camera = tools.perceiver.poses(frames, given)
    from spatia_model.data.prepare.datasets import interpolate_poses
    from spatia_model.geometry.camera import normalised_intrinsics

    at = np.array([numbers[i] for i in some], float)
    everywhere = interpolate_poses(poses, at, np.arange(len(footage.times), dtype=float))
    K = torch.tensor(normalised_intrinsics(camera), dtype=torch.float64).repeat(len(footage.times), 1)
    return replace(footage, T_world_camera=everywhere, intrinsics=K, metric=True, provenance={**footage.provenance, "poses": "estimated"})


def _one(
    footage: Footage,
    settings: Settings,
    tools: Tools,
    rng: np.random.Generator,
    numbers: list[int],
    thumbs: torch.Tensor,
    shot: range,
    start: int,
    number: int,
    out: Built,
) -> str:
    """Build one window into `out`; the reason when it is dropped."""
    assert footage.T_world_camera is not None and footage.intrinsics is not None
    h, w, window = settings.height, settings.width, range(start, start + settings.frames)
    rows = [numbers[i] for i in window]
    candidates = choose_candidates(footage, numbers, shot, window, settings)
    cloud_options = [c for c in candidates if footage.depth_frames is None or c in footage.depth_frames]
    if not cloud_options:
        return "no candidate frame with depth"
    cloud = int(cloud_options[rng.integers(len(cloud_options))])
    needed = sorted({*rows, *candidates})
    source = footage.read(needed)
    place = {n: i for i, n in enumerate(needed)}
    everything = fit_frames(source, h, w)
    poses = footage.T_world_camera[needed].clone()
    intrinsics = fit_intrinsics(footage.intrinsics[needed], (source.shape[1], source.shape[2]), h, w)

    c = place[cloud]
    camera = camera_from_normalised(intrinsics[c].tolist(), w, h)
    perception = _perceive(footage, tools, everything[c], poses[c], camera, cloud)
    scale, told = _scale(footage, tools, everything, perception, poses, intrinsics, c)
    poses[:, :3, 3] *= scale
    typical = float(perception.depth[perception.depth > 0].median()) if bool((perception.depth > 0).any()) else 1.0
    target = [place[n] for n in rows]
    reason = rejected(thumbs[start : start + settings.frames], poses[target], typical, settings.rules)
    if reason:
        return reason
    memory = cloud_of(everything[c], poses[c], camera, perception, settings)
    if not len(memory):
        return "empty cloud"
    projection = project_path(memory, poses[target], intrinsics[target], h, w)
    new = slice(settings.preceding, None)
    coverage = float(projection.mask[new].float().mean())
    if coverage < settings.min_coverage:
        return "cloud not seen from the path"
    picked = pick_references(memory, everything, poses, intrinsics, [place[n] for n in candidates], projection, settings)
    moving = _motion(footage, tools, everything[target], poses[target], camera, rows)

    window_frames = everything[target]
    kept = footage.depth is not None and keeps_pictures(settings, tools)
    depth = fit_maps(footage.depth(rows), h, w) if kept else None  # type: ignore[misc]
    clip = Clip(
        key=f"{footage.name}-{number:05d}",
        video=footage.name,
        number=number,
        caption=footage.caption(float(footage.times[rows[settings.preceding]]), float(footage.times[rows[-1]])),
        prompt=footage.prompt,
        preceding=settings.preceding,
        fps=(len(rows) - 1) / float(footage.times[rows[-1]] - footage.times[rows[0]]),
        height=h,
        width=w,
        frame_numbers=tuple(rows),
        candidate_frames=tuple(candidates),
        cloud_frame=cloud,
        T_world_camera=poses[target],
        intrinsics=intrinsics[target],
        reference_frames=tuple(needed[i] for i, _ in picked),
        reference_poses=poses[[i for i, _ in picked]],
        reference_iou=torch.tensor([iou for _, iou in picked], dtype=torch.float32),
        provenance={
            **footage.provenance,
            "scale": scale,
            "scale_from": told,
            "coverage": coverage,
            "points": len(memory),
            "prepare_seed": settings.seed,
        },
        **contents(settings, tools, window_frames, everything[[i for i, _ in picked]], projection, moving, depth),
    )
    if tools.text is not None:
        clip = replace(clip, context=tools.rows(clip.caption))
    out.clips.append(clip)
    if len(out.panels) < 2:
        out.panels.append(panel(clip, window_frames, projection, everything[c], everything[[i for i, _ in picked]], moving))
    return ""


def choose_candidates(footage: Footage, numbers: list[int], shot: range, window: range, settings: Settings) -> list[int]:
    """Frames of the shot that are no targets, about `candidate_rate` a second, nearest to the window first kept; history at least."""
    targets = range(window.start + settings.preceding, window.stop)
    step = max(1, round(settings.fps / settings.candidate_rate))
    outside = [i for i in range(shot.start, shot.stop) if i not in targets]
    some = [i for k, i in enumerate(outside) if k % step == 0] or outside[:1]
    if footage.depth_frames is not None:  # the cloud needs a frame with depth
        having = set(footage.depth_frames)
        some = sorted({*some, *(i for i in outside if numbers[i] in having)})
    some.sort(key=lambda i: (max(window.start - i, i - window.stop + 1, 0), i))
    return sorted(numbers[i] for i in some[: settings.max_candidates])


def _perceive(footage: Footage, tools: Tools, frame: torch.Tensor, pose: torch.Tensor, camera: Camera, number: int) -> Perception:
    """Depth and motion of the cloud's frame: the footage's own where it has them, else the perceiver's."""
    h, w = frame.shape[:2]
    if footage.depth is not None:
        depth = fit_maps(footage.depth([number]), h, w)
        perception = Perception(depth, (depth > 0).float(), torch.zeros_like(depth))
    elif tools.perceiver is not None:
        perception = tools.perceiver.depth(frame, pose, camera)
    else:
        raise BadFootage("this video has no depth, and there is no perceiver to estimate it: choose one with --perceiver")
    if footage.dynamic is not None:
        perception = replace(perception, dynamic=fit_maps(footage.dynamic([number]), h, w))
    return perception


def _scale(
    footage: Footage, tools: Tools, frames: torch.Tensor, perception: Perception, poses: torch.Tensor, intrinsics: torch.Tensor, c: int
) -> tuple[float, str]:
    """What brings the poses into the depth's unit, and how it is known."""
    if footage.metric or footage.depth is not None:
        return 1.0, "given"
    distance = (poses[:, :3, 3] - poses[c, :3, 3]).norm(dim=1)
    order = distance.argsort()
    some = [int(order[i]) for i in (len(order) // 2, 3 * len(order) // 4, len(order) - 1) if int(order[i]) != c]
    depth = torch.where((perception.dynamic[0] < 0.5) & (perception.confidence[0] > 0.2), perception.depth[0], torch.zeros(()))
    scale = find_scale(frames[c], depth, poses[c], frames[some], poses[some], tuple(intrinsics[c].tolist())) if some else None
    if scale is None:
        baseline = float(distance.max())
        if baseline <= 1e-9 or not bool((perception.depth > 0).any()):
            return 1.0, "unknown: the camera does not move"
        return float(perception.depth[perception.depth > 0].median()) / (20 * baseline), "guessed: views show no parallax"
    return scale, "matched"


def cloud_of(frame: torch.Tensor, pose: torch.Tensor, camera: Camera, perception: Perception, settings: Settings) -> PointMemory:
    """The static points of one frame."""
    weight = fusing_weight(
        perception, camera, min_confidence=0.15, dynamic_threshold=0.5, dynamic_dilation=2, edge_threshold=0.15, sky_depth=settings.sky
    )
    weight = torch.where(perception.depth < settings.sky, weight, torch.zeros_like(weight))
    points = unproject(perception.depth, pose[None], camera).reshape(-1, 3)
    footprint = (perception.depth * (2.0 / float(camera.K[0, 0] + camera.K[1, 1]))).reshape(-1)
    return PointMemory.empty(settings.voxel).fuse(points, frame.reshape(-1, 3), weight.reshape(-1), 0, footprint)


def project_path(memory: PointMemory, poses: torch.Tensor, intrinsics: torch.Tensor, height: int, width: int) -> Projection:
    """The cloud along a path whose intrinsics may change (zoom); frames with equal ones share a call."""
    parts: list[Projection] = []
    a = 0
    for b in range(1, len(poses) + 1):
        if b == len(poses) or not torch.allclose(intrinsics[b], intrinsics[a], atol=1e-5):
            parts.append(memory.project(poses[a:b], camera_from_normalised(intrinsics[a].tolist(), width, height)))
            a = b
    return Projection(*(torch.cat([getattr(p, n) for p in parts]) for n in ("rgb", "depth", "mask", "index")))


def pick_references(
    memory: PointMemory,
    frames: torch.Tensor,
    poses: torch.Tensor,
    intrinsics: torch.Tensor,
    candidates: list[int],
    projection: Projection,
    settings: Settings,
) -> list[tuple[int, float]]:
    """(row, IoU) of the candidates that see most of what the targets see, best first, alike ones passed over."""
    from spatia_model.geometry.visibility import sets_iou

    new = slice(settings.preceding, None)
    wanted = visible_surface(memory, Projection(projection.rgb[new], projection.depth[new], projection.mask[new], projection.index[new]))
    bank = KeyframeBank(max_keyframes=max(2, len(candidates)))
    h, w = frames.shape[1:3]
    factor = max(1, min(h, w) // 128)  # overlap needs no full resolution
    for row in candidates:
        camera = camera_from_normalised(intrinsics[row].tolist(), w // factor, h // factor)
        seen = visible_surface(memory, memory.project(poses[row : row + 1], camera))
        bank = bank.add(frames[row], poses[row], seen)
    ids = retrieve(bank, wanted, settings.references, settings.threshold)
    return [(candidates[i], sets_iou(bank.get([i])[0].visible, wanted)) for i in ids]


def _motion(footage: Footage, tools: Tools, frames: torch.Tensor, poses: torch.Tensor, camera: Camera, rows: list[int]) -> torch.Tensor:
    """(T, H, W) float32 in 0..1."""
    h, w = frames.shape[1:3]
    if footage.dynamic is not None:
        return fit_maps(footage.dynamic(rows), h, w)
    if tools.perceiver is None:
        return torch.zeros(len(frames), h, w)
    return tools.perceiver.motion(frames, poses, camera)


def keeps_pictures(settings: Settings, tools: Tools) -> bool:
    return settings.pictures != "none" or tools.vae is None


def contents(
    settings: Settings,
    tools: Tools,
    frames: torch.Tensor,
    references: torch.Tensor,
    projection: Projection,
    moving: torch.Tensor,
    depth: torch.Tensor | None = None,
    told: torch.Tensor | None = None,
) -> dict[str, Any]:
    """A clip's latents and pictures, as far as they are kept.

    Args:
        frames: (T, H, W, 3) uint8; `references` (R, H, W, 3).
        moving: (T, H, W) in 0..1; `told`: what of it the model is told of the history, where that is not all.
        depth: (T, H, W) metres, where known.
    """
    found: dict[str, Any] = {}
    if tools.vae is not None:
        latents, holes = tools.control(projection.rgb, projection.mask, moving if told is None else told, settings.preceding)
        found |= {"latents": tools.latents(frames), "projection": latents, "holes": holes, "references": tools.references(references)}
        found |= {"moving": tools.shares(moving), "uncovered": tools.shares(~projection.mask)}
    if keeps_pictures(settings, tools):
        found |= {"frames": frames, "projection_frames": projection.rgb, "reference_images": references}
        found |= {"projection_depth": projection.depth.half(), "dynamic": moving > 0.5}
        if depth is not None:
            found["depth"] = depth.clamp(max=60000).half()
    return found


def panel(
    clip: Clip, frames: torch.Tensor, projection: Projection, cloud: torch.Tensor, references: torch.Tensor, moving: torch.Tensor
) -> np.ndarray:
    """A row to look at: cloud's frame; first target, projection and motion; last target and projection; two references. 160 pixels high."""
    grey = (moving[-1:].clamp(0, 1) * 255).to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
    first, last = clip.preceding, len(frames) - 1
    black = torch.zeros_like(frames[:2])
    shown = torch.cat([references[:2], black])[:2]
    tiles = torch.cat(
        [cloud[None], frames[first : first + 1], projection.rgb[first : first + 1], frames[last:], projection.rgb[last:], grey, shown]
    )
    width = max(16, round(160 * frames.shape[2] / frames.shape[1]))
    return torch.cat(list(fit_frames(tiles, 160, width)), 1).numpy()


def describe(settings: Settings) -> dict[str, Any]:
    return asdict(settings)


__all__ = ["Built", "Settings", "build", "describe"]
