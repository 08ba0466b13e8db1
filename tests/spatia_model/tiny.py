"""The real embedded model, very small and random: 32 pixel frames, a step takes milliseconds."""

from __future__ import annotations

import math

import torch

from spatia_model.config import MiniConfig
from spatia_model.generator.pipeline import ClipGenerator, SamplerOptions
from spatia_model.generator.refiner import DetailRefiner, RefinerConfig
from spatia_model.generator.text import CompactTextConfig, CompactTextEncoder
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.vae import CompactVAEConfig, CompactVideoVAE
from spatia_model.memory.mapping import MappingConfig
from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig
from spatia_model.world_model import WorldModel
from spatia_model.worlds import VOCABULARY

SIZE = 32
SEED = 2_000_000
CONFIG = MiniConfig(image_size=SIZE, steps=2)
OPTIONS = SamplerOptions(steps=2)
MAPPING = MappingConfig(tracking="path")
TRANSFORMER = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "vace_layers": (0,),
    "vace_in_channels": 12,
    "control_in_main": True,
    "control_to_output": True,
    "output_gates": True,
    "prediction": "sample",
}


Parts = tuple[CompactVideoVAE, SpatiaTransformer, CompactTextEncoder, CompactPerception, DetailRefiner]


def tiny_parts(seed: int = SEED) -> Parts:
    """VAE, transformer, text encoder, perceiver and refiner. What starts at zero is made random too, so that every input counts."""
    torch.manual_seed(seed)
    vae = CompactVideoVAE(CompactVAEConfig(4, (8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1), follower=(4, 4, 4)))
    transformer = SpatiaTransformer(**TRANSFORMER)
    text = CompactTextEncoder(CompactTextConfig(VOCABULARY, width=16, layers=1, heads=2))
    perception = CompactPerception(CompactPerceptionConfig(widths=(8, 8)))
    refiner = DetailRefiner(RefinerConfig(width=8, blocks=1))
    with torch.no_grad():
        for part in (vae, transformer, text, perception, refiner):
            part.eval().requires_grad_(False)
            for p in part.parameters():
                p.add_(torch.randn(p.shape) * (0.5 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.05))
        # A perceiver that is sure of its depth and mostly calls things still: else nothing would be mapped.
        perception.head.weight.mul_(0.2)
        perception.head.bias[4:].fill_(-4.0)  # type: ignore[index]
    return vae, transformer, text, perception, refiner


def tiny_model(seed: int = SEED, config: MiniConfig = CONFIG) -> WorldModel:
    vae, transformer, text, perception, refiner = tiny_parts(seed)
    return WorldModel(ClipGenerator(vae, transformer, text, OPTIONS, refiner), perception, config, MAPPING)


def picture(seed: int = SEED, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    """(height, width, 3) uint8: smooth colours and some edges."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
    smooth[..., height // 3 : height // 2, width // 4 : width // 2] = 255 - smooth[..., height // 3 : height // 2, width // 4 : width // 2]
    return smooth[0].permute(1, 2, 0).round().to(torch.uint8)


def walk(clip: int = 0, frames: int = 8, forward: float = 0.03, turn: float = 0.01) -> torch.Tensor:
    """T_world_camera (frames, 4, 4) float64: forward and to the right, going on from clip to clip."""
    path = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    for i in range(frames):
        n = clip * frames + i + 1
        angle = n * turn
        path[i, 0, 0] = path[i, 2, 2] = math.cos(angle)
        path[i, 0, 2], path[i, 2, 0] = math.sin(angle), -math.sin(angle)
        path[i, 2, 3] = n * forward
    return path
