"""What the walking commands share: the walk itself, progress, and the output folder."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ClipView:
    """One clip of a walk, for whoever writes it down."""

    index: int
    frames: np.ndarray  # (T, H, W, 3) uint8
    projection: np.ndarray  # (T, H, W, 3) uint8: what the memory knew
    poses: np.ndarray  # (T, 4, 4) float64 camera to world
    coverage: float
    text: str
    state: Any  # the WorldState after the clip
    clip: Any = None  # the model's own Clip


def walk(
    world: Any,
    state: Any,
    clips: list[torch.Tensor],
    texts: list[str],
    memory: bool = True,
    on_clip: Callable[[ClipView], None] | None = None,
    label: str = "walking",
) -> Any:
    """Advance `state` along `clips` (each (T, 4, 4)) with one text each; returns the last state."""
    progress = Progress(label, len(clips))
    for index, (path, text) in enumerate(zip(clips, texts, strict=True)):
        state, clip = world.advance(state, path, text=text, memory=memory)
        if on_clip is not None:
            seen = [tensor.cpu().numpy() for tensor in (clip.frames, clip.projection.rgb, clip.T_world_camera)]
            on_clip(ClipView(index, seen[0], seen[1], seen[2], float(clip.coverage), text, state, clip))
        progress.step()
    return state


class Progress:
    """A line on stderr that counts; one line per tenth when stderr is no terminal."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.start = label, total, 0, time.monotonic()

    def step(self) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        line = f"{self.label}: clip {self.done}/{self.total}, about {left:.0f} s left"
        if sys.stderr.isatty():
            print("\r" + line.ljust(60), end="\n" if self.done == self.total else "", file=sys.stderr, flush=True)
        elif self.done == self.total or self.done % max(1, self.total // 10) == 0:
            print(line, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line for people, on stderr; stdout belongs to the result."""
    print(text, file=sys.stderr, flush=True)


def writable_folder(given: str) -> Path:
    """Make sure that `given` is a folder to write to, before any work. Raises ValueError otherwise."""
    folder = Path(given).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to the folder {str(folder)!r} ({error.strerror or error}); give another with --out") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write to the folder {str(folder)!r}; give another with --out")
    return folder


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_w2c(path: Path, T_world_camera: np.ndarray) -> None:
    """Write a path (N, 4, 4) camera to world as world-to-camera lines, the form that `--path` reads."""
    path.write_text("".join(json.dumps(np.linalg.inv(pose).tolist()) + "\n" for pose in T_world_camera))


def load_world(model: str, device: str) -> Any:
    """The `WorldModel` behind a name or folder."""
    from spatia_env.inputs import load_model

    return load_model(model, device)


def add_model_arguments(parser: Any) -> None:
    """The arguments that every walking command takes."""
    parser.add_argument("--model", default="spatia-mini", help="name of a model or a folder of weights (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all noise (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")
