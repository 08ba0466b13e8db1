"""Recording: episodes of any env as a Minari or LeRobot dataset, written to disk while they happen.

    env = RecordEpisodes(gym.make("Spatia-v0"), MinariWriter("walks-v0"))

`spatia rollout` writes with the same classes. The writers' libraries load on first use: ``pip install "spatia[rollouts]"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatia_env.recording.face import EnvFace, EpisodeSummary
    from spatia_env.recording.folder import DatasetWriter, EpisodeSink
    from spatia_env.recording.lerobot_writer import LeRobotWriter
    from spatia_env.recording.minari_writer import MinariWriter
    from spatia_env.recording.wrapper import RecordEpisodes

_PUBLIC = {
    "RecordEpisodes": "wrapper",
    "MinariWriter": "minari_writer",
    "LeRobotWriter": "lerobot_writer",
    "DatasetWriter": "folder",
    "EpisodeSink": "folder",
    "EnvFace": "face",
    "EpisodeSummary": "face",
}
__all__ = ["DatasetWriter", "EnvFace", "EpisodeSink", "EpisodeSummary", "LeRobotWriter", "MinariWriter", "RecordEpisodes"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"spatia_env.recording.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
