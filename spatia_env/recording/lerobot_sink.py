"""An episode on its way into a LeRobot dataset: rows as Parquet, pictures as raw H.264, statistics at its end."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.recording import lerobot_features, lerobot_stats, lerobot_video
from spatia_env.recording.face import EpisodeSummary
from spatia_env.recording.folder import EpisodeSink, appear
from spatia_env.recording.lerobot_stats import Stats
from spatia_env.recording.lerobot_tables import arrow_array, arrow_schema, pyarrow

if TYPE_CHECKING:
    from spatia_env.recording.lerobot_writer import LeRobotWriter

ROWS = 512  # per row group
EPISODE = "episode.json"


class LeRobotSink(EpisodeSink):
    def __init__(self, writer: LeRobotWriter, summary: EpisodeSummary, observation: Any, info: dict[str, Any]) -> None:
        super().__init__(summary)
        pa = pyarrow()
        assert writer.columns is not None
        self.writer, self.columns, self.face = writer, writer.columns, writer._opened()
        self.target = writer.unit(summary.index)
        self.place = Path(tempfile.mkdtemp(prefix=f".{self.target.name}-{os.getpid()}-", dir=self.target.parent))
        self.schema = arrow_schema(pa, self.columns.values)
        self.rows = pa.parquet.ParquetWriter(self.place / "rows.parquet", self.schema, compression="snappy")
        self.buffer: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        self.counts = {key: lerobot_stats.ImageCounts() for key in self.columns.videos}
        self.videos: dict[str, lerobot_video.StreamWriter] = {}
        self._saw(observation, info)
        self.last: dict[str, Any] | None = None  # held back: its end may still be amended

    def _add(self, action: Any, observation: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]) -> None:
        self._keep_last()
        row = lerobot_features.row_of(self.face, self.columns, self.observation, self.info, action)
        success = bool(info.get("is_success", False))
        row |= {"next.reward": reward, "next.done": terminated or truncated, "next.truncated": truncated, "next.success": success}
        for key in self.columns.videos:
            frame = row.pop(key)
            if key not in self.videos:
                height, width = frame.shape[:2]
                self.videos[key] = lerobot_video.StreamWriter(self.place / f"{key}.h264", width, height)
            self.videos[key].add(frame)
            self.counts[key].add(frame)
        self.last = {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in row.items()}
        self._saw(observation, info)

    def _saw(self, observation: Any, info: dict[str, Any]) -> None:
        """Keep for the next row what was seen; copies, for an env may write into its arrays again."""
        self.observation, self.info = copy.deepcopy(observation), {key: copy.deepcopy(info[key]) for key in ("poses", "K") if key in info}

    def _keep_last(self) -> None:
        if self.last is None:
            return
        for name, values in self.buffer.items():
            values.append(self.last[name])
        self.last = None
        if len(self.buffer["next.reward"]) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        pa = pyarrow()
        if self.buffer["next.reward"]:
            arrays = [arrow_array(pa, self.schema.field(name).type, values) for name, values in self.buffer.items()]
            self.rows.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
            self.buffer = {name: [] for name in self.buffer}

    def _finish(self) -> None:
        if self.last is not None and not self.summary.terminated:
            self.last["next.done"] = self.last["next.truncated"] = True
        self._keep_last()
        self._flush()
        self.rows.close()
        for video in self.videos.values():
            video.close()
        told = {"summary": vars(self.summary), "features": self.columns.features, "stats": lerobot_stats.to_lists(self._stats())}
        (self.place / EPISODE).write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        self.place.chmod(0o755)
        appear(self.place, self.target)
        self.writer._took(self.summary)

    def _stats(self) -> dict[str, Stats]:
        """Column by column, so that a long episode is never whole in memory."""
        pq = pyarrow().parquet
        found: dict[str, Stats] = {}
        if not self.summary.steps:
            return found
        for name, feature in self.columns.features.items():
            if feature["dtype"] == "video":
                found[name] = self.counts[name].stats()
            elif feature["dtype"] != "string":
                column = pq.read_table(self.place / "rows.parquet", columns=[name])[name].combine_chunks()
                values = column.flatten() if feature["shape"] != [1] else column
                found[name] = lerobot_stats.vector_stats(values.to_numpy(zero_copy_only=False).reshape(len(column), -1))
        return found

    def discard(self) -> None:
        self.rows.close()
        for video in self.videos.values():
            video.close()
        shutil.rmtree(self.place, ignore_errors=True)
