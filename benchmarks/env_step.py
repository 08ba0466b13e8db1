"""Frames per second of `env.step` in steady state, everything included, and how flat it stays over a long episode.

    python benchmarks/env_step.py [--steps 40] [--long] [--threads 2] [--model spatia-mini] [--json]

`--long` walks 300 steps in one episode and compares the last 50 steps with steps 50 to 100 (time and process memory).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time

import gymnasium as gym
import numpy as np
import torch

import spatia_env  # noqa: F401  registers the ids


def walk(env: gym.Env, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds and peak resident MiB of each step of a random walk that turns more than it travels."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    seconds, memory = [], []
    for step in range(steps):
        camera = np.zeros(6, np.float32)
        camera[2], camera[4] = rng.uniform(-0.4, 0.4), rng.uniform(-1, 1)
        started = time.perf_counter()
        env.step({"camera": camera, "text": ""})
        seconds.append(time.perf_counter() - started)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        if step % 20 == 19:
            print(f"step {step + 1}/{steps}: {8 / statistics.median(seconds[-20:]):.1f} frames/s", file=sys.stderr)
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="spatia-mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    env = gym.make("Spatia-v0", model=args.model)
    frames = env.unwrapped.frames_per_clip  # type: ignore[attr-defined]
    seconds, memory = walk(env, 300 if args.long else args.steps, args.seed)
    steady = seconds[min(10, len(seconds) // 2) :]
    figures = {
        "frames_per_second": frames / statistics.median(steady),
        "seconds_per_step_median": statistics.median(steady),
        "seconds_per_step_max": max(steady),
        "steps": len(seconds),
        "threads": args.threads,
    }
    if args.long:
        figures["time_ratio_last50_vs_50to100"] = statistics.median(seconds[-50:]) / statistics.median(seconds[50:100])
        figures["peak_memory_growth_mib_after_100"] = memory[-1] - memory[99]
        figures["peak_memory_mib"] = memory[-1]
    print(json.dumps(figures) if args.json else "\n".join(f"{k:34} {v:.4g}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
