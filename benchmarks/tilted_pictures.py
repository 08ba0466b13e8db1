"""First pictures of cameras that look up or down: how well the embedded perceiver guesses by how much, and what that is worth.

    python benchmarks/tilted_pictures.py
    python benchmarks/tilted_pictures.py --worlds 100 --seed 1000600 --json

From every world one picture, as first pictures are but pitched by another -25 to 12 degrees. Figures, over pictures:

    pitch_error     root of the mean squared error of the guess, degrees; pitch_error_level: of taking every camera for level
    abs_rel_told    mean relative error of depth, on still pixels nearer than 45 m, when the pitch is given
    abs_rel         when it is guessed (which is what happens to pictures without a pose)
    abs_rel_level   when the camera is taken for level
"""

from __future__ import annotations

import argparse
import json
import math
import sys

import numpy as np
import torch

from spatia_model.geometry import se3
from spatia_model.perception import CompactPerception
from spatia_model.world_model import WorldModel
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import pose_from, yaw_pitch_roll

FAR = 45.0  # metres; beyond is sky
LOW, HIGH = -0.45, 0.2  # radians


def measure(model: str, worlds: int, seed: int) -> dict[str, float]:
    world_model = WorldModel.from_pretrained(model)
    perceiver, camera = world_model.perceiver, world_model.camera
    if not isinstance(perceiver, CompactPerception):
        raise ValueError(f"--model {model}: its perceiver guesses no pitch; take an embedded one")
    pitches: list[tuple[float, float]] = []
    errors: dict[str, list[float]] = {"abs_rel_told": [], "abs_rel": [], "abs_rel_level": []}
    for number in range(seed, seed + worlds):
        world, rng = World.generate(number), np.random.default_rng([number, 41])
        pose = World.start_pose(world, rng) @ pose_from(0.0, 0.0, 0.0, 0.0, float(rng.uniform(LOW, HIGH)), 0.0)
        truth = world.render(pose[None], camera, torch.zeros(1))
        guess = perceiver.pitch_of(truth.rgb, camera)
        pitches.append((yaw_pitch_roll(pose)[1], guess))
        near = (truth.depth[0] < FAR) & ~truth.dynamic[0]
        for name, pitch in zip(errors, (*pitches[-1], 0.0), strict=True):
            held = se3.exp(torch.tensor([[0, 0, 0, pitch, 0, 0]], dtype=torch.float64))
            off = (perceiver.perceive(truth.rgb, held, camera).depth[0] / truth.depth[0] - 1).abs()
            errors[name].append(float(off[near].mean()))
        if sys.stderr.isatty():
            print(f"\rworld {number - seed + 1}/{worlds}", end="", file=sys.stderr, flush=True)
    true, guessed = np.array(pitches).T
    return {
        "pictures": worlds,
        "pitch_error": round(math.degrees(float(np.sqrt(np.mean((guessed - true) ** 2)))), 1),
        "pitch_error_level": round(math.degrees(float(np.sqrt(np.mean(true**2)))), 1),
        **{name: round(float(np.nanmean(values)), 3) for name, values in errors.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spatia-mini")
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=2_000_600)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(args.model, args.worlds, args.seed)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
