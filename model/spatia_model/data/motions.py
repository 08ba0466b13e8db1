"""What the motion planner learns from: things before a camera, a text, and the way they go (`generator.motion`).

Rows come from procedural worlds: movers that go as their seed has it, the other way, or not at all, seen at the start of a clip; and
things that never move, for what a picture calls a mover may be none. One safetensors file holds the rows of some worlds: `shade` (N, 3)
0..255, `spread` (N,) metres, `place` (N, 3), `past` (N, 3, 3) and `way` (N, T, 3) metres in level axes; its metadata holds the captions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from spatia_model.config import FRAME_RATE, MiniConfig, mini_camera
from spatia_model.data.procedural import run_jobs, write_atomic
from spatia_model.generator.motion import level
from spatia_model.memory.entities import PAST, find
from spatia_model.types import Camera
from spatia_model.worlds import World
from spatia_model.worlds.watching import inhabited, stands
from spatia_model.worlds.world import MOVING

STANDS, TIMES = 3, 4  # cameras of a world, and clips before each
WORLDS_PER_FILE = 25
LEAST_SEEN = 24  # pixels


def make_motions(directory: Path, seeds: range, config: MiniConfig | None = None, processes: int = 1) -> None:
    """Write the rows of the worlds of `seeds` to `directory`; files that exist are kept, so an interrupted run goes on."""
    directory.mkdir(parents=True, exist_ok=True)
    starts = range(seeds.start, seeds.stop, WORLDS_PER_FILE)
    jobs = [(range(first, min(first + WORLDS_PER_FILE, seeds.stop)), config or MiniConfig(), directory) for first in starts]
    run_jobs(_make, jobs, processes, f"motions in {directory.name}, {WORLDS_PER_FILE} worlds a file")


def _make(job: tuple[range, MiniConfig, Path]) -> None:
    seeds, config, directory = job
    torch.set_num_threads(1)
    path = directory / f"{seeds.start:07d}.safetensors"
    if path.exists():
        return
    rows, texts = [], []
    for seed in seeds:
        for row, text in world_rows(seed, config):
            rows.append(row)
            texts.append(text)
    write_atomic(path, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, {"texts": json.dumps(texts)})


def world_rows(seed: int, config: MiniConfig) -> list[tuple[dict[str, torch.Tensor], str]]:
    """Rows of one world, each with its clip's caption."""
    world, rng, camera = inhabited(seed), np.random.default_rng([seed, 31]), mini_camera(config)
    first = torch.arange(1 + config.frames_per_clip, dtype=torch.float64) / FRAME_RATE
    found = []
    for count, (_, pose) in enumerate(stands(world, rng, first[::4], 60, 1.0, 4.5, 0.6)):
        for _ in range(TIMES):
            told = world
            for index in range(len(world.movers)):
                told = told.with_motion(index, int(rng.choice([1, -1, 0], p=[0.45, 0.45, 0.1])))
            times = first + float(rng.integers(0, 48) if rng.random() < 0.8 else 0)
            found += clip_rows(told, pose, camera, times, rng)
        if count + 1 == STANDS:
            break
    return found


def clip_rows(
    world: World, pose: torch.Tensor, camera: Camera, times: torch.Tensor, rng: np.random.Generator
) -> list[tuple[dict[str, torch.Tensor], str]]:
    """Every mover in view when a clip begins, and one thing that never moves."""
    truth = world.render(pose[None], camera, times[:1])
    seen = world.identities(pose[None], camera, times[:1])[0]
    text = world.describe(pose.expand(len(times), 4, 4), camera, times)
    areas = {int(k): int((seen == k).sum()) for k in seen.unique()}
    wanted = [k for k in areas if k >= MOVING and areas[k] >= LEAST_SEEN]
    still = [k for k in areas if 0 <= k < MOVING and LEAST_SEEN <= areas[k] <= 2000]
    if still:
        wanted.append(int(rng.choice(still)))
    R_level_world = level(pose)
    rows = []
    for k in wanted:
        things = find(truth.rgb[0], truth.depth[0], seen == k, pose, camera)
        if not len(things):
            continue
        way, past = torch.zeros(len(times) - 1, 3), torch.zeros(len(PAST), 3)
        if k >= MOVING:
            mover = world.movers[k - MOVING]
            earlier = times[0] - torch.tensor(PAST, dtype=torch.float64) / FRAME_RATE
            here = mover.position(times[:1]).double()
            way = ((mover.position(times[1:]).double() - here) @ R_level_world.T).float()
            past = ((mover.position(earlier).double() - here) @ R_level_world.T).float()
        place = (things.centres[-1].double() - pose[:3, 3]) @ R_level_world.T
        row = {"shade": things.shades[-1], "spread": things.spreads[-1], "place": place.float(), "past": past, "way": way}
        rows.append((row, text))
    return rows


class MotionFolder:
    """All rows of a folder in memory, the captions as texts."""

    def __init__(self, directory: Path):
        files = sorted(Path(directory).glob("*.safetensors"))
        if not files:
            raise ValueError(f"{directory} holds no motions: make them first (spatia train mini --stage motions)")
        parts, self.texts = [], []
        for file in files:
            with safe_open(file, framework="pt") as opened:
                parts.append({name: opened.get_tensor(name) for name in ("shade", "spread", "place", "past", "way")})
                self.texts += json.loads(opened.metadata()["texts"])
        self.rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def __len__(self) -> int:
        return len(self.texts)
