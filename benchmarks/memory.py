"""Speed and quality of the memory: fuse, project, map and look up, on walks through ground-truth worlds at 128 x 128.

    python benchmarks/memory.py [--worlds 4] [--clips 8] [--threads 2] [--noise 0.0] [--json]

`--noise` is the standard deviation of a smooth relative error put on every frame's depth. PSNR is that of the raw projection on covered,
static pixels of frames that were not seen yet. Times are medians in milliseconds: wall-clock, and `_cpu` of the calling thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "model")]
FIRST_SEED = 1_500_000
Value = TypeVar("Value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2, help="that project and torch may use")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    result = measure(given.worlds, given.clips, given.threads, given.noise)
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28s} {value:10.3f}")


def measure(worlds: int, clips: int, threads: int, noise: float) -> dict[str, float]:
    import numpy as np
    import torch

    from spatia_model.geometry.camera import camera_from_fov, unproject
    from spatia_model.memory.consolidation import consolidate
    from spatia_model.memory.mapping import MappingConfig, map_clip
    from spatia_model.memory.point_memory import PointMemory
    from spatia_model.memory.references import KeyframeBank, retrieve, visible_surface
    from spatia_model.types import Perception
    from spatia_model.worlds import World
    from spatia_model.worlds.trajectories import sample_path

    torch.set_num_threads(threads)
    path_only = MappingConfig(tracking="path")
    camera = camera_from_fov(math.radians(75), 128, 128)
    focal = float(camera.K[0, 0])
    times: dict[str, list[float]] = defaultdict(list)
    quality: dict[str, list[float]] = defaultdict(list)

    def part(whole: Perception, frames: slice) -> Perception:
        return Perception(whole.depth[frames], whole.confidence[frames], whole.dynamic[frames])

    def timed(name: str, call: Callable[[], Value]) -> Value:
        wall, cpu = time.perf_counter(), time.thread_time()
        out = call()
        times[f"{name}_cpu_ms"].append(1e3 * (time.thread_time() - cpu))
        times[f"{name}_ms"].append(1e3 * (time.perf_counter() - wall))
        return out

    for i in range(worlds):
        seed = FIRST_SEED + i
        world, generator = World.generate(seed), torch.Generator().manual_seed(seed)
        T = sample_path(world, np.random.default_rng(seed), clips)
        truth = world.render(T, camera, torch.arange(len(T)) / 8)
        error = torch.nn.functional.interpolate(torch.randn(len(T), 1, 8, 8, generator=generator), size=128, mode="bicubic")[:, 0]
        depth = truth.depth * (1 + noise * error)

        perceived = Perception(depth, torch.ones_like(depth), truth.dynamic.float())
        first = slice(0, 1)
        memory, _ = map_clip(PointMemory.empty(0.03), truth.rgb[first], T[first], camera, part(perceived, first), None, 0, path_only)
        bank = KeyframeBank()
        for clip in range(clips):
            frames = slice(1 + 8 * clip, 9 + 8 * clip)
            path, rgb = T[frames], truth.rgb[frames]
            seen = timed("project_8_frames_all_threads", lambda m=memory, p=path: m.project(p, camera, threads=threads))
            timed("project_8_frames_1_thread", lambda m=memory, p=path: m.project(p, camera))
            use = seen.mask & ~truth.dynamic[frames]
            if bool(use.any()) and clip >= 2:
                squared = (seen.rgb.float() - rgb.float())[use].square().mean()
                quality["psnr_covered"].append(float(10 * torch.log10(255**2 / squared)))
                far = ((seen.depth - truth.depth[frames]).abs() > 0.1 * truth.depth[frames]) & use & (truth.depth[frames] < 40)
                quality["wrong_surface"].append(float(far.sum() / use.sum()))
                quality["coverage"].append(seen.coverage)
            visible = timed("visible_surface", lambda m=memory, s=seen: visible_surface(m, s))
            timed("retrieve_3", lambda b=bank, v=visible: retrieve(b, v, 3))
            bank = timed("keyframe_add", lambda b=bank, r=rgb, p=path, v=visible: b.add(r[-1], p[-1], v))
            points = unproject(depth[frames], path, camera).reshape(-1, 3)
            size, sure = depth[frames].reshape(-1) / focal, torch.ones(len(points))
            timed("fuse_8_frames", lambda m=memory, x=points, r=rgb, c=sure, k=clip, f=size: m.fuse(x, r.reshape(-1, 3), c, k, f))
            half = depth[frames][::2]
            timed("carve_4_frames", lambda m=memory, d=half, p=path, k=clip: m.carve(d, torch.ones_like(d), p[::2], camera, k))
            timed("consolidate_2_frames", lambda m=memory, p=path, k=clip: consolidate(m, p[::4], camera, 0.06, k))
            arguments = (rgb, path, camera, part(perceived, frames), seen, clip + 1)
            timed("map_clip_with_odometry", lambda m=memory, a=arguments: map_clip(m, *a, MappingConfig()))
            memory, _ = timed("map_clip_path_only", lambda m=memory, a=arguments: map_clip(m, *a, path_only))
        near = (memory.positions[:, None] - T[::8, :3, 3].float()[None]).norm(dim=-1).amin(1) < 40
        away = world.static_distance(memory.positions[near])
        quality["ghost_rate"].append(float((away > 2 * memory.voxel_size).float().mean()))
        quality["ghost_rate_own_voxel"].append(float((away > 2 * memory.radii[near]).float().mean()))
        quality["points"].append(len(memory))
    out = {name: statistics.median(values) for name, values in times.items()}
    out |= {name: statistics.fmean(values) for name, values in quality.items() if values}
    return {name: round(value, 4) for name, value in out.items()}


if __name__ == "__main__":
    main()
