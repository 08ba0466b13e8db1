"""An episode as a folder: what the env adds to the world's own files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from spatia_env.tasks import CallableTask, Task
from spatia_env.trail import Trail

_FORMAT = 1
_FILE = "episode.json"
_ARRAYS = "task.npz"
Packed = tuple[dict[str, Any], dict[str, np.ndarray]]


def pack_task(task: Task | None, state: Mapping[str, Any] | None) -> Packed:
    """What a saved episode holds of its task: numbers and strings for JSON, and arrays."""
    if task is None:
        return {}, {}
    values = {**(state or {}), **(task.state_dict() if isinstance(task, CallableTask) else {})}
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items() if key not in arrays}
    return {"task": task.describe(), "state": plain}, arrays


def _unpack_task(folder: Path, header: dict[str, Any], task: Task | None) -> dict[str, Any] | None:
    saved = header.get("task") or None
    described = None if task is None else json.loads(json.dumps(task.describe()))
    if (saved or {}).get("task") != described:
        raise _Misfit(f"{folder} was saved with the task {(saved or {}).get('task')}, this env has {described}: make it with the same task")
    if task is None or saved is None:
        return None
    state = dict(saved["state"])
    if (folder / _ARRAYS).exists():
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            state |= {key: arrays[key] for key in arrays.files}
    return state


class _Misfit(ValueError):
    """The episode is sound but not this env's."""


def save_episode(folder: Path, header: dict[str, Any], trail: Trail, task: Packed, save_state: Callable[[Path], None]) -> Path:
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
        content = {"format": _FORMAT, **header, "task": task[0], "trail": {"stride": trail.stride, "count": trail.count}}
        np.save(place / "trail.npy", trail.poses(), allow_pickle=False)
        if task[1]:
            np.savez(place / _ARRAYS, allow_pickle=False, **task[1])
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


def load_episode(
    folder: Path, env: str, task: Task | None, load_state: Callable[[Path], Any]
) -> tuple[dict[str, Any], Trail, dict[str, Any] | None, Any]:
    """Read what `save_episode` wrote: header, trail, the task's state and the world's. Raises ValueError when it is missing, damaged, or
    of another kind of env or task."""
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
        task_state = _unpack_task(folder, header, task) if saved_by == env else None
    except _Misfit:
        raise
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise ValueError(f"{folder} is damaged ({error}); save the episode anew") from error
    if saved_by != env:
        raise ValueError(f"{folder} was saved by a {saved_by}, this is a {env}: load it with the same kind of env")
    kept_last = (count - 1) % stride == 0
    trail = Trail(tuple(poses) if kept_last else tuple(poses[:-1]), poses[-1], stride, count)
    state = load_state(folder / "world")
    if isinstance(task, CallableTask):
        task.load_state_dict(task_state or {})
        task_state = {}
    return {**header, "steps": steps, "ended": ended}, trail, task_state, state
