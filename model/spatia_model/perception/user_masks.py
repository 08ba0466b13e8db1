"""Masks that a person made of what moves. They always win over any perceiver's opinion.

Formats are the release's: binary pictures (one, several, or a folder of them) or one `.npy` of shape [N, H, W]; foreground, that is
white or nonzero, is what moves.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from spatia_model.perception.protocols import Perceiver
from spatia_model.types import Camera, Perception, Projection

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
GREY = 0.05  # share of pixels that may be neither black nor white (scaled or compressed edges) in a binary picture
COVERED = 0.25  # share of a pixel that foreground must cover when a mask is made smaller: what moves must not be mapped
SAME_SHAPE = 0.01  # relative difference up to which two aspect ratios are one


@dataclass(frozen=True)
class UserMasks:
    """Masks at the size of a world's frames, and which frames they belong to.

    masks: (N, H, W) bool, True where something moves. `shared`: their union holds for every frame. Else mask i belongs to frame i, frame 0
    being the picture that the world begins with; frames beyond the last mask have none.
    """

    masks: torch.Tensor
    shared: bool = False

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or self.masks.dtype != torch.bool or not len(self.masks):
            raise ValueError(f"masks are {tuple(self.masks.shape)} {self.masks.dtype}; expected (N, H, W) bool with N of at least 1")

    def of_frames(self, frames: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks (len(frames), H, W) bool of the frames of these numbers, and which of them have one, (len(frames),) bool."""
        if self.shared:
            union = self.masks.any(0, keepdim=True)
            return union.expand(len(frames), -1, -1), torch.ones(len(frames), dtype=torch.bool)
        numbers = torch.tensor(list(frames))
        return self.masks[numbers.clamp(max=len(self.masks) - 1)], numbers < len(self.masks)


class UserMaskPerceiver:
    """Another perceiver, whose opinion of what moves gives way to a person's masks.

    Args:
        perceiver: whose depth is taken, and whose motion for frames without a mask.
        masks: see `UserMasks`.
        first: number of the first frame that `perceive` will be given. A perceiver has no memory: make one per clip (`with_user_masks`).
        numbers: of all frames that it will be given, where they are not consecutive.
    """

    def __init__(self, perceiver: Perceiver, masks: UserMasks, first: int = 0, numbers: Sequence[int] | None = None):
        self.perceiver, self.masks, self.first, self.numbers = perceiver, masks, first, numbers

    def __getattr__(self, name: str) -> Any:
        if name == "perceiver":  # not there yet: while it is being copied
            raise AttributeError(name)
        return getattr(self.perceiver, name)

    def perceive(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor,
        camera: Camera,
        prior: Projection | None = None,
        previous: torch.Tensor | None = None,
    ) -> Perception:
        """See `Perceiver.perceive`."""
        numbers = range(self.first, self.first + len(frames)) if self.numbers is None else self.numbers
        if len(numbers) != len(frames):
            raise ValueError(f"{len(frames)} frames are to be perceived, masks are ready for {len(numbers)}: frames {list(numbers)}")
        masks, given = self.masks.of_frames(numbers)
        if masks.shape[1:] != frames.shape[1:3]:
            raise ValueError(
                f"the masks are {masks.shape[2]}x{masks.shape[1]} pixels, the frames {frames.shape[2]}x{frames.shape[1]}: "
                "fit them with fit_masks"
            )
        seen = self.perceiver.perceive(frames, T_world_camera, camera, prior, previous)
        return replace(seen, dynamic=torch.where(given[:, None, None], masks.float(), seen.dynamic.cpu()))


