"""The dataset card: README.md of a recorded dataset."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

from spatia_env.recording.face import EpisodeSummary

_PACKAGES = ("torch", "numpy", "gymnasium", "minari", "h5py", "pyarrow")
_LISTED_ERRORS = 20

MINARI_USE = """```python
import os
import minari
os.environ["MINARI_DATASETS_PATH"] = "{parent}"  # the folder that this one lies in
dataset = minari.load_dataset("{name}")
episode = next(iter(dataset))
episode.observations  # uint8, one more than actions; lossless
episode.actions, episode.rewards, episode.infos["poses"]
list(dataset.storage.get_episode_metadata([0]))  # seed, success, error
```

`observations` and `infos` begin with what `reset` returned. `infos["frames"]` has every frame of a step's clip, `infos["poses"]` their
camera-to-world poses (OpenCV axes, metres)."""

LEROBOT_USE = """```python
from lerobot.datasets.lerobot_dataset import LeRobotDataset
dataset = LeRobotDataset("local/{name}", root="{parent}/{name}")
dataset[0]["observation.image"], dataset[0]["action"], dataset[0]["task"]
```

One row is one step of the env: what the agent saw, what it did, and what that led to (`next.reward`, `next.done`, `next.success`). The
observation after the last action is not in this format. `observation.state` is the camera's pose: position in metres and a quaternion
x, y, z, w (camera to world, OpenCV axes). Videos are lossy; the Minari format is not."""


def versions() -> dict[str, str]:
    """What is installed, of what a dataset depends on."""
    import spatia_env

    found = {"spatia": spatia_env.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def dataset_card(
    name: str,
    dataset_format: str,
    command: str,
    settings: dict[str, Any],
    spec: str | None,
    weights: dict[str, str],
    summaries: list[EpisodeSummary],
) -> str:
    """README.md of a dataset: what it holds, how to read it, and exactly how it was made.

    Args:
        name: of the folder.
        command: the line that made it.
        settings: as recorded in the folder.
        spec: of the env, as JSON; None where it cannot be written down.
        weights: file to SHA-256; empty for an env without weights.
        summaries: of the finished episodes.
    """
    failed = [summary for summary in summaries if summary.error is not None]
    judged = [summary for summary in summaries if summary.success is not None]
    steps = sum(summary.steps for summary in summaries)
    rows = [
        ("episodes", f"{len(summaries):,}"),
        ("steps", f"{steps:,}"),
        ("mean return", f"{sum(s.total_reward for s in summaries) / len(summaries):.4f}" if summaries else "-"),
        ("success", f"{sum(bool(s.success) for s in judged) / len(judged):.1%} of {len(judged):,}" if judged else "not judged"),
        ("closed by an error of the agent", f"{len(failed):,}"),
    ]
    lines = []
    if dataset_format == "lerobot":
        lines += ["---", "tags:", "- LeRobot", "task_categories:", "- robotics", "configs:"]
        lines += ["- config_name: default", "  data_files: data/*/*.parquet", "---", ""]
    use = (LEROBOT_USE if dataset_format == "lerobot" else MINARI_USE).format(name=name, parent="..")
    lines += [f"# {name}", "", f"Rollouts in a Spatia world, in the {dataset_format} format.", "", "| what | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows]
    lines += ["", "## Reading it", "", use, "", "## How it was made", "", "```bash", command, "```", ""]
    lines += ["The same command continues an interrupted run, and gives the same episodes: episode i depends on `seed + i` alone.", ""]
    lines += ["Settings:", "", "```json", json.dumps(settings, indent=1, ensure_ascii=False), "```", ""]
    lines += ["Env:", "", "```json", json.dumps(json.loads(spec), indent=1) if spec else "null", "```", ""]
    lines += ["| package | version |", "|---|---|", *(f"| {key} | {value} |" for key, value in versions().items()), ""]
    if weights:
        lines += ["| weights | SHA-256 |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in weights.items()), ""]
    if failed:
        lines += ["## Episodes that the agent's error closed", ""]
        lines += [f"- {summary.index} (seed {summary.seed}, {summary.steps} steps): {summary.error}" for summary in failed[:_LISTED_ERRORS]]
        lines += [f"- and {len(failed) - _LISTED_ERRORS:,} more"] if len(failed) > _LISTED_ERRORS else []
    return "\n".join(lines).rstrip() + "\n"
