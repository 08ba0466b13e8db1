"""Spatia as a Gymnasium environment: importing this package registers

* ``Spatia-v0``: walk through a world grown from one picture; continuous camera motion and text (`SpatiaEnv`),
* ``SpatiaNav-v0``: the same with six discrete motions (`SpatiaNavEnv`),
* ``SpatiaTruth-v0``: the same spaces, frames from a procedural ground-truth world (`SpatiaTruthEnv`).

The entry points are strings and the public names load on first use, so the import costs no torch and no open3d.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from spatia_env.actions import ContinuousMotion, NavMotion
    from spatia_env.compare import psnr, ssim
    from spatia_env.env import SpatiaEnv
    from spatia_env.nav_env import SpatiaNavEnv
    from spatia_env.truth import SpatiaTruthEnv
    from spatia_env.wrappers import DiscreteMotion, FrameByFrame

__version__ = "0.1.0"

_PUBLIC = {
    "SpatiaEnv": "spatia_env.env",
    "SpatiaNavEnv": "spatia_env.nav_env",
    "SpatiaTruthEnv": "spatia_env.truth",
    "ContinuousMotion": "spatia_env.actions",
    "NavMotion": "spatia_env.actions",
    "DiscreteMotion": "spatia_env.wrappers",
    "FrameByFrame": "spatia_env.wrappers",
    "psnr": "spatia_env.compare",
    "ssim": "spatia_env.compare",
}
__all__ = [
    "ContinuousMotion",
    "DiscreteMotion",
    "FrameByFrame",
    "NavMotion",
    "SpatiaEnv",
    "SpatiaNavEnv",
    "SpatiaTruthEnv",
    "__version__",
    "psnr",
    "ssim",
]

for _id, _entry_point in {
    "Spatia-v0": "spatia_env.env:SpatiaEnv",
    "SpatiaNav-v0": "spatia_env.nav_env:SpatiaNavEnv",
    "SpatiaTruth-v0": "spatia_env.truth:SpatiaTruthEnv",
}.items():
    if _id not in registry:
        register(id=_id, entry_point=_entry_point)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
