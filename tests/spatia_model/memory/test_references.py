"""Keyframes: retrieval by shared surface, the bank's bound, the release's matching."""

import itertools

import pytest
import torch

from spatia_model.memory.references import KeyframeBank, match_hungarian, retrieve, surface_keys, visible_surface

POSE = torch.eye(4, dtype=torch.float64)


def frame(shade: int) -> torch.Tensor:
    return torch.full((4, 6, 3), shade, dtype=torch.uint8)


def keys(first: int, last: int) -> torch.Tensor:
    return torch.arange(first, last)


def bank_of(*spans: tuple[int, int], limit: int = 64) -> KeyframeBank:
    bank = KeyframeBank(max_keyframes=limit)
    for i, span in enumerate(spans):
        bank = bank.add(frame(i), POSE, keys(*span))
    return bank


def plain_iou(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = set(a.tolist()), set(b.tolist())
    return len(x & y) / len(x | y)


def test_retrieval_ranks_by_iou_and_keeps_the_threshold():
    bank = bank_of((0, 100), (50, 150), (90, 190), (300, 400))
    target = keys(60, 160)
    scores = {k.id: plain_iou(k.visible, target) for k in bank.keyframes}
    assert (
        retrieve(bank, target, 4, threshold=0.0) == tuple(i for i in sorted(scores, key=lambda i: -scores[i]) if scores[i] > 0) == (1, 2, 0)
    )
    assert retrieve(bank, target, 4, threshold=0.5) == (1, 2)
    assert retrieve(bank, target, 1, threshold=0.0) == (1,)
    assert retrieve(bank, target, 0) == () and retrieve(KeyframeBank(), target, 3) == ()
    assert retrieve(bank, keys(0, 0), 3) == ()


def test_picks_are_diverse_while_there_is_choice():
    bank = bank_of((0, 100), (1, 101), (40, 140))
    target = keys(0, 101)
    assert retrieve(bank, target, 2, threshold=0.1, max_similarity=0.9) == (1, 2)
    assert retrieve(bank, target, 2, threshold=0.1, max_similarity=1.0) == (1, 0)
    assert retrieve(bank, target, 3, threshold=0.1) == (1, 2, 0)  # no choice left: alike ones fill up


def test_a_full_bank_lets_the_most_redundant_frame_go():
    bank = bank_of((0, 100), (200, 300), (5, 105), (400, 500), limit=3)
    assert bank.ids == (1, 2, 3)  # 0 and 2 are alike, 0 is the older
    again = KeyframeBank(bank.keyframes, bank.max_keyframes, bank.next_id)
    assert again.similarity is not None and bank.similarity is not None and torch.equal(again.similarity, bank.similarity)
    for i, j in itertools.combinations(range(3), 2):
        assert bank.similarity[i, j].item() == pytest.approx(plain_iou(bank.keyframes[i].visible, bank.keyframes[j].visible))
    for i in range(20):
        bank = bank.add(frame(i), POSE, keys(i, i + 50))
        assert len(bank) == 3 and bank.keyframes[-1].id == bank.next_id - 1


def test_frames_come_in_the_order_asked():
    bank = bank_of((0, 10), (20, 30), (40, 50))
    assert bank.frames((2, 0), 4, 6)[:, 0, 0, 0].tolist() == [2, 0]
    assert bank.frames((), 4, 6).shape == (0, 4, 6, 3)
    with pytest.raises(ValueError, match=r"\[7\].*\[0, 1, 2\]"):
        bank.get((7,))


def test_hungarian_equals_trying_every_assignment():
    counts = torch.randint(0, 50, (3, 5), generator=torch.Generator().manual_seed(2_000_050))
    best = max(itertools.permutations(range(5), 3), key=lambda p: sum(int(counts[t, h]) for t, h in enumerate(p)))
    chosen = match_hungarian(counts)
    assert len(set(chosen)) == 3
    assert sum(int(counts[t, h]) for t, h in enumerate(chosen)) == sum(int(counts[t, h]) for t, h in enumerate(best))
    assert match_hungarian(torch.tensor([[5], [9]])) == (-1, 0)  # one history frame for two targets
    assert match_hungarian(torch.zeros(2, 3)) == (-1, -1)
    with pytest.raises(ValueError, match="targets, history"):
        match_hungarian(torch.zeros(3))


def test_two_views_of_one_wall_share_their_surface():
    from spatia_model.geometry.camera import unproject
    from spatia_model.memory.point_memory import PointMemory
    from tests.spatia_model.geometry.scenes import small_camera, wall

    camera = small_camera(64, 64)
    T = POSE.repeat(3, 1, 1)
    T[1, 0, 3], T[2, 0, 3] = 0.5, 8.0  # half a metre aside; out of sight
    frames, depth = wall(2.0, camera, T)
    points = unproject(depth, T, camera).reshape(-1, 3)
    memory = PointMemory.empty(0.03).fuse(points, frames.reshape(-1, 3), torch.ones(len(points)), 0)
    seen = [visible_surface(memory, memory.project(T[i : i + 1], camera)) for i in range(3)]
    assert all(bool((s.diff() > 0).all()) for s in seen)
    # the wall is 3.1 m wide in view: moving by 0.5 m leaves (3.1 - 0.5) / (3.1 + 0.5)
    assert plain_iou(seen[0], seen[1]) == pytest.approx(2.57 / 3.57, abs=0.08)
    assert plain_iou(seen[0], seen[2]) == 0


def test_large_surfaces_are_thinned_the_same_way_in_every_view():
    points = torch.stack(torch.meshgrid(torch.arange(100.0), torch.arange(100.0), torch.zeros(1), indexing="ij"), -1).reshape(-1, 3)
    a, b = surface_keys(points[:8000]), surface_keys(points[2000:])
    assert len(a) == len(b) == 4096 and bool((a.diff() > 0).all())
    assert plain_iou(a, b) == pytest.approx(0.6, abs=0.08)


def test_bad_keyframes_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        KeyframeBank().add(torch.zeros(4, 4, 3), POSE, keys(0, 3))
    with pytest.raises(ValueError, match="int64"):
        KeyframeBank().add(frame(0), POSE, torch.zeros(3))
    with pytest.raises(ValueError, match="at least 2"):
        KeyframeBank(max_keyframes=1)
    with pytest.raises(ValueError, match="threshold"):
        retrieve(KeyframeBank(), keys(0, 3), 2, threshold=2.0)
