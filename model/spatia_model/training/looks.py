"""Pictures of worlds made less alike: other skins, light and cameras. Depth that holds for all of them holds for photographs too.

Skins and patches of light are solid textures, noise in world space, so they lie on the surfaces and shrink with distance as real ones do:
a change of looks that keeps what tells depth.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from spatia_model.evaluation.metrics import blur
from spatia_model.geometry.camera import unproject
from spatia_model.types import Camera

LATTICE = 16  # cells a side of the noise, reflected beyond
SKY = 45.0  # metres


def reskinned(
    rng: np.random.Generator, rgb: torch.Tensor, depth: torch.Tensor, keep: torch.Tensor, T_world_camera: torch.Tensor, camera: Camera
) -> torch.Tensor:
    """A picture (1, H, W, 3) uint8 with noise on its surfaces: grain and stains of other colours, and patches of light and shade.

    depth (1, H, W) metres; `keep` (1, H, W) bool stays as it is (what moves is told by its looks), and so does the sky.
    """
    points = unproject(depth.clamp(max=SKY), T_world_camera, camera).float()
    footprint = (depth / camera.K[0, 0].float()).unsqueeze(1)  # metres a pixel covers
    grain = _octaves(rng, points, footprint, math.exp(rng.uniform(math.log(0.4), math.log(6))), int(rng.integers(2, 5)), 3)
    stains = _octaves(rng, points, footprint, math.exp(rng.uniform(math.log(0.3), math.log(4))), 2, 1)
    light = _octaves(rng, points, footprint, math.exp(rng.uniform(math.log(0.15), math.log(1.5))), 2, 1)
    x = rgb.permute(0, 3, 1, 2).float() / 255
    stain = torch.sigmoid((stains - rng.uniform(0.2, 1.0)) * rng.uniform(3, 20)) * rng.uniform(0, 0.6)
    color = torch.from_numpy(rng.uniform(0.05, 0.95, 3)).float().view(1, 3, 1, 1)
    x = x + (color - x) * stain * float(rng.random() < 0.5)
    gray, chroma = grain.mean(1, keepdim=True) * 1.7, grain - grain.mean(1, keepdim=True)
    x = x * torch.exp(gray * rng.uniform(0, 0.6) ** 2 + chroma * rng.uniform(0, 0.35) ** 2)
    lit = torch.sigmoid((light - rng.uniform(-0.7, 0.7)) * rng.uniform(2, 15))
    x = x * (1 + lit * rng.uniform(-0.5, 0.7) * float(rng.random() < 0.6))
    fixed = (keep | (depth >= SKY)).unsqueeze(1)
    out = torch.where(fixed, rgb.permute(0, 3, 1, 2).float(), x.clamp(0, 1) * 255)
    return out.to(torch.uint8).permute(0, 2, 3, 1)


def _octaves(rng: np.random.Generator, points: torch.Tensor, footprint: torch.Tensor, frequency: float, count: int, channels: int):
    """(1, channels, H, W) noise of unit deviation, about, at points (1, H, W, 3): octaves that a pixel does not resolve are left out."""
    total = torch.zeros(1, channels, *points.shape[1:3])
    for k in range(count):
        cells = frequency * 2**k  # a metre
        lattice = torch.from_numpy(rng.standard_normal((1, channels, LATTICE, LATTICE, LATTICE), np.float32))
        where = points * cells * (2 / LATTICE) + torch.from_numpy(rng.uniform(-1, 1, 3)).float()
        noise = F.grid_sample(lattice, where.unsqueeze(1), padding_mode="reflection", align_corners=True)[:, :, 0]
        total = total + noise * (1 / (3 * cells * footprint) - 0.3).clamp(0, 1) * 0.7**k  # fades before it aliases
    return total * 1.4


def developed(rng: np.random.Generator, rgb: torch.Tensor) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 as another camera would have taken them: tone, colour, light across the picture, blur, noise, JPEG."""
    x = rgb.permute(0, 3, 1, 2).float() / 255
    h, w = x.shape[-2:]
    x = x ** math.exp(rng.normal(0, 0.3))
    x = (x - 0.5) * math.exp(rng.normal(0, 0.2)) + 0.5 + rng.normal(0, 0.06)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * float(rng.choice([1.0, rng.uniform(0.2, 1.6)]))
    x = x * torch.from_numpy(np.exp(rng.normal(0, 0.08, 3))).float().view(1, 3, 1, 1)
    if rng.random() < 0.4:  # light falls off
        field = torch.from_numpy(rng.normal(0, rng.uniform(0.05, 0.3), (1, 1, 3, 3)).astype(np.float32))
        x = x * F.interpolate(field, size=(h, w), mode="bicubic", align_corners=True).exp()
    if rng.random() < 0.4:
        x = blur(x, float(rng.uniform(0.3, 1.1)))
    elif rng.random() < 0.4:  # sharpened
        x = x + (x - blur(x, 1.0)) * rng.uniform(0.2, 1.2)
    if rng.random() < 0.5:
        x = x + torch.from_numpy(rng.normal(0, rng.uniform(0.0, 0.04), tuple(x.shape)).astype(np.float32))
    out = (x.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    if rng.random() < 0.3:
        out = torch.stack([_compressed(frame, int(rng.integers(25, 90))) for frame in out])
    return out


def _compressed(frame: torch.Tensor, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(frame.numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file)))
