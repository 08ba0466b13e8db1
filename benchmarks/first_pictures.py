"""What the embedded perceiver makes of first pictures, with nothing to go by but their looks: depth, and what may move.

    python benchmarks/first_pictures.py
    python benchmarks/first_pictures.py --worlds 150 --seed 1000500 --json

From each world as many pictures as `--pictures` says. Figures:

    abs_rel         mean over pictures of the mean relative error of depth, on still pixels nearer than 45 m; abs_rel_median: their median
    movers_found    share of the moving things of 40 pixels or more of which over half is called moving
    false_things    connected patches of 12 pixels or more, per picture, that are called moving and are not (less than a fifth of them is)
    dynamic_iou     intersection over union of what is called moving and what moves, over all pictures
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from scipy import ndimage

from spatia_model.data.procedural import views
from spatia_model.world_model import WorldModel

FAR = 45.0  # metres; beyond is sky
BIG, SMALL = 40, 12  # pixels: of a thing that must be found, of a patch that counts as one found wrongly


def measure(model: str, worlds: int, seed: int, pictures: int) -> dict[str, float]:
    world = WorldModel.from_pretrained(model)
    errors, big, found, wrong, both, either = [], 0, 0, 0, 0, 0
    for number in range(seed, seed + worlds):
        shown, _ = views(number, pictures, world.config, anywhere=False)
        for rgb, depth, dynamic, pose in zip(*(shown[k] for k in ("rgb", "depth", "dynamic", "T_world_camera")), strict=True):
            seen = world.perceiver.perceive(rgb[None], pose[None], world.camera)
            near = (depth.float() < FAR) & ~dynamic
            if near.any():
                truth = depth.float()[near]
                errors.append(float(((seen.depth[0][near] - truth).abs() / truth).mean()))
            moves, called = dynamic.numpy(), seen.dynamic[0].numpy() > world.mapping.dynamic_threshold
            things = [thing for thing in _patches(moves) if thing.sum() >= BIG]
            big += len(things)
            found += sum((called & thing).sum() > thing.sum() / 2 for thing in things)
            wrong += sum(patch.sum() >= SMALL and (moves & patch).sum() < patch.sum() / 5 for patch in _patches(called))
            both += int((called & moves).sum())
            either += int((called | moves).sum())
        if sys.stderr.isatty():
            print(f"\rworld {number - seed + 1}/{worlds}", end="", file=sys.stderr, flush=True)
    return {
        "pictures": worlds * pictures,
        "abs_rel": round(float(np.mean(errors)), 3),
        "abs_rel_median": round(float(np.median(errors)), 3),
        "movers": big,
        "movers_found": round(int(found) / max(big, 1), 3),
        "false_things": round(int(wrong) / (worlds * pictures), 3),
        "dynamic_iou": round(both / max(either, 1), 3),
    }


def _patches(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask)  # type: ignore[misc]
    return [labels == k for k in range(1, count + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spatia-mini")
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=2_000_400)
    parser.add_argument("--pictures", type=int, default=3, help="of each world")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(args.model, args.worlds, args.seed, args.pictures)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
