"""Tensors as byte ranges of files, copied from one file to another in small pieces.

Conversion only renames and casts, so no tensor is ever held whole: the 5B and its text encoder (tens of gigabytes) pass through a buffer
of a megabyte. Nothing is memory-mapped here either, so the process stays small however its memory is counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from spatia_model.generator.checkpoint import CheckpointError

PIECE = 1 << 18  # elements read, checked, cast and written at a time: they stay in the processor's cache
# The names of safetensors' format, for the types that the released files hold.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Span:
    """A tensor in a file: its elements lie there contiguously, from byte `offset` on."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return prod(self.shape)

    def size_as(self, dtype: torch.dtype) -> int:
        """Bytes of the tensor in another type."""
        return self.count * dtype.itemsize


def read_spans(path: str | Path) -> dict[str, Span]:
    """The tensors of a `.safetensors` or a PyTorch (`.pth`, `.pt`, `.bin`) file, by name. Only the header is read.

    Raises:
        CheckpointError: no such file, cut short, or not of that kind; it names the file, and the tensor where there is one.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights; check the path or fetch it again")
    return _safetensors_spans(path) if path.suffix == ".safetensors" else _pickle_spans(path)


def _safetensors_spans(path: Path) -> dict[str, Span]:
    size = path.stat().st_size
    damaged = f"{path}: not a whole safetensors file; it's damaged or cut short, so fetch it again"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(damaged)
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans, start = {}, 8 + length
            for name, entry in entries.items():
                if entry["dtype"] not in DTYPES:
                    raise CheckpointError(f"{path}: tensor {name} is of type {entry['dtype']}; expected one of {sorted(DTYPES)}")
                first, last = entry["data_offsets"]
                span = Span(path, start + first, DTYPES[entry["dtype"]], tuple(entry["shape"]))
                if not 0 <= first <= last or span.size_as(span.dtype) != last - first or start + last > size:
                    raise CheckpointError(f"{path}: tensor {name} lies outside the file or doesn't fill its place; fetch the file again")
                spans[name] = span
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{damaged} ({error})") from error
    return spans


def _pickle_spans(path: Path) -> dict[str, Span]:
    """Tensors of a PyTorch zip file, found with `weights_only=True` and without reading their data (torch's fake tensors)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: not a whole PyTorch zip file (torch.save since 1.6); it's damaged or cut short, so fetch it again")
    try:
        with FakeTensorMode():
            loaded: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # an unpickler raises many kinds
        raise CheckpointError(f"{path}: can't be loaded as weights only ({error}); fetch it again from its publisher") from error
    for wrapper in ("state_dict", "model_state", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not named tensors; give the checkpoint of the model's weights")
    spans = {}
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor; give the checkpoint of the model's weights")
        if not tensor.is_contiguous() or tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{path}: tensor {name} is {tensor.dtype} and not plainly laid out; save it anew, contiguous")
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None:
            raise CheckpointError(f"{path}: this PyTorch doesn't tell where tensor {name} lies; use torch 2.6 or later")
        offset = start + tensor.storage_offset() * tensor.element_size()
        spans[str(name)] = Span(path, offset, tensor.dtype, tuple(tensor.shape))
    return spans


def read_span(span: Span) -> torch.Tensor:
    """The whole tensor, in memory."""
    data = bytearray(span.size_as(span.dtype))
    with span.path.open("rb") as file:
        file.seek(span.offset)
        if file.readinto(data) != len(data):
            raise CheckpointError(f"{span.path}: ends early; fetch it again")
    return torch.frombuffer(data, dtype=span.dtype).reshape(span.shape) if data else torch.empty(span.shape, dtype=span.dtype)


def written_size(tensors: Iterable[tuple[str, Span, torch.dtype]]) -> int:
    """Bytes of the file that `write_spans` makes of them."""
    listed = list(tensors)
    return len(safetensors_header(listed)) + sum(span.size_as(dtype) for _, span, dtype in listed)


def write_spans(
    path: Path, tensors: Sequence[tuple[str, Span, torch.dtype]], progress: Callable[[int], Any] | None = None
) -> tuple[int, str]:
    """Write (name, source, type to store) as one safetensors file, whole or not at all. Returns its size and SHA-256.

    `progress` is called with the bytes written since the last call. Raises CheckpointError on values that are not finite, there or in
    the type to store; it names the tensor and its file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = partial(path)
    digest, size = hashlib.sha256(), 0
    try:
        with unfinished.open("wb") as out:

            def put(data: Any) -> None:
                nonlocal size
                out.write(data)
                digest.update(data)
                size += len(data)
                if progress is not None:
                    progress(len(data))

            put(safetensors_header(tensors))
            for name, span, dtype in tensors:
                for piece in _pieces(name, span):
                    stored = piece.to(dtype)
                    if dtype == torch.float16 and not _finite(stored):
                        raise CheckpointError(f"{span.path}: tensor {name} holds values beyond float16's; store another type, bfloat16")
                    put(stored.view(torch.uint8).numpy().data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return size, digest.hexdigest()


def partial(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(path.name + ".part")


def safetensors_header(tensors: Iterable[tuple[str, Span, torch.dtype]]) -> bytes:
    """A safetensors file up to its values: length and JSON, padded to 8 bytes. `format` is what diffusers and transformers look for."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, span, dtype in tensors:
        after = at + span.size_as(dtype)
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(span.shape), "data_offsets": [at, after]}
        at = after
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _finite(values: torch.Tensor) -> bool:
    """Whether all are; in one pass, without a mask of their size. (NaN is the least and the greatest of whatever it is among.)"""
    return bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _pieces(name: str, span: Span) -> Iterable[torch.Tensor]:
    """A tensor's values in order. Each piece lies where the one before it lay: use it before asking for the next."""
    left = span.count
    data = memoryview(bytearray(min(left, PIECE) * span.dtype.itemsize))
    with span.path.open("rb", buffering=0) as file:
        file.seek(span.offset)
        while left:
            count = min(left, PIECE)
            place, got = data[: count * span.dtype.itemsize], 0
            while got < len(place):
                read = file.readinto(place[got:])
                if not read:
                    raise CheckpointError(f"{span.path}: ends inside tensor {name}; fetch it again")
                got += read
            piece = torch.frombuffer(place, dtype=span.dtype)
            if not _finite(piece):
                raise CheckpointError(f"{span.path}: tensor {name} holds NaN or infinite values; the file is damaged: fetch it again")
            yield piece
            left -= count
