"""An episode as a folder: what the env adds to the world's own files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spatia_env.trail import Trail

_FORMAT = 1
_FILE = "episode.json"


def save_episode(folder: Path, header: dict[str, Any], trail: Trail, save_state: Callable[[Path], None]) -> Path:
    """Write an episode to `folder`, whole or not at all. Raises ValueError when it cannot be written there."""
    folder = folder.expanduser()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _FILE).exists())):
        raise ValueError(f"{folder} exists and is not a saved episode; give a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {folder.parent} ({error.strerror or error}); give a folder that you may write to") from error
    try:
        save_state(place / "world")
        content = {"format": _FORMAT, **header, "trail": {"stride": trail.stride, "count": trail.count}}
        np.save(place / "trail.npy", trail.poses(), allow_pickle=False)
        (place / _FILE).write_text(json.dumps(content, indent=1) + "\n")
        place.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        place.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror or error}); is the disk full?") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return folder


def load_episode(folder: Path, env: str, load_state: Callable[[Path], Any]) -> tuple[dict[str, Any], Trail, Any]:
    """Read what `save_episode` wrote: header, trail and world state. Raises ValueError when it is missing or damaged."""
    folder = folder.expanduser()
    path = folder / _FILE
    if not path.exists():
        raise ValueError(f"{folder} is not a saved episode (no {_FILE} in it); give a folder that env.unwrapped.save(folder) wrote")
    try:
        header = json.loads(path.read_text())
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {_FORMAT}")
        poses = np.load(folder / "trail.npy", allow_pickle=False)
        if poses.dtype != np.float64 or poses.shape[1:] != (4, 4) or not len(poses):
            raise ValueError(f"trail.npy has shape {poses.shape}")
        saved_by, steps, ended = header["env"], int(header["steps"]), bool(header["ended"])
        stride, count = int(header["trail"]["stride"]), int(header["trail"]["count"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged ({error}); save the episode anew") from error
    if saved_by != env:
        raise ValueError(f"{folder} was saved by a {saved_by}, this is a {env}: load it with the same kind of env")
    kept_last = (count - 1) % stride == 0
    trail = Trail(tuple(poses) if kept_last else tuple(poses[:-1]), poses[-1], stride, count)
    return {**header, "steps": steps, "ended": ended}, trail, load_state(folder / "world")
