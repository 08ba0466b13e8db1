"""What the embedded perceiver makes of frames when the map knows most of what they show: depth on and off the map, and what moves.

    python benchmarks/seen_again.py
    python benchmarks/seen_again.py --worlds 40 --seed 1000500 --json

A camera walks through worlds; the map is made of the true depth of the true frames before each clip, and the perceiver is shown the clip's
true frames, an earlier frame, and what the map shows. Figures, over the frames that it looks at:

    abs_rel         mean over frames of the mean relative error of depth, on still pixels nearer than 45 m
    abs_rel_on      on pixels that the map shows; abs_rel_off: on the others
    abs_rel_prior   of the map's own depth, where it shows something
    coverage        share of the pixels that the map shows
    dynamic_iou     intersection over union of what is called moving and what moves, over all frames
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import torch

from spatia_model.evaluation.setting import frame_times, with_oracle
from spatia_model.world_model import WorldModel
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import sample_path

FAR = 45.0  # metres; beyond is sky


def measure(model: str, worlds: int, seed: int, clips: int) -> dict[str, float]:
    world_model = WorldModel.from_pretrained(model)
    config, camera = world_model.config, world_model.camera
    step, gap = config.frames_per_clip, config.motion_gap
    errors: dict[str, list[float]] = {"abs_rel": [], "abs_rel_on": [], "abs_rel_off": [], "abs_rel_prior": [], "coverage": []}
    both = either = 0
    for number in range(seed, seed + worlds):
        world = World.generate(number)
        path = sample_path(world, np.random.default_rng([number, 23]), clips, step)
        truth = world.render(path, camera, frame_times(len(path)))
        true_eyes, clock = with_oracle(world_model, world)
        state = true_eyes.begin(truth.rgb[0], seed=number, camera=camera, T_world_camera=path[0])
        for first in range(1, len(path), step):
            now = slice(first, first + step)
            shown = state.memory.project(path[now], camera)
            earlier = truth.rgb[[max(0, i - gap) for i in range(first, first + step)]]
            seen = world_model.perceiver.perceive(truth.rgb[now], path[now], camera, shown, earlier)
            for t in (seen.confidence.flatten(1).amax(1) > 0).nonzero()[:, 0].tolist():
                depth, moves = truth.depth[first + t], truth.dynamic[first + t]
                near = (depth < FAR) & ~moves
                off = (seen.depth[t] / depth - 1).abs()
                prior = (shown.depth[t] / depth - 1).abs()
                known = near & shown.mask[t]
                parts = {"abs_rel": off[near], "abs_rel_on": off[known], "abs_rel_off": off[near & ~known], "abs_rel_prior": prior[known]}
                for name, part in parts.items():
                    if len(part):
                        errors[name].append(float(part.mean()))
                errors["coverage"].append(float(shown.mask[t].float().mean()))
                called = seen.dynamic[t] > world_model.mapping.dynamic_threshold
                both, either = both + int((called & moves).sum()), either + int((called | moves).sum())
            clock.first = first
            state, _ = true_eyes.observe(state, truth.rgb[now], path[now])
        if sys.stderr.isatty():
            print(f"\rworld {number - seed + 1}/{worlds}", end="", file=sys.stderr, flush=True)
    means = {name: round(float(np.mean(values)), 4) for name, values in errors.items() if values}
    return {"frames": len(errors["coverage"]), **means, "dynamic_iou": round(both / max(either, 1), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spatia-mini")
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=2_000_400)
    parser.add_argument("--clips", type=int, default=4, help="of each walk")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with torch.inference_mode():
        figures = measure(args.model, args.worlds, args.seed, args.clips)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
