"""Minari datasets (Farama Foundation), HDF5 storage, images lossless.

Each finished episode is one HDF5 file under ``data/episodes``; ``data/main_data.hdf5``, which `minari` opens, holds a link to each of
them. Layout and metadata follow `minari` 0.5 (``minari/dataset/_storages/hdf5_storage.py``).
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from spatia_env.recording.columns import Table
from spatia_env.recording.face import EnvFace, EpisodeSummary
from spatia_env.recording.folder import DatasetWriter, EpisodeSink, appear, remove, write_atomically

INSTALL = 'pip install "spatia[rollouts]"'
_SUMMARY = ("seed", "total_reward", "terminated", "truncated", "success", "error", "task")
_MAX_ATTRIBUTE = 2000  # characters; HDF5 keeps an object's attributes within 64 KiB


def _h5py() -> Any:
    try:
        import h5py
        import minari  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the minari format needs {error.name}, which is not here; install it: {INSTALL}") from error
    return h5py


class MinariWriter(DatasetWriter):
    """Write a Minari dataset: ``minari.load_dataset(name)`` with ``MINARI_DATASETS_PATH`` at the folder's parent reads it.

    Observations hold one more row than actions, as Minari has it; so do infos (the first is that of `reset`). Text is kept as it is,
    numbers and arrays with their dtype. A key that an info lacks is filled: NaN, -1, False or "". What is neither number, array, text
    nor a dictionary of these is left out, and named in a warning.

    Args:
        folder: the dataset; named like `walks-v0`, so that Minari lists it. Another name gets the id `NAME-v0`.
        settings: see `DatasetWriter`.
        infos: keys of the info to keep; None for all.
        algorithm: name of who acted, for the metadata.
    """

    format = "minari"

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any] | None = None,
        infos: tuple[str, ...] | None = None,
        algorithm: str | None = None,
    ) -> None:
        super().__init__(folder, settings)
        self.infos, self.algorithm = infos, algorithm
        self.left_out: set[str] = set()

    @property
    def dataset_id(self) -> str:
        """The id in Minari's sense."""
        name = self.folder.resolve().name
        head, mark, version = name.rpartition("-v")
        if mark and version.isdigit() and _is_plain(head):
            return name
        return "".join(letter if _is_plain(letter) else "_" for letter in name) + "-v0"

    def unit(self, index: int) -> Path:
        return self.folder / "data" / "episodes" / f"episode_{index:08d}.hdf5"

    def publish(self, final: bool = True) -> None:
        h5py = _h5py()
        import minari
        from minari.serialization import serialize_space

        import spatia_env

        face = self._opened()
        data = self.folder / "data"
        main = data / "main_data.hdf5"
        temporary = data / ".main_data.hdf5"
        summaries = [self.summaries[index] for index in sorted(self.summaries)]
        with h5py.File(temporary, "w", track_order=True) as file:
            for position, summary in enumerate(summaries):
                file[f"episode_{position}"] = h5py.ExternalLink(f"episodes/{self.unit(summary.index).name}", "/episode")
        appear(temporary, main)
        metadata: dict[str, Any] = {
            "total_episodes": len(summaries),
            "total_steps": sum(summary.steps for summary in summaries),
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": serialize_space(face.observation_space),
            "action_space": serialize_space(face.action_space),
            "dataset_id": self.dataset_id,
            "minari_version": minari.__version__,
            "requirements": [f"spatia=={spatia_env.__version__}"],
            "dataset_size": round(sum(path.stat().st_size for path in data.glob("**/*") if path.is_file()) / 1e6, 1),
        }
        if face.spec is not None:
            metadata["env_spec"] = face.spec
        if self.algorithm:
            metadata["algorithm_name"] = self.algorithm
        metadata["description"] = f"Episodes of {face.env_id or 'an env'}, recorded by spatia {spatia_env.__version__}; see README.md."
        write_atomically(data / "metadata.json", json.dumps(metadata))
        if self.card:
            write_atomically(self.folder / "README.md", self.card)

    # -- parts of DatasetWriter ----------------------------------------------------------------------

    def _check_libraries(self) -> None:
        _h5py()

    def _check_face(self, face: EnvFace) -> None:
        from minari.serialization import serialize_space

        for name, space in (("observation", face.observation_space), ("action", face.action_space)):
            try:
                serialize_space(space)
            except NotImplementedError as error:
                raise ValueError(f"Minari has no form for the {name} space {space}; wrap the env so that it has a plain one") from error

    def _prepare(self) -> None:
        episodes = self.folder / "data" / "episodes"
        episodes.mkdir(parents=True, exist_ok=True)
        for leftover in episodes.glob(".*"):
            remove(leftover)
        remove(self.folder / "data" / ".main_data.hdf5")

    def _read_summaries(self) -> list[EpisodeSummary]:
        found = []
        for path in sorted((self.folder / "data" / "episodes").glob("episode_*.hdf5")):
            try:
                found.append(self._read_summary(path))
            except (OSError, KeyError, ValueError) as error:
                warnings.warn(f"{path} cannot be read ({error}); the episode is recorded again", stacklevel=3)
                path.unlink()
        return found

    def _read_summary(self, unit: Path) -> EpisodeSummary:
        with _h5py().File(unit, "r") as file:
            told = dict(file["episode"].attrs)
        summary = EpisodeSummary(int(told["id"]), steps=int(told["total_steps"]), total_reward=float(told["total_reward"]))
        summary.seed = int(told["seed"]) if "seed" in told else None
        summary.terminated, summary.truncated = bool(told["terminated"]), bool(told["truncated"])
        summary.success = bool(told["success"]) if "success" in told else None
        summary.error = str(told["error"]) if "error" in told else None
        summary.task = str(told.get("task", ""))
        return summary

    def _begin(self, summary: EpisodeSummary, observation: Any, info: dict[str, Any]) -> EpisodeSink:
        return _MinariSink(self, summary, observation, info)


