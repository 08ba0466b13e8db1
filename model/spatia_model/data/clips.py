"""A data set of clips: shards in a folder or behind a URL, random access, and an order of batches that needs no memory.

The order is a function of (seed, epoch), so a resumed run continues exactly where the last checkpoint stood, with no state to save and
whatever the number of loader processes.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from spatia_model.data.schema import Clip, DamagedShard, ShardError, from_row, read_metadata

INDEX = "index.json"
SMALL = ("key", "video", "number", "height", "width", "frame_numbers", "preceding", "reference_frames")


@dataclass(frozen=True)
class Entry:
    """Where a clip lies, and what batches must agree on."""

    shard: int
    row: int
    key: str
    video: str
    number: int
    shape: tuple[int, int, int]  # frames, height, width
    preceding: int
    references: int


class ClipDataset(Dataset[Clip]):
    """Clips by number.

    Args:
        place: a folder of `*.parquet` shards, one shard, or a URL that pyarrow or fsspec opens (s3://, gs://, https://...).
        columns: only these tensor and picture columns are read (None: all).
        videos: only clips of these videos.

    Raises:
        ShardError: there are no shards, or one is not whole (it is named).
    """

    def __init__(self, place: str | Path, columns: Sequence[str] | None = None, videos: set[str] | None = None):
        self.place, self.columns = str(place), None if columns is None else list(columns)
        self._open: dict[int, Any] = {}
        self._pid = os.getpid()
        self._filesystem, root = _filesystem(self.place)
        self.shards = _shards(self._filesystem, root, self.place)
        self.metadata, entries = _index(self._filesystem, root, self.shards)
        self.entries = [e for e in entries if videos is None or e.video in videos]
        if not self.entries:
            raise ShardError(
                f"{self.place} holds no clips{'' if videos is None else ' of the videos asked for'}: make them with `spatia prepare`"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Clip:
        entry = self.entries[index]
        try:
            table = self._file(entry.shard).read_row_group(entry.row, columns=self._columns())
        except (OSError, ValueError) as error:
            raise ShardError(
                f"{self.shards[entry.shard]}: row {entry.row} cannot be read ({error}); remove the shard, prepare it again"
            ) from error
        return from_row(table.to_pylist()[0])

    def _columns(self) -> list[str] | None:
        from dataclasses import fields

        from spatia_model.data.schema import PICTURES, REQUIRED, TENSORS

        if self.columns is None:
            return None
        heavy = {*TENSORS, *PICTURES} - {*REQUIRED, *self.columns}
        return [f.name for f in fields(Clip) if f.name not in heavy]

    def _file(self, shard: int) -> Any:
        import pyarrow.parquet as pq

        if self._pid != os.getpid():  # a forked loader process must not share file positions
            self._open, self._pid = {}, os.getpid()
        if shard not in self._open:
            if len(self._open) >= 256:
                self._open.pop(next(iter(self._open)))
            path = self.shards[shard]
            try:
                self._open[shard] = pq.ParquetFile(path, filesystem=self._filesystem, pre_buffer=False)
            except (OSError, ValueError) as error:
                raise DamagedShard(f"{path}: not a whole Parquet file ({error}); remove it, prepare it again") from error
        return self._open[shard]

    def sequences(self) -> dict[str, list[int]]:
        """Clip numbers of each video in order, consecutive windows of which follow on each other."""
        found: dict[str, list[int]] = defaultdict(list)
        for i, entry in enumerate(self.entries):
            found[entry.video].append(i)
        return {video: sorted(rows, key=lambda i: self.entries[i].number) for video, rows in sorted(found.items())}


def _filesystem(place: str) -> tuple[Any, str]:
    import pyarrow.fs as fs

    if "://" not in place:
        return fs.LocalFileSystem(use_mmap=True), place
    try:
        return fs.FileSystem.from_uri(place)
    except (ValueError, OSError):
        import fsspec

        remote, root = fsspec.core.url_to_fs(place)
        return fs.PyFileSystem(fs.FSSpecHandler(remote)), root


def _shards(filesystem: Any, root: str, place: str) -> list[str]:
    import pyarrow.fs as fs

    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.File:
        return [root]
    if info.type == fs.FileType.NotFound:
        raise ShardError(f"{place}: no such folder of clips; check the path or make it with `spatia prepare`")
    found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    shards = sorted(f.path for f in found if f.path.endswith(".parquet") and not f.base_name.startswith(".") and "/parts/" not in f.path)
    if not shards:
        raise ShardError(f"{place} holds no shards (*.parquet): make them with `spatia prepare`")
    return shards


def _index(filesystem: Any, root: str, shards: list[str]) -> tuple[dict[str, Any], list[Entry]]:
    """Entries of all shards, from `index.json` where it knows a shard of that size, else from the shard itself."""
    known: dict[str, Any] = {}
    try:
        with filesystem.open_input_file(f"{root}/{INDEX}") as file:
            known = json.loads(file.read())["shards"]
    except (OSError, ValueError, KeyError):
        pass
    metadata: dict[str, Any] | None = None
    entries: list[Entry] = []
    for number, path in enumerate(shards):
        size = filesystem.get_file_info(path).size
        name = path[len(root) :].lstrip("/")
        described = known.get(name)
        if not described or described["bytes"] != size:
            described = describe_shard(path, filesystem)
        if metadata is None:
            metadata = described["metadata"]
        elif any(metadata.get(k) != described["metadata"].get(k) for k in ("control", "vae", "latent_channels")):
            raise ShardError(
                f"{path} speaks other latents than {shards[0]} ({described['metadata']} against {metadata}): train on one kind at a time"
            )
        for row, (key, video, clip, shape, preceding, references) in enumerate(described["rows"]):
            entries.append(Entry(number, row, key, video, clip, tuple(shape), preceding, references))
    return metadata or {}, entries


def describe_shard(path: str | Path, filesystem: Any = None) -> dict[str, Any]:
    """What the index keeps of a shard: size, metadata, and a line per row. ShardError when it is not whole."""
    import pyarrow.fs as fs
    import pyarrow.parquet as pq

    filesystem = filesystem or fs.LocalFileSystem()
    try:
        file = pq.ParquetFile(str(path), filesystem=filesystem, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise DamagedShard(f"{path}: not a whole Parquet file ({error}); remove it, prepare it again") from error
    metadata = read_metadata(file.schema_arrow, str(path))
    rows = [
        [r["key"], r["video"], r["number"], [len(r["frame_numbers"]), r["height"], r["width"]], r["preceding"], len(r["reference_frames"])]
        for r in file.read(columns=list(SMALL)).to_pylist()
    ]
    return {"bytes": filesystem.get_file_info(str(path)).size, "metadata": metadata, "rows": rows}


def write_index(folder: str | Path) -> dict[str, Any]:
    """(Re)write `index.json` of a folder of shards; shards that are not whole are left out and told under "broken"."""
    folder = Path(folder)
    index: dict[str, Any] = {"shards": {}, "broken": {}}
    try:
        known = json.loads((folder / INDEX).read_text())["shards"]
    except (OSError, ValueError, KeyError):
        known = {}
    for path in sorted(folder.rglob("*.parquet")):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") or name.startswith("parts/"):
            continue
        if name in known and known[name]["bytes"] == path.stat().st_size:
            index["shards"][name] = known[name]
            continue
        try:
            index["shards"][name] = describe_shard(path)
        except ShardError as error:
            index["broken"][name] = str(error)
    temporary = folder / f".{INDEX}.{os.getpid()}.partial"
    temporary.write_text(json.dumps(index) + "\n")
    os.replace(temporary, folder / INDEX)
    return index


class BatchOrder(Sampler[list[int]]):
    """Batches of clips that fit together, endless, in an order that (seed, epoch) alone decides.

    All clips of a batch have one shape and, as far as numbers allow, equally many references. Of `world` processes, `rank` takes every
    world-th batch. Iteration begins at this process's batch `start`.
    """

    def __init__(self, entries: Sequence[Entry], batch: int, seed: int = 0, rank: int = 0, world: int = 1, start: int = 0):
        if batch < 1 or world < 1 or not 0 <= rank < world or start < 0:
            raise ValueError(f"batch {batch}, rank {rank} of {world}, start {start}: expected batch >= 1, 0 <= rank < world, start >= 0")
        self.batch, self.seed, self.rank, self.world, self.start = batch, seed, rank, world, start
        self._groups: dict[tuple, list[int]] = defaultdict(list)
        for i, entry in enumerate(entries):
            self._groups[(*entry.shape, entry.references)].append(i)
        self.per_epoch = len(self.epoch(0))

    def epoch(self, number: int) -> list[list[int]]:
        """All batches of an epoch. The last few clips of a shape are topped up with others of it, so that none is never seen."""
        rng = np.random.default_rng([self.seed, number, 0x5EED])
        batches: list[list[int]] = []
        left: dict[tuple, list[int]] = defaultdict(list)
        for key in sorted(self._groups):
            order = [self._groups[key][i] for i in rng.permutation(len(self._groups[key]))]
            whole = len(order) // self.batch * self.batch
            batches += [order[i : i + self.batch] for i in range(0, whole, self.batch)]
            left[key[:3]] += order[whole:]
        for shape in sorted(left):
            rest = left[shape]
            everything = [i for key in sorted(self._groups) if key[:3] == shape for i in self._groups[key]]
            for a in range(0, len(rest), self.batch):
                some = rest[a : a + self.batch]
                some += [everything[i] for i in rng.integers(len(everything), size=self.batch - len(some))]
                batches.append(some)
        return [batches[i] for i in rng.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.world + self.rank
        number, batches = -1, []
        while True:
            if position // self.per_epoch != number:
                number = position // self.per_epoch
                batches = self.epoch(number)
            yield batches[position % self.per_epoch]
            position += self.world
