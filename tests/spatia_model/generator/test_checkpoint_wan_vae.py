from typing import Any

import pytest
import torch

from spatia_model.generator.wan_vae import LATENTS_MEAN, LATENTS_STD, WanVAE

TINY = {
    "base_dim": 4,
    "decoder_base_dim": 4,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [0.5, 1.0, 2.0, 0.7],
}


def build():
    torch.manual_seed(2_000_000)
    return WanVAE.wan22(**TINY).eval()


def test_shapes_normalisation_and_determinism():
    vae = build()
    network: Any = vae.network
    assert (vae.latent_channels, vae.spatial_factor, vae.temporal_factor) == (4, 16, 4)
    frames = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    latents = vae.encode(frames)
    assert latents.shape == (2, 4, 3, 2, 3)
    assert torch.equal(latents, vae.encode(frames))
    mode = network.encode(frames).latent_dist.mode()
    mean, std = (torch.tensor(TINY[f"latents_{name}"])[:, None, None, None] for name in ("mean", "std"))
    assert torch.allclose(latents, (mode - mean) / std)
    decoded = vae.decode(latents)
    assert decoded.shape == frames.shape
    assert torch.allclose(decoded, network.decode(mode).sample, atol=1e-5)
    assert decoded.abs().max() <= 1


def test_it_is_causal():
    vae, frames = build(), torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(frames)
        assert torch.allclose(vae.encode(frames[:, :, :5]), latents[:, :, :2], atol=1e-5)
        assert torch.allclose(vae.decode(latents[:, :, :2]), vae.decode(latents)[:, :, :5], atol=1e-5)


@pytest.mark.parametrize("last", [1, 4, 8, 9])
def test_the_last_frames_are_those_of_the_whole(last):
    vae = build()
    latents = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(2_000_001))
    whole = vae.decode(latents)
    assert torch.equal(vae.decode(latents, last=last), whole[:, :, 9 - last :])
    assert (whole[:, :, 1:] - whole[:, :, :-1]).abs().amax((1, 3, 4)).min() > 1e-3  # frames differ: the wrong ones would not do


def test_bad_input_is_refused():
    vae = build()
    for last in (0, -1, 6):
        with pytest.raises(ValueError, match="last"):
            vae.decode(torch.zeros(1, 4, 2, 1, 1), last=last)
    for shape in ((1, 3, 8, 32, 32), (1, 3, 9, 30, 32), (1, 1, 9, 32, 32), (3, 9, 32, 32)):
        with pytest.raises(ValueError, match="frames"):
            vae.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="latents"):
        vae.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(ValueError, match="means"):
        WanVAE.wan22(**{**TINY, "latents_std": [1.0]})


def test_the_released_config_on_the_meta_device():
    with torch.device("meta"):
        vae = WanVAE.wan22()
    assert vae.latent_channels == len(LATENTS_MEAN) == len(LATENTS_STD) == 48
    assert 6e8 < sum(p.numel() for p in vae.parameters()) < 8e8  # Wan2.2's VAE has about 0.7 billion
