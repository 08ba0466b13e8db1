"""A clip comes back from disk as it was; what is not whole, or not ours, is named."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from spatia_model.data import clips, schema
from spatia_model.data.clips import BatchOrder, ClipDataset
from spatia_model.data.schema import Clip, ShardError, write_shard
from tests.spatia_model.data import fake_clips


def same(a: Clip, b: Clip, but: tuple[str, ...] = ()) -> None:
    for f in fields(Clip):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if f.name in but:
            continue
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype and torch.equal(x, y), f.name
        else:
            assert x == y, f.name


def test_a_clip_comes_back_as_it_was(tmp_path):
    given = [fake_clips.clip(0), fake_clips.clip(1, references=0, pixels=False)]
    assert write_shard(tmp_path / "a.parquet", given, fake_clips.METADATA) == 2
    data = ClipDataset(tmp_path)
    for i, one in enumerate(given):
        same(one, data[i])
    assert data.metadata["version"] == schema.VERSION and data.metadata["control"] == "pooled"


def test_jpeg_is_near_and_projections_stay_exact(tmp_path):
    one = fake_clips.clip(0)
    write_shard(tmp_path / "a.parquet", [one], fake_clips.METADATA, pictures="jpeg")
    back = ClipDataset(tmp_path)[0]
    assert torch.equal(back.projection_frames, one.projection_frames)
    assert not torch.equal(back.frames, one.frames)
    assert (back.frames.float() - one.frames.float()).abs().mean() < 6


def test_a_tensor_cell_is_read_without_this_package(tmp_path):
    one = fake_clips.clip(0)
    write_shard(tmp_path / "a.parquet", [one], fake_clips.METADATA)
    cell = pq.read_table(tmp_path / "a.parquet", columns=["latents"]).to_pylist()[0]["latents"]
    assert np.array_equal(np.frombuffer(cell["data"], cell["dtype"]).reshape(cell["shape"]), one.latents.numpy())


def test_only_the_columns_asked_for_are_read(tmp_path):
    fake_clips.write(tmp_path)
    one = ClipDataset(tmp_path, schema.LATENT_COLUMNS)[0]
    assert one.latents is not None and one.frames is None and one.depth is None and one.caption
    with pytest.raises(ValueError, match="neither latents nor frames"):
        ClipDataset(tmp_path, [])[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_numbers": tuple(range(12))}, "12 frames; a window has 1 \\+ 4k"),
        ({"preceding": 13}, "13 preceding frames of 13"),
        ({"T_world_camera": torch.eye(4, dtype=torch.float64)[None]}, r"T_world_camera is \(1, 4, 4\); expected \(13, 4, 4\)"),
        ({"holes": None}, "latents without projection, holes or references"),
        ({"latents": torch.full((4, 4, 4, 4), float("nan")).half()}, "latents holds NaN"),
        ({"moving": torch.zeros(4, 2, 2, dtype=torch.uint8)}, r"moving is \(4, 2, 2\); expected \(4, 4, 4\)"),
        ({"dynamic": torch.zeros(13, 16, 16, dtype=torch.bool)}, r"dynamic is \(13, 16, 16\); expected \(13, 32, 32\)"),
        ({"latents": None, "frames": None, "projection": None, "holes": None, "references": None}, "neither latents nor frames"),
    ],
)
def test_clips_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(fake_clips.clip(0), **changes)


def test_a_shard_is_written_whole_or_not_at_all(tmp_path):
    def some():
        yield fake_clips.clip(0)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "a.parquet", some(), fake_clips.METADATA)
    assert list(tmp_path.iterdir()) == []
    assert write_shard(tmp_path / "b.parquet", [], fake_clips.METADATA) == 0
    assert list(tmp_path.iterdir()) == []


def test_shards_that_are_cut_short_or_foreign_are_named(tmp_path):
    with pytest.raises(ShardError, match="no such folder"):
        ClipDataset(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="holds no shards"):
        ClipDataset(tmp_path)
    fake_clips.write(tmp_path)
    whole = (tmp_path / "00001.parquet").read_bytes()
    (tmp_path / "00001.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match="00001.parquet: not a whole Parquet file .* remove it"):
        ClipDataset(tmp_path)
    index = clips.write_index(tmp_path)
    assert list(index["broken"]) == ["00001.parquet"] and list(index["shards"]) == ["00000.parquet"]
    pq.write_table(pq.read_table(tmp_path / "00000.parquet").replace_schema_metadata({}), tmp_path / "00001.parquet")
    with pytest.raises(ShardError, match="00001.parquet: a Parquet file, but not of spatia-clips"):
        ClipDataset(tmp_path)


def test_a_newer_version_and_mixed_latents_are_refused(tmp_path, monkeypatch):
    fake_clips.write(tmp_path, videos=1)
    monkeypatch.setattr(schema, "VERSION", 0)
    with pytest.raises(ShardError, match="version 1 .* reads up to 0: update"):
        ClipDataset(tmp_path)
    monkeypatch.undo()
    write_shard(tmp_path / "b.parquet", [fake_clips.clip(5)], {**fake_clips.METADATA, "vae": "another"})
    with pytest.raises(ShardError, match="speaks other latents"):
        ClipDataset(tmp_path)


def test_the_index_spares_opening_shards_and_notices_changes(tmp_path, monkeypatch):
    fake_clips.write(tmp_path)
    clips.write_index(tmp_path)
    opened = []
    real = clips.describe_shard
    monkeypatch.setattr(clips, "describe_shard", lambda path, *a: opened.append(path) or real(path, *a))
    assert len(ClipDataset(tmp_path)) == 6 and not opened
    write_shard(tmp_path / "00001.parquet", [fake_clips.clip(7, "v1")], fake_clips.METADATA)
    data = ClipDataset(tmp_path)
    assert len(data) == 4 and len(opened) == 1 and data[3].number == 7
    assert json.loads((tmp_path / "index.json").read_text())["broken"] == {}


def test_a_url_is_read_like_a_folder(tmp_path):
    fake_clips.write(tmp_path)
    assert ClipDataset(f"file://{tmp_path}")[4].key == ClipDataset(tmp_path)[4].key
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/00000.parquet", (tmp_path / "00000.parquet").read_bytes())
    same(ClipDataset("memory://set")[2], ClipDataset(tmp_path)[2])


def test_sequences_follow_the_video(tmp_path):
    write_shard(tmp_path / "a.parquet", [fake_clips.clip(n, "v") for n in (2, 0, 1)], fake_clips.METADATA)
    data = ClipDataset(tmp_path)
    assert [data[i].number for i in data.sequences()["v"]] == [0, 1, 2]


# -- order ------------------------------------------------------------------------------------------------------------


def entries(counts: dict[tuple[int, int], int]) -> list[clips.Entry]:
    """`counts`: (height, references) -> how many."""
    return [clips.Entry(0, i, f"k{i}", "v", i, (13, h, 32), 5, r) for (h, r), n in counts.items() for i in range(n)]


def take(order: BatchOrder, n: int) -> list[list[int]]:
    batches = iter(order)
    return [next(batches) for _ in range(n)]


def test_batches_agree_in_shape_and_every_clip_is_seen():
    given = entries({(32, 0): 5, (32, 3): 9, (64, 3): 7})
    order = BatchOrder(given, 4, seed=1)
    epoch = take(order, order.per_epoch)
    assert {i for batch in epoch for i in batch} == set(range(21))
    assert all(len(batch) == 4 and len({given[i].shape for i in batch}) == 1 for batch in epoch)
    alike = [len({given[i].references for i in batch}) == 1 for batch in epoch]
    assert sum(alike) >= 4  # 1 + 2 + 1 whole batches
    assert take(order, order.per_epoch) == epoch != order.epoch(1)
    assert BatchOrder(given, 4, seed=2).epoch(0) != epoch


def test_a_resumed_order_goes_on_where_it_stood():
    given = entries({(32, 0): 5, (32, 3): 9})
    whole = take(BatchOrder(given, 3, seed=5), 23)
    for start in (0, 1, 6, 17):
        assert take(BatchOrder(given, 3, seed=5, start=start), 23 - start) == whole[start:]


def test_processes_share_an_epoch():
    given = entries({(32, 3): 12})
    both = [take(BatchOrder(given, 2, seed=5, rank=rank, world=2), 3) for rank in (0, 1)]
    alone = take(BatchOrder(given, 2, seed=5), 6)
    assert [batch for pair in zip(*both, strict=True) for batch in pair] == alone


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"rank": 1}, {"start": -1}])
def test_orders_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="expected batch >= 1"):
        BatchOrder(entries({(32, 0): 2}), **{"batch": 1, **wrong})
