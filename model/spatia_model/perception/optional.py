"""Packages and weights that only some perceivers need: found when used, with an error that says how to get them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spatia_model.perception.catalog import PACKAGES


class MissingPackageError(ValueError, ImportError):
    """A package that a chosen perceiver needs is not installed; the message gives the install line."""


def require(module: str, package: str, wanted_by: str) -> Any:
    """Import `module`, of the entry `package` in `catalog.PACKAGES`, for the perceiver named `wanted_by`.

    Raises:
        MissingPackageError: it is not installed, or needs something that is not. Says what to type.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        found = "is not installed" if missing.split(".")[0] == module.split(".")[0] else f"cannot be loaded without {missing}"
        raise MissingPackageError(
            f"{wanted_by} needs the package {module.split('.')[0]}, which {found}. Install it: {PACKAGES[package].install}"
        ) from error


def transformers_with(name: str, wanted_by: str) -> Any:
    """The package transformers, of a version that has the class `name`.

    Raises:
        MissingPackageError: it is not installed.
        ValueError: it is too old.
    """
    transformers = require("transformers", "transformers", wanted_by)
    if not hasattr(transformers, name):
        raise ValueError(f"{wanted_by} needs a newer transformers than {transformers.__version__}: pip install -U transformers")
    return transformers


def pretrained(load: Callable[..., Any], name: str | Path, wanted_by: str, **options: Any) -> Any:
    """`load(name, **options)` of a hub id or a local folder, with an error that says how to get the weights.

    Raises:
        ValueError: neither a folder here, nor in the hub cache, nor to be downloaded.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder)
    elif str(name).startswith((".", "/", "~")):
        raise ValueError(f"{wanted_by}: there is no folder {str(name)!r}; give a folder of weights or a hub id such as 'facebook/sam3'")
    try:
        return load(str(name), **options)
    except (OSError, RuntimeError) as error:
        # transformers and huggingface_hub tell an absent network, a gated repository and an absent file apart in their first line
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if folder.is_dir():
            raise ValueError(f"{wanted_by}: the folder {name!r} cannot be loaded: {first}") from error
        raise ValueError(
            f"{wanted_by}: {name!r} is not in the hub cache and could not be downloaded ({first}). Fetch it where there is a network: "
            f"hf download {name}, then give its folder, or set HF_HOME to the cache that holds it. Gated models need `hf auth login` first"
        ) from error


@contextmanager
def at_work(module: Any, device: torch.device | str, rest: torch.device | str | None) -> Iterator[Any]:
    """`module` on `device` inside the block; afterwards on `rest`, to make room for others. `rest` None leaves it where it is."""
    if rest is None:
        yield module
        return
    module.to(device)
    try:
        yield module
    finally:
        module.to(rest)
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()


def check_frames(frames: torch.Tensor) -> None:
    """ValueError unless frames are (T, H, W, 3) uint8 with T of at least 1."""
    if not isinstance(frames, torch.Tensor) or frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not len(frames):
        given = f"{tuple(frames.shape)} {frames.dtype}" if isinstance(frames, torch.Tensor) else type(frames).__name__
        raise ValueError(f"frames are {given}; expected a tensor (T, H, W, 3) uint8, RGB, with at least one frame")
