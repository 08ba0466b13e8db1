"""Growing HDF5 tables: rows of nested values become one resizable dataset per leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

_FLUSH_ROWS = 64
_FLUSH_BYTES = 8 * 2**20
_COMPRESS_ABOVE = 64  # elements of a row


class Table:
    """Rows under one HDF5 group. A row is a nested value; its leaves are numbers, arrays of a fixed shape, and text.

    A tuple becomes a group of ``_index_0``, ``_index_1``, ..., the form Minari has for it. A row that is a single leaf goes into the
    dataset `SINGLE`.
    """

    SINGLE = "value"

    def __init__(self, group: Any) -> None:
        self.group = group
        self.columns: dict[str, _Column] = {}
        self.rows = 0
        self.is_single = False

    def declare(self, space: spaces.Space[Any]) -> None:
        """Make the columns of a space, so that they are there even without rows."""
        self.is_single = not isinstance(space, (spaces.Dict, spaces.Tuple))
        for path, leaf in _space_leaves(space, "").items():
            self.declare_leaf(path or self.SINGLE, leaf)

    def declare_leaf(self, path: str, like: Any) -> None:
        """Make a column whose dtype is settled: values are cast to it."""
        leaf = _leaf(like)
        assert leaf is not None
        self.columns[path] = _Column(self.group, path, leaf, settled=True)

    def add(self, row: Any) -> set[str]:
        """Append a row; returns the paths of leaves that could not be kept."""
        left_out: set[str] = set()
        for path, value in _leaves(row, "").items():
            path = path or self.SINGLE
            leaf = _leaf(value)
            if leaf is None:
                if value is not None:
                    left_out.add(path)
                continue
            column = self.columns.get(path)
            if column is None:
                column = self.columns[path] = _Column(self.group, path, leaf)
            column.pad(self.rows)
            if not column.add(leaf):
                left_out.add(path)
        self.rows += 1
        return left_out

    def amend_last(self, path: str, value: Any) -> None:
        """Change the last row of a column."""
        column = self.columns[path]
        column.flush()
        column.dataset[-1] = value

    def close(self) -> None:
        for column in self.columns.values():
            column.pad(self.rows)
            column.flush()


class _Column:
    """One dataset that grows along its first axis."""

    def __init__(self, group: Any, path: str, like: str | np.ndarray, settled: bool = False) -> None:
        self.group, self.path, self.settled = group, path, settled
        self.is_text = isinstance(like, str)
        self.shape = () if isinstance(like, str) else like.shape
        self.dtype = np.dtype(object) if isinstance(like, str) else like.dtype
        self.rows = 0  # with those still in the buffer
        self.buffer: list[Any] = []
        self.dataset = self._create(path)

    def _create(self, path: str) -> Any:
        import h5py

        if self.is_text:
            return self.group.create_dataset(path, (0,), h5py.string_dtype("utf-8"), maxshape=(None,), chunks=(256,))
        size = int(np.prod(self.shape))
        rows = 1 if size >= 4096 else max(1, 4096 // max(1, size))
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if size >= _COMPRESS_ABOVE else {}
        chunks = (rows, *(max(1, side) for side in self.shape))
        limits = (None, *(side or None for side in self.shape))  # HDF5 has no chunks of a side that can only be 0
        return self.group.create_dataset(path, (0, *self.shape), self.dtype, maxshape=limits, chunks=chunks, **options)

    def add(self, leaf: str | np.ndarray) -> bool:
        """Append a value; False if it does not fit the column."""
        if isinstance(leaf, str) != self.is_text:
            return False
        if isinstance(leaf, np.ndarray):
            if leaf.shape != self.shape:
                return False
            if not self.settled and not np.can_cast(leaf.dtype, self.dtype, "safe"):
                self._widen(np.promote_types(leaf.dtype, self.dtype))
            leaf = leaf.astype(self.dtype)  # a copy: whoever made the value may write into it again
        self.buffer.append(leaf)
        self.rows += 1
        if len(self.buffer) >= _FLUSH_ROWS or (isinstance(leaf, np.ndarray) and leaf.nbytes * len(self.buffer) >= _FLUSH_BYTES):
            self.flush()
        return True

    def pad(self, rows: int) -> None:
        """Fill up to `rows` rows."""
        while self.rows < rows:
            if self.is_text:
                self.add("")
            else:
                kind = self.dtype.kind
                self.add(np.full(self.shape, {"f": np.nan, "i": -1}.get(kind, 0), self.dtype))

    def flush(self) -> None:
        if self.buffer:
            start = len(self.dataset)
            self.dataset.resize(start + len(self.buffer), axis=0)
            self.dataset[start:] = self.buffer if self.is_text else np.stack(self.buffer)
            self.buffer = []

    def _widen(self, dtype: np.dtype[Any]) -> None:
        """Go on with a wider dtype."""
        self.flush()
        before, self.dtype = self.dataset, dtype
        self.group.move(self.path, self.path + ".narrow")
        self.dataset = self._create(self.path)
        self.dataset.resize(len(before), axis=0)
        for start in range(0, len(before), _FLUSH_ROWS):
            self.dataset[start : start + _FLUSH_ROWS] = before[start : start + _FLUSH_ROWS].astype(dtype)
        del self.group[self.path + ".narrow"]


def _leaves(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, dict):
        children = {str(key).replace("/", "_"): child for key, child in value.items()}
    elif isinstance(value, tuple):
        children = {f"_index_{number}": child for number, child in enumerate(value)}
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, child in children.items():
        found |= _leaves(child, f"{prefix}/{key}" if prefix else key)
    return found


def _space_leaves(space: spaces.Space[Any], prefix: str) -> dict[str, Any]:
    """A value of the right dtype and shape for each leaf of a space."""
    if isinstance(space, spaces.Dict):
        children = dict(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        children = {f"_index_{number}": child for number, child in enumerate(space.spaces)}
    else:
        return {prefix: "" if isinstance(space, spaces.Text) else np.zeros(space.shape or (), space.dtype)}
    found: dict[str, Any] = {}
    for key, child in children.items():
        found |= _space_leaves(child, f"{prefix}/{key}" if prefix else key)
    return found


def _leaf(value: Any) -> str | np.ndarray | None:
    """`value` as text or a numeric array; None for what is neither."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, int, float, np.generic, np.ndarray, list)):
        try:
            array = np.asarray(value)
        except ValueError:  # a ragged list
            return None
        return array if array.dtype.kind in "biuf" else None
    return None
