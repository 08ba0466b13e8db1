"""Weights in and out, strictly: a missing, extra or misshapen tensor is an error that names it. Safetensors only."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from spatia_model.generator import names

Source = str | Path | Mapping[str, torch.Tensor]
ROW_SCALE = ".row_scale"  # after the name of a matrix stored in 8 bits: the number that each of its rows is to be multiplied by


class CheckpointError(ValueError):
    """A file of weights that can't be used, and what to do about it."""


def _listed(items: Iterable[str], limit: int = 8) -> str:
    found = sorted(items)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU, those stored in 8 bits as float32.

    CheckpointError when it's missing, cut short or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights; check the path or fetch the model again")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return from_eight_bits({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); it's damaged or cut short, so fetch it again") from error


def to_eight_bits(tensors: Mapping[str, torch.Tensor], smallest: int = 1024) -> dict[str, torch.Tensor]:
    """Floating-point matrices (and convolutions) of at least so many entries as int8, beside a float32 scale for each row.

    Rows (out) are rounded to multiples of their largest magnitude / 127: half the size of float16, and off by less than 1 % of what a
    normally distributed row's entries measure. Vectors and small matrices stay as they are.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < smallest or not tensor.is_floating_point():
            stored[name] = tensor
            continue
        rows = tensor.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
        stored[name + ROW_SCALE] = scale
    return stored


def from_eight_bits(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `to_eight_bits`, as float32; what has no scales beside it passes as it is. ValueError: scales of something else."""
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(ROW_SCALE)}
    for scales in stored.keys() - tensors.keys():
        name = scales.removesuffix(ROW_SCALE)
        scale = stored[scales]
        if name not in tensors or tensors[name].dtype != torch.int8 or scale.shape != tensors[name].shape[:1]:
            raise ValueError(f"{scales} are not the scales of the rows of an int8 tensor {name}")
        tensors[name] = (tensors[name].float().flatten(1) * scale.float()[:, None]).view(tensors[name].shape)
    return tensors


def check_tensors(wanted: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Names and shapes (`.shape` of the values) must be equal. CheckpointError names what is missing, extra or misshapen."""
    problems = []
    if missing := wanted.keys() - found.keys():
        problems.append(f"missing: {_listed(missing)}")
    if extra := found.keys() - wanted.keys():
        problems.append(f"extra: {_listed(extra)}")
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the model wants {tuple(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if tuple(found[name].shape) != tuple(wanted[name].shape)
    ]
    if shapes:
        problems.append(f"misshapen: {_listed(shapes)}")
    if problems:
        mend = "use the weights and the config of one and the same model"
        raise CheckpointError(f"{where}: tensors don't fit the model ({'; '.join(problems)}); {mend}")


def _assign(module: nn.Module, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
    own = module.state_dict()
    meta = any(tensor.is_meta for tensor in own.values())
    cast = {name: tensor.to(dtype or own[name].dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    # A meta-device module has no storage to copy into, so it takes the tensors themselves.
    module.load_state_dict(cast, strict=True, assign=meta)


def load_weights(module: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Fill `module` from one file, strictly. Values are cast to the module's types (stored float16 -> float32), or to `dtype`."""
    tensors = read_tensors(path)
    check_tensors(module.state_dict(), tensors, str(path))
    _assign(module, tensors, dtype)


def load_official(module: nn.Module, sources: Source | Iterable[Source], dtype: torch.dtype | None = None) -> None:
    """Fill a `SpatiaTransformer` from tensors under their official names, in one or more files or mappings, strictly."""
    found: dict[str, torch.Tensor] = {}
    given: list[Any] = [sources] if isinstance(sources, str | Path | Mapping) else list(sources)
    for source in given:
        tensors = dict(source) if isinstance(source, Mapping) else read_tensors(source)
        if twice := found.keys() & tensors.keys():
            raise CheckpointError(f"tensors given twice: {_listed(twice)}; give each file once")
        found.update(tensors)
    wanted = {}
    for name, tensor in module.state_dict().items():
        try:
            wanted[names.to_official(name)] = tensor
        except ValueError as error:
            raise CheckpointError(f"the model's config isn't the released architecture: {error}") from error
    check_tensors(wanted, found, "official weights")
    _assign(module, {names.to_diffusers(name): tensor for name, tensor in found.items()}, dtype)


def save_weights(module: nn.Module, path: str | Path, dtype: torch.dtype | None = torch.float16, eight_bits: bool = False) -> str:
    """Write the module's state, floats as `dtype` (None: as they are), whole or not at all. Returns the file's SHA-256.

    With `eight_bits` matrices are stored by `to_eight_bits`; `load_weights` knows them by their names.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    packed = to_eight_bits(state) if eight_bits else state
    scales = packed.keys() - state.keys()
    for name, value in packed.items():
        stored = value if name in scales else value.to(dtype if value.is_floating_point() else None, copy=True)
        if not torch.isfinite(stored).all():
            name = name.removesuffix(ROW_SCALE)
            raise CheckpointError(f"{name} has values that aren't finite in {stored.dtype}; save with another dtype or mend the training")
        tensors[name] = stored.contiguous()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return sha256(path)


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_checksum(path: str | Path, expected: str) -> None:
    """CheckpointError when the file isn't the one whose SHA-256 was recorded."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file of weights; check the path or fetch the model again")
    found = sha256(path)
    if found != expected.lower():
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, recorded was {expected}; the file is damaged or another version: fetch it again"
        )


def verify_folder(folder: str | Path) -> dict:
    """Check every file that the folder's `config.json` lists under "sha256" ({file name: hex}). Returns the config."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
        recorded = dict(config["sha256"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; a model folder holds config.json beside its weights") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'{path}: not a model config with a "sha256" table ({error!r}); fetch the model again') from error
    for name, expected in recorded.items():
        verify_checksum(path.parent / name, expected)
    return config
