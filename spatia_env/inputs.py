"""Checks of what the envs and commands are given, and the model behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


NEW_ROLLOUT = "lerobot_new_rollout"  # LeRobot's evaluation marks its resets with this option; it asks for nothing


def load_model(model: Any, device: str) -> Any:
    """A `WorldModel` from a name, a folder or itself."""
    if callable(getattr(model, "begin", None)) and callable(getattr(model, "advance", None)):
        return model
    if not isinstance(model, (str, Path)):
        raise ValueError(f"model is a {type(model).__name__}; give a name ('spatia-mini'), a folder of weights or a WorldModel")
    import torch

    from spatia_model.world_model import WorldModel

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return WorldModel.from_pretrained(model, device=device)


def image_shape(config: Any) -> tuple[int, int]:
    """(height, width) of a model's frames; square where its config only has a size."""
    height, width = getattr(config, "image_shape", (getattr(config, "image_size", 0),) * 2)
    return int(height), int(width)


@dataclass(frozen=True)
class Case:
    """A folder of the release's test cases: a picture and, where they are there, its path, intrinsics, prompts and masks."""

    image: Path
    path: Path | None = None
    intrinsics: Path | None = None
    prompt: Path | None = None
    masks: Path | None = None


def find_case(folder: Path) -> Case:
    """The files of a case folder: `img.*`, `w2c.txt`, `intrinsics.txt`, `prompt.txt`, and `mask.*`, `masks.*` or `masks/`.

    Raises:
        ValueError: no picture, or more than one that could be meant.
    """

    def pictures(*names: str) -> list[Path]:
        suffixes = (".jpg", ".jpeg", ".png", ".webp")
        return sorted(p for p in folder.iterdir() if p.stem.lower() in names and p.suffix.lower() in suffixes)

    images = pictures("img", "image")
    if len(images) != 1:
        found = ", ".join(p.name for p in images) or "none"
        raise ValueError(f"the folder {str(folder)!r} should hold one picture called img.jpg (or .png, .webp); found {found}")
    texts = {name: folder / f"{name}.txt" for name in ("w2c", "intrinsics", "prompt")}
    given = {name: path if path.is_file() else None for name, path in texts.items()}
    masks = [p for p in (folder / "masks", folder / "masks.npy", folder / "mask.npy", *pictures("mask")) if p.exists()]
    if len(masks) > 1:
        raise ValueError(
            f"the folder {str(folder)!r} holds several masks ({', '.join(p.name for p in masks)}); name those you mean with --masks"
        )
    return Case(images[0], given["w2c"], given["intrinsics"], given["prompt"], masks[0] if masks else None)


def check_options(options: Any, known: tuple[str, ...]) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(f"options is a {type(options).__name__}; give a dictionary with any of {list(known)}")
    unknown = sorted(str(key) for key in options if key not in (*known, NEW_ROLLOUT))
    if unknown:
        raise ValueError(f"options holds {unknown}; known are {list(known)}")
    return options


def too_long(world: Any, *texts: str) -> str:
    """Empty when the world's model reads the texts whole, prompt first; otherwise how long they are and how much it reads."""
    measure = getattr(getattr(getattr(world, "generator", None), "text", None), "too_long", None)
    return "" if measure is None else measure(*texts)


def check_read_whole(world: Any, name: str, *texts: str) -> None:
    """ValueError when the world's model would not read the texts to their end."""
    if told := too_long(world, *texts):
        raise ValueError(f"{name}: {told}; shorten it, or what comes after that is lost")


def check_recording(frames: Any, poses: Any) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8 and poses (T, 4, 4) float64, T of 1 or more, from arrays or tensors; what they hold is for the world."""
    pictures, path = np.asarray(frames), np.asarray(poses)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8 or len(pictures) < 1:
        raise ValueError(f"frames are {pictures.dtype} {pictures.shape}; give uint8 (T, H, W, 3), T of 1 or more")
    if path.shape != (len(pictures), 4, 4) or not np.issubdtype(path.dtype, np.number):
        raise ValueError(f"poses are {path.dtype} {path.shape}; give ({len(pictures)}, 4, 4), camera to world, one per frame")
    return np.ascontiguousarray(pictures), path.astype(np.float64)


def check_flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; give True or False")
    return bool(value)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A numpy copy that shares nothing with the world."""
    return tensor.detach().cpu().numpy().copy()
