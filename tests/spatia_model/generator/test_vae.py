"""The embedded autoencoder against a plain statement of it: explicit loops over frames, time padded literally."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from spatia_model.generator.vae import CompactVAEConfig, CompactVideoVAE, FrameMemory, Painter, TemporalBlock
from tests.spatia_model.generator.test_vae_motion import plain_align, plain_displaced, plain_follow

SEED = 2_000_000
TINY = CompactVAEConfig(latent_channels=4, widths=(8, 6, 10), encoder_blocks=(1, 2, 1), decoder_blocks=(2, 1, 2), follower=(5, 6, 7))


def build(config: CompactVAEConfig = TINY) -> CompactVideoVAE:
    """Random weights everywhere: residual branches start at zero, which would hide what they do."""
    generator = torch.Generator().manual_seed(SEED)
    vae = CompactVideoVAE(config)
    with torch.no_grad():
        for p in vae.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 / max(1, p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1))
        vae.latent_mean.copy_(torch.randn(config.latent_channels, generator=generator))
        vae.latent_std.copy_(0.5 + torch.rand(config.latent_channels, generator=generator))
    return vae.eval().requires_grad_(False)


def video(frames: int, batch: int = 1, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(SEED + frames)) * 2 - 1


# -- the plain statement ---------------------------------------------------------------------------------------------


def unshuffle(x: torch.Tensor, r: int) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4).reshape(b, c * r * r, h // r, w // r)


def shuffle(x: torch.Tensor, r: int) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c // r**2, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // r**2, h * r, w * r)


def plain_block(block: TemporalBlock, frames: list[torch.Tensor]) -> list[torch.Tensor]:
    out = []
    for i, now in enumerate(frames):
        before = frames[max(i - 1, 0)]
        y = torch.cat([now, before[:, : block.shared]], 1) if block.shared else now
        y = block.conv1(y / torch.sqrt((y * y).mean(1, keepdim=True) + 1e-4))
        out.append(now + block.conv2(y * torch.sigmoid(y)))
    return out


def plain_encode(vae: CompactVideoVAE, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance; the first frame is literally there four times."""
    xs = [frames[:, :, max(0, t)] for t in range(-3, frames.shape[2])]
    xs = [vae.enc_in(unshuffle(x, 4)) for x in xs]
    for block in vae.enc_frames:
        xs = plain_block(block, xs)
    followed = [torch.cat([y, step / 4], 1) for y, step in plain_steps(vae, xs, frames)]
    xs = [vae.enc_down(torch.cat(pair, 1)) for pair in zip(xs[::2], xs[1::2], strict=True)]
    joined = [vae.enc_join(torch.cat(pair, 1)) for pair in zip(followed[::2], followed[1::2], strict=True)]
    xs = [x + y for x, y in zip(xs, joined, strict=True)]
    for block in vae.enc_pairs:
        xs = plain_block(block, xs)
    xs = [vae.enc_merge(torch.cat(pair, 1)) for pair in zip(xs[::2], xs[1::2], strict=True)]
    for block in vae.enc_latent:
        xs = plain_block(block, xs)
    both = torch.stack([vae.enc_out(x) for x in xs], 2)
    z = vae.latent_channels
    return both[:, :z], both[:, z:].clamp(-20, 10)


