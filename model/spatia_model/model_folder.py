"""A model as a folder: weights beside the config that says what they are.

`config.json` holds one section per part and the SHA-256 of every file; weights are safetensors, float16 but for large matrices of those
in `EIGHT_BITS`. Loading is strict.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spatia_model.config import MiniConfig
from spatia_model.devices import computes_bfloat16
from spatia_model.generator.checkpoint import CheckpointError, load_weights, save_weights, verify_folder
from spatia_model.generator.conversion.convert import DESCRIPTION, NOTES
from spatia_model.generator.conversion.sources import fetch, is_hub_id
from spatia_model.generator.motion import MotionConfig, MotionPlanner
from spatia_model.generator.pipeline import ClipGenerator, SamplerOptions
from spatia_model.generator.refiner import DetailRefiner, RefinerConfig
from spatia_model.generator.text import CompactTextConfig, CompactTextEncoder
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.vae import CompactVAEConfig, CompactVideoVAE
from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig

FORMAT = 2
READS = (1, 2)  # 1: all weights are float16
DESCRIPTIONS = ("config.json", DESCRIPTION)  # of the embedded tier and of the 5B
EMBEDDED = Path(__file__).parent / "pretrained"
FILES = ("vae.safetensors", "transformer.safetensors", "text.safetensors", "perception.safetensors", "refiner.safetensors")
EIGHT_BITS = ("transformer.safetensors", "perception.safetensors")  # the largest, whose results 8 bits don't change visibly
PLANNER = "motion.safetensors"  # a model may go without


def convolution_dtype(device: str) -> torch.dtype:
    """bfloat16 on CPUs that compute in it, where it halves the time of convolutions; float32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cpu" and computes_bfloat16(device) else torch.float32


def resolve(name_or_dir: str | Path) -> Path:
    """The folder of a model: an embedded name such as "spatia-mini", a path, or a hub id such as "owner/name" (fetched if need be)."""
    folder = Path(name_or_dir).expanduser()
    for place in (EMBEDDED / str(name_or_dir), folder):
        if any((place / name).is_file() for name in DESCRIPTIONS):
            return place.resolve()
    if is_hub_id(name_or_dir) and not folder.exists():
        return fetch(name_or_dir, what="a model")
    if (folder / NOTES).is_file():
        raise CheckpointError(
            f"{folder}: this conversion was interrupted; run the same `spatia convert` again, it goes on where it stopped"
        )
    known = sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))
    raise ValueError(
        f"no model {str(name_or_dir)!r}: give one of {known}, a folder that holds a config.json or a spatia.json, or a hub id 'owner/name'"
    )


def save_mini(
    folder: Path,
    config: MiniConfig,
    options: SamplerOptions,
    vae: CompactVideoVAE,
    transformer: SpatiaTransformer,
    text: CompactTextEncoder,
    perception: CompactPerception,
    refiner: DetailRefiner,
    planner: MotionPlanner | None = None,
) -> None:
    """Write an embedded-tier model; `config.json` comes last, so a folder with one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = dict(zip(FILES, (vae, transformer, text, perception, refiner), strict=True))
    if planner is not None:
        parts[PLANNER] = planner
    sums = {name: save_weights(part, folder / name, eight_bits=name in EIGHT_BITS) for name, part in parts.items()}
    described = {
        "format": FORMAT,
        "tier": "mini",
        "world": asdict(config),
        "sampler": asdict(options),
        "vae": asdict(vae.config),
        "transformer": {k: v for k, v in dict(transformer.config).items() if not k.startswith("_")},
        "text": asdict(text.config),
        "perception": asdict(perception.config),
        "refiner": asdict(refiner.config),
        **({} if planner is None else {"motion": {k: v for k, v in asdict(planner.config).items() if k != "vocabulary"}}),
        "sha256": sums,
    }
    temporary = folder / "config.json.partial"
    temporary.write_text(json.dumps(described, indent=1) + "\n")
    os.replace(temporary, folder / "config.json")


def load_mini(folder: Path, device: str = "cpu") -> tuple[ClipGenerator, CompactPerception, MiniConfig]:
    """Generator, perceiver and config of an embedded-tier folder, checked file by file.

    Raises:
        CheckpointError: a file is missing, truncated or altered, a tensor missing, extra or misshapen; it says which.
    """
    described: dict[str, Any] = verify_folder(folder)
    if described.get("format") not in READS or described.get("tier") != "mini":
        raise CheckpointError(
            f"{folder}/config.json is of format {described.get('format')!r}, tier {described.get('tier')!r}; this version reads "
            f"formats {' and '.join(map(str, READS))}, tier 'mini': update spatia or take another folder"
        )
    try:
        config = MiniConfig(**described["world"])
        options = SamplerOptions(**described["sampler"])
        vae = CompactVideoVAE(CompactVAEConfig(**{"between": 32, "align_blocks": 0, "sampling": "bilinear", **described["vae"]}))
        transformer = SpatiaTransformer.from_settings(described["transformer"])
        text = CompactTextEncoder(CompactTextConfig(**described["text"]))
        perception = CompactPerception(CompactPerceptionConfig(**described["perception"]))
        refiner = DetailRefiner(RefinerConfig(**described["refiner"]))
        if missing := set(FILES) - set(described["sha256"]):
            raise KeyError(f"sha256 of {', '.join(sorted(missing))}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}/config.json lacks, misnames or misstates a setting ({error}): take the folder's original config.json"
        ) from error
    parts: tuple[Any, ...] = (vae, transformer, text, perception, refiner)
    for name, part in zip(FILES, parts, strict=True):
        load_weights(part, folder / name)
        part.to(device).eval().requires_grad_(False)
    detail = [transformer.detail] if transformer.config.detail_width else []
    for convolutional in (vae, perception, refiner, *detail):
        convolutional.to(convolution_dtype(device))
    return ClipGenerator(vae, transformer, text, options, refiner), perception, config


def load_planner(folder: Path, device: str = "cpu") -> MotionPlanner | None:
    """The planner of an embedded-tier folder that `load_mini` has checked; None where it has none.

    Raises:
        CheckpointError: its settings are odd, its file is missing, or a tensor in it missing, extra or misshapen.
    """
    described = json.loads((folder / "config.json").read_text())
    if "motion" not in described:
        return None
    try:
        planner = MotionPlanner(MotionConfig(described["text"]["vocabulary"], **described["motion"]))  # it reads the same words
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{folder}/config.json misnames or misstates a setting of "motion" ({error}): take the folder\'s original config.json'
        ) from error
    load_weights(planner, folder / PLANNER)
    return planner.to(device).eval().requires_grad_(False)


__all__ = ["EMBEDDED", "load_mini", "load_planner", "resolve", "save_mini"]
