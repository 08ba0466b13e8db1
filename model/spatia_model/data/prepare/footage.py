"""A video and what is known of it: the one form that every source of clips is brought into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

Reader = Callable[[Sequence[int]], torch.Tensor]
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class BadFootage(ValueError):
    """A video that cannot be used, and why. It is set aside; the others go on."""


@dataclass(frozen=True)
class Footage:
    """N frames, some of them with poses.

    `read`, `depth` and `dynamic` take increasing frame numbers (n,) and give (n, H, W, 3) uint8, (n, h, w) float32 z-depth in the poses'
    scale (0 for none) and (n, h, w) float32 in 0..1, probability of motion; the latter two at any resolution of the same picture.
    """

    name: str
    times: torch.Tensor  # (N,) float64 seconds, increasing
    read: Reader
    T_world_camera: torch.Tensor | None = None  # (N, 4, 4) float64; None: to be estimated
    intrinsics: torch.Tensor | None = None  # (N, 4) float64 fx fy cx cy, normalised
    depth: Reader | None = None
    dynamic: Reader | None = None
    captions: tuple[tuple[float, str], ...] = ()  # (from this second on, what happens), increasing
    prompt: str = ""
    metric: bool = False  # poses are in metres
    depth_frames: tuple[int, ...] | None = None  # frames that have a depth of their own; None: all, if `depth` is given
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.times)
        if n < 2:
            raise BadFootage(f"{n} frame(s): a clip needs more")
        steps = self.times.diff()
        if bool((steps <= 0).any()):
            i = int((steps <= 0).nonzero()[0])
            raise BadFootage(
                f"timestamps do not increase: {float(self.times[i]):.6f} s is followed by {float(self.times[i + 1]):.6f} s (frame {i + 1})"
            )
        if self.T_world_camera is not None:
            _check_poses(self.T_world_camera, n)
        if self.intrinsics is not None:
            if tuple(self.intrinsics.shape) != (n, 4):
                raise BadFootage(f"intrinsics are {tuple(self.intrinsics.shape)}; expected ({n}, 4), fx fy cx cy of every frame")
            if not bool(torch.isfinite(self.intrinsics).all()) or bool((self.intrinsics[:, :2] <= 0).any()):
                raise BadFootage("intrinsics hold focal lengths that are not positive numbers")
            if bool((self.intrinsics[:, :2] > 20).any()):
                raise BadFootage("intrinsics look like pixels: they must be divided by the picture's width and height")

    def caption(self, start: float, stop: float) -> str:
        """The caption of the longest share of start..stop."""
        best, text = 0.0, ""
        for i, (begin, caption) in enumerate(self.captions):
            end = self.captions[i + 1][0] if i + 1 < len(self.captions) else float("inf")
            share = min(stop, end) - max(start, begin)
            if share > best:
                best, text = share, caption
        return text


def _check_poses(poses: torch.Tensor, n: int) -> None:
    if tuple(poses.shape) != (n, 4, 4):
        raise BadFootage(f"poses are {tuple(poses.shape)}; expected ({n}, 4, 4), one for every frame")
    if not bool(torch.isfinite(poses).all()):
        raise BadFootage(f"the pose of frame {int((~torch.isfinite(poses)).any(2).any(1).nonzero()[0])} holds NaN or infinite numbers")
    R = poses[:, :3, :3]
    off = (R @ R.transpose(1, 2) - torch.eye(3, dtype=R.dtype)).abs().amax((1, 2))
    if bool((off > 1e-2).any()) or bool((torch.linalg.det(R) < 0).any()):
        raise BadFootage(f"the pose of frame {int(off.argmax())} is no rotation (off by {float(off.max()):.2g}, or mirrored)")


# -- pictures ---------------------------------------------------------------------------------------------------------


def fit_frames(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(n, H, W, 3) uint8 to (n, height, width, 3): the largest middle part of that shape, scaled with antialiasing."""
    top, left, h, w = middle(frames.shape[1], frames.shape[2], height, width)
    part = frames[:, top : top + h, left : left + w]
    if (h, w) == (height, width):
        return part.contiguous()
    out = []
    for frame in part.split(8):  # bounded memory
        x = F.interpolate(frame.permute(0, 3, 1, 2).float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
        out.append(x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(out).contiguous()


def fit_maps(maps: torch.Tensor, height: int, width: int, nearest: bool = True) -> torch.Tensor:
    """Depth or masks (n, h, w) of a picture, at any resolution, to the same middle part at (height, width)."""
    top, left, h, w = middle(maps.shape[1], maps.shape[2], height, width)
    part = maps[:, None, top : top + h, left : left + w].float()
    options: dict[str, Any] = {"mode": "nearest-exact"} if nearest else {"mode": "bilinear", "align_corners": False, "antialias": True}
    return F.interpolate(part, (height, width), **options)[:, 0]


def fit_intrinsics(intrinsics: torch.Tensor, source: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """Normalised intrinsics (n, 4) of a picture of `source` (H, W) for its middle part."""
    top, left, h, w = middle(*source, height, width)
    fx, fy, cx, cy = intrinsics.unbind(1)
    return torch.stack([fx * source[1] / w, fy * source[0] / h, (cx * source[1] - left) / w, (cy * source[0] - top) / h], 1)


def middle(source_height: int, source_width: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, h, w) of the largest middle part with the aspect of height x width."""
    h = min(source_height, round(source_width * height / width))
    w = min(source_width, round(source_height * width / height))
    return (source_height - h) // 2, (source_width - w) // 2, max(h, 1), max(w, 1)


# -- files ------------------------------------------------------------------------------------------------------------


class VideoFile:
    """Frames of a video file by number, decoded in order. Picklable; each call decodes from the start."""

    def __init__(self, path: Path):
        self.path = path
        reader = self._open()
        try:
            told = reader.get_meta_data()
            self.fps = float(told.get("fps") or 0)
            self.duration = float(told.get("duration") or 0)
            self.size = (int(told["size"][1]), int(told["size"][0]))
        finally:
            reader.close()
        if self.fps <= 0:
            raise BadFootage(f"{path.name} tells no frame rate")

    def _open(self) -> Any:
        import imageio.v2 as imageio

        if not self.path.is_file() or not self.path.stat().st_size:
            raise BadFootage(f"{self.path} is missing or empty")
        try:
            return imageio.get_reader(str(self.path), format="FFMPEG")  # type: ignore[arg-type]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise BadFootage(f"{self.path.name} cannot be decoded: {_first_line(error)}") from error

    def frames(self) -> Iterator[np.ndarray]:
        """All frames that can be decoded, (H, W, 3) uint8."""
        reader = self._open()
        try:
            yield from reader.iter_data()
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise BadFootage(f"{self.path.name} is damaged: {_first_line(error)}") from error
        finally:
            reader.close()

    def count(self) -> int:
        """Frames that can be decoded; decodes all."""
        return sum(1 for _ in self.frames())

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        wanted, found = set(numbers), {}
        for i, frame in enumerate(self.frames()):
            if i in wanted:
                found[i] = torch.from_numpy(np.array(frame[..., :3]))
                if len(found) == len(wanted):
                    break
        if missing := wanted - found.keys():
            raise BadFootage(f"{self.path.name} ends before frame {min(missing)}: truncated, or of another version")
        return torch.stack([found[i] for i in numbers])


class PictureFiles:
    """Frames that are files, by number."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        with self._open(0) as image:
            self.size = (image.height, image.width)

    def _open(self, number: int) -> Image.Image:
        try:
            return Image.open(self.paths[number])
        except (OSError, ValueError) as error:
            raise BadFootage(f"{self.paths[number].name} is no picture: {_first_line(error)}") from error

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        out = []
        for number in numbers:
            with self._open(number) as image:
                if (image.height, image.width) != self.size:
                    first = f"{self.size[1]}x{self.size[0]}"
                    raise BadFootage(f"{self.paths[number].name} is {image.width}x{image.height}, the first frame {first}: mixed sizes")
                try:
                    out.append(torch.from_numpy(np.array(image.convert("RGB"))))
                except (OSError, ValueError) as error:
                    raise BadFootage(f"{self.paths[number].name} is cut short: {_first_line(error)}") from error
        return torch.stack(out)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
