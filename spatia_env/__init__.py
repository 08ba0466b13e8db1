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
    from spatia_env.hub import make_env
    from spatia_env.nav_env import SpatiaNavEnv
    from spatia_env.tasks import Explore, FollowText, ReachView, ReturnHome, Task, make_task
    from spatia_env.tasks.explore import explored_area
    from spatia_env.truth import SpatiaTruthEnv
    from spatia_env.vector_env import SpatiaNavVectorEnv, SpatiaTruthVectorEnv, SpatiaVectorEnv
    from spatia_env.wrappers import DiscreteMotion, FrameByFrame

__version__ = "0.1.0"

_PUBLIC = {
    "SpatiaEnv": "spatia_env.env",
    "SpatiaNavEnv": "spatia_env.nav_env",
    "SpatiaTruthEnv": "spatia_env.truth",
    "SpatiaVectorEnv": "spatia_env.vector_env",
    "SpatiaNavVectorEnv": "spatia_env.vector_env",
    "SpatiaTruthVectorEnv": "spatia_env.vector_env",
    "Explore": "spatia_env.tasks",
    "ReachView": "spatia_env.tasks",
    "ReturnHome": "spatia_env.tasks",
    "FollowText": "spatia_env.tasks",
    "Task": "spatia_env.tasks",
    "make_task": "spatia_env.tasks",
    "explored_area": "spatia_env.tasks.explore",
    "make_env": "spatia_env.hub",
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
    "Explore",
    "FollowText",
    "FrameByFrame",
    "NavMotion",
    "ReachView",
    "ReturnHome",
    "SpatiaEnv",
    "SpatiaNavEnv",
    "SpatiaNavVectorEnv",
    "SpatiaTruthEnv",
    "SpatiaTruthVectorEnv",
    "SpatiaVectorEnv",
    "Task",
    "__version__",
    "explored_area",
    "make_env",
    "make_task",
    "psnr",
    "ssim",
]

for _id, _entry_point, _vector_entry_point in (
    ("Spatia-v0", "spatia_env.env:SpatiaEnv", "spatia_env.vector_env:SpatiaVectorEnv"),
    ("SpatiaNav-v0", "spatia_env.nav_env:SpatiaNavEnv", "spatia_env.vector_env:SpatiaNavVectorEnv"),
    ("SpatiaTruth-v0", "spatia_env.truth:SpatiaTruthEnv", "spatia_env.vector_env:SpatiaTruthVectorEnv"),
):
    if _id not in registry:
        register(id=_id, entry_point=_entry_point, vector_entry_point=_vector_entry_point)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
