"""Speed of the ground-truth worlds: frames per second at 128 x 128 and warm-up, cold and from the cache.

    python benchmarks/worlds.py [--worlds 12] [--frames 33] [--threads 2] [--device cpu] [--json]

Warm-up is measured in a fresh process with an empty kernel cache: from import to the first picture.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "model")]
FIRST_SEED = 2_500_000
COLD = f"""
import time
start = time.perf_counter()
import math, numpy as np, torch
from spatia_model.geometry.camera import camera_from_fov
from spatia_model.worlds import World
world = World.generate({FIRST_SEED})
pose = world.start_pose(np.random.default_rng(0))
world.render(pose[None], camera_from_fov(math.radians(75), 128, 128), torch.zeros(1))
print(time.perf_counter() - start)
"""


def warm_up(cache: str) -> float:
    """Seconds from the first import to the first picture in a new process that keeps its kernels in `cache`."""
    env = {**os.environ, "WARP_CACHE_PATH": cache, "PYTHONPATH": str(ROOT / "model")}
    out = subprocess.run([sys.executable, "-c", COLD], env=env, capture_output=True, text=True, check=True).stdout
    return float(out.strip().splitlines()[-1])


def measure(worlds: int, frames: int, threads: int, device: str) -> dict[str, float]:
    import numpy as np
    import torch

    from spatia_model.geometry.camera import camera_from_fov
    from spatia_model.worlds import World
    from spatia_model.worlds.trajectories import sample_path

    camera = camera_from_fov(math.radians(75), 128, 128)
    clock = time.perf_counter
    spent = {"generate": 0.0, "path": 0.0, "render": 0.0, "render_cpu": 0.0, "describe": 0.0}
    for i in range(worlds + 1):
        start = clock()
        world = World.generate(FIRST_SEED + i)
        made = clock()
        path = sample_path(world, np.random.default_rng(i), math.ceil((frames - 1) / 8))[:frames]
        walked = clock()
        cpu = time.process_time()
        world.render(path, camera, torch.arange(len(path)) / 8, threads=threads, device=device)
        cpu = time.process_time() - cpu
        drawn = clock()
        world.describe(path[:9], camera, torch.arange(len(path[:9])) / 8)
        told = clock()
        if i > 0:  # the first one loads the kernels
            for key, value in zip(spent, (made - start, walked - made, drawn - walked, cpu, told - drawn), strict=True):
                spent[key] += value
    return {
        "frames_per_second": worlds * frames / spent["render"],
        "frames_per_cpu_second": worlds * frames / max(spent["render_cpu"], 1e-9),
        "generate_ms": 1e3 * spent["generate"] / worlds,
        "path_ms": 1e3 * spent["path"] / worlds,
        "describe_ms": 1e3 * spent["describe"] / worlds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        result = {"warm_up_cold_s": warm_up(cache), "warm_up_cached_s": warm_up(cache)}
    result.update(measure(args.worlds, args.frames, args.threads, args.device))
    if args.json:
        print(json.dumps({k: round(v, 3) for k, v in result.items()}))
    else:
        for key, value in result.items():
            print(f"{key:24s} {value:9.2f}")


if __name__ == "__main__":
    main()
