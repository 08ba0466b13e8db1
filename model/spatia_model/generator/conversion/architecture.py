"""What a checkpoint of the family must hold: every tensor's name and shape, generated from the architecture's few numbers.

The released model's lists are pinned by their SHA-256 (of the sorted lines "name [shape]"), so that no change of ours can change them
unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from spatia_model.generator import names
from spatia_model.generator.conversion.part_names import text_to_official, vae_to_official
from spatia_model.generator.lora import DEFAULT_TARGETS
from spatia_model.generator.transformer import WAN22_TI2V_5B, SpatiaTransformer
from spatia_model.generator.wan_vae import WAN22_VAE

Shapes = dict[str, tuple[int, ...]]

# google/umt5-xxl, the encoder half (24 layers); published with the model.
UMT5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 256384,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.0,
    "is_encoder_decoder": False,
    "use_cache": False,
    "tie_word_embeddings": True,  # an encoder has one table, kept as "shared"; transformers 5.0 ties its two names only if told so
}

# Tensors, parameters and SHA-256 of the released files' lists.
PINNED = {
    "base": (825, 4_999_787_712, "62c0ab1b9bab0d1368db30300bbf711dab483b805aeb8d2ef3d4cebdadd46149"),
    "control": (236, 1_395_398_656, "84264cb2c595cfc1c88c25c1310c40595b1e7b5ef37667c1406b25783661823d"),
}


@dataclass(frozen=True)
class Architecture:
    """Sizes of the three networks. The default is the released 5B; tests take tiny ones."""

    transformer: Mapping[str, Any] = field(default_factory=lambda: dict(WAN22_TI2V_5B))
    vae: Mapping[str, Any] = field(default_factory=lambda: dict(WAN22_VAE))
    text: Mapping[str, Any] = field(default_factory=lambda: dict(UMT5_XXL))

    @staticmethod
    def read(path: str | Path | None) -> Architecture:
        """From a JSON file {"transformer": {...}, "vae": {...}, "text": {...}} of changes to the released sizes; None: the released."""
        if path is None:
            return Architecture()
        try:
            changes = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path}: can't be read as JSON ({error}); give sizes as {{'transformer': ..., 'vae': ..., 'text': ...}}"
            ) from error
        if not isinstance(changes, dict) or set(changes) - {"transformer", "vae", "text"}:
            raise ValueError(f"{path}: give an object with any of 'transformer', 'vae' and 'text'")
        default = Architecture()
        return Architecture(*({**getattr(default, part), **changes.get(part, {})} for part in ("transformer", "vae", "text")))

    @cached_property
    def transformer_model(self) -> SpatiaTransformer:
        """On the meta device, to read names and shapes of."""
        with torch.device("meta"):
            return SpatiaTransformer.from_settings(self.transformer)

    @cached_property
    def vae_model(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        with torch.device("meta"):
            return AutoencoderKLWan(**self.vae)

    def text_config(self) -> Any:
        from transformers import UMT5Config

        return UMT5Config(**self.text)

    @cached_property
    def text_model(self) -> Any:
        from transformers import UMT5EncoderModel

        with torch.device("meta"):
            return UMT5EncoderModel(self.text_config())

    # -- official names ---------------------------------------------------------------------------------------------

    @cached_property
    def _denoiser(self) -> Shapes:
        state = self.transformer_model.state_dict()
        return {names.to_official(name): tuple(tensor.shape) for name, tensor in state.items()}

    def base(self) -> Shapes:
        """Wan's denoiser: official name -> shape."""
        return {name: shape for name, shape in self._denoiser.items() if not name.startswith("vace_")}

    def control(self) -> Shapes:
        """Spatia's control blocks."""
        return {name: shape for name, shape in self._denoiser.items() if name.startswith("vace_")}

    def lora(self, rank: int, targets: tuple[str, ...] = DEFAULT_TARGETS) -> Shapes:
        """Adapters of that rank on the targets of every main block, under the released keys (assumed style: with `.default`)."""
        base = self.base()
        shapes: Shapes = {}
        for layer in range(int(self.transformer["num_layers"])):
            for target in targets:
                out, into = base[f"blocks.{layer}.{target}.weight"]
                shapes[f"pipe.dit.blocks.{layer}.{target}.lora_A.default.weight"] = (rank, into)
                shapes[f"pipe.dit.blocks.{layer}.{target}.lora_B.default.weight"] = (out, rank)
        return shapes

    def vae_file(self) -> Shapes:
        """Wan2.2's `.pth`."""
        resnets = int(self.vae.get("num_res_blocks", 2))
        return {vae_to_official(name, resnets): tuple(tensor.shape) for name, tensor in self.vae_model.state_dict().items()}

    def text_file(self) -> Shapes:
        """Wan's UMT5 `.pth`."""
        state = self.text_model.state_dict()
        return {text_to_official(name): tuple(t.shape) for name, t in state.items() if name != "encoder.embed_tokens.weight"}


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256 of the sorted lines "name [d0, d1, ...]"."""
    lines = "".join(f"{name} {list(shapes[name])}\n" for name in sorted(shapes))
    return hashlib.sha256(lines.encode()).hexdigest()
