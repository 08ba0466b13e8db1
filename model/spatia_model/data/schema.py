"""Clips on disk: what a row of a shard holds, and how it is written, read and checked.

The format is Apache Parquet, one clip per row and per row group: a kept standard whose readers (pyarrow, pandas, DuckDB, datasets) fetch
one row or one column of a file, local or remote, so that a stage that trains on latents never reads the pictures beside them.

A tensor is a struct {dtype, shape, data}: `np.frombuffer(data, dtype).reshape(shape)` reads it without this package. Pictures are lists of
encoded images (PNG or JPEG). Latents are float16, channel first. `docs/data.md` has the table of columns.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

VERSION = 1
FORMAT = "spatia-clips"
CONTROLS = ("encoded", "pooled")  # holes as latents of the hole video (release), or as pooled masks (embedded tier)


@dataclass(frozen=True)
class Clip:
    """One training clip. T frames make F = 1 + (T - 1) / 4 latent frames; the first `preceding` frames are history, the others targets.

    Latents may be absent (a clip for pixel stages), pictures too; not both.
    """

    key: str  # unique in the data set: "<video>-<number>"
    video: str  # the clips of one video, in order of `number`, are one sequence
    number: int
    caption: str  # what happens in the clip
    prompt: str  # what the place is like; "" for none
    preceding: int  # history frames M at the window's start, 1 + 4k
    fps: float
    height: int  # pixels
    width: int
    frame_numbers: tuple[int, ...]  # (T,) of the video
    candidate_frames: tuple[int, ...]  # (O,) frames that could be references
    cloud_frame: int  # the candidate that the point cloud was made of
    T_world_camera: torch.Tensor  # (T, 4, 4) float64, OpenCV axes
    intrinsics: torch.Tensor  # (T, 4) float64 fx fy cx cy, normalised by width, height, width, height
    reference_frames: tuple[int, ...]  # (R,) best first
    reference_poses: torch.Tensor  # (R, 4, 4) float64
    reference_iou: torch.Tensor  # (R,) float32 overlap of visible surface with the targets
    provenance: Mapping[str, Any] = field(default_factory=dict)  # source, licence, tools, scale, seed, ...
    latents: torch.Tensor | None = None  # (C, F, h, w) of preceding and target frames, encoded as one video
    projection: torch.Tensor | None = None  # (C, F, h, w) latents of the projection video
    holes: torch.Tensor | None = None  # (C, F, h, w) latents of the hole video, or (2k, F, h, w) pooled masks
    references: torch.Tensor | None = None  # (R, C, h, w), each a one-frame video
    moving: torch.Tensor | None = None  # (F, h, w) uint8, share of moving pixels in 255ths
    uncovered: torch.Tensor | None = None  # (F, h, w) uint8, share of pixels without projection in 255ths
    counted: torch.Tensor | None = None  # (F, h, w) uint8, share of the cell's loss that counts in 255ths; None: all of it
    context: torch.Tensor | None = None  # (L, D) float16 text rows of the caption, without padding
    frames: torch.Tensor | None = None  # (T, H, W, 3) uint8
    projection_frames: torch.Tensor | None = None  # (T, H, W, 3) uint8, black in holes
    reference_images: torch.Tensor | None = None  # (R, H, W, 3) uint8
    projection_depth: torch.Tensor | None = None  # (T, H, W) float16 metres, 0 in holes
    depth: torch.Tensor | None = None  # (T, H, W) float16 metres, 0 for none
    dynamic: torch.Tensor | None = None  # (T, H, W) bool

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError(f"clip {self.key!r} is not well formed: {'; '.join(problems)}")


TENSORS = [
    "T_world_camera",
    "intrinsics",
    "reference_poses",
    "reference_iou",
    "latents",
    "projection",
    "holes",
    "references",
    "moving",
    "uncovered",
    "counted",
    "context",
    "projection_depth",
    "depth",
    "dynamic",
]
PICTURES = ("frames", "projection_frames", "reference_images")
REQUIRED = ("T_world_camera", "intrinsics", "reference_poses", "reference_iou")
LATENT_COLUMNS = ("latents", "projection", "holes", "references", "moving", "uncovered", "counted", "context")
PIXEL_COLUMNS = (*PICTURES, "projection_depth", "depth", "dynamic")


def _problems(clip: Clip) -> Iterable[str]:
    """What is wrong with a clip, each with what would be right."""
    t, r = len(clip.frame_numbers), len(clip.reference_frames)
    h, w = clip.height, clip.width
    if t < 2 or (t - 1) % 4:
        yield f"{t} frames; a window has 1 + 4k"
    if clip.preceding < 1 or (clip.preceding - 1) % 4 or clip.preceding >= t:
        yield f"{clip.preceding} preceding frames of {t}; expected 1 + 4k, fewer than all"
    shapes: dict[str, tuple[Any, ...]] = {
        "T_world_camera": (t, 4, 4),
        "intrinsics": (t, 4),
        "reference_poses": (r, 4, 4),
        "reference_iou": (r,),
        "frames": (t, h, w, 3),
        "projection_frames": (t, h, w, 3),
        "reference_images": (r, h, w, 3),
        "projection_depth": (t, h, w),
        "depth": (t, h, w),
        "dynamic": (t, h, w),
    }
    if clip.latents is not None:
        c, f, lh, lw = clip.latents.shape
        if f != 1 + (t - 1) // 4:
            yield f"{f} latent frames for {t} frames; expected {1 + (t - 1) // 4}"
        shapes |= {
            "latents": (c, f, lh, lw),
            "projection": (c, f, lh, lw),
            "references": (r, c, lh, lw),
            "moving": (f, lh, lw),
            "uncovered": (f, lh, lw),
            "counted": (f, lh, lw),
        }
        if clip.projection is None or clip.holes is None or clip.references is None:
            yield "latents without projection, holes or references; give all four"
        elif tuple(clip.holes.shape[1:]) != (f, lh, lw):
            yield f"holes are {tuple(clip.holes.shape)}; expected (channels, {f}, {lh}, {lw})"
    elif clip.frames is None:
        yield "neither latents nor frames; give one of them at least"
    for name, shape in shapes.items():
        value = getattr(clip, name)
        if value is not None and tuple(value.shape) != shape:
            yield f"{name} is {tuple(value.shape)}; expected {shape}"
        elif value is not None and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            yield f"{name} holds NaN or infinite numbers"


# -- rows ---------------------------------------------------------------------------------------------------------------


def _pack(tensor: torch.Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def _unpack(cell: Mapping[str, Any]) -> torch.Tensor:
    # a copy: Arrow's buffers are read-only, torch's tensors are not
    return torch.from_numpy(np.frombuffer(cell["data"], np.dtype(cell["dtype"])).reshape(cell["shape"]).copy())


def encode_picture(frame: torch.Tensor, kind: str = "png", quality: int = 95) -> bytes:
    """(H, W, 3) uint8 as PNG (exact) or JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame.numpy()).save(buffer, **({"format": "PNG"} if kind == "png" else {"format": "JPEG", "quality": quality}))
    return buffer.getvalue()


