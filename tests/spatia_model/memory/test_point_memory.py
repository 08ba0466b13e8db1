"""The map: fuse, carve and project against plain loops; values, bounds, bad input."""

import math
from dataclasses import replace

import pytest
import torch

from spatia_model.geometry.camera import unproject
from spatia_model.memory import voxel_keys
from spatia_model.memory.consolidation import consolidate
from spatia_model.memory.point_memory import MAX_CONFIDENCE, PointMemory
from tests.spatia_model.geometry.scenes import poses, small_camera, wall

VOXEL = 0.05
COLUMNS = ("keys", "positions", "colors", "confidence", "last_seen")
EYE = torch.eye(4, dtype=torch.float64)[None]


def batch(seed: int, count: int = 400, spread: float = 0.3):
    generator = torch.Generator().manual_seed(seed)
    points = spread * torch.randn(count, 3, generator=generator)
    colors = torch.randint(0, 256, (count, 3), generator=generator).to(torch.uint8)
    confidence = torch.rand(count, generator=generator).round(decimals=2)
    confidence[::17] = 0
    footprint = 0.01 + 0.25 * torch.rand(count, generator=generator)
    return points, colors, confidence, footprint


def plain_fuse(rows: dict, points, colors, confidence, footprint, step: int) -> None:
    """The map as a dictionary from (level, cell) to what is known of it."""
    seen: dict = {}
    for p, c, w, size in zip(points.double(), colors.double(), confidence.double(), footprint.double(), strict=True):
        if w <= 0:
            continue
        level = min(max(math.floor(math.log2(max(size.item() / VOXEL, 1))), 0), 7)
        cell = (level, *(math.floor(x / (VOXEL * 2**level)) for x in p.tolist()))
        seen.setdefault(cell, []).append((p, c, w, w * min(size / VOXEL, 1) ** 2))
    for cell, views in seen.items():
        total = sum(v[2] for v in views)
        position, color = sum(v[0] * v[2] for v in views) / total, sum(v[1] * v[2] for v in views) / total
        evidence = float(sum(v[3] for v in views))
        if cell in rows:
            old = rows[cell]
            share = evidence / (evidence + old[2])
            position, color = old[0] + share * (position - old[0]), old[1] + share * (color - old[1])
            evidence += old[2]
        rows[cell] = (position, color.round(), min(evidence, MAX_CONFIDENCE), step)


def same(a: PointMemory, b: PointMemory) -> bool:
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in COLUMNS)


