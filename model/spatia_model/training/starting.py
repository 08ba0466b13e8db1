"""Beginning with earlier weights: those of another run's checkpoint, or of a model's folder such as the embedded one."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import torch
from torch import nn

from spatia_model.generator.checkpoint import read_tensors

# Which file of a model's folder a stage trains, and what its names begin with in the stage's checkpoint.
PARTS = {
    "vae": {"vae": ""},
    "redraw": {"vae": ""},
    "decoder": {"vae": "vae."},
    "perception": {"perception": ""},
    "first": {"perception": ""},
    "again": {"perception": ""},
    "denoiser": {"transformer": "transformer.", "text": "text."},
    "sharpen": {"transformer": "generator.transformer.", "text": "generator.text."},
    "refiner": {"refiner": "refiner."},
    "motion": {"motion": ""},
}


def start_from(path: Path, model: nn.Module, name: str) -> None:
    """Give `model`, of stage `name`, earlier weights, as far as they have the names and shapes of its own: these may have changed since.

    `path` is a checkpoint, or the folder of an embedded-tier model. Rows of a table of words go with the words.
    """
    try:
        earlier = _of_folder(path, model, name) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)["average"]
        own = model.state_dict()
        fitting = {key: value for key, value in earlier.items() if key in own and own[key].shape == value.shape}
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} holds no weights that stage {name} could start from ({error})") from error
    if not fitting:
        raise ValueError(f"{path} holds no weights that stage {name} could start from: none has the name and shape of one of its own")
    model.load_state_dict({**own, **fitting})
    if len(fitting) < len(own):
        print(f"{name}: {len(fitting)} of {len(own)} tensors start from {path}, the others from nothing", file=sys.stderr, flush=True)


def _of_folder(folder: Path, model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    weights = {}
    for part, prefix in PARTS[name].items():
        weights |= {prefix + key: value.float() for key, value in read_tensors(folder / f"{part}.safetensors").items()}
    if name == "first":  # what knows all but first pictures knows more than nothing of these
        weights |= {key.removeprefix("first."): value for key, value in weights.items() if key.startswith("first.")}
    known = json.loads((folder / "config.json").read_text())["text"]["vocabulary"]
    for place, module in model.named_modules():
        words = getattr(getattr(module, "config", None), "vocabulary", None)
        key = f"{place}.embedding.weight".removeprefix(".")
        if words and key in weights:
            weights[key] = _told_by_words(weights[key], known, module.embedding.weight, words)  # type: ignore[union-attr]
    return weights


def _told_by_words(table: torch.Tensor, known: list[str], own: torch.Tensor, words: tuple[str, ...]) -> torch.Tensor:
    """`own` (1 + words, width) with the rows of `table` (1 + known, width) for the words that both have; row 0 is padding."""
    rows, at = own.detach().clone(), {word: i + 1 for i, word in enumerate(known)}
    rows[0] = table[0]
    for i, word in enumerate(words):
        if word in at:
            rows[i + 1] = table[at[word]]
    return rows