def _pictures(cells: Sequence[bytes], height: int, width: int) -> torch.Tensor:
    if not cells:
        return torch.zeros(0, height, width, 3, dtype=torch.uint8)
    return torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(cell)).convert("RGB"))) for cell in cells])


def to_row(clip: Clip, pictures: str = "png") -> dict[str, Any]:
    """A clip as a Parquet row. `pictures`: "png" or "jpeg"; projections are always PNG, for their holes must stay black."""
    row: dict[str, Any] = {}
    for f in fields(Clip):
        value = getattr(clip, f.name)
        if value is None:
            row[f.name] = None
        elif f.name in TENSORS:
            row[f.name] = _pack(value)
        elif f.name in PICTURES:
            kind = "png" if f.name == "projection_frames" else pictures
            row[f.name] = [encode_picture(frame, kind) for frame in value]
        elif f.name == "provenance":
            row[f.name] = json.dumps(dict(value), sort_keys=True)
        else:
            row[f.name] = list(value) if isinstance(value, tuple) else value
    return row


def from_row(row: Mapping[str, Any]) -> Clip:
    """Inverse of `to_row`; columns that were not read become None."""
    values: dict[str, Any] = {}
    for f in fields(Clip):
        value = row.get(f.name)
        if value is None:
            continue
        if f.name in TENSORS:
            value = _unpack(value)
        elif f.name in PICTURES:
            value = _pictures(value, row["height"], row["width"])
        elif f.name == "provenance":
            value = json.loads(value)
        elif isinstance(value, list):
            value = tuple(value)
        values[f.name] = value
    return Clip(**values)


def arrow_schema(metadata: Mapping[str, Any]):
    """The Arrow schema; `metadata` (JSON values) lies in every shard's footer beside format and version."""
    import pyarrow as pa

    tensor = pa.struct([("dtype", pa.string()), ("shape", pa.list_(pa.int32())), ("data", pa.binary())])
    kinds = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "tuple[int, ...]": pa.list_(pa.int32())}

    def kind(name: str, annotation: Any):
        if name in TENSORS:
            return tensor
        if name in PICTURES:
            return pa.list_(pa.binary())
        return pa.string() if name == "provenance" else kinds[str(annotation)]

    described = {"format": FORMAT, "version": VERSION, **metadata}
    return pa.schema([(f.name, kind(f.name, f.type)) for f in fields(Clip)], metadata={"spatia": json.dumps(described, sort_keys=True)})


# -- shards -------------------------------------------------------------------------------------------------------------


class ShardError(ValueError):
    """A shard that cannot be read, and what to do about it."""


class DamagedShard(ShardError):
    """A shard that is not whole."""


def write_shard(path: str | Path, clips: Iterable[Clip], metadata: Mapping[str, Any], pictures: str = "png") -> int:
    """Write clips to one Parquet file, whole or not at all; returns their number. Nothing is written for no clips."""
    return write_rows(path, (to_row(clip, pictures) for clip in clips), metadata)


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    schema, count = arrow_schema(metadata), 0
    try:
        # latents do not compress; a row group per row is what makes reading one clip cheap
        with pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
            for row in rows:
                writer.write_table(pa.Table.from_pylist([dict(row)], schema=schema), row_group_size=1)
                count += 1
        if not count:
            temporary.unlink()
            return 0
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


def read_metadata(schema: Any, where: str) -> dict[str, Any]:
    """What `arrow_schema` put into the footer. ShardError for other files and newer versions."""
    raw = (schema.metadata or {}).get(b"spatia")
    described = json.loads(raw) if raw else {}
    if described.get("format") != FORMAT:
        raise ShardError(f"{where}: a Parquet file, but not of {FORMAT}: make it with `spatia prepare`")
    if described["version"] > VERSION:
        raise ShardError(f"{where}: version {described['version']} of {FORMAT}; this package reads up to {VERSION}: update spatia")
    return described
