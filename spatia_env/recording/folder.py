"""A dataset folder while it grows: whose it is, which episodes are finished, and writes that are whole or not at all.

Every finished episode is a unit of its own (a file or a folder) that appears by one rename. Whatever kills the process, finished
units stay; everything else in the folder is derived from them.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from spatia_env.recording.face import EnvFace, EpisodeSummary

SETTINGS_FILE = "rollout.json"
FORMAT = 1


class EpisodeSink(ABC):
    """An episode being written. Rows go to a hidden place; `finish` makes the episode appear, `discard` leaves no trace."""

    def __init__(self, summary: EpisodeSummary) -> None:
        self.summary = summary

    def add(self, action: Any, observation: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]) -> None:
        """One step: the action and what it led to."""
        from spatia_env.recording.face import told_success

        self._add(action, observation, float(reward), bool(terminated), bool(truncated), info)
        self.summary.steps += 1
        self.summary.total_reward += float(reward)
        self.summary.terminated, self.summary.truncated = bool(terminated), bool(truncated)
        self.summary.success = told_success(info) if told_success(info) is not None else self.summary.success

    def finish(self, error: str | None = None) -> EpisodeSummary:
        """Close the episode and make it appear in the folder. One that has not ended is marked as truncated."""
        if not self.summary.terminated:
            self.summary.truncated = True
        self.summary.error = error
        self._finish()
        return self.summary

    @abstractmethod
    def _add(self, action: Any, observation: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def discard(self) -> None:
        """Forget the episode."""


class DatasetWriter(ABC):
    """Writes episodes into a dataset folder.

    Args:
        folder: where; made when it is missing.
        settings: what identifies the collection. A folder is continued only by a writer with the same format and settings.

    Raises:
        ValueError: the folder holds something else, was made with other settings (they are named), or is being written to.
    """

    format: str = ""
    card: str = ""  # text for README.md, set by whoever knows more than the writer

    def __init__(self, folder: str | Path, settings: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.settings = {} if settings is None else json.loads(json.dumps(settings))
        self.face: EnvFace | None = None
        self.summaries: dict[int, EpisodeSummary] = {}
        self._lock: Any = None

    # -- life --------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ValueError if the folder is not this writer's to write, ImportError if a library is missing. Changes nothing."""
        self._check_libraries()
        check_settings(self.folder, self._wanted())

    def open(self, face: EnvFace) -> None:
        """Make or continue the folder for episodes of this env. Calling it again with the same face does nothing."""
        if self.face is not None:
            return
        self._check_libraries()
        self._check_face(face)
        self._claim()
        self.face = face
        try:
            self._prepare()
            self.summaries = {summary.index: summary for summary in self._read_summaries()}
        except BaseException:
            self.close()
            raise

    def twin(self, folder: str | Path) -> DatasetWriter:
        """A writer of the same kind, not open, for another folder."""
        other = copy.copy(self)
        other.folder, other.face, other.summaries, other._lock = Path(folder), None, {}, None
        return other

    def close(self) -> None:
        """Let go of the folder; the episodes stay. Call `publish` first to have them in the dataset's index."""
        if self._lock is not None:
            self._lock.close()
        self._lock, self.face = None, None

    def begin(self, index: int, seed: int | None, observation: Any, info: dict[str, Any]) -> EpisodeSink:
        """Start writing episode `index`, whose reset gave `observation` and `info`."""
        face = self._opened()
        task = info.get("instruction")
        summary = EpisodeSummary(index, seed, task=task if isinstance(task, str) else face.task)
        return self._begin(summary, observation, info)

    def adopt(self, index: int, unit: Path) -> None:
        """Take in a finished unit that another writer of this format made (its `unit(index)`); it is moved."""
        self._opened()
        target = self.unit(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        appear(unit, target)
        self._took(self._read_summary(target))

    @property
    def next_index(self) -> int:
        """One more than the highest finished episode."""
        return max(self.summaries, default=-1) + 1

    # -- what a format does its own way ------------------------------------------------------------

    @abstractmethod
    def publish(self, final: bool = True) -> None:
        """Bring the dataset's index, as its own library reads it, up to the finished episodes."""

    @abstractmethod
    def unit(self, index: int) -> Path:
        """Where the finished episode `index` lies."""

    @abstractmethod
    def _check_libraries(self) -> None:
        """Raise ImportError with the install line if what the format needs is missing."""

    @abstractmethod
    def _check_face(self, face: EnvFace) -> None:
        """Raise ValueError for an env that the format cannot hold."""

    @abstractmethod
    def _prepare(self) -> None:
        """Clean up after a run that was killed, and make folders."""

    @abstractmethod
    def _read_summaries(self) -> list[EpisodeSummary]: ...

    @abstractmethod
    def _read_summary(self, unit: Path) -> EpisodeSummary: ...

    @abstractmethod
    def _begin(self, summary: EpisodeSummary, observation: Any, info: dict[str, Any]) -> EpisodeSink: ...

    # -- shared ------------------------------------------------------------------------------------

    def _opened(self) -> EnvFace:
        if self.face is None:
            raise ValueError("the writer is not open: call open(EnvFace.of(env)) first, or wrap the env in RecordEpisodes")
        return self.face

    def _wanted(self) -> dict[str, Any]:
        return {"format": FORMAT, "dataset": self.format, "settings": self.settings}

    def _took(self, summary: EpisodeSummary) -> None:
        self.summaries[summary.index] = summary

    def _claim(self) -> None:
        """Take the folder, or say why not."""
        wanted = self._wanted()
        path = self.folder / SETTINGS_FILE
        check_settings(self.folder, wanted)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder)
            check_settings(self.folder, wanted)  # somebody may have been quicker
            if not path.exists():
                write_atomically(path, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            self.close()
            raise ValueError(f"cannot write to {self.folder} ({error.strerror or error}); give a folder that you may write to") from error
        except ValueError:
            self.close()
            raise


def check_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise ValueError unless `folder` is new, empty, or a run with the settings `wanted`. Changes nothing."""
    path = folder / SETTINGS_FILE
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if not path.exists():
        if any(entry.name != LOCK_FILE and not entry.name.startswith(f".{SETTINGS_FILE}") for entry in folder.iterdir()):
            raise ValueError(f"{folder} exists and is no recording (no {SETTINGS_FILE} in it); give a new folder")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); give a new folder") from error
    if found.get("format") != FORMAT:
        raise ValueError(f"{folder} was written in format {found.get('format')}, this version continues format {FORMAT}; give a new folder")
    if found.get("dataset") != wanted["dataset"]:
        raise ValueError(f"{folder} holds a {found.get('dataset')} dataset, not {wanted['dataset']}; give a new folder")
    keys = [key for key in sorted({*settings, *wanted["settings"]}) if settings.get(key) != wanted["settings"].get(key)]
    if keys:
        told = "; ".join(f"{key} was {_short(settings.get(key))}, now {_short(wanted['settings'].get(key))}" for key in keys)
        raise ValueError(f"{folder} was recorded with other settings ({told}); repeat the command it was made with, or give a new folder")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


LOCK_FILE = ".lock"


def _locked(folder: Path) -> Any:
    """An open file that holds the folder's lock; the kernel lets go of it when the process ends, however it ends."""
    import fcntl

    handle = (folder / LOCK_FILE).open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ValueError(f"another process is recording into {folder}; wait for it, or give another folder") from error
    return handle


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def appear(temporary: Path, target: Path) -> None:
    """Make a finished file or folder appear under its name in one step, on disk before it is seen."""
    _sync(temporary)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    os.replace(temporary, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Ask the system to bring a file, or a folder and the files in it, to the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            if entry.is_file():
                _sync(entry)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
