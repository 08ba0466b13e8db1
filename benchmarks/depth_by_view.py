"""How wrong the embedded perceiver's depth of a first picture is, by field of view, on procedural worlds whose depth is known.

    python benchmarks/depth_by_view.py
    python benchmarks/depth_by_view.py --worlds 32 --degrees 31 38 75 --json

Per field of view the median over worlds of the median relative error of a picture's pixels nearer than 30 m, with the true intrinsics
("true") and as if the picture showed the model's own field of view, depths scaled by the ratio of focal lengths ("canonical"); and the mean
error that is left after one factor per picture ("shape").
"""

from __future__ import annotations

import argparse
import json
import math
import statistics

import numpy as np
import torch

from spatia_model.geometry.camera import camera_from_fov
from spatia_model.world_model import WorldModel
from spatia_model.worlds.world import World

FAR = 30.0  # metres; beyond is sky, or as good as
LEAST = 0.3  # share of a picture that must be nearer


def measure(model: str, worlds: int, seed: int, degrees: list[float]) -> list[dict[str, float]]:
    world = WorldModel.from_pretrained(model)
    size, own = world.config.image_size, world.camera
    places = [World.generate(seed + i) for i in range(worlds)]
    starts = [place.start_pose(np.random.default_rng([place.seed, 0])) for place in places]
    rows = []
    for angle in degrees:
        camera = camera_from_fov(math.radians(angle), size, size)
        found: dict[str, list[float]] = {f"{kind}_{name}": [] for kind in ("true", "canonical") for name in ("error", "shape")}
        for place, pose in zip(places, starts, strict=True):
            seen = place.render(pose[None], camera, torch.zeros(1), supersample=2)
            near = seen.depth[0] < FAR
            if float(near.float().mean()) < LEAST:
                continue
            truth = seen.depth[0][near]
            for kind, assumed, scale in (("true", camera, 1.0), ("canonical", own, float(camera.K[0, 0] / own.K[0, 0]))):
                depth = world.perceiver.perceive(seen.rgb, pose[None], assumed).depth[0][near] * scale
                found[f"{kind}_error"].append(float(((depth - truth).abs() / truth).median()))
                fitted = depth * (truth / depth).median()
                found[f"{kind}_shape"].append(float(((fitted - truth).abs() / truth).mean()))
        medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
        rows.append({"degrees": angle, "pictures": len(found["true_error"]), **medians})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spatia-mini")
    parser.add_argument("--worlds", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2_000_300)
    parser.add_argument("--degrees", type=float, nargs="+", default=[31, 38, 50, 62, 75, 95])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = measure(args.model, args.worlds, args.seed, args.degrees)
    if args.json:
        print(json.dumps(rows))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:g}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
