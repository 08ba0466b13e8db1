"""Where a checkpoint's files lie: Wan's original folder or its diffusers folder, and Spatia's two files; a hub id is fetched first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.generator.conversion.spans import Span, read_spans

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WAN_FILES = {"vae": "Wan2.2_VAE.pth", "text": "models_t5_umt5-xxl-enc-bf16.pth", "tokenizer": "google/umt5-xxl"}
CONTROL_FILE, LORA_FILE = "step-8500.safetensors", "lora_weights_10000.safetensors"
_BASE_PATTERNS = (
    "*.json",
    "diffusion_pytorch_model*.safetensors",
    WAN_FILES["vae"],
    WAN_FILES["text"],
    f"{WAN_FILES['tokenizer']}/*",
    *(f"{part}/*" for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")),
)


@dataclass(frozen=True)
class Base:
    """Wan2.2-TI2V-5B: the files of its three networks, and what the folder says of them."""

    original: bool  # Wan's own names; else diffusers' and transformers'
    files: dict[str, list[Path]]  # of transformer, vae and text
    tokenizer: Path
    configs: dict[str, dict[str, Any]]  # what the folder says of itself, by part

    def spans(self, part: str) -> dict[str, Span]:
        """The tensors of a part. CheckpointError names a file that is missing or damaged."""
        spans = _union(self.files[part])
        if not self.original and part == "text":
            spans.pop("encoder.embed_tokens.weight", None)  # the same tensor as `shared.weight`
        return spans


def is_hub_id(name: str | Path) -> bool:
    return bool(HUB_ID.fullmatch(str(name)))


def fetch(name_or_dir: str | Path, patterns: Iterable[str] | None = None, what: str = "a model") -> Path:
    """The folder itself, or the local copy of a hub repository (fetched if need be, only the files that match).

    Raises:
        ValueError: no such folder, and no such repository or no network; it says which was tried.
    """
    folder = Path(name_or_dir).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not is_hub_id(name_or_dir) or folder.exists():
        raise ValueError(f"{str(name_or_dir)!r} is no folder; give a folder with {what}, or a hub id such as 'owner/name'")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(name_or_dir), allow_patterns=list(patterns) if patterns else None))
    except Exception as error:  # the hub client raises its own, requests' and httpx's kinds
        raise ValueError(
            f"{str(name_or_dir)!r} is no folder here, and can't be fetched from the hub ({type(error).__name__}: {error}); "
            "check the name and the network, or give a local folder"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read as JSON ({error}); fetch it again") from error


def _shards(folder: Path, stem: str) -> list[Path]:
    """Files of a (possibly sharded) safetensors checkpoint. The index, or else the files' own numbering, says which belong to it."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(_json(index)["weight_map"].values()))]
    found = sorted(folder.glob(f"{stem}*.safetensors"))
    numbers = [re.search(r"-(\d+)-of-(\d+)\.safetensors$", file.name) for file in found]
    totals = {int(n[2]) for n in numbers if n}
    if totals:
        total = max(totals)
        names = [f"{stem}-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
        return [folder / name for name in names]
    return found or [folder / f"{stem}.safetensors"]


def _union(files: Iterable[Path]) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for file in files:
        for name, span in read_spans(file).items():
            if name in spans:
                raise CheckpointError(f"{file}: tensor {name} is also in {spans[name].path.name}; keep one of the two")
            spans[name] = span
    return spans


def find_base(folder: Path) -> Base:
    """The base checkpoint in a folder.

    Raises:
        CheckpointError: a file is missing or damaged; it is named.
    """
    if (folder / "transformer").is_dir():
        places = {"transformer": "transformer", "vae": "vae", "text": "text_encoder"}
        files = {part: _shards(folder / place, "model" if part == "text" else "diffusion_pytorch_model") for part, place in places.items()}
        configs = {part: _json(folder / place / "config.json") for part, place in places.items()}
        return Base(False, files, _tokenizer(folder / "tokenizer"), configs)
    configs = {"transformer": _json(folder / "config.json")} if (folder / "config.json").is_file() else {}
    files = {"transformer": _shards(folder, "diffusion_pytorch_model"), **{part: [folder / WAN_FILES[part]] for part in ("vae", "text")}}
    return Base(True, files, _tokenizer(folder / WAN_FILES["tokenizer"]), configs)


def _tokenizer(folder: Path) -> Path:
    if not (folder / "tokenizer.json").is_file() and not (folder / "spiece.model").is_file():
        raise CheckpointError(f"{folder}: neither tokenizer.json nor spiece.model in it; fetch the text encoder's tokenizer")
    return folder


def find_spatia(folder: Path, control: str = CONTROL_FILE, lora: str = LORA_FILE) -> tuple[Path, Path]:
    """Spatia's control and LoRA files. CheckpointError when one is missing; it is named."""
    files = folder / control, folder / lora
    for file in files:
        if not file.is_file():
            there = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))) or "none"
            raise CheckpointError(f"{file}: no such file of weights; the folder's safetensors files are: {there}")
    return files


def base_folder(name_or_dir: str | Path) -> Path:
    return fetch(name_or_dir, _BASE_PATTERNS, "the Wan2.2-TI2V-5B checkpoint")


def spatia_folder(name_or_dir: str | Path, control: str = CONTROL_FILE, lora: str = LORA_FILE) -> Path:
    return fetch(name_or_dir, (control, lora), "Spatia's weights")
