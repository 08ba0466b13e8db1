"""Still pictures without geometry, as varied as photographs: for training a video VAE, not for looking at.

Overlapping shapes with power-law sizes (dead leaves), textures with many octaves, leaves, skies, strokes and rows of words, under random
exposure, contrast, colour, blur and sensor noise. About 10 ms at 192 x 192 on one core. Colours are drawn as lightness plus a small
chroma around a few hues per picture, as in natural pictures.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from spatia_model.geometry.warp_runtime import wp
from spatia_model.worlds.picture_kernel import picture_kernel


def _generator(rng: int | np.random.Generator) -> np.random.Generator:
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)


def _paint(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32 of display-like values, not yet developed."""
    hues = rng.uniform(0, 2 * math.pi, int(rng.integers(1, 5)))
    chroma = min(abs(rng.normal(0.0, 0.13)) + 0.03, 0.3)
    mean, spread = rng.uniform(0.25, 0.65), rng.uniform(0.12, 0.3)

    def colors(count: int) -> np.ndarray:
        hue = rng.choice(hues, count) + rng.normal(0, 0.25, count)
        strength = np.abs(rng.normal(0, chroma, count))
        light = np.clip(rng.normal(mean, spread, count), 0.02, 0.98)
        a, b = strength * np.cos(hue), strength * np.sin(hue)
        return np.stack((light + a, light - 0.35 * a - 0.3 * b, light + 0.9 * b - 0.2 * a), -1)

    style = rng.random()
    count = int(np.exp(rng.uniform(math.log(12), math.log(260)))) if style < 0.75 else int(rng.integers(0, 14))
    power = rng.uniform(1.2, 3.0)
    smallest, largest = rng.uniform(0.008, 0.03), rng.uniform(0.15, 0.5)
    u = rng.random(count)
    size = (smallest ** (1 - power) + u * (largest ** (1 - power) - smallest ** (1 - power))) ** (1 / (1 - power)) if count else u
    shapes = np.zeros((count, 4, 4), np.float32)
    ratio = np.exp(rng.normal(0, rng.choice([0.15, 0.5, 0.9]), count))
    wide = width / min(width, height)
    shapes[:, 0] = np.stack(
        (rng.uniform(-0.1, wide + 0.1, count), rng.uniform(-0.1, height / min(width, height) + 0.1, count), size * ratio, size / ratio), -1
    )
    thin = rng.random(count) < rng.choice([0.0, 0.1, 0.4])
    shapes[thin, 0, 3] = rng.uniform(0.002, 0.01, int(thin.sum()))
    shapes[thin, 0, 2] = rng.uniform(0.05, 0.4, int(thin.sum()))
    straight = rng.random() < 0.4  # buildings and shelves: along the axes, nearly
    angle = rng.normal(0, 0.03, count) + rng.integers(0, 4, count) * math.pi / 2 if straight else rng.uniform(-math.pi, math.pi, count)
    kinds = rng.choice(4, count, p=rng.dirichlet([1.2, 1.5, 0.5, 0.2]))
    kinds[thin] = 1
    shapes[:, 1] = np.stack((np.cos(angle), np.sin(angle), kinds, rng.integers(1, 1 << 15, count)), -1)
    strength = np.abs(rng.normal(0, rng.choice([0.1, 0.35, 0.6]), count))
    shapes[:, 2] = np.concatenate((colors(count), strength[:, None]), -1)
    texture = rng.choice(8, count, p=[0.2, 0.3, 0.12, 0.08, 0.1, 0.06, 0.06, 0.08])
    scale = np.exp(rng.uniform(math.log(3), math.log(60), count))
    shapes[:, 3] = np.concatenate((rng.normal(0, 0.08, (count, 1)) * np.ones(3), (texture + scale / 1000)[:, None]), -1)
    ground = np.zeros((4, 4), np.float32)
    ground[:, :3] = colors(4)
    if rng.random() < 0.5:  # leaves are green or brown more often than not
        ground[2, :3] = np.array([0.12, 0.18, 0.06]) * rng.uniform(0.3, 1.5)
        ground[3, :3] = np.array([0.6, 0.7, 0.3]) * rng.uniform(0.6, 1.3) + rng.normal(0, 0.08, 3)
    ground[0, 3] = float(rng.integers(1, 1 << 15))
    ground[1, 3] = (
        float(rng.choice(8, p=[0.15, 0.4, 0.15, 0.03, 0.07, 0.05, 0.05, 0.1]))
        + float(np.exp(rng.uniform(math.log(2), math.log(50)))) / 1000
    )
    ground[2, 3] = float(np.exp(rng.uniform(math.log(0.015), math.log(0.12))))
    ground[3, 3] = float(rng.uniform(0.35, 0.95)) if rng.random() < 0.45 else 0.0
    out = np.empty((height, width, 3), np.float32)
    wp.launch(
        picture_kernel, dim=(height, width), device="cpu",
        inputs=[
            wp.array(shapes, dtype=wp.vec4, ndim=2, device="cpu"), wp.array(ground, dtype=wp.vec4, ndim=1, device="cpu"),
            float(rng.choice([-0.3, rng.uniform(0.1, 0.8)])), float(rng.choice([0.0, rng.uniform(0.1, 0.5)])),
            float(rng.choice([0.0, rng.uniform(0.01, 0.12)])),
            wp.array(out, dtype=wp.vec3, ndim=2, device="cpu", copy=False),
        ],
    )  # fmt: skip
    return out


