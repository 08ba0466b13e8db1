"""Pixels between two surfaces: found, and put on the surface they look like."""

from __future__ import annotations

import torch

from spatia_model.memory.static_pixels import flying_pixels, landed


def blurred_step(size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A wall at 4 m beside one at 2 m, depth blurred over six columns, colours sharp at column 12."""
    depth = torch.full((1, size, size), 4.0)
    depth[..., :9] = 2.0
    depth[..., 9:15] = torch.linspace(2.2, 3.8, 6)
    frames = torch.full((1, size, size, 3), 200, dtype=torch.uint8)
    frames[:, :, :12] = 40
    return depth, frames


def test_blurred_edges_become_steps_where_the_colour_changes():
    depth, frames = blurred_step()
    out = flying_pixels(depth, 0.05, 40.0)
    assert out[..., 10:14].all() and not out[..., :8].any() and not out[..., 16:].any()
    found = landed(depth, frames, out)
    assert torch.equal(found[~out], depth[~out])
    assert (found[..., 10:12] < 2.5).all() and (found[..., 12:14] > 3.5).all()
    assert set(found[out].unique().tolist()) <= set(depth[~out].unique().tolist())  # neighbours' own depths, nothing mixed


def test_landing_equals_a_plain_loop():
    g = torch.Generator().manual_seed(4)
    depth = torch.rand(2, 7, 9, generator=g) + 1
    frames = (torch.rand(2, 7, 9, 3, generator=g) * 255).to(torch.uint8)
    out = torch.rand(2, 7, 9, generator=g) < 0.7
    expected, missing = depth.clone(), out.clone()
    while missing.any():
        ring = []
        for t, y, x in missing.nonzero().tolist():
            choices = []
            for v in (y - 1, y, y + 1):
                for u in (x - 1, x, x + 1):
                    if (v, u) != (y, x) and 0 <= v < 7 and 0 <= u < 9 and not missing[t, v, u]:
                        unlike = int((frames[t, v, u].int() - frames[t, y, x].int()).abs().sum())
                        choices.append((unlike, float(expected[t, v, u])))
            if choices:
                ring.append((t, y, x, min(choices, key=lambda c: c[0])[1]))
        for t, y, x, value in ring:
            expected[t, y, x], missing[t, y, x] = value, False
    torch.testing.assert_close(landed(depth, frames, out), expected)


def test_a_frame_that_is_nowhere_on_a_surface_stays():
    depth, frames = blurred_step()
    assert torch.equal(landed(depth, frames, torch.ones_like(depth, dtype=torch.bool)), depth)