def test_fuse_equals_a_dictionary_of_voxels():
    memory, rows = PointMemory.empty(VOXEL), {}
    for step in range(4):
        given = batch(2_000_020 + step, count=150)
        memory = memory.fuse(*given[:3], step, given[3])
        plain_fuse(rows, *given, step)
    assert len(memory) == len(rows) and 150 < len(memory) < 600
    # a voxel's centre has the voxel's key
    levels = torch.tensor([cell[0] for cell in rows])
    centres = (torch.tensor([cell[1:] for cell in rows]) + 0.5) * VOXEL * 2.0 ** levels[:, None]
    keys, order = torch.sort(voxel_keys.pack(centres, levels, VOXEL))
    assert torch.equal(memory.keys, keys)
    known = [list(rows.values())[i] for i in order.tolist()]
    torch.testing.assert_close(memory.positions, torch.stack([k[0] for k in known]).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(memory.confidence, torch.tensor([k[2] for k in known]), atol=1e-4, rtol=0)
    assert (memory.colors.double() - torch.stack([k[1] for k in known])).abs().max() <= 1
    assert memory.last_seen.tolist() == [k[3] for k in known]


def test_fuse_returns_a_new_value_and_repeats_bit_for_bit():
    first = PointMemory.empty(VOXEL).fuse(*batch(2_000_024)[:3], 0)
    kept = replace(first, **{name: getattr(first, name).clone() for name in COLUMNS})
    second, again = (first.fuse(*batch(2_000_025)[:3], 1) for _ in range(2))
    assert same(second, again) and not same(first, second)
    assert same(first, kept)
    assert same(first.fuse(*(x[:0] for x in batch(2_000_026)[:3]), 5), first)


def test_keys_name_the_voxel_they_were_made_from():
    generator = torch.Generator().manual_seed(2_000_027)
    points = 30 * torch.randn(500, 3, generator=generator)
    levels = torch.randint(0, 8, (500,), generator=generator)
    keys = voxel_keys.pack(points, levels, VOXEL)
    assert torch.equal(voxel_keys.levels_of(keys), levels)
    torch.testing.assert_close(voxel_keys.sides_of(keys, VOXEL), VOXEL * 2.0 ** levels.float())
    centres, radii = voxel_keys.chunk_bounds(keys >> voxel_keys.CHUNK_SHIFT, VOXEL)
    assert bool(((points - centres).norm(dim=1) <= radii * 1.0001).all())
    moved = points + 1e-3
    same_cell = (points.double() / (VOXEL * 2.0 ** levels.double())[:, None]).floor() == (
        moved.double() / (VOXEL * 2.0 ** levels.double())[:, None]
    ).floor()
    assert torch.equal(voxel_keys.pack(moved, levels, VOXEL) == keys, same_cell.all(1))
    # far outside the grid: clamped, not wrapped
    assert int(voxel_keys.pack(torch.tensor([[1e9, -1e9, 0.0]]), torch.zeros(1, dtype=torch.int64), VOXEL)) > 0


def test_a_memory_shows_a_new_view_of_what_was_fused():
    camera = small_camera(64, 64)
    T = poses(6, size=0.05)
    frames, depth = wall(2.0, camera, T)
    memory = PointMemory.empty(0.03)
    pixel = depth[:5] / float(camera.K[0, 0])
    memory = memory.fuse(
        unproject(depth[:5], T[:5], camera).reshape(-1, 3), frames[:5].reshape(-1, 3), torch.ones(5 * 64 * 64), 0, pixel.reshape(-1)
    )
    seen = memory.project(T[5:], camera)
    error = (seen.rgb.float() - frames[5:].float())[seen.mask].square().mean()
    assert seen.coverage > 0.9 and 10 * torch.log10(255**2 / error) > 30
    assert ((seen.depth - depth[5:]).abs() / depth[5:])[seen.mask].max() < 0.05
    assert bool(memory.in_view(T[5:], camera)[seen.index[seen.mask].long().unique()].all())
    assert memory.project(T[5:], camera, min_confidence=99).coverage == 0


def test_carving_takes_what_a_confident_depth_looks_through_and_nothing_else():
    camera = small_camera()
    _, depth = wall(3.0, camera, EYE)
    surface = unproject(depth, EYE, camera).reshape(-1, 3)
    ghost = torch.tensor([[0.0, 0.0, 1.5], [0.1, 0.1, 1.0]])
    behind = torch.tensor([[0.0, 0.0, 4.0]])
    points = torch.cat([surface, ghost, behind])
    memory = PointMemory.empty(VOXEL).fuse(points, torch.full((len(points), 3), 99, dtype=torch.uint8), torch.ones(len(points)), 0)

    def has(memory: PointMemory, point: torch.Tensor) -> bool:
        return bool(((memory.positions - point).norm(dim=1) < 1e-4).any())

    sure = torch.ones(1, 24, 32)
    carved = memory.carve(depth, sure, EYE, camera, 1)
    assert len(carved) == len(memory) - 2
    assert not has(carved, ghost[0]) and not has(carved, ghost[1]) and has(carved, behind[0])
    assert same(memory.carve(depth, 0.3 * sure, EYE, camera, 1), memory)  # not sure enough
    faint = memory.carve(depth, 0.6 * sure, EYE, camera, 1)
    assert len(faint) == len(memory) and faint.confidence.min().item() == pytest.approx(0.4, abs=0.01)
    # one near pixel protects its neighbourhood: edges of near things must not carve
    edge = depth.clone()
    edge[0, 12, 16] = 1.5
    assert has(memory.carve(edge, sure, EYE, camera, 1), ghost[0])


def test_capacity_drops_the_least_confident_and_longest_unseen():
    points = torch.arange(60.0)[:, None] * torch.tensor([1.0, 0, 0])
    confidence = torch.linspace(0.1, 1, 60)
    memory = PointMemory.empty(VOXEL, max_points=40).fuse(points, torch.zeros(60, 3, dtype=torch.uint8), confidence, 0)
    assert len(memory) == 40 and memory.positions[:, 0].min() == 20 and bool((memory.keys.diff() > 0).all())
    later = memory.fuse(points[:10] + 1000, torch.zeros(10, 3, dtype=torch.uint8), torch.full((10,), 0.5), 100)
    assert len(later) == 40 and int((later.positions[:, 0] > 900).sum()) == 10


def test_consolidation_thins_a_noisy_wall_and_keeps_depth_steps():
    camera = small_camera(48, 48)
    T = poses(8, size=0.02)
    generator = torch.Generator().manual_seed(2_000_028)
    memory = PointMemory.empty(0.03)
    for t in range(8):
        frames, depth = wall(2.0, camera, T[t : t + 1])
        noisy = depth * (1 + 0.02 * torch.randn(1, 1, 1, generator=generator))
        pixel = (depth / float(camera.K[0, 0])).reshape(-1)
        memory = memory.fuse(unproject(noisy, T[t : t + 1], camera).reshape(-1, 3), frames.reshape(-1, 3), torch.ones(48 * 48), 0, pixel)
    far = torch.tensor([[0.0, 0.0, 3.0]])
    memory = memory.fuse(far, torch.zeros(1, 3, dtype=torch.uint8), torch.ones(1), 0)
    thin = consolidate(memory, T[::4], camera, 0.08, 1)
    spread = (memory.positions[:, 2] - 2).abs(), (thin.positions[:, 2] - 2).abs()
    assert len(thin) < 0.6 * len(memory)
    assert spread[1][spread[1] < 0.5].mean() < 0.5 * spread[0][spread[0] < 0.5].mean()
    assert bool(((thin.positions - far).norm(dim=1) < 1e-4).any())
    assert same(thin, consolidate(memory, T[::4], camera, 0.08, 1))
    with pytest.raises(ValueError, match="tolerance"):
        consolidate(memory, T, camera, 0.7, 1)


def test_bad_input_is_named_and_the_memory_stays_as_it_was():
    memory = PointMemory.empty(VOXEL).fuse(*batch(2_000_029)[:3], 0)
    points, colors, confidence, _ = batch(2_000_030)
    for bad, message in [
        ((points[:, :2], colors, confidence), r"\(N, 3\)"),
        ((points, colors.float(), confidence), "uint8"),
        ((points, colors, confidence[:5]), "one value per point"),
        ((points * float("nan"), colors, confidence), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            memory.fuse(*bad, 0)
    with pytest.raises(ValueError, match="footprint"):
        memory.fuse(points, colors, confidence, 0, torch.ones(3))
    with pytest.raises(ValueError, match="voxel_size"):
        PointMemory.empty(0)
    with pytest.raises(ValueError, match=r"\(1, 24, 32\)"):
        memory.carve(torch.ones(1, 5, 5), torch.ones(1, 5, 5), EYE, small_camera(), 0)