class MaskedWorld:
    """A world model whose `begin`, `advance` and `observe` follow a person's masks; all else is the model's own.

    Which masks a call needs is read off the state: frame 0 is the picture, `state.frame_count` the number of the next frame.
    """

    def __init__(self, world: Any, masks: UserMasks):
        self.world, self.masks = world, masks
        with_user_masks(world, masks, 0)  # complains now, not after the first clip

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's `begin`."""
        return with_user_masks(self.world, self.masks, 0).begin(*args, **kwargs)

    def advance(self, state: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's `advance`."""
        return self._from(state, path).advance(state, path, *args, **kwargs)

    def observe(self, state: Any, frames: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's `observe`."""
        return self._from(state, path).observe(state, frames, path, *args, **kwargs)

    def _from(self, state: Any, path: Any) -> Any:
        """The model whose eyes follow the masks of the frames that come after `state`."""
        first, config, numbers = state.frame_count, getattr(self.world, "config", None), None
        if config is not None and hasattr(config, "map_rate"):  # the 5B perceives the frames that enter the map: every n-th of the video
            stride = config.stride(config.map_rate)
            numbers = [number for number in range(first, first + len(path)) if number % stride == 0]
        return with_user_masks(self.world, self.masks, first, numbers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)


def with_user_masks(world: Any, masks: UserMasks, first: int, numbers: Sequence[int] | None = None) -> Any:
    """The same world model, sharing every part, for one call that perceives frame `first` of the video and on: 0 for `begin`.

    world: anything whose `perceiver` attribute is a `Perceiver`.
    """
    if not hasattr(world, "perceiver"):
        raise ValueError(f"a {type(world).__name__} has no perceiver whose masks could be replaced")
    masked = copy.copy(world)
    inner = world.perceiver.perceiver if isinstance(world.perceiver, UserMaskPerceiver) else world.perceiver
    masked.perceiver = UserMaskPerceiver(inner, masks, first, numbers)
    return masked


def read_masks(paths: str | Path | Sequence[str | Path]) -> torch.Tensor:
    """Read masks: one picture, several, a folder of pictures (in the order of the numbers in their names), or one `.npy`.

    Returns:
        (N, H, W) bool, True in the foreground, which moves.

    Raises:
        ValueError: missing, unreadable, no mask, of differing sizes, or without a static pixel; names the file.
    """
    given = [Path(p).expanduser() for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not given:
        raise ValueError("no masks given; name a picture, a folder of pictures, or one .npy file of shape [N, H, W]")
    if len(given) == 1 and given[0].is_dir():
        folder = given[0]
        given = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=_number_order)
        if not given:
            raise ValueError(f"the folder {str(folder)!r} holds no pictures ({', '.join(SUFFIXES)})")
    arrays = [p for p in given if p.suffix.lower() == ".npy"]
    if arrays and len(given) > 1:
        raise ValueError(f"{str(arrays[0])!r} is one of {len(given)} mask files; give one .npy of shape [N, H, W], or pictures only")
    masks = _read_array(arrays[0]) if arrays else _read_pictures(given)
    full = masks.flatten(1).all(1)
    if bool(full.any()):
        name = str(arrays[0]) if arrays else str(given[int(full.nonzero()[0])])
        raise ValueError(
            f"mask {int(full.nonzero()[0])} ({name}) is foreground everywhere, which leaves nothing to remember; foreground is what "
            "moves: invert it, or leave it out"
        )
    return masks


def fit_masks(masks: torch.Tensor, picture: tuple[int, int], frame: tuple[int, int]) -> torch.Tensor:
    """Masks (N, H, W) bool at the size of a world's frames.

    Args:
        picture: (height, width) of the picture that the world begins with, before cropping.
        frame: (height, width) of its frames, which show the picture's middle.

    Masks may have the shape of the whole picture, then they are cropped as it is, or that of the frames.
    """
    height, width = masks.shape[1:]

    def alike(size: tuple[int, int]) -> bool:
        return abs(width / height * size[0] / size[1] - 1) <= SAME_SHAPE

    if not alike(frame):
        if not alike(picture):
            raise ValueError(
                f"the masks are {width}x{height} pixels; expected the shape of the picture ({picture[1]}x{picture[0]}) "
                f"or of the frames ({frame[1]}x{frame[0]}), at any resolution"
            )
        h, w = (
            (height, round(height * frame[1] / frame[0]))
            if width * frame[0] > height * frame[1]
            else (round(width * frame[0] / frame[1]), width)
        )
        top, left = (height - h) // 2, (width - w) // 2
        masks = masks[:, top : top + h, left : left + w]
    if tuple(masks.shape[1:]) == tuple(frame):
        return masks.clone()
    shares = F.interpolate(masks[:, None].float(), frame, mode="area")[:, 0]
    return shares >= COVERED


def _number_order(path: Path) -> tuple[Any, ...]:
    """2.png before 10.png."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", path.name))


def _read_pictures(paths: list[Path]) -> torch.Tensor:
    from PIL import Image

    masks, size = [], None
    for path in paths:
        try:
            with Image.open(path) as picture:
                grey = np.asarray(picture.convert("L"))
        except FileNotFoundError as error:
            raise ValueError(f"mask {str(path)!r} does not exist; check the path") from error
        except Exception as error:  # PIL's decoders raise many kinds for a damaged file
            raise ValueError(f"mask {str(path)!r} cannot be read as a picture ({error}); save it anew as PNG") from error
        masks.append(_binary(grey, str(path)))
        size = size or grey.shape
        if grey.shape != size:
            raise ValueError(
                f"mask {str(path)!r} is {grey.shape[1]}x{grey.shape[0]} pixels, {str(paths[0])!r} is {size[1]}x{size[0]}; "
                "give masks of one size"
            )
    return torch.from_numpy(np.stack(masks))


def _read_array(path: Path) -> torch.Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"mask file {str(path)!r} does not exist; check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"mask file {str(path)!r} cannot be read as an array ({error}); write it with numpy.save, without objects"
        ) from error
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or not array.size or array.dtype.kind not in "buif":
        raise ValueError(f"mask file {str(path)!r} holds {array.dtype} {array.shape}; expected [N, H, W] of booleans or numbers")
    return torch.from_numpy(np.stack([_binary(np.asarray(mask), f"{path}, mask {i}") for i, mask in enumerate(array)]))


def _binary(values: np.ndarray, name: str) -> np.ndarray:
    """(H, W) bool of a picture in 0..1 or 0..255."""
    if values.dtype == bool:
        return values
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise ValueError(f"mask {name} has values in {low:g}..{high:g}; expected a binary mask: 0 and 1, or 0 and 255")
    level = values / (1.0 if high <= 1 else 255.0)
    grey = float(((level > 0.25) & (level < 0.75)).mean())
    if grey > GREY:
        raise ValueError(
            f"{name} is no binary mask: {grey:.0%} of it is neither black nor white. Give 0 for what stands still, 255 for what moves"
        )
    return level > 0.5
