"""What the tests of recordings and rollouts share: episodes walked or collected, and all that a dataset of them holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from spatia_env.recording import MinariWriter
from spatia_env.rollouts import EnvRequest, collect, missing

ID = "tests.spatia_env.fast_env:FastWorld-v0"
AGENTS = str(Path(__file__).with_name("fast_env.py"))
ROOT_PATHS = f"{Path(__file__).parents[2]}:{Path(__file__).parents[2] / 'model'}"


def walk(env: gym.Env, episodes: int, first_seed: int = 0) -> list[dict[str, Any]]:
    """Episodes with random actions; everything that was seen and done."""
    told = []
    for seed in range(first_seed, first_seed + episodes):
        rng = np.random.default_rng(seed)
        observation, info = env.reset(seed=seed)
        episode = {"observations": [observation], "infos": [info], "actions": [], "results": []}
        over = False
        while not over:
            action = {"camera": rng.uniform(-1, 1, 6).astype(np.float32), "text": "go on" if rng.random() < 0.5 else ""}
            observation, reward, terminated, truncated, info = env.step(action)
            episode["observations"].append(observation)
            episode["infos"].append(info)
            episode["actions"].append(action)
            episode["results"].append((reward, terminated, truncated))
            over = terminated or truncated
        told.append(episode)
    return told


def run(folder: Path, agent: type, request: EnvRequest, count: int, indices: Any = None, episodes: int = 7, seed: int = 5, **options: Any):
    """Collect into a Minari folder; returns the summaries in the order in which episodes ended."""
    writer = MinariWriter(folder)
    first = request.make()
    writer.open(request.face(first))
    worlds = request.worlds(count, first, bool(getattr(agent, "needs_world", False)))
    try:
        indices = missing(writer, episodes) if indices is None else indices
        return list(collect(worlds, agent, options, writer, indices, seed)), worlds
    finally:
        writer.publish()
        writer.close()
        worlds.close()


def command(out: Path, *more: str, agent: str = "Walker", episodes: int = 3) -> list[str]:
    return ["rollout", "--agent", f"{AGENTS}:{agent}", "--env", ID, "--episodes", str(episodes), "--out", str(out), *more]


def minari_contents(folder: Path) -> dict[str, str]:
    """Of a Minari dataset: episode to a digest of all that it holds."""
    import h5py

    found = {}
    for path in sorted((folder / "data" / "episodes").glob("episode_*.hdf5")):
        digest = hashlib.sha256()

        def take(name: str, item: Any, digest: Any = digest) -> None:
            digest.update(f"{name} {sorted((key, str(value)) for key, value in item.attrs.items())}".encode())
            if isinstance(item, h5py.Dataset):
                digest.update(np.asarray(item[()]).tobytes() if item.dtype.kind != "O" else b"|".join(item[()]))

        with h5py.File(path) as file:
            take("", file["episode"])
            file["episode"].visititems(take)
        found[path.stem] = digest.hexdigest()
    return found


def lerobot_contents(folder: Path) -> dict[str, Any]:
    """All that a LeRobot dataset says, whatever files it is in."""
    import pyarrow.parquet as pq

    info = json.loads((folder / "meta" / "info.json").read_text())
    data = [pq.read_table(path) for path in sorted((folder / "data").rglob("*.parquet"))]
    rows = [row for table in data for row in table.to_pylist()]
    episodes = [row for path in sorted((folder / "meta" / "episodes").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    kept = ("episode_index", "length", "tasks", "dataset_from_index", "dataset_to_index", "seed", "error", "rollout_index")
    pictures = [decoded(path) for path in sorted((folder / "videos").rglob("*.mp4"))]
    return {
        "counts": {key: info[key] for key in ("total_episodes", "total_frames", "total_tasks", "splits")},
        "rows": rows,
        "episodes": [{key: row[key] for key in kept} for row in episodes],
        "pictures": np.concatenate(pictures).tobytes(),
        "stats": {
            key: {name: np.round(np.asarray(value, float), 9).tolist() for name, value in found.items()}
            for key, found in stats_of(folder).items()
        },
    }


def stats_of(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "meta" / "stats.json").read_text())


def decoded(path: Path) -> np.ndarray:
    import imageio.v2 as imageio

    with imageio.get_reader(str(path), format="FFMPEG") as reader:  # type: ignore[arg-type]
        return np.stack([np.asarray(frame) for frame in reader])  # type: ignore[attr-defined]
