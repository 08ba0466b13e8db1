"""Random walk: the smallest agent. It draws motions from the action space and saves what it sees.

    python agents/random_walk.py --steps 10 --out outputs/random_walk
    python agents/random_walk.py --env SpatiaNav-v0 --image yours.jpg
    spatia rollout --agent agents/random_walk.py:RandomWalk --episodes 20 --out outputs/walks-v0

Only gymnasium and the public names of `spatia_env` are used, so this file is a place to start your own agent from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

import spatia_env  # noqa: F401  (registers the envs)


class RandomWalk:
    """Mostly forward, with turns, as a walker would; `text` happens in every step of an env that takes text."""

    def __init__(self, env: gym.Env, seed: int = 0, text: str = "") -> None:
        self.actions, self.text = env.action_space, text
        self.rng = np.random.default_rng(seed)

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        """Nothing is remembered from step to step."""

    def act(self, observation: Any, info: dict[str, Any]) -> Any:
        if isinstance(self.actions, gym.spaces.Discrete):
            return int(self.rng.choice([0, 0, 0, 1, 2]))  # forward, turn left, turn right
        camera = np.zeros(6, np.float32)
        camera[2] = self.rng.uniform(0.0, 1.0)  # forward
        camera[4] = self.rng.uniform(-1.0, 1.0)  # turn
        return {"camera": camera, "text": self.text}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Spatia-v0", choices=("Spatia-v0", "SpatiaNav-v0", "SpatiaTruth-v0"))
    parser.add_argument("--image", default=None, help="the picture to start from (default: a bundled sample)")
    parser.add_argument("--text", default="", help="what happens in every clip (Spatia-v0)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="folder for one PNG per step and a GIF (default: nothing is saved)")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    arguments = {} if args.env == "SpatiaTruth-v0" else {"image": args.image}
    env = gym.make(args.env, render_mode="rgb_array", **arguments)
    agent = RandomWalk(env, args.seed, args.text)
    observation, info = env.reset(seed=args.seed)
    agent.reset(observation, info)
    frames = [observation]
    total = 0.0
    for step in range(args.steps):
        observation, reward, terminated, truncated, info = env.step(agent.act(observation, info))
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
