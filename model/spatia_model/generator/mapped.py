"""Weights straight from their files: a module takes the memory-mapped tensors themselves, so each byte is read once, when it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spatia_model.generator.checkpoint import CheckpointError, check_tensors
from spatia_model.generator.conversion.spans import read_spans


def mapped_tensors(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of a (possibly sharded) safetensors checkpoint, memory-mapped and not yet read.

    Raises:
        CheckpointError: a file is missing or cut short; it is named.
    """
    index = folder / f"{stem}.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [f"{stem}.safetensors"]
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        tensors.update(mapped_file(folder / name))
    return tensors


def mapped_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, memory-mapped: only the header is read.

    (safetensors' own reader touches every tensor, for which the system may read megabytes each.)

    Raises:
        CheckpointError: the file is missing or cut short; it is named.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights; convert anew, or copy the folder again")
    try:
        spans = read_spans(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (of a converted folder: convert anew, or copy it again)") from error
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    tensors = {}
    for name, span in spans.items():
        part = whole[span.offset : span.offset + span.size_as(span.dtype)]
        if span.offset % span.dtype.itemsize:  # between tensors of other types it may lie where its own can't be read
            part = part.clone()
        tensors[name] = part.view(span.dtype).view(span.shape)
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
