from __future__ import annotations

import pytest
import torch

from spatia_model.generator.conditioning import encode_references, encoded_control, pool_mask, pooled_control, to_frames, to_model
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


def test_pooled_control_is_latents_then_cover_then_motion():
    vae = build()
    rgb, mask, dynamic = bytes_of(2, 5, 16, 24, 3), random(2, 5, 16, 24) > 0.5, random(2, 5, 16, 24, seed=SEED + 1)
    control = pooled_control(vae, rgb, mask, dynamic)
    z = vae.latent_channels
    assert control.shape == (2, z + 8, 2, 2, 3)
    torch.testing.assert_close(control[:, :z], vae.encode(to_model(rgb)))
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
