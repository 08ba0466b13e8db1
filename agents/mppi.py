"""MPPI: plan by trying futures out in the world itself (model-predictive path integral control).

    python agents/mppi.py --env SpatiaTruth-v0 --task reach-view --steps 12
    python agents/mppi.py --env Spatia-v0 --image yours.jpg --task explore --steps 4 --samples 6
    spatia rollout --agent agents/mppi.py:MppiPlanner --env Spatia-v0 --task reach-view --episodes 2 --out outputs/mppi-v0

A world is a value: `snapshot()` keeps it, `restore(mark)` comes back to it. Before every step the planner disturbs its last plan `samples`
times with smooth noise, walks each disturbed plan from the same mark, adds up the task's rewards, and takes the mean of the disturbances
weighted by exp(return / temperature). (Williams et al., "Information theoretic MPC for model-based reinforcement learning", 2017.)

One decision costs samples * horizon steps of the world: with spatia-mini on two cores, about half a second each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import gymnasium as gym
import numpy as np

import spatia_env  # noqa: F401  (registers the envs)

FORWARD, YAW = 2, 4  # what is planned of the six camera motions
GUESS = (0.3, 0.0)  # of a step not planned yet: walk a little, straight on


class MppiPlanner:
    """See the module's description. Continuous motions only; needs an env with a task: without rewards all futures are equally good."""

    needs_world = True

    def __init__(
        self,
        env: gym.Env,
        seed: int = 0,
        horizon: int = 4,
        samples: int = 16,
        noise: float = 0.5,
        temperature: float = 0.1,
        discount: float = 0.97,
    ) -> None:
        if not isinstance(env.action_space, gym.spaces.Dict):
            raise ValueError(
                f"the action space is {env.action_space}; MPPI plans continuous motions, use Spatia-v0 or SpatiaTruth-v0 (or cem.py)"
            )
        if horizon < 1 or samples < 1 or not (noise > 0 and temperature > 0):
            raise ValueError(
                f"horizon {horizon}, samples {samples}, noise {noise}, temperature {temperature}: give at least 1 step and sample, and "
                "positive numbers"
            )
        self.world: Any = env.unwrapped
        self.rng = np.random.default_rng(seed)
        self.horizon, self.samples, self.noise, self.temperature, self.discount = horizon, samples, noise, temperature, discount
        self.imagined = 0  # steps of the world spent on planning

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        self.plan = np.tile(GUESS, (self.horizon, 1)).astype(np.float64)  # shares of walking and turning

    def act(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        mark = self.world.snapshot()
        disturbances = self.disturbances()
        plans = np.clip(self.plan + disturbances, -1, 1)
        returns = np.array([self.value(mark, plan) for plan in plans])
        self.world.restore(mark)
        weights = np.exp((returns - returns.max()) / self.temperature)
        self.plan = np.tensordot(weights / weights.sum(), plans, axes=1)
        action = self.action(self.plan[0])
        self.plan = np.concatenate([self.plan[1:], [GUESS]])
        return action

    def disturbances(self) -> np.ndarray:
        """(samples, horizon, 2): noise that changes slowly along the plan; the first is none, so the plan itself is among them."""
        white = self.rng.normal(0, self.noise, (self.samples, self.horizon, 2))
        for k in range(1, self.horizon):
            white[:, k] = 0.6 * white[:, k - 1] + 0.8 * white[:, k]
        white[0] = 0
        return white

    def value(self, mark: Any, plan: np.ndarray) -> float:
        """Discounted rewards of a plan (horizon, 2) carried out from `mark`."""
        self.world.restore(mark)
        total = 0.0
        for k, move in enumerate(plan):
            _, reward, terminated, truncated, _ = self.world.step(self.action(move))
            self.imagined += 1
            total += self.discount**k * float(reward)
            if terminated or truncated:
                break
        return total

    def action(self, move: np.ndarray) -> dict[str, Any]:
        camera = np.zeros(6, np.float32)
        camera[FORWARD], camera[YAW] = move
        return {"camera": camera, "text": ""}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Spatia-v0", choices=("Spatia-v0", "SpatiaTruth-v0"))
    parser.add_argument("--image", default=None, help="the picture to start from (default: a bundled sample)")
    parser.add_argument("--world", type=int, default=None, help="SpatiaTruth-v0: the world's seed (default: drawn from --seed)")
    parser.add_argument("--task", default="reach-view", choices=("reach-view", "return-home", "explore"))
    parser.add_argument("--steps", type=int, default=12, help="the most steps to take (default: %(default)s)")
    parser.add_argument("--horizon", type=int, default=4)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument(
        "--noise", type=float, default=0.5, help="of the disturbances, as a share of the motion limits (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.1, help="in units of reward (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    arguments: dict[str, Any] = {"world": args.world} if args.env == "SpatiaTruth-v0" else {"image": args.image}
    env = gym.make(args.env, task=args.task, **arguments)
    try:
        agent = MppiPlanner(env, args.seed, args.horizon, args.samples, args.noise, args.temperature)
    except ValueError as error:
        print(f"mppi: error: {error}", file=sys.stderr)
        return 1
    observation, info = env.reset(seed=args.seed)
    agent.reset(observation, info)
    total, steps = 0.0, 0
    for steps in range(1, args.steps + 1):
        observation, reward, terminated, truncated, info = env.step(agent.act(observation, info))
        total += float(reward)
        goal = (
            ""
            if "distance_to_goal" not in info
            else f", goal {info['distance_to_goal']:.2f} m {math.degrees(info['angle_to_goal']):.0f} deg"
        )
        print(f"step {steps}: reward {float(reward):+.3f}{goal}, {agent.imagined} steps imagined", file=sys.stderr)
        if terminated or truncated:
            break
    env.close()
    found = {
        "env": args.env,
        "task": args.task,
        "seed": args.seed,
        "steps": steps,
        "imagined_steps": agent.imagined,
        "return": round(total, 4),
        "is_success": bool(info.get("is_success", False)),
    }
    print(json.dumps(found) if args.json else f"return {total:.3f} after {steps} steps, success: {found['is_success']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
