"""Depth, confidence and motion of frames: the protocols, the embedded network, the oracle, and adapters of large models.

Names load when first used: `spatia_model.perception.catalog` must be readable where torch is not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig
    from spatia_model.perception.composed import ComposedPerceiver
    from spatia_model.perception.oracle import OraclePerceiver
    from spatia_model.perception.protocols import DynamicMasker, EntityNamer, Geometry, GeometryPerceiver, Perceiver
    from spatia_model.perception.registry import PerceptionConfig, build_perceiver
    from spatia_model.perception.user_masks import UserMaskPerceiver, UserMasks, read_masks

_HOME = {
    "CompactPerception": "compact",
    "CompactPerceptionConfig": "compact",
    "ComposedPerceiver": "composed",
    "DynamicMasker": "protocols",
    "EntityNamer": "protocols",
    "Geometry": "protocols",
    "GeometryPerceiver": "protocols",
    "OraclePerceiver": "oracle",
    "Perceiver": "protocols",
    "PerceptionConfig": "registry",
    "UserMaskPerceiver": "user_masks",
    "UserMasks": "user_masks",
    "build_perceiver": "registry",
    "read_masks": "user_masks",
}

__all__ = [
    "CompactPerception",
    "CompactPerceptionConfig",
    "ComposedPerceiver",
    "DynamicMasker",
    "EntityNamer",
    "Geometry",
    "GeometryPerceiver",
    "OraclePerceiver",
    "Perceiver",
    "PerceptionConfig",
    "UserMaskPerceiver",
    "UserMasks",
    "build_perceiver",
    "read_masks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
