from __future__ import annotations

import math

import pytest
import torch

from spatia_model.generator.conditioning import (
    encode_references,
    encoded_control,
    fill_holes,
    pool_mask,
    pooled_control,
    to_frames,
    to_model,
)
from tests.spatia_model.generator.test_vae import SEED, build


def random(*shape: int, seed: int = SEED) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def bytes_of(*shape: int, seed: int = SEED) -> torch.Tensor:
    return (random(*shape, seed=seed) * 256).clamp(max=255).to(torch.uint8)


def test_all_bytes_come_back_exactly():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).repeat(1, 2, 1, 1, 3)
    x = to_model(frames)
    assert x.shape == (1, 3, 2, 16, 16) and x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    assert torch.equal(to_frames(x), frames)


def test_channels_and_axes_keep_their_places():
    frames = bytes_of(2, 3, 4, 5, 3)
    x = to_model(frames)
    assert x[1, 2, 1, 3, 4] == frames[1, 1, 3, 4, 2] / 127.5 - 1
    assert torch.equal(to_frames(x), frames)


def test_values_out_of_range_are_clamped_and_rounded():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.999, 7.0]).reshape(1, 1, 1, 1, 5).repeat(1, 3, 1, 1, 1)
    assert to_frames(x)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 rounds to even


def test_pooled_masks_equal_a_loop():
    b, k, s, t = 2, 2, 4, 4
    mask = random(b, 1 + t * k, 8, 12) > 0.4
    found = pool_mask(mask, s, t)
    assert found.shape == (b, t, 1 + k, 2, 3) and found.dtype == torch.float32
    for i in range(b):
        for phase in range(t):
            for latent in range(1 + k):
                frame = max(0, latent * t + phase - (t - 1))  # the first frame counts four times
                for y in range(2):
                    for x in range(3):
                        share = mask[i, frame, y * s : y * s + s, x * s : x * s + s].float().mean()
                        assert found[i, phase, latent, y, x] == share


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 5, 6, 8), (1, 5, 8, 6)])
def test_masks_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="1 \\+ 4k frames with sides divisible by 4"):
        pool_mask(torch.zeros(shape), 4, 4)


def test_what_is_known_stays_and_holes_take_the_colours_beside_them():
    x, mask = random(2, 3, 16, 16) * 2 - 1, (random(2, 1, 16, 16) > 0.4).float()
    filled = fill_holes(x, mask)
    assert torch.equal(filled * mask, x * mask)
    again = fill_holes(torch.where(mask > 0, x, 0.77), mask)  # what lies in the holes is of no account
    assert torch.equal(again, filled)
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(fill_holes(flat, mask[:1]), flat)
    assert not fill_holes(x, torch.zeros_like(mask)).any()


def test_a_turn_s_empty_side_goes_on_row_by_row():
    """Sky above, ground below, nothing at all on the left: the horizon stays where it is. Rows that know nothing take from the others."""
    far = torch.tensor([abs(y - 15.5) > 1 for y in range(32)])  # the fill is smooth by a pixel
    x = torch.full((1, 3, 32, 32), -0.5)
    x[:, :, :16] = 0.5
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 12:] = 1
    torch.testing.assert_close(fill_holes(x, mask)[:, :, far], x[:, :, far])
    mask[:, :, 26:28] = 0
    torch.testing.assert_close(fill_holes(x, mask)[:, :, far], x[:, :, far], atol=0.1, rtol=0)


