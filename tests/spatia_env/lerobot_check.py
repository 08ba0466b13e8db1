"""Run by a Python with the package lerobot: ``python lerobot_check.py DATASET`` opens it, reads every row and picture, and prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.compute_stats import aggregate_stats  # type: ignore[import-not-found]
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]
from lerobot.datasets.utils import load_nested_dataset, unflatten_dict  # type: ignore[import-not-found]

root = Path(sys.argv[1])
dataset = LeRobotDataset("local/check", root=root)
actions = []
for number in range(len(dataset)):
    row = dataset[number]
    assert row["index"] == number and row["observation.image"].shape[0] == 3 and isinstance(row["task"], str)
    actions.append(row["action"].tolist())

# A window over time, as policies are trained with, of one episode.
window = {"observation.image": [-1 / dataset.fps, 0], "action": [0, 1 / dataset.fps]}
part = LeRobotDataset("local/check", root=root, episodes=[1], delta_timestamps=window)
batch = next(iter(torch.utils.data.DataLoader(part, batch_size=2)))
assert batch["observation.image"].shape[:2] == (2, 2) and batch["action"].shape == (2, 2, len(actions[0]))

per_episode = [
    unflatten_dict({key.removeprefix("stats/"): np.array(value) for key, value in row.items() if key.startswith("stats/")})
    for row in load_nested_dataset(root / "meta" / "episodes")
]
merged = aggregate_stats(per_episode)
agree = all(
    np.allclose(np.asarray(value, float), np.asarray(dataset.meta.stats[key][name], float))
    for key, found in merged.items()
    for name, value in found.items()
)
print(json.dumps({"episodes": dataset.num_episodes, "frames": len(dataset), "actions": actions, "statistics agree": agree}))
