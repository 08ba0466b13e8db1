"""Loop closure: walk away, come back the same way, and print how alike the place is.

    python agents/loop_closure.py --clips 6
    python agents/loop_closure.py --image yours.jpg --memory off

A world that remembers shows the first view again; one that does not shows another place. Two figures are printed, both
against the first picture: PSNR in dB (higher is more alike; above 28 the eye finds it hard to tell) and SSIM (1 is equal).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from spatia_env import psnr, ssim

# What the camera does on the way out, over and over: right, down, forward, pitch, yaw, roll as fractions of the limits.
OUTWARD = [(0, 0, 0, 0, 1, 0), (0, 0, 0.5, 0, 0.5, 0), (0, 0, 0.5, 0, -0.3, 0)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Spatia-v0", choices=("Spatia-v0", "SpatiaTruth-v0"))
    parser.add_argument("--image", default=None, help="the picture to start from (default: a bundled sample)")
    parser.add_argument("--clips", type=int, default=6, help="steps in all, half of them out and half back (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", choices=("on", "off"), default="on", help="Spatia-v0: whether the world may remember")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


class LoopClosure:
    """`clips` steps, half of them out and half back by the opposite motions in reverse order; then it stands still."""

    def __init__(self, env: gym.Env, seed: int = 0, clips: int = 6) -> None:
        if not isinstance(env.action_space, gym.spaces.Dict):
            raise ValueError(f"the action space is {env.action_space}; SpatiaNav-v0 cannot walk backwards, use Spatia-v0 or SpatiaTruth-v0")
        out = [np.array(OUTWARD[index % len(OUTWARD)], np.float32) for index in range(clips // 2)]
        self.motions = out + [-camera for camera in reversed(out)]

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        self.left = list(self.motions)

    def act(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        camera = self.left.pop(0) if self.left else np.zeros(6, np.float32)
        return {"camera": camera, "text": ""}


def main() -> int:
    args = parse_arguments()
    if args.clips < 2:
        print(f"loop_closure: error: --clips is {args.clips}; give at least 2, one out and one back", file=sys.stderr)
        return 1
    arguments = {"solid": False} if args.env == "SpatiaTruth-v0" else {"image": args.image, "memory": args.memory == "on"}
    env = gym.make(args.env, **arguments)
    agent = LoopClosure(env, args.seed, args.clips)
    first, info = env.reset(seed=args.seed)
    agent.reset(first, info)
    start = info["poses"][-1]
    last, farthest, knew = first, 0.0, []
    while agent.left:
        last, _, _, _, info = env.step(agent.act(last, info))
        farthest = max(farthest, distance(start, info["poses"][-1]))
        knew.append(info["coverage"])
    env.close()
    found = {
        "clips": 2 * (args.clips // 2),
        "memory": args.memory,
        "psnr": round(psnr(first, last), 2),
        "ssim": round(ssim(first, last), 4),
        "farthest_m": round(farthest, 2),
        "coverage_of_last_clip": round(knew[-1], 3),
        "pose_error_m": float(np.round(np.linalg.norm(info["poses"][-1][:3, 3] - start[:3, 3]), 9)),
    }
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{found['clips']} clips, up to {found['farthest_m']} m away and back, memory {found['memory']}")
        print(f"the first view again: PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f}")
    return 0


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Metres between two camera poses (4, 4)."""
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3]))


if __name__ == "__main__":
    sys.exit(main())