def test_filled_holes_equal_a_plain_pull_and_push():
    """Loops: block means weighted by what is known; every block mixed with the broader one by its share of unknown."""

    def broaden(colour, weight, high, wide):  # lists of rows; colour is None where nothing is known
        h, w = len(weight), len(weight[0])
        if h % high or w % wide or h < high or w < wide or (high, wide) == (1, 1) or (w == 1 and high == 1):
            return [[c if c is not None else 0.0 for c in row] for row in colour]
        parent_c, parent_w = [], []
        for y in range(0, h, high):
            row_c, row_w = [], []
            for x in range(0, w, wide):
                cells = [(colour[y + j][x + i], weight[y + j][x + i]) for j in range(high) for i in range(wide)]
                total = sum(v for _, v in cells)
                row_c.append(sum(c * v for c, v in cells if v) / total if total else None)
                row_w.append(total / len(cells))
            parent_c.append(row_c)
            parent_w.append(row_w)
        broad = enlarge(broaden(parent_c, parent_w, high, wide), h, w)
        return [[(colour[y][x] or 0.0) * weight[y][x] + broad[y][x] * (1 - weight[y][x]) for x in range(w)] for y in range(h)]

    def enlarge(small, h, w):
        """Bilinear, pixel centres aligned, edges repeated."""
        sh, sw = len(small), len(small[0])
        out = []
        for y in range(h):
            row = []
            for x in range(w):
                fy, fx = (y + 0.5) * sh / h - 0.5, (x + 0.5) * sw / w - 0.5
                value = 0.0
                for j in (math.floor(fy), math.floor(fy) + 1):
                    for i in (math.floor(fx), math.floor(fx) + 1):
                        share = (1 - abs(fy - j)) * (1 - abs(fx - i))
                        value += share * small[min(max(j, 0), sh - 1)][min(max(i, 0), sw - 1)]
                row.append(value)
            out.append(row)
        return out

    side = 16
    x, mask = random(side, side) * 2 - 1, random(side, side, seed=SEED + 1) > 0.5
    mask[:, :6] = False  # a side
    mask[4:8] = False  # rows that know nothing
    half = side // 2
    colour: list[list[float | None]] = [[None] * half for _ in range(half)]
    weight = [[0.0] * half for _ in range(half)]
    for y in range(half):
        for i in range(half):
            known = [float(x[2 * y + a, 2 * i + b]) for a in (0, 1) for b in (0, 1) if mask[2 * y + a, 2 * i + b]]
            weight[y][i] = len(known) / 4
            colour[y][i] = sum(known) / len(known) if known else None
    rows = broaden(colour, weight, 1, 2)
    seen = [any(line) for line in weight]
    whole = broaden([[c if s else None for c in row] for row, s in zip(rows, seen, strict=True)], [[float(s)] * half for s in seen], 2, 2)
    smooth = torch.tensor(enlarge([a if s else b for a, b, s in zip(rows, whole, seen, strict=True)], side, side))
    expected = torch.where(mask, x, smooth.to(x.dtype))
    torch.testing.assert_close(fill_holes(x[None, None], mask[None, None].float())[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_pooled_control_is_latents_then_cover_then_motion():
    vae = build()
    rgb, mask, dynamic = bytes_of(2, 5, 16, 24, 3), random(2, 5, 16, 24) > 0.5, random(2, 5, 16, 24, seed=SEED + 1)
    control = pooled_control(vae, rgb, mask, dynamic)
    z = vae.latent_channels
    assert control.shape == (2, z + 8, 2, 2, 3)
    filled = torch.stack([fill_holes(to_model(rgb)[:, :, t], mask[:, None, t].float()) for t in range(5)], 2)
    torch.testing.assert_close(control[:, :z], vae.encode(filled))
    assert torch.equal(control[:, z : z + 4], pool_mask(mask, 8, 4))
    assert torch.equal(control[:, z + 4 :], pool_mask(dynamic, 8, 4))


def test_encoded_control_is_the_release_s():
    vae = build()
    rgb, mask = bytes_of(1, 5, 16, 24, 3), random(1, 5, 16, 24) > 0.5
    control = encoded_control(vae, rgb, mask)
    z = vae.latent_channels
    assert control.shape == (1, 2 * z, 2, 2, 3)
    holes = torch.stack([(~mask).float()] * 3, 1)  # white where nothing is known, in [0, 1] as the release feeds it
    torch.testing.assert_close(control[:, z:], vae.encode(holes))


def test_references_are_videos_of_one_frame():
    vae, rgb = build(), bytes_of(3, 16, 24, 3)
    found = encode_references(vae, rgb)
    assert found.shape == (4, 3, 2, 3)
    for i in range(3):
        torch.testing.assert_close(found[:, i], vae.encode(to_model(rgb[i][None, None]))[0, :, 0], atol=1e-5, rtol=1e-5)
