"""LeRobotDataset v3 (Hugging Face): Parquet, mp4, statistics and an episodes table.

Written from ``lerobot/datasets/{utils,lerobot_dataset,compute_stats,video_utils}.py`` (0.4, codebase version v3.0). Finished episodes
wait as units under ``.episodes``; `publish` gathers consecutive ones into files of up to 100 MB of rows or 200 MB of video. What is
published is recorded in ``meta/spatia.json``, written last: everything beyond it is redone after a crash.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spatia_env.recording import lerobot_features, lerobot_stats, lerobot_video
from spatia_env.recording.face import EnvFace, EpisodeSummary
from spatia_env.recording.folder import DatasetWriter, EpisodeSink, appear, remove, write_atomically
from spatia_env.recording.lerobot_features import DEFAULTS, Columns
from spatia_env.recording.lerobot_sink import EPISODE, ROWS, LeRobotSink
from spatia_env.recording.lerobot_stats import Stats
from spatia_env.recording.lerobot_tables import arrow_schema, pyarrow, tasks_table

CODEBASE_VERSION = "v3.0"
CHUNK_SIZE = 1000  # files per chunk
DATA_MB, VIDEO_MB = 100, 200  # per file
_STATE = "meta/spatia.json"
_SUMMARY = ("seed", "total_reward", "terminated", "truncated", "success", "error")


class LeRobotWriter(DatasetWriter):
    """Write a LeRobotDataset v3: ``LeRobotDataset("local/name", root=folder)`` reads it.

    One row is one step: what was seen, the action, and what came of it. Pictures of the observation become videos (H.264, lossy),
    ``info["poses"]`` becomes `observation.state` and `camera.pose`, ``info["K"]`` `camera.intrinsics`, an action's text `text`, and
    ``info["instruction"]``, or the env's task, the row's task. The observation after the last action is not kept: v3 has no place for
    it. An episode without a single step is not in the dataset (`empty` names them).

    Args:
        folder: the dataset.
        settings: see `DatasetWriter`.
        data_mb, video_mb: upper bounds of the files, in megabytes.
    """

    format = "lerobot"

    def __init__(
        self, folder: str | Path, settings: dict[str, Any] | None = None, data_mb: float = DATA_MB, video_mb: float = VIDEO_MB
    ) -> None:
        super().__init__(folder, settings)
        self.data_mb, self.video_mb = data_mb, video_mb
        self.columns: Columns | None = None
        self.state: dict[str, Any] = {}

    @property
    def empty(self) -> list[EpisodeSummary]:
        """Episodes that ended before their first step."""
        return [summary for summary in self.summaries.values() if not summary.steps]

    @property
    def fps(self) -> int | float:
        """Rows per second of world time."""
        rate = self._opened().steps_per_second
        return int(rate) if rate == int(rate) else rate

    def unit(self, index: int) -> Path:
        return self.folder / ".episodes" / f"episode_{index:08d}"

    def publish(self, final: bool = True) -> None:
        """Gather finished episodes, in their order, into files. Unless `final`, the last file is begun only when it will be full."""
        self._opened()
        group: list[int] = []
        data = video = 0
        index = self.state["next"]
        while index in self.summaries and self.unit(index).exists():
            more_data = (self.unit(index) / "rows.parquet").stat().st_size
            more_video = max((path.stat().st_size for path in self.unit(index).glob("*.h264")), default=0)
            if group and (data + more_data >= self.data_mb * 2**20 or video + more_video >= self.video_mb * 2**20):
                self._publish_group(group)
                group, data, video = [], 0, 0
            group.append(index)
            data, video = data + more_data, video + more_video
            index += 1
        if group and final:
            self._publish_group(group)
        self._write_derived()

    # -- parts of DatasetWriter ----------------------------------------------------------------------

    def _check_libraries(self) -> None:
        pyarrow()

    def _check_face(self, face: EnvFace) -> None:
        lerobot_features.check_spaces(face)

    def _prepare(self) -> None:
        units = self.folder / ".episodes"
        units.mkdir(parents=True, exist_ok=True)
        for leftover in units.glob(".*"):
            remove(leftover)
        path = self.folder / _STATE
        empty = {"next": 0, "groups": 0, "episodes": 0, "frames": 0, "tasks": [], "stats": {}, "features": None, "empty": []}
        try:
            self.state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
            self.columns = Columns(self.state["features"]) if self.state["features"] else None
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); give a new folder") from error
        for unit in units.glob("episode_*"):  # a crash after a publication left what it had published
            if int(unit.name.rpartition("_")[2]) < self.state["next"]:
                remove(unit)
        for place in ("data", "meta/episodes", "videos"):
            for file in (self.folder / place).rglob("file-*"):
                chunk, number = int(file.parent.name.rpartition("-")[2]), int(file.stem.rpartition("-")[2])
                if chunk * CHUNK_SIZE + number >= self.state["groups"]:
                    file.unlink()

    def _read_summaries(self) -> list[EpisodeSummary]:
        import pyarrow.parquet as pq

        found = [EpisodeSummary(**told) for told in self.state["empty"]]
        names = ["rollout_index", "length", "task", *_SUMMARY]
        for path in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            for row in pq.read_table(path, columns=names).to_pylist():
                row["index"], row["steps"] = row.pop("rollout_index"), row.pop("length")
                found.append(EpisodeSummary(**row))
        for unit in sorted((self.folder / ".episodes").glob("episode_*")):
            found.append(self._read_summary(unit))
        return found

    def _read_summary(self, unit: Path) -> EpisodeSummary:
        told = json.loads((unit / EPISODE).read_text(encoding="utf-8"))
        self._agree(Columns(told["features"]))
        return EpisodeSummary(**told["summary"])

    def _begin(self, summary: EpisodeSummary, observation: Any, info: dict[str, Any]) -> EpisodeSink:
        self._agree(lerobot_features.columns_of(self._opened(), info))
        return LeRobotSink(self, summary, observation, info)

    def _agree(self, columns: Columns) -> None:
        if self.columns is not None and columns.features != self.columns.features:
            known, new = set(self.columns.features), set(columns.features)
            raise ValueError(
                f"an episode has the columns {sorted(new)}, earlier ones {sorted(known)} (or other shapes): "
                "LeRobot wants the same for all; check what the env puts into its info at reset"
            )
        self.columns = columns

    # -- publication -----------------------------------------------------------------------------------

    def _publish_group(self, indices: list[int]) -> None:
        """Consecutive finished episodes become one data file, one file per video, and rows of the episodes table."""
        assert self.columns is not None
        state = json.loads(json.dumps(self.state))
        chunk, number = divmod(state["groups"], CHUNK_SIZE)
        told = {index: json.loads((self.unit(index) / EPISODE).read_text(encoding="utf-8")) for index in indices}
        with_rows = [index for index in indices if told[index]["summary"]["steps"]]
        state["empty"] += [told[index]["summary"] for index in indices if index not in with_rows]
        state["features"] = self.columns.features
        state["next"] = indices[-1] + 1
        if with_rows:
            rows = self._gather_rows(with_rows, told, state, chunk, number)
            for key in self.columns.videos:
                self._gather_video(with_rows, key, rows, chunk, number)
            self._write_episode_rows(rows, state, chunk, number)
            state["groups"] += 1
        self.state = state
        write_atomically(self.folder / _STATE, json.dumps(state))  # from here on the group is published
        for index in indices:
            remove(self.unit(index))

    def _gather_rows(
        self, indices: list[int], told: dict[int, Any], state: dict[str, Any], chunk: int, number: int
    ) -> list[dict[str, Any]]:
        """Write the data file; returns the episodes table's rows so far, and counts episodes, frames and tasks in `state`."""
        pa, pq = pyarrow(), pyarrow().parquet
        assert self.columns is not None
        target = self._place("data", chunk, number, "parquet")
        temporary = target.parent / f".{target.name}"
        schema = arrow_schema(pa, self.columns.values | DEFAULTS)
        rows: list[dict[str, Any]] = []
        with pq.ParquetWriter(temporary, schema, compression="snappy", use_dictionary=True) as file:
            for index in indices:
                summary = EpisodeSummary(**told[index]["summary"])
                task = summary.task or self._opened().env_id
                if task not in state["tasks"]:
                    state["tasks"].append(task)
                first, length, episode = state["frames"], summary.steps, state["episodes"]
                task_index = state["tasks"].index(task)
                start = 0
                with pq.ParquetFile(self.unit(index) / "rows.parquet") as source:
                    for batch in source.iter_batches(ROWS):
                        count = np.arange(start, start + len(batch))
                        added = {
                            "timestamp": (count / self.fps).astype(np.float32),
                            "frame_index": count,
                            "episode_index": np.full(len(batch), episode),
                            "index": first + count,
                            "task_index": np.full(len(batch), task_index),
                        }
                        columns = {**{name: batch.column(name) for name in batch.schema.names}, **added}
                        file.write_table(pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema))
                        start += len(batch)
                count = np.arange(length)
                stats = lerobot_stats.to_arrays(told[index]["stats"])
                for name, values in (
                    ("timestamp", (count / self.fps).astype(np.float32)),
                    ("frame_index", count),
                    ("episode_index", np.full(length, episode)),
                    ("index", first + count),
                    ("task_index", np.full(length, task_index)),
                ):
                    stats[name] = lerobot_stats.vector_stats(values)
                before = lerobot_stats.to_arrays(state["stats"])
                state["stats"] = lerobot_stats.to_lists({key: lerobot_stats.merged(before.get(key), found) for key, found in stats.items()})
                rows.append(
                    {
                        "episode_index": episode,
                        "tasks": [task],
                        "length": length,
                        "data/chunk_index": chunk,
                        "data/file_index": number,
                        "dataset_from_index": first,
                        "dataset_to_index": first + length,
                        "stats": stats,
                        "summary": summary,
                    }
                )
                state["frames"] += length
                state["episodes"] += 1
        appear(temporary, target)
        return rows

    def _gather_video(self, indices: list[int], key: str, rows: list[dict[str, Any]], chunk: int, number: int) -> None:
        target = self._place(f"videos/{key}", chunk, number, "mp4")
        temporary = target.parent / f".{target.name}"
        lerobot_video.join([self.unit(index) / f"{key}.h264" for index in indices], temporary, self.fps)
        appear(temporary, target)
        frames = 0
        for row in rows:
            row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"] = chunk, number
            row[f"videos/{key}/from_timestamp"] = frames / self.fps
            frames += row["length"]
            row[f"videos/{key}/to_timestamp"] = frames / self.fps

    def _write_episode_rows(self, rows: list[dict[str, Any]], state: dict[str, Any], chunk: int, number: int) -> None:
        pa, pq = pyarrow(), pyarrow().parquet
        target = self._place("meta/episodes", chunk, number, "parquet")
        temporary = target.parent / f".{target.name}"
        flat: list[dict[str, Any]] = []
        for row in rows:
            stats: dict[str, Stats] = row.pop("stats")
            summary: EpisodeSummary = row.pop("summary")
            for key, found in lerobot_stats.to_lists(stats).items():
                row |= {f"stats/{key}/{name}": value for name, value in found.items()}
            row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": number, "rollout_index": summary.index}
            flat.append(row | {"task": summary.task} | {name: getattr(summary, name) for name in _SUMMARY})
        table = pa.Table.from_pylist(flat)
        typed = {"seed": pa.int64(), "success": pa.bool_(), "error": pa.string()}  # not the null type, where all are None
        for name, kind in typed.items():
            table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
        pq.write_table(table, temporary, compression="snappy")
        appear(temporary, target)

    def _write_derived(self) -> None:
        """info.json, stats.json and tasks.parquet: what the state says, in LeRobot's form."""
        state = self.state
        if self.card:
            write_atomically(self.folder / "README.md", self.card)
        if not state["features"]:
            return
        features = json.loads(json.dumps(state["features"])) | DEFAULTS
        for feature in features.values():
            if feature["dtype"] == "video":
                height, width, _ = feature["shape"]
                feature["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": lerobot_video.pixel_format(width, height),
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                }
        info = {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": "camera",
            "total_episodes": state["episodes"],
            "total_frames": state["frames"],
            "total_tasks": len(state["tasks"]),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": self.data_mb,
            "video_files_size_in_mb": self.video_mb,
            "fps": self.fps,
            "splits": {"train": f"0:{state['episodes']}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features,
        }
        temporary = self.folder / "meta" / ".tasks.parquet"
        pyarrow().parquet.write_table(tasks_table(pyarrow(), state["tasks"]), temporary)
        appear(temporary, self.folder / "meta" / "tasks.parquet")
        write_atomically(self.folder / "meta" / "stats.json", json.dumps(state["stats"], indent=4))
        write_atomically(self.folder / "meta" / "info.json", json.dumps(info, indent=4, ensure_ascii=False))

    def _place(self, kind: str, chunk: int, number: int, suffix: str) -> Path:
        path = self.folder / kind / f"chunk-{chunk:03d}" / f"file-{number:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
