"""LoRA adapters beside the weights, never in them: loaded by peft, switched by an argument of the forward.

The released file's keys are `pipe.dit.<module>.lora_A|lora_B[.default].weight` with official module names; its meaning is
W + B @ A with no other factor, so alpha is set to the rank. Switch with `model(..., lora=0.0)` or `prepare(..., lora=0.0)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from spatia_model.generator import names
from spatia_model.generator.checkpoint import CheckpointError, read_tensors

ADAPTER = "default"
_KEY = re.compile(r"pipe\.dit\.(.+)\.lora_(A|B)(?:\.default)?\.weight")
# What the release adapts (an assumption: its training framework's default): attention and feed-forward of the main blocks.
DEFAULT_TARGETS = (*(f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"), "ffn.0", "ffn.2")


def read_pairs(tensors: Mapping[str, Any], where: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{our module name: {"A": ..., "B": ...}} and the keys that aren't ours. Only the keys are read, so any kind of value will do."""
    pairs: dict[str, dict[str, Any]] = {}
    ignored = []
    for key, tensor in tensors.items():
        if not key.startswith("pipe.dit."):
            ignored.append(key)
            continue
        match = _KEY.fullmatch(key)
        if not match:
            raise CheckpointError(f"{where}: {key} isn't of the form pipe.dit.<module>.lora_A|lora_B[.default].weight")
        try:
            module = names.to_diffusers(match[1])
        except ValueError as error:
            raise CheckpointError(f"{where}: {key}: {error}") from error
        if match[2] in pairs.setdefault(module, {}):
            raise CheckpointError(f"{where}: {key} is given twice, with and without '.default'")
        pairs[module][match[2]] = tensor
    return pairs, sorted(ignored)


def _check(model: nn.Module, pairs: Mapping[str, Mapping[str, torch.Tensor]], where: str) -> None:
    if not pairs:
        raise CheckpointError(f"{where}: no key starts with 'pipe.dit.'; this isn't a LoRA of the released form")
    modules = dict(model.named_modules())
    for name, pair in pairs.items():
        official = names.to_official(name)
        if missing := {"A", "B"} - pair.keys():
            raise CheckpointError(f"{where}: pipe.dit.{official}.lora_{missing.pop()} is missing")
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            raise CheckpointError(f"{where}: {official} isn't a linear layer of this model, or has an adapter already")
        (rank, into), (out, rank_b) = pair["A"].shape, pair["B"].shape
        if rank != rank_b or (out, into) != module.weight.shape:
            shapes = f"A {tuple(pair['A'].shape)} and B {tuple(pair['B'].shape)}"
            raise CheckpointError(f"{where}: {official} has {shapes}, which don't fit W {tuple(module.weight.shape)}")


def _inject(model: Any, ranks: Mapping[str, int]) -> None:
    from peft import LoraConfig

    pattern = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
    rank = next(iter(ranks.values()))
    uniform = len(set(ranks.values())) == 1
    model.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,  # so that the factor alpha / r is 1
            target_modules=list(ranks),
            rank_pattern={} if uniform else pattern,
            alpha_pattern={} if uniform else pattern,
        ),
        ADAPTER,
    )


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Adapted layers by our name (peft's `lora.Linear`: base_layer, lora_A, lora_B)."""
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            yield name, module


def load_lora(model: Any, source: str | Path | Mapping[str, torch.Tensor]) -> list[str]:
    """Put the adapters of a file (or mapping) beside the model's weights; returns the keys that were ignored.

    The rank is read from the tensors. Nothing is changed when the file doesn't fit (CheckpointError says what and where).
    The base weights stop requiring gradients, as always with peft.
    """
    where = "LoRA" if isinstance(source, Mapping) else str(source)
    pairs, ignored = read_pairs(source if isinstance(source, Mapping) else read_tensors(source), where)
    _check(model, pairs, where)
    _inject(model, {name: pair["A"].shape[0] for name, pair in pairs.items()})
    layers = dict(lora_layers(model))
    with torch.no_grad():
        for name, pair in pairs.items():
            layers[name].lora_A[ADAPTER].weight.copy_(pair["A"])
            layers[name].lora_B[ADAPTER].weight.copy_(pair["B"])
    return ignored


def add_lora(model: Any, rank: int, targets: Sequence[str] = DEFAULT_TARGETS) -> list[nn.Parameter]:
    """Fresh adapters (B = 0, so the output doesn't change yet) on the main blocks, for training; returns their parameters.

    `targets` are official module names inside a block. The base weights stop requiring gradients.
    """
    if rank < 1:
        raise ValueError(f"rank {rank}: give 1 or more; the paper trains 64")
    unknown = set(targets) - set(names.BLOCK_NAMES)
    if unknown:
        raise ValueError(f"LoRA targets {sorted(unknown)} unknown: give some of {sorted(names.BLOCK_NAMES)}")
    ranks = {f"blocks.{i}.{names.BLOCK_NAMES[target]}": rank for i in range(len(model.blocks)) for target in targets}
    _inject(model, ranks)
    return [layer_part[ADAPTER].weight for _, layer in lora_layers(model) for layer_part in (layer.lora_A, layer.lora_B)]


def save_lora(model: nn.Module, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the adapters under the released file's keys."""
    tensors = {}
    for name, layer in lora_layers(model):
        for side, part in (("A", layer.lora_A), ("B", layer.lora_B)):
            key = f"pipe.dit.{names.to_official(name)}.lora_{side}.default.weight"
            tensors[key] = part[ADAPTER].weight.detach().to(device="cpu", dtype=dtype).contiguous()
    if not tensors:
        raise ValueError("the model has no LoRA adapters to save: call add_lora or load_lora first")
    save_file(tensors, str(path))


def merged_weight(layer: Any) -> torch.Tensor:
    """W + B @ A of one adapted layer, as a new tensor; the layer stays as it is."""
    return layer.base_layer.weight + layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
