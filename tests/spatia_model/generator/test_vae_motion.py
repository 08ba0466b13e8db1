"""Comparing and moving pictures, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from spatia_model.generator.vae_motion import NEAR, REACH, Aligner, Follower, disagreement, displaced, match

SEED = 2_000_000


def plain_match(now: torch.Tensor, before: torch.Tensor, reach: int) -> torch.Tensor:
    """Cosine of each cell's features (B, C, h, w) and those of the cells about it, one cell at a time."""
    b, _, h, w = now.shape
    side = 2 * reach + 1
    out = torch.zeros(b, side**2, h, w)
    for y in range(h):
        for x in range(w):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < h and 0 <= x + dx < w:
                        alike = torch.cosine_similarity(now[:, :, y, x], before[:, :, y + dy, x + dx], dim=1)
                        out[:, (dy + reach) * side + dx + reach, y, x] = alike
    return out


def plain_follow(follower: Follower, frames: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What is found and the step, frame by frame (B, C, h, w)."""
    looks = [follower.look(x) for x in frames]
    looks = [x - x.mean((2, 3), keepdim=True) for x in looks]
    out = []
    for now, before in zip(looks, [looks[0], *looks[:-1]], strict=True):
        likely = (plain_match(now, before, REACH) * follower.sharpness.exp()).softmax(1) * 10
        y = F.silu(follower.down(F.silu(follower.match(torch.cat([likely, now], 1)))))
        for wide in follower.wide:
            y = y + F.silu(wide(y))
        out.append((y, 4 * follower.step(y)))
    return out


def plain_displaced(picture: torch.Tensor, motion: torch.Tensor, sampling: str = "bilinear") -> torch.Tensor:
    """Picture (B, 3, H, W), motion (B, 2, h, w): every pixel fetched by itself, from its four or sixteen neighbours."""
    fetch = {"bilinear": _between, "bicubic": _among_sixteen}[sampling]
    _, _, height, width = picture.shape
    out = torch.zeros_like(picture)
    for y in range(height):
        for x in range(width):
            way = _between(motion, (y + 0.5) * motion.shape[2] / height - 0.5, (x + 0.5) * motion.shape[3] / width - 0.5)
            for b in range(len(picture)):
                out[b, :, y, x] = fetch(picture[b : b + 1], y + float(way[b, 1]), x + float(way[b, 0]))[0]
    return out


def plain_disagreement(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Two pictures (B, 3, H, W), pixel by pixel; displacement by displacement, the mean of each 4x4 pixels."""
    b, _, height, width = first.shape
    side = 2 * NEAR + 1
    out = torch.zeros(b, side**2, height // 4, width // 4)
    for y in range(height):
        for x in range(width):
            for dy in range(-NEAR, NEAR + 1):
                for dx in range(-NEAR, NEAR + 1):
                    other = second[:, :, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    off = (first[:, :, y, x].mean(1) - other.mean(1)).abs()
                    out[:, (dy + NEAR) * side + dx + NEAR, y // 4, x // 4] += off / 16
    return out


def plain_align(aligner: Aligner, features: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What to add to either motion (B, 2, h, w), from features (B, C, h, w) and the pictures (B, 3, 4h, 4w) moved so far."""
    likely = (-plain_disagreement(first, second) * aligner.sharpness.exp()).softmax(1) * 5
    x = aligner.stem(torch.cat([features, F.pixel_unshuffle(first, 4), F.pixel_unshuffle(second, 4), likely], 1))
    for i in range(0, len(aligner.blocks), 2):
        y = aligner.blocks[i](x * torch.sigmoid(x))
        x = x + aligner.blocks[i + 1](y * torch.sigmoid(y))
    added = aligner.out(x * torch.sigmoid(x))
    return added[:, :2], added[:, 2:]


def _between(x: torch.Tensor, row: float, column: float) -> torch.Tensor:
    """(B, C) bilinear; beyond the border its values."""
    row, column = min(max(row, 0.0), x.shape[2] - 1.0), min(max(column, 0.0), x.shape[3] - 1.0)
    y, z = math.floor(row), math.floor(column)
    y1, z1, fy, fz = min(y + 1, x.shape[2] - 1), min(z + 1, x.shape[3] - 1), row - y, column - z
    top = x[:, :, y, z] * (1 - fz) + x[:, :, y, z1] * fz
    return top * (1 - fy) + (x[:, :, y1, z] * (1 - fz) + x[:, :, y1, z1] * fz) * fy


def _among_sixteen(x: torch.Tensor, row: float, column: float) -> torch.Tensor:
    """(B, C) bicubic, by Keys' cubic with a = -0.75; beyond the border its values."""
    total = torch.zeros_like(x[:, :, 0, 0])
    for y in range(math.floor(row) - 1, math.floor(row) + 3):
        for z in range(math.floor(column) - 1, math.floor(column) + 3):
            colour = x[:, :, min(max(y, 0), x.shape[2] - 1), min(max(z, 0), x.shape[3] - 1)]
            total += _keys(y - row) * _keys(z - column) * colour
    return total


def _keys(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + len(shape)))


@pytest.mark.parametrize("reach", [1, 3])
def test_matching_equals_its_plain_statement(reach):
    now, before = random(2, 3, 5, 4, 6), random(2, 3, 5, 4, 6).flip(0)
    found = match(now, before, reach)
    assert found.shape == (2, 3, (2 * reach + 1) ** 2, 4, 6)
    for t in range(3):
        torch.testing.assert_close(found[:, t], plain_match(now[:, t], before[:, t], reach), atol=1e-5, rtol=1e-5)
    learning = match(now.requires_grad_(), before, reach)  # goes another way
    assert learning.requires_grad
    torch.testing.assert_close(learning, found, atol=1e-5, rtol=1e-5)


def test_what_moved_is_found_where_it_was():
    before = random(1, 1, 8, 9, 9)
    now = before.roll((-1, 2), (-2, -1))  # up by one cell, right by two
    best = match(now, before, 3).argmax(2)[0, 0, 3:6, 3:6]
    assert bool((best == (1 + 3) * 7 + (-2 + 3)).all())


def test_following_equals_its_plain_statement():
    torch.manual_seed(SEED)
    follower, x = Follower(6, 4, 5, 7), random(2, 3, 6, 6, 8)
    with torch.no_grad():
        found, steps = follower(x)
        expected = plain_follow(follower, list(x.unbind(1)))
    assert found.shape == (2, 3, 7, 3, 4) and steps.shape == (2, 3, 2, 3, 4)
    torch.testing.assert_close(found, torch.stack([y for y, _ in expected], 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steps, torch.stack([step for _, step in expected], 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampling", ["bilinear", "bicubic"])
def test_displacing_equals_its_plain_statement(sampling):
    pictures, motion = random(2, 2, 3, 8, 12), 3 * random(2, 2, 2, 2, 3)
    found = displaced(pictures, motion, sampling)
    for s in range(2):
        torch.testing.assert_close(found[:, s], plain_displaced(pictures[:, s], motion[:, s], sampling), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampling", ["bilinear", "bicubic"])
def test_a_whole_field_is_a_shift(sampling):
    pictures = random(1, 1, 3, 6, 8)
    way = torch.zeros(1, 1, 2, 6, 8)
    torch.testing.assert_close(displaced(pictures, way, sampling), pictures, atol=1e-5, rtol=1e-5)
    way[:, :, 0], way[:, :, 1] = 2.0, -1.0  # what is here was two to the right and one up
    torch.testing.assert_close(displaced(pictures, way, sampling)[..., 1:, :-2], pictures[..., :-1, 2:], atol=1e-5, rtol=1e-5)


def test_disagreement_equals_its_plain_statement():
    moved = random(2, 2, 3, 8, 12)
    found = disagreement(moved)
    assert found.shape == (2, 25, 2, 3)
    torch.testing.assert_close(found, plain_disagreement(*moved.unbind(1)), atol=1e-5, rtol=1e-5)


def test_pictures_agree_where_one_is_shifted_onto_the_other():
    first = random(1, 3, 24, 24)
    second = first.roll((1, -2), (-2, -1))  # down by one, left by two
    best = disagreement(torch.stack([first, second], 1)).argmin(1)[0, 1:-1, 1:-1]
    assert bool((best == (1 + NEAR) * 5 + (-2 + NEAR)).all())


def test_aligning_equals_its_plain_statement():
    torch.manual_seed(SEED)
    aligner, features, moved = Aligner(6, 8, 2), random(2, 6, 2, 3), random(2, 2, 3, 8, 12)
    with torch.no_grad():
        assert aligner(features, moved).abs().max() == 0  # before it has learned anything, motion stays as told
        torch.nn.init.normal_(aligner.out.weight)
        found = aligner(features, moved)
        expected = plain_align(aligner, features, *moved.unbind(1))
    assert found.shape == (2, 2, 2, 2, 3) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected, 1), atol=1e-4, rtol=1e-4)