def plain_steps(vae: CompactVideoVAE, xs: list[torch.Tensor], frames: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the follower finds and its steps put right, for features of frames (B, 3, T, H, W), the first as often as there are more."""
    out, first = [], len(xs) - frames.shape[2]  # until then time stands still, and nothing has to be put right
    for t, (found, step) in enumerate(plain_follow(vae.enc_follow, xs)):
        if vae.enc_align is not None and t > first:
            now, before = frames[:, :, t - first], frames[:, :, t - first - 1]
            missing = plain_align(vae.enc_align, xs[t][:, :0], now, plain_displaced(before, step))[1]
            step = step + F.avg_pool2d(missing, 2)
        out.append((found, step))
    return out


def plain_decode(vae: CompactVideoVAE, latents: torch.Tensor) -> torch.Tensor:
    sampling = vae.config.sampling
    xs = [vae.dec_in(x) for x in latents.unbind(2)]
    for block in vae.dec_latent:
        xs = plain_block(block, xs)
    frames, anchor = [], None
    for x in xs:
        x = shuffle(vae.dec_up(x), 2)
        y = vae.dec_motion[0](x)
        motion = 4 * vae.dec_motion[1](y * torch.sigmoid(y))
        ways = [motion[:, 2 * i : 2 * i + 2] for i in range(7)]  # of frames 1 to 4 from the anchor before, of 1 to 3 from the own one
        if anchor is None:
            anchor = plain_paint(vae.dec_anchor, x, [torch.zeros(len(x), 3, 4 * x.shape[2], 4 * x.shape[3])])
            frames.append(anchor)
            continue
        now = plain_paint(vae.dec_anchor, x, [plain_displaced(anchor, ways[3], sampling)])
        told = vae.dec_tell(x).chunk(3, 1)
        for i in range(3):
            back, on = ways[i], ways[4 + i]
            if vae.dec_align is not None:
                added = plain_align(vae.dec_align, told[i], plain_displaced(anchor, back), plain_displaced(now, on))
                back, on = back + added[0], on + added[1]
            moved = [plain_displaced(anchor, back, sampling), plain_displaced(now, on, sampling)]
            frames.append(plain_paint(vae.dec_between, told[i], moved))
        frames.append(now)
        anchor = now
    return torch.stack(frames, 2)


def plain_paint(painter: Painter, features: torch.Tensor, moved: list[torch.Tensor]) -> torch.Tensor:
    """Each picture as far as its share goes, pixel by pixel, and what is added."""
    x = painter.stem(torch.cat([features, *(unshuffle(picture, 4) for picture in moved)], 1))
    for block in painter.blocks:
        x = plain_block(block, [x])[0]
    drawn = shuffle(painter.out(x * torch.sigmoid(x)), 4)
    for i, picture in enumerate(moved):
        drawn[:, :3] += torch.sigmoid(drawn[:, 3 + i : 4 + i]) * picture
    return drawn[:, :3]


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_encoder_equals_its_plain_statement(frames):
    vae, x = build(), video(frames, batch=2)
    for found, expected in zip(vae.posterior(x), plain_encode(vae, x), strict=True):
        assert found.shape == (2, 4, 1 + frames // 4, 2, 3)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "align_blocks", "sampling"), [(1, 2, "bicubic"), (2, 2, "bicubic"), (4, 2, "bilinear"), (2, 0, "bilinear")]
)
def test_decoder_equals_its_plain_statement(count, align_blocks, sampling):
    vae = build(replace(TINY, align_blocks=align_blocks, sampling=sampling))
    latents = torch.randn(2, 4, count, 2, 3, generator=torch.Generator().manual_seed(SEED))
    found, _ = vae.decode_raw(latents)
    assert found.shape == (2, 3, 4 * count - 3, 16, 24)
    torch.testing.assert_close(found, plain_decode(vae, latents), atol=1e-5, rtol=1e-5)


def test_temporal_block_sees_the_previous_frame_and_no_more():
    block, plain = TemporalBlock(6, temporal=True), TemporalBlock(6, temporal=False)
    torch.nn.init.normal_(block.conv2.weight, generator=torch.Generator().manual_seed(SEED))
    torch.nn.init.normal_(plain.conv2.weight, generator=torch.Generator().manual_seed(SEED))
    x = torch.randn(1, 5, 6, 4, 4, generator=torch.Generator().manual_seed(SEED + 1))
    with torch.no_grad():
        out = block(x, FrameMemory())
        torch.testing.assert_close(out, torch.stack(plain_block(block, list(x.unbind(1))), 1), atol=1e-5, rtol=1e-5)
        changed = x.clone()
        changed[:, 2] += 1
        moved = [not torch.equal(a, b) for a, b in zip(out[0], block(changed, FrameMemory())[0], strict=True)]
        assert moved == [False, False, True, True, False]
        moved = [not torch.equal(a, b) for a, b in zip(plain(x, FrameMemory())[0], plain(changed, FrameMemory())[0], strict=True)]
        assert moved == [False, False, True, False, False]


# -- time ------------------------------------------------------------------------------------------------------------


def test_past_latents_do_not_know_the_future():
    vae, x = build(), video(13)
    other = x.clone()
    other[:, :, 5:] = -other[:, :, 5:]
    a, b = vae.encode(x), vae.encode(other)
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.equal(a[:, :, 2], b[:, :, 2])
    torch.testing.assert_close(vae.encode(x[:, :, :5]), a[:, :, :2], atol=1e-5, rtol=1e-5)


def test_past_frames_do_not_know_future_latents():
    vae = build()
    latents = torch.randn(1, 4, 4, 2, 3, generator=torch.Generator().manual_seed(SEED))
    other = latents.clone()
    other[:, :, 2:] *= -1
    a, b = vae.decode_raw(latents)[0], vae.decode_raw(other)[0]
    assert torch.equal(a[:, :, :5], b[:, :, :5])
    assert not torch.equal(a[:, :, 5], b[:, :, 5])


def test_last_frames_alone_equal_the_end_of_the_whole():
    vae = build()
    latents = torch.randn(2, 4, 4, 2, 3, generator=torch.Generator().manual_seed(SEED))
    whole = vae.decode(latents)
    assert whole.shape[2] == 13 and whole.std() > 0.05 and whole.abs().max() <= 1
    for last in range(1, 14):
        part = vae.decode(latents, last)
        assert part.shape[2] == last
        torch.testing.assert_close(part, whole[:, :, -last:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last", [4, 8, 12])
def test_frames_can_be_drawn_from_a_known_one_before(last):
    """From what the whole decode drew there they are those of the whole; from another frame, others."""
    vae = build()
    latents = torch.randn(2, 4, 4, 2, 3, generator=torch.Generator().manual_seed(SEED))
    whole = vae.decode_raw(latents)[0]
    latents = (latents - vae.latent_mean.view(1, -1, 1, 1, 1)) / vae.latent_std.view(1, -1, 1, 1, 1)
    part = vae.decode(latents, last, whole[:, :, -last - 1])
    assert part.shape[2] == last
    torch.testing.assert_close(part, whole[:, :, -last:].clamp(-1, 1), atol=1e-5, rtol=1e-5)
    other = vae.decode(latents, last, -whole[:, :, -last - 1])
    assert all(not torch.allclose(other[:, :, t], part[:, :, t], atol=1e-3) for t in range(4))


@pytest.mark.parametrize("last", [None, 3, 13])
def test_a_known_frame_before_has_to_be_the_end_of_a_latent(last):
    with pytest.raises(ValueError, match="can't be given"):
        build().decode(torch.zeros(1, 4, 4, 2, 3), last, torch.zeros(1, 3, 16, 24))


@pytest.mark.parametrize("last", [0, -1, 14])
def test_a_number_of_last_frames_that_is_not_there_is_refused(last):
    with pytest.raises(ValueError, match=f"between 1 and the 13 frames.*got {last}"):
        build().decode(torch.zeros(1, 4, 4, 2, 3), last)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (1, 2, 1), (2, 2), (3, 1)])
def test_streaming_equals_one_decode(chunks):
    """Not bit for bit: frames are the batch of every convolution, and its kernels sum in an order that depends on the batch's size."""
    vae, memory, parts = build(), None, []
    latents = torch.randn(1, 4, 4, 2, 3, generator=torch.Generator().manual_seed(SEED))
    for chunk in latents.split(list(chunks), 2):
        frames, memory = vae.decode_stream(chunk, memory)
        parts.append(frames)
    assert [part.shape[2] for part in parts] == [4 * n - 3 * (i == 0) for i, n in enumerate(chunks)]
    torch.testing.assert_close(torch.cat(parts, 2), vae.decode(latents), atol=1e-5, rtol=1e-5)


def test_streams_do_not_share_state():
    vae = build()
    a, b = torch.randn(2, 1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(SEED)).unbind(0)
    _, memory = vae.decode_stream(a[:, :, :1], None)
    expected, _ = vae.decode_stream(a[:, :, 1:], memory)
    vae.decode_stream(b[:, :, 1:], memory)  # another future of the same past
    again, _ = vae.decode_stream(a[:, :, 1:], memory)
    assert torch.equal(expected, again)


def test_samples_of_a_batch_are_independent():
    vae, x = build(), video(5, batch=3)
    torch.testing.assert_close(vae.encode(x)[1:2], vae.encode(x[1:2]), atol=1e-5, rtol=1e-5)


# -- values ----------------------------------------------------------------------------------------------------------


def test_normalisation_goes_there_and_back():
    vae, x = build(), video(5)
    mean, _ = vae.posterior(x)
    latents = vae.encode(x)
    assert not torch.allclose(latents, mean, atol=0.1)
    torch.testing.assert_close(latents * vae.latent_std.view(1, -1, 1, 1, 1) + vae.latent_mean.view(1, -1, 1, 1, 1), mean)
    torch.testing.assert_close(vae.decode(latents), vae.decode_raw(mean)[0].clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter():
    vae = build().requires_grad_(True)
    mean, log_var = vae.posterior(video(5))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(SEED))
    frames = vae.decode_raw(mean + noise * (0.5 * log_var).exp())[0]
    (frames - video(5)).square().mean().backward()
    for name, p in vae.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), "4 frames of 16x16"),
        ((1, 3, 5, 12, 16), "5 frames of 12x16"),
        ((1, 3, 5, 16, 20), "5 frames of 16x20"),
        ((1, 4, 5, 16, 16), r"\(B, 3, T, H, W\)"),
        ((3, 5, 16, 16), r"\(B, 3, T, H, W\)"),
    ],
)
def test_videos_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        build().encode(torch.zeros(shape))


