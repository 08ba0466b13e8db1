"""A small random checkpoint in the exact layout and names of the released files: three shards, two `.pth`, the tokenizer, Spatia's two."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spatia_model.config import ReleaseConfig
from spatia_model.generator.conversion.architecture import Architecture

SEED = 2_000_500
RANK = 3
SIZES: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 40,
        "num_layers": 6,
        "vace_layers": [0, 4],
    },
    "vae": {"base_dim": 4, "decoder_base_dim": 4},
    "text": {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 300, "relative_attention_num_buckets": 8},
}
LOOP = ReleaseConfig(
    width=64,
    height=32,
    frame_rate=8,
    first_frames=13,
    window_frames=13,
    history_frames=5,
    map_rate=2,
    candidate_rate=4,
    target_rate=2,
    voxel_size=0.05,
    render_voxel=0.08,
    point_radius=0.12,
    max_points=20_000,
    steps=2,
)  # a small loop
WORDS = ("a", "the", "sunny", "kitchen", "with", "wooden", "red", "ball", "rolls", "to", "left", "cow", "4K", "realistic", "HDR", ",", ".")


@functools.cache
def architecture() -> Architecture:
    default = Architecture()
    return Architecture(*({**getattr(default, part), **SIZES[part]} for part in ("transformer", "vae", "text")))


def tensors(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random weights of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        fan_in = max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 1
        value = torch.randn(shape, generator=generator)
        if name.endswith("gamma") or (len(shape) == 1 and "norm" in name and name.endswith("weight")):
            value = 1 + 0.1 * value
        elif len(shape) == 1 or "modulation" in name:
            value = 0.1 * value
        elif "embedding" not in name or "patch" in name:
            value = value / fan_in**0.5
        made[name] = value.to(dtype)
    return made


def write_tokenizer(folder: Path) -> None:
    """A real fast tokenizer with a tiny vocabulary: padding 0, end of text 1, as UMT5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def write_release(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path, Path]:
    """Writes base/, spatia/ and architecture.json into `folder`; returns the three paths."""
    made = architecture()
    base, spatia = folder / "base", folder / "spatia"
    base.mkdir(parents=True)
    spatia.mkdir()
    denoiser = list(tensors(made.base(), SEED, dtype).items())
    third = len(denoiser) // 3
    for i, part in enumerate((denoiser[:third], denoiser[third : 2 * third], denoiser[2 * third :])):
        save_file(dict(part), base / f"diffusion_pytorch_model-{i + 1:05d}-of-00003.safetensors")
    config = made.transformer
    described = {
        "_class_name": "WanModel",
        "model_type": "ti2v",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "text_len": 512,
        "eps": 1e-6,
    }
    (base / "config.json").write_text(json.dumps(described))
    torch.save(tensors(made.vae_file(), SEED + 1, dtype), base / "Wan2.2_VAE.pth")
    torch.save(tensors(made.text_file(), SEED + 2, dtype), base / "models_t5_umt5-xxl-enc-bf16.pth")
    write_tokenizer(base / "google" / "umt5-xxl")
    save_file(tensors(made.control(), SEED + 3, dtype), spatia / "step-8500.safetensors")
    save_file(tensors(made.lora(RANK), SEED + 4, dtype), spatia / "lora_weights_10000.safetensors")
    (folder / "architecture.json").write_text(json.dumps(SIZES))
    return base, spatia, folder / "architecture.json"
