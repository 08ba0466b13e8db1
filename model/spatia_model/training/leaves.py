"""Dead-leaves pictures: occluding shapes of power-law sizes with natural spectra, the statistics of photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def coloured_noise(rng: np.random.Generator, size: int, exponent: float) -> np.ndarray:
    """(size, size, 3) float field with spectrum 1/f^exponent, unit deviation, channels correlated as in photographs."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1
    spectrum = rng.normal(size=(3, *f.shape)) + 1j * rng.normal(size=(3, *f.shape))
    fields = np.fft.irfft2(spectrum / f**exponent, s=(size, size))
    fields /= fields.std(axis=(1, 2), keepdims=True) + 1e-9
    mix = np.array([[1.0, 0.25, 0.1], [1.0, 0.0, -0.15], [1.0, -0.25, 0.1]]) * np.array([1.0, rng.uniform(0.2, 1), rng.uniform(0.2, 1)])
    return np.einsum("chw,dc->hwd", fields, mix)


def dead_leaves(rng: np.random.Generator, size: int = 192) -> np.ndarray:
    """A picture (size, size, 3) uint8."""
    big = size + 32
    base = coloured_noise(rng, big, rng.uniform(0.8, 1.8)) * rng.uniform(10, 55) + rng.uniform(40, 210, 3)
    textures = [coloured_noise(rng, big, rng.uniform(0.0, 1.6)) for _ in range(3)]
    picture = np.clip(base, 0, 255)
    palette = rng.uniform(15, 240, (int(rng.integers(3, 10)), 3)) * rng.uniform(0.4, 1) + rng.uniform(0, 60)
    smallest = rng.choice([1.5, 3, 6, 12])
    count = int(rng.choice([0, 20, 80, 250, 500], p=[0.1, 0.2, 0.3, 0.25, 0.15]))
    kinds = rng.choice(4, p=rng.dirichlet([1.0] * 4), size=count)
    radii = np.minimum(smallest / rng.uniform(0.002, 1, count) ** 0.55, big / 2)
    for kind, r in zip(kinds, sorted(radii, reverse=True), strict=True):
        x, y = rng.uniform(-r, big + r, 2)
        angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.1, 1)
        x0, y0, x1, y1 = max(0, int(x - r - 2)), max(0, int(y - r - 2)), min(big, int(x + r + 3)), min(big, int(y + r + 3))
        if x1 <= x0 or y1 <= y0:
            continue
        if kind < 2:  # ellipse, blade
            a, b = r, r * (aspect if kind == 0 else 0.12)
            t = np.linspace(0, 2 * np.pi, 20)
            px, py = a * np.cos(t), b * np.sin(t)
        elif kind == 2:  # box
            px, py = np.array([-r, r, r, -r]) * 0.7, np.array([-r, -r, r, r]) * 0.7 * aspect
        else:  # polygon
            t = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
            px, py = r * np.cos(t), r * np.sin(t)
        c, s = np.cos(angle), np.sin(angle)
        corners = [((x + c * u - s * v - x0) * 2, (y + s * u + c * v - y0) * 2) for u, v in zip(px, py, strict=True)]
        mask = Image.new("L", ((x1 - x0) * 2, (y1 - y0) * 2))
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        alpha = np.asarray(mask.resize((x1 - x0, y1 - y0), Image.Resampling.BOX), np.float32)[..., None] / 255
        if not alpha.any():
            continue
        colour = palette[rng.integers(len(palette))] + rng.normal(0, 12, 3)
        yy, xx = np.mgrid[y0:y1, x0:x1]
        light = 1 + rng.normal(0, 0.25) * ((xx - x) * np.cos(angle) + (yy - y) * np.sin(angle)) / (r + 1)
        fill = colour * light[..., None] + textures[rng.integers(3)][y0:y1, x0:x1] * rng.choice([0, 4, 12, 30])
        part = picture[y0:y1, x0:x1]
        picture[y0:y1, x0:x1] = part + (fill - part) * alpha
    picture = picture[16 : 16 + size, 16 : 16 + size]
    if rng.random() < 0.3:
        image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
        picture = np.asarray(image, np.float32)
    if rng.random() < 0.4:  # a broad shadow or glow
        picture = picture * (1 + 0.35 * coloured_noise(rng, size, 2.2)[..., :1])
    picture = 255 * (np.clip(picture, 0, 255) / 255) ** rng.uniform(0.6, 1.6) + rng.normal(0, rng.uniform(0, 4), picture.shape)
    grey = picture.mean(-1, keepdims=True)
    return np.clip(grey + (picture - grey) * rng.uniform(0.3, 1.3), 0, 255).astype(np.uint8)
