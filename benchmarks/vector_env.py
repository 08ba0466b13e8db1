"""Frames per second of N worlds stepped together (`gym.make_vec`) and one after the other, side by side in one run.

    python benchmarks/vector_env.py [--worlds 8] [--rounds 4] [--threads 2] [--device auto] [--json]

Each round steps the same worlds by the same actions both ways, in turns, so that both meet the same machine. `ratio` is that of the
medians, `ratio_of_best` that of each way's quickest round: where other programs take turns on the cores, the quickest rounds are those
they disturbed least. It also says how many pixels differ between the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch

from spatia_env import SpatiaVectorEnv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of every world, both ways (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="spatia-mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    together = cast(SpatiaVectorEnv, gym.make_vec("SpatiaNav-v0", num_envs=args.worlds, model=args.model, device=args.device))
    alone: list[gym.Env[Any, Any]] = [gym.make("SpatiaNav-v0", model=together.envs[0].world) for _ in range(args.worlds)]
    together.reset(seed=args.seed)
    for i, env in enumerate(alone):
        env.reset(seed=args.seed + i)
    rng = np.random.default_rng(args.seed)
    seconds: dict[str, list[float]] = {"together": [], "alone": []}
    differing: list[float] = []
    for turn in range(args.warmup + args.rounds):
        actions = rng.integers(0, 3, args.worlds)
        started = time.perf_counter()
        batch = together.step(actions)[0]
        middle = time.perf_counter()
        single = np.stack([env.step(action)[0] for env, action in zip(alone, actions, strict=True)])
        ended = time.perf_counter()
        if turn >= args.warmup:
            seconds["together"].append(middle - started)
            seconds["alone"].append(ended - middle)
        differing.append(float((batch != single).mean()))
        print(f"turn {turn + 1}: together {middle - started:.2f} s, alone {ended - middle:.2f} s", file=sys.stderr)
    frames = args.worlds * together.envs[0].frames_per_clip
    rates = {way: frames / statistics.median(taken) for way, taken in seconds.items()}
    best = {way: frames / min(taken) for way, taken in seconds.items()}
    figures = {
        "frames_per_second_together": rates["together"],
        "frames_per_second_one_by_one": rates["alone"],
        "ratio": rates["together"] / rates["alone"],
        "best_together": best["together"],
        "best_one_by_one": best["alone"],
        "ratio_of_best": best["together"] / best["alone"],
        "share_of_differing_values": max(differing),
        "worlds": args.worlds,
        "rounds": args.rounds,
        "threads": args.threads,
        "device": str(getattr(getattr(together.envs[0].world.generator, "transformer", None), "device", "cpu")),
    }
    print(
        json.dumps(figures)
        if args.json
        else "\n".join(f"{k:32} {v:.4g}" if isinstance(v, float) else f"{k:32} {v}" for k, v in figures.items())
    )


if __name__ == "__main__":
    main()
