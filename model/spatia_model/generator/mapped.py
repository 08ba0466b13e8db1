"""Weights straight from their files: a module takes the memory-mapped tensors themselves, so each byte is read once, when it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from spatia_model.generator.checkpoint import CheckpointError, check_tensors


def mapped_tensors(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of a (possibly sharded) safetensors checkpoint, memory-mapped and not yet read.

    Raises:
        CheckpointError: a file is missing or cut short; it is named.
    """
    index = folder / f"{stem}.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [f"{stem}.safetensors"]
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file of weights; convert anew, or copy the folder again")
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); convert anew, or copy the folder again") from error
    return tensors


def fill(module: nn.Module, folder: Path, stem: str, tied: tuple[str, ...] = ()) -> Any:
    """Fill a module built on the meta device, strictly. `tied`: names that share another name's tensor and are not stored.

    Raises:
        CheckpointError: a file or tensor is missing, extra or misshapen; it is named.
    """
    tensors = mapped_tensors(folder, stem)
    wanted = {name: tensor for name, tensor in module.state_dict().items() if name not in tied}
    check_tensors(wanted, tensors, str(folder))
    module.load_state_dict(tensors, strict=not tied, assign=True)
    return module.eval().requires_grad_(False)