class _MinariSink(EpisodeSink):
    def __init__(self, writer: MinariWriter, summary: EpisodeSummary, observation: Any, info: dict[str, Any]) -> None:
        super().__init__(summary)
        self.writer = writer
        self.target = writer.unit(summary.index)
        self.place = self.target.parent / f".{self.target.name}-{os.getpid()}"
        self.file = _h5py().File(self.place, "w", track_order=True)
        group = self.file.create_group("episode", track_order=True)
        tables = {name: Table(group.create_group(name, track_order=True)) for name in ("observations", "actions", "infos")}
        self.observations, self.actions, self.infos = tables["observations"], tables["actions"], tables["infos"]
        self.results = Table(group)
        self.group = group
        face = writer._opened()
        self.observations.declare(face.observation_space)
        self.actions.declare(face.action_space)
        for name, kind in (("rewards", np.float64), ("terminations", np.bool_), ("truncations", np.bool_)):
            self.results.declare_leaf(name, np.zeros((), kind))
        self.observations.add(observation)
        self._add_info(info)

    def _add(self, action: Any, observation: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]) -> None:
        self.actions.add(action)
        self.observations.add(observation)
        self.results.add({"rewards": reward, "terminations": terminated, "truncations": truncated})
        self._add_info(info)

    def _add_info(self, info: dict[str, Any]) -> None:
        keep = self.writer.infos
        left_out = self.infos.add({key: value for key, value in info.items() if keep is None or key in keep})
        new = sorted(left_out - self.writer.left_out)
        if new:
            self.writer.left_out.update(new)
            warnings.warn(f"left out of the dataset, for it has no fixed form: info {', '.join(new)}", stacklevel=4)

    def _finish(self) -> None:
        if self.summary.steps and not self.summary.terminated:
            self.results.amend_last("truncations", True)
        for table in (self.observations, self.actions, self.infos, self.results):
            table.close()
        self.group.attrs["id"] = self.summary.index
        self.group.attrs["total_steps"] = self.summary.steps
        for name in _SUMMARY:
            value = getattr(self.summary, name)
            if value is not None:
                self.group.attrs[name] = value[:_MAX_ATTRIBUTE] if isinstance(value, str) else value
        # Minari gives an observation or action that is no dictionary as a dataset, not as a group.
        for table, name in ((self.observations, "observations"), (self.actions, "actions")):
            if table.is_single:
                self.group.move(f"{name}/{Table.SINGLE}", f"{name}.single")
                del self.group[name]
                self.group.move(f"{name}.single", name)
        self.file.close()
        appear(self.place, self.target)
        self.writer._took(self.summary)

    def discard(self) -> None:
        self.file.close()
        self.place.unlink(missing_ok=True)


def _is_plain(text: str) -> bool:
    return bool(text) and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in text)
