"""Random walk: the smallest agent. It draws motions from the action space and saves what it sees.

    python agents/random_walk.py --steps 10 --out outputs/random_walk
    python agents/random_walk.py --env SpatiaNav-v0 --image yours.jpg

Only gymnasium and the public names of `spatia_env` are used, so this file is a place to start your own agent from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

import spatia_env  # noqa: F401  (registers the envs)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Spatia-v0", choices=("Spatia-v0", "SpatiaNav-v0", "SpatiaTruth-v0"))
    parser.add_argument("--image", default=None, help="the picture to start from (default: a bundled sample)")
    parser.add_argument("--text", default="", help="what happens in every clip (Spatia-v0)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="folder for one PNG per step and a GIF (default: nothing is saved)")
    return parser.parse_args()


def choose(env: gym.Env, rng: np.random.Generator, text: str) -> object:
    """A random action that mostly goes forward and turns, as a walker would."""
    if isinstance(env.action_space, gym.spaces.Discrete):
        return int(rng.choice([0, 0, 0, 1, 2]))
    camera = np.zeros(6, np.float32)
    camera[2] = rng.uniform(0.0, 1.0)  # forward
    camera[4] = rng.uniform(-1.0, 1.0)  # turn
    return {"camera": camera, "text": text}


def main() -> int:
    args = parse_arguments()
    arguments = {} if args.env == "SpatiaTruth-v0" else {"image": args.image}
    env = gym.make(args.env, render_mode="rgb_array", **arguments)
    rng = np.random.default_rng(args.seed)
    observation, info = env.reset(seed=args.seed)
    frames = [observation]
    total = 0.0
    for step in range(args.steps):
        observation, reward, terminated, truncated, info = env.step(choose(env, rng, args.text))
        frames.extend(info["frames"])
        total += float(reward)
        x, _, z = info["poses"][-1][:3, 3]
        print(f"step {step}: at ({x:+.2f}, {z:+.2f}) m, knew {info['coverage']:.0%} of the view, {info['memory_points']} points")
        if terminated or truncated:
            break
    env.close()
    print(f"return {total:.3f}")
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [Image.fromarray(frame) for frame in frames]
        for number, picture in enumerate(pictures[:: len(info["frames"])]):
            picture.save(folder / f"step_{number:03d}.png")
        pictures[0].save(folder / "walk.gif", save_all=True, append_images=pictures[1:], duration=125, loop=0)
        print(f"saved to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
