"""Perceivers by name: what a config says, and the perceiver it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from spatia_model.perception.composed import ComposedPerceiver
from spatia_model.perception.protocols import DynamicMasker, EntityNamer, GeometryPerceiver

GEOMETRY = ("mapanything",)
MASKS = ("none", "sam3", "referdino")
NAMERS = ("qwen3-vl", "keye-vl", "fixed")


@dataclass(frozen=True)
class PerceptionConfig:
    """Which models perceive, by name. Every `*_model` is a hub id or a folder; None takes the usual one.

    Args:
        geometry: "mapanything".
        masks: "sam3", "referdino", or "none": nothing moves unless a person's masks say so, as in the release.
        namer: "qwen3-vl", "keye-vl", or "fixed": look for `entities`.
        entities: names of what moves, for the namer "fixed".
        frame_rate: frames per second of the clips.
        reconstruction_rate: of these, how many a second are perceived and mapped (release: 4 of 24).
        namer_frames: how many frames of a clip the namer is shown.
        offload: keep models on the CPU while they are not at work.
        referdino_repo: checkout of ReferDINO.
    """

    geometry: str = "mapanything"
    masks: str = "sam3"
    namer: str = "qwen3-vl"
    geometry_model: str | None = None
    masks_model: str | None = None
    namer_model: str | None = None
    entities: tuple[str, ...] = ()
    frame_rate: float = 24.0
    reconstruction_rate: float = 4.0
    namer_frames: int = 4
    offload: bool = False
    referdino_repo: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entities", (self.entities,) if isinstance(self.entities, str) else tuple(self.entities))
        for name, known in (("geometry", GEOMETRY), ("masks", MASKS), ("namer", NAMERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}; known are {', '.join(repr(k) for k in known)}")
        for name in ("frame_rate", "reconstruction_rate"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} = {getattr(self, name)}; expected frames per second above 0")
        if self.namer == "fixed" and self.masks != "none" and not self.entities:
            raise ValueError("the namer 'fixed' looks for entities, and none are given: entities=('person', 'dog')")
        if self.namer_frames < 1:
            raise ValueError(f"namer_frames = {self.namer_frames}; expected at least 1")

    @property
    def every(self) -> int:
        """Every n-th frame is perceived and mapped; `MappingConfig(fuse_stride=...)` wants the same number."""
        return max(1, round(self.frame_rate / self.reconstruction_rate))


PRESETS: dict[str, PerceptionConfig] = {
    "release": PerceptionConfig(masks="none"),
    "paper": PerceptionConfig(masks="referdino", namer="keye-vl"),
    "today": PerceptionConfig(masks="sam3", namer="qwen3-vl"),
}


def perception_config(given: str | Mapping[str, Any] | PerceptionConfig) -> PerceptionConfig:
    """A config from a preset's name ("release", "paper", "today"), the fields of one (as JSON holds them), or itself.

    A mapping may name a "preset" to start from.
    """
    if isinstance(given, PerceptionConfig):
        return given
    if isinstance(given, str):
        if given not in PRESETS:
            raise ValueError(f"no perception preset {given!r}; known are {', '.join(PRESETS)}")
        return PRESETS[given]
    known = [field.name for field in fields(PerceptionConfig)]
    unknown = sorted(str(key) for key in given if key not in (*known, "preset"))
    if unknown:
        raise ValueError(f"the perception config holds {unknown}; known are {known} and 'preset'")
    base = perception_config(str(given["preset"])) if "preset" in given else PerceptionConfig()
    return PerceptionConfig(**{name: given.get(name, getattr(base, name)) for name in known})


def build_perceiver(
    config: str | Mapping[str, Any] | PerceptionConfig,
    device: str | torch.device = "cpu",
    *,
    geometry: GeometryPerceiver | None = None,
    masker: DynamicMasker | None = None,
) -> ComposedPerceiver:
    """Load what `config` names, on `device`. Parts given by hand (`geometry`, `masker`) are used in place of the config's.

    Raises:
        MissingPackageError: a package is not installed; gives the install line.
        ValueError: an unknown name, or weights that are not here.
    """
    config = perception_config(config)
    if geometry is None:
        geometry = _GEOMETRY[config.geometry](config, device)
    if masker is None:
        masker = _MASKS[config.masks](config, device)
    return ComposedPerceiver(geometry, masker, config.every)


def build_namer(config: PerceptionConfig, device: str | torch.device = "cpu") -> EntityNamer:
    """The namer that `config` names."""
    from spatia_model.perception import naming

    if config.namer == "fixed":
        return naming.FixedNames(config.entities)
    kind, usual = (naming.QwenNamer, naming.QWEN) if config.namer == "qwen3-vl" else (naming.KeyeNamer, naming.KEYE)
    return kind.from_pretrained(config.namer_model or usual, device, config.offload, config.namer_frames)


def _mapanything(config: PerceptionConfig, device: str | torch.device) -> GeometryPerceiver:
    from spatia_model.perception import mapanything

    return mapanything.MapAnythingPerceiver.from_pretrained(config.geometry_model or mapanything.MODEL, device, config.offload)


def _sam3(config: PerceptionConfig, device: str | torch.device) -> DynamicMasker:
    from spatia_model.perception import segmentation

    return segmentation.Sam3Masker.from_pretrained(
        build_namer(config, device), config.masks_model or segmentation.SAM3, device, config.offload
    )


def _referdino(config: PerceptionConfig, device: str | torch.device) -> DynamicMasker:
    from spatia_model.perception import segmentation

    return segmentation.ReferDinoMasker.from_pretrained(
        build_namer(config, device), config.masks_model or segmentation.REFERDINO, device, config.offload, config.referdino_repo
    )


_GEOMETRY: dict[str, Callable[[PerceptionConfig, str | torch.device], GeometryPerceiver]] = {"mapanything": _mapanything}
_MASKS: dict[str, Callable[[PerceptionConfig, str | torch.device], DynamicMasker | None]] = {
    "none": lambda config, device: None,
    "sam3": _sam3,
    "referdino": _referdino,
}