def _develop(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Exposure, tone curve, colour, blur: (H, W, 3) float32 in 0..1."""
    # aim for a mean like a photograph's, though not always
    gain = math.exp(0.7 * math.log(rng.uniform(0.3, 0.6) / max(float(picture.mean()), 0.03)) + rng.normal(0, 0.2))
    balance = np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    gamma = math.exp(rng.normal(0, 0.25))
    p = np.clip(picture * (gain * balance), 0.0, 4.0)
    p = 1.0 - np.exp(-1.4 * p) if rng.random() < 0.5 else np.minimum(p, 1.0)
    p = np.power(p, np.float32(gamma), dtype=np.float32)
    if rng.random() < 0.12:
        p = np.repeat(p.mean(-1, keepdims=True), 3, -1)
    elif rng.random() < 0.6:
        grey = p.mean(-1, keepdims=True)
        p = grey + (p - grey) * np.float32(rng.uniform(0.4, 1.6))
    if rng.random() < 0.3:  # light falls off across the picture
        h, w = p.shape[:2]
        a = rng.uniform(-math.pi, math.pi)
        ramp = np.cos(a) * np.linspace(-1, 1, w)[None] + np.sin(a) * np.linspace(-1, 1, h)[:, None]
        p = p * (1.0 + rng.uniform(0.1, 0.5) * ramp[..., None]).astype(np.float32)
    for _ in range(int(rng.choice([0, 0, 1, 2, 5]))):  # binomial blur
        p = 0.25 * np.roll(p, 1, 0) + 0.5 * p + 0.25 * np.roll(p, -1, 0)
        p = 0.25 * np.roll(p, 1, 1) + 0.5 * p + 0.25 * np.roll(p, -1, 1)
    return p


def _noisy_bytes(rng: np.random.Generator, p: np.ndarray, sigma: float) -> np.ndarray:
    if sigma > 0:
        p = p + rng.standard_normal(p.shape, np.float32) * np.float32(sigma)
    return (np.clip(p, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def random_picture(rng: int | np.random.Generator, size: int | tuple[int, int] = 192) -> np.ndarray:
    """A picture from a seed or a generator: uint8 (H, W, 3). `size` is one side or (height, width)."""
    rng = _generator(rng)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 8:
        raise ValueError(f"size must be at least 8 pixels a side, got {size}")
    picture = _develop(rng, _paint(rng, height, width))
    return _noisy_bytes(rng, picture, float(rng.choice([0.0, 0.0, rng.uniform(0.002, 0.025)])))


def random_pan(rng: int | np.random.Generator, frames: int, size: int = 128) -> np.ndarray:
    """A slow pan, zoom and turn over one picture: uint8 (T, size, size, 3), a video for the VAE. Noise differs per frame."""
    rng = _generator(rng)
    if frames < 1 or size < 8:
        raise ValueError(f"frames must be at least 1 and size at least 8 pixels, got {frames} and {size}")
    margin = 1.75
    big = int(size * margin)
    picture = torch.from_numpy(_develop(rng, _paint(rng, big, big))).permute(2, 0, 1)[None]
    t = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    start, end = rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 2)
    amount = float(rng.choice([0.0, 0.3, 1.0], p=[0.15, 0.35, 0.5]))
    end = start + amount * (end - start)
    zoom = torch.from_numpy(np.exp(np.linspace(0, rng.normal(0, 0.12 * amount), frames))).float() * float(rng.uniform(0.5, 0.68))
    zoom = zoom.clamp(0.35, 0.8)
    turn = t * float(rng.normal(0, 0.15 * amount)) + float(rng.choice([0.0, rng.normal(0, 0.1)]))
    room = (1.0 - zoom * 1.12).clamp(min=0.0)
    cx = torch.lerp(torch.tensor(float(start[0])), torch.tensor(float(end[0])), t) * room
    cy = torch.lerp(torch.tensor(float(start[1])), torch.tensor(float(end[1])), t) * room
    c, s = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    theta = torch.stack((torch.stack((c, -s, cx), -1), torch.stack((s, c, cy), -1)), 1)
    grid = torch.nn.functional.affine_grid(theta, [frames, 3, size, size], align_corners=False)
    out = torch.nn.functional.grid_sample(
        picture.expand(frames, -1, -1, -1), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return _noisy_bytes(rng, out.permute(0, 2, 3, 1).numpy(), float(rng.choice([0.0, 0.0, rng.uniform(0.002, 0.02)])))
