"""Memories on disk: bit for bit, and clear errors for broken files."""

from pathlib import Path

import pytest
import torch

from spatia_model.memory.point_memory import PointMemory
from tests.spatia_model.memory.test_point_memory import batch, same


def memory() -> PointMemory:
    out = PointMemory.empty(0.03, max_points=5000)
    for step in range(3):
        given = batch(2_000_040 + step, spread=20.0 if step else 0.2)
        out = out.fuse(*given[:3], step, given[3])
    return out


def test_round_trip_is_exact(tmp_path: Path):
    before = memory()
    before.save_ply(tmp_path / "m.ply")
    after = PointMemory.load_ply(tmp_path / "m.ply")
    assert same(before, after) and after.voxel_size == before.voxel_size and after.max_points == 5000
    assert [getattr(after, k).dtype for k in ("keys", "positions", "colors", "confidence", "last_seen")] == [
        torch.int64,
        torch.float32,
        torch.uint8,
        torch.float32,
        torch.int32,
    ]
    given = batch(2_000_044)
    assert same(before.fuse(*given[:3], 9), after.fuse(*given[:3], 9))


def test_an_empty_memory_round_trips(tmp_path: Path):
    PointMemory.empty(0.02).save_ply(tmp_path / "m.ply")
    assert len(PointMemory.load_ply(tmp_path / "m.ply")) == 0


def test_any_viewer_finds_the_usual_columns(tmp_path: Path):
    memory().save_ply(tmp_path / "m.ply")
    head = (tmp_path / "m.ply").read_bytes().split(b"end_header")[0].decode()
    assert "format binary_little_endian 1.0" in head and "comment voxel_size 0.03" in head
    for line in ("float x", "float y", "float z", "uchar red", "uchar green", "uchar blue", "float confidence", "int last_seen"):
        assert f"property {line}\n" in head


@pytest.mark.parametrize("keep", [0, 10, 200, 2000])
def test_truncated_files_are_refused(tmp_path: Path, keep: int):
    memory().save_ply(tmp_path / "m.ply")
    whole = (tmp_path / "m.ply").read_bytes()
    (tmp_path / "m.ply").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"m\.ply.*(corrupt|truncated)"):
        PointMemory.load_ply(tmp_path / "m.ply")


def test_foreign_damaged_and_missing_files_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="not a file"):
        PointMemory.load_ply(tmp_path / "none.ply")
    (tmp_path / "noise.ply").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match="corrupt"):
        PointMemory.load_ply(tmp_path / "noise.ply")
    (tmp_path / "mesh.ply").write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n")
    with pytest.raises(ValueError, match="not a point memory"):
        PointMemory.load_ply(tmp_path / "mesh.ply")
    memory().save_ply(tmp_path / "m.ply")
    whole = bytearray((tmp_path / "m.ply").read_bytes())
    start = whole.index(b"end_header\n") + len(b"end_header\n")
    whole[start : start + 4] = b"\x00\x00\xc0\x7f"  # the first x is NaN
    (tmp_path / "m.ply").write_bytes(whole)
    with pytest.raises(ValueError, match="finite"):
        PointMemory.load_ply(tmp_path / "m.ply")
