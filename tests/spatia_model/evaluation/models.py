"""Stand-ins for trained models, so that an evaluation can be tested where the answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from spatia_model.config import FRAME_RATE, MiniConfig
from spatia_model.generator.pipeline import ClipGenerator, SamplerOptions
from spatia_model.generator.text import CompactTextConfig, CompactTextEncoder
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.vae import CompactVAEConfig, CompactVideoVAE
from spatia_model.memory.mapping import MappingConfig
from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig
from spatia_model.types import Conditioning
from spatia_model.world_model import WorldModel
from spatia_model.worlds import VOCABULARY, World

Draw = Callable[[Conditioning, int], torch.Tensor]


class FakeGenerator:
    """Draws clips with a function of the conditioning and of the number of the clip's first frame, which it reads off the text's order."""

    def __init__(self, draw: Draw, config: MiniConfig):
        self.draw, self.config, self.clip = draw, config, 0
        self.text = cast(Any, None)

    def generate(
        self, conditionings: Sequence[Conditioning], rngs: Sequence[torch.Generator], progress: object = None
    ) -> list[torch.Tensor]:
        assert len(conditionings) == 1
        frames = self.draw(conditionings[0], 1 + self.clip * self.config.frames_per_clip)
        self.clip += 1
        return [frames]


def fake_model(draw: Draw, config: MiniConfig | None = None) -> WorldModel:
    """A world model whose clips are drawn by `draw`; its perception is untrained (use the oracle)."""
    config = config or MiniConfig()
    perception = CompactPerception(CompactPerceptionConfig(widths=(8, 8), looks=0))
    return WorldModel(cast(Any, FakeGenerator(draw, config)), perception, config, MappingConfig(tracking="path"))


def paint_projection(conditioning: Conditioning, first: int) -> torch.Tensor:
    """What the memory shows; holes get the picture's mean colour."""
    known = len(conditioning.history)
    rgb, mask = conditioning.projection.rgb[known:], conditioning.projection.mask[known:]
    mean = conditioning.history[-1].float().mean((0, 1)).to(torch.uint8)
    return torch.where(mask[..., None], rgb, mean)


def paint_truth(world: World, shift: int = 0) -> Draw:
    """The truth itself, all frames but the pictures given moved `shift` pixels to the right."""

    def draw(conditioning: Conditioning, first: int) -> torch.Tensor:
        path = conditioning.T_world_camera[len(conditioning.history) :]
        times = (first + torch.arange(len(path), dtype=torch.float64)) / FRAME_RATE
        from spatia_model.config import mini_camera

        return world.render(path, mini_camera(MiniConfig()), times).rgb.roll(shift, 2)

    return draw


def tiny_model(seed: int = 0) -> WorldModel:
    """The real parts, very small, with random weights."""
    torch.manual_seed(seed)
    config = MiniConfig(steps=1, image_size=64)
    vae = CompactVideoVAE(CompactVAEConfig(widths=(8, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1))).eval()
    channels = vae.latent_channels
    transformer = SpatiaTransformer(
        patch_size=(1, 4, 4),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        vace_layers=(0,),
        vace_in_channels=channels + 8,
        prediction="sample",
    ).eval()
    text = CompactTextEncoder(CompactTextConfig(vocabulary=VOCABULARY, width=16, layers=1, heads=2)).eval()
    perception = CompactPerception(CompactPerceptionConfig(widths=(8, 8), looks=0)).eval()
    for part in (vae, transformer, text, perception):
        part.requires_grad_(False)
    vae.dec_up.weight.mul_(10)  # else biases drown what the latents, and so the memory, say
    vae.dec_anchor.stem.weight.mul_(10)
    return WorldModel(ClipGenerator(vae, transformer, text, SamplerOptions(steps=1)), perception, config, MappingConfig(tracking="path"))
