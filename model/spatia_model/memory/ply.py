"""Point memories as PLY files (binary little endian), read and written with plyfile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from spatia_model.memory.point_memory import PointMemory

_COLUMNS = [
    ("x", "<f4"),
    ("y", "<f4"),
    ("z", "<f4"),
    ("red", "u1"),
    ("green", "u1"),
    ("blue", "u1"),
    ("confidence", "<f4"),
    ("last_seen", "<i4"),
]
# A key follows from position and level almost always, but an average may round onto its voxel's border: keys are stored, in two halves
# because PLY has no 64-bit integer.
_KEY_COLUMNS = [("key_low", "<u4"), ("key_high", "<u4")]
_FORMAT = "spatia point memory 1"


def save_ply(memory: PointMemory, path: str | Path) -> None:
    from plyfile import PlyData, PlyElement

    rows = np.empty(len(memory), dtype=_COLUMNS + _KEY_COLUMNS)
    positions, colors = memory.positions.cpu().numpy(), memory.colors.cpu().numpy()
    for i, name in enumerate("xyz"):
        rows[name] = positions[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        rows[name] = colors[:, i]
    rows["confidence"] = memory.confidence.cpu().numpy()
    rows["last_seen"] = memory.last_seen.cpu().numpy()
    keys = memory.keys.cpu().numpy()
    rows["key_low"], rows["key_high"] = keys & 0xFFFFFFFF, keys >> 32
    comments = [_FORMAT, f"voxel_size {memory.voxel_size!r}", f"max_points {memory.max_points}"]
    PlyData([PlyElement.describe(rows, "vertex")], byte_order="<", comments=comments).write(str(path))


def load_ply(path: str | Path, device: torch.device | str = "cpu") -> PointMemory:
    from plyfile import PlyData, PlyParseError

    from spatia_model.memory.point_memory import PointMemory

    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; give a .ply that PointMemory.save_ply wrote")
    try:
        data = PlyData.read(str(path), mmap=False)  # type: ignore[arg-type]  # plyfile documents a bool
    except (PlyParseError, ValueError, EOFError, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"{path} is corrupt or truncated ({error}); write it again with save_ply") from error
    settings = dict(line.split(" ", 1) for line in data.comments if " " in line)
    wanted = {name for name, _ in _COLUMNS + _KEY_COLUMNS}
    found = {p.name for p in data["vertex"].properties} if "vertex" in data else set()
    if _FORMAT not in data.comments or "voxel_size" not in settings or not wanted <= found:
        missing = ", ".join(sorted(wanted - found)) or "the header comments"
        raise ValueError(f"{path} is a PLY, but not a point memory: it lacks {missing}. Load a file that save_ply wrote")
    rows = data["vertex"].data
    try:
        voxel_size, max_points = float(settings["voxel_size"]), int(settings["max_points"])
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} has a damaged header ({error}); write it again with save_ply") from error
    positions = np.stack([rows[c] for c in "xyz"], 1).astype(np.float32)
    keys = rows["key_high"].astype(np.int64) << 32 | rows["key_low"].astype(np.int64)
    if (
        not np.isfinite(positions).all()
        or not np.isfinite(rows["confidence"]).all()
        or (len(keys) and (keys[0] < 0 or (np.diff(keys) <= 0).any()))
    ):
        raise ValueError(f"{path} is corrupt: positions must be finite and keys ascending; write it again with save_ply")
    colors = np.stack([rows[c] for c in ("red", "green", "blue")], 1).astype(np.uint8)
    empty = PointMemory.empty(voxel_size, device, max_points)
    return PointMemory(
        empty.voxel_size,
        torch.from_numpy(keys).to(device),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(colors).to(device),
        torch.from_numpy(rows["confidence"].astype(np.float32)).to(device),
        torch.from_numpy(rows["last_seen"].astype(np.int32)).to(device),
        empty.max_points,
    )