def test_motion_is_told_beside_the_frames():
    vae = build()
    latents = torch.randn(2, 4, 3, 2, 3, generator=torch.Generator().manual_seed(SEED))
    frames, memory, motion = vae.decode_motion(latents)
    assert motion.shape == (2, 3, 7, 2, 4, 6) and motion.dtype == torch.float32
    torch.testing.assert_close(frames, vae.decode_raw(latents)[0])
    torch.testing.assert_close(memory[-1][:, 0], frames[:, :, -1])  # a stream goes on from its last anchor


def test_steps_are_found_beside_the_posterior():
    vae, x = build(), video(5, batch=2)
    mean, log_var, steps = vae.posterior_motion(x)
    assert steps.shape == (2, 4, 2, 2, 3) and steps.dtype == torch.float32
    for found, expected in zip((mean, log_var), vae.posterior(x), strict=True):
        torch.testing.assert_close(found, expected)
    expected = plain_steps(vae, vae_features(vae, x), x)
    torch.testing.assert_close(steps, torch.stack([step for _, step in expected[1:]], 1), atol=1e-5, rtol=1e-5)


def vae_features(vae: CompactVideoVAE, frames: torch.Tensor) -> list[torch.Tensor]:
    xs = [vae.enc_in(unshuffle(x, 4)) for x in frames.unbind(2)]
    for block in vae.enc_frames:
        xs = plain_block(block, xs)
    return xs


@pytest.mark.parametrize("channels", ["latent_channels", "between"])
def test_no_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"{channels} must be positive, got 0"):
        CompactVAEConfig(**{channels: 0})


def test_fewer_than_no_blocks_are_refused():
    with pytest.raises(ValueError, match="align_blocks must be 0 or more, got -1"):
        CompactVAEConfig(align_blocks=-1)


def test_an_unknown_sampling_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="sampling must be one of bilinear, bicubic, got 'nearest'"):
        CompactVAEConfig(sampling="nearest")


@pytest.mark.parametrize(
    "setting", [{"widths": (8, 8)}, {"encoder_blocks": (1, 0, 1)}, {"decoder_blocks": (1, 1, 1, 1)}, {"follower": (0, 1, 1)}]
)
def test_bad_sizes_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be three positive numbers"):
        CompactVAEConfig(**setting)
