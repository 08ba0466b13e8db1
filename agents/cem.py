"""CEM: plan by trying futures out in the world itself (cross-entropy method, model-predictive control).

    python agents/cem.py --env SpatiaTruth-v0 --task reach-view --steps 12
    python agents/cem.py --env Spatia-v0 --image yours.jpg --task explore --steps 4 --population 6
    spatia rollout --agent agents/cem.py:CemPlanner --env SpatiaNav-v0 --task reach-view --episodes 2 --out outputs/cem-v0

A world is a value: `snapshot()` keeps it, `restore(mark)` comes back to it. Before every step the planner draws `population` sequences of
`horizon` actions, walks each from the same mark, adds up the task's rewards, fits its distribution to the best `elites`, and does so again.
Then it takes the first action of the best sequence seen. Continuous motions are drawn from Gaussians over walking and turning, discrete
ones from a table of chances. (Rubinstein, "The cross-entropy method for combinatorial and continuous optimization", 1999.)

One decision costs population * horizon * iterations steps of the world: with spatia-mini on two cores, about half a second each.
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
LEAST_SPREAD = 0.1  # of the Gaussians, so that they keep looking
LEAST_CHANCE = 0.05  # of each discrete motion


class CemPlanner:
    """See the module's description. Needs an env with a task: without rewards all futures are equally good."""

    needs_world = True

    def __init__(
        self,
        env: gym.Env,
        seed: int = 0,
        horizon: int = 4,
        population: int = 8,
        elites: int = 3,
        iterations: int = 2,
        discount: float = 0.97,
    ) -> None:
        if not 1 <= elites <= population or horizon < 1 or iterations < 1:
            raise ValueError(
                f"horizon {horizon}, population {population}, elites {elites}, iterations {iterations}: give at least 1 of each, and no "
                "more elites than the population has"
            )
        self.world: Any = env.unwrapped
        self.rng = np.random.default_rng(seed)
        self.horizon, self.population, self.elites, self.iterations, self.discount = horizon, population, elites, iterations, discount
        self.choices = int(env.action_space.n) if isinstance(env.action_space, gym.spaces.Discrete) else 0
        self.imagined = 0  # steps of the world spent on planning

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        if self.choices:
            self.chances = np.full((self.horizon, self.choices), 1 / self.choices)
        else:
            self.mean, self.spread = np.tile([0.5, 0.0], (self.horizon, 1)), np.full((self.horizon, 2), 0.6)
        self.best: np.ndarray | None = None  # the last plan, less the step taken

    def act(self, observation: Any, info: dict[str, Any]) -> Any:
        mark = self.world.snapshot()
        plans: list[np.ndarray] = [] if self.best is None else [self.best]  # the last plan goes on unless a better one turns up
        values = [self.value(mark, plan) for plan in plans]
        for _ in range(self.iterations):
            drawn = [self.draw() for _ in range(self.population - len(plans) % self.population)]
            plans += drawn
            values += [self.value(mark, plan) for plan in drawn]
            self.fit(np.stack([plans[k] for k in np.argsort(values)[::-1][: self.elites]]))
        self.world.restore(mark)
        self.best = plans[int(np.argmax(values))]
        action = self.action(self.best[0])
        self.shift()
        return action

    def value(self, mark: Any, plan: np.ndarray) -> float:
        """Discounted rewards of a plan carried out from `mark`."""
        self.world.restore(mark)
        total = 0.0
        for k, move in enumerate(plan):
            _, reward, terminated, truncated, _ = self.world.step(self.action(move))
            self.imagined += 1
            total += self.discount**k * float(reward)
            if terminated or truncated:
                break
        return total

    def draw(self) -> np.ndarray:
        """A plan: (horizon,) numbers of motions, or (horizon, 2) shares of walking and turning."""
        if self.choices:
            return np.array([self.rng.choice(self.choices, p=chances) for chances in self.chances])
        return np.clip(self.rng.normal(self.mean, self.spread), -1, 1)

    def fit(self, elites: np.ndarray) -> None:
        """Move the distribution to the best plans (elites, horizon, ...)."""
        if self.choices:
            counted = (elites[..., None] == np.arange(self.choices)).mean(0)
            self.chances = (1 - LEAST_CHANCE * self.choices) * (0.7 * counted + 0.3 * self.chances) + LEAST_CHANCE
            self.chances /= self.chances.sum(1, keepdims=True)
        else:
            self.mean, self.spread = elites.mean(0), np.maximum(elites.std(0), LEAST_SPREAD)

    def shift(self) -> None:
        """One step has been taken: the plan and the distribution move up by one, and know nothing of the new last step."""
        assert self.best is not None
        if self.choices:
            self.chances = np.concatenate([self.chances[1:], np.full((1, self.choices), 1 / self.choices)])
            self.best = np.append(self.best[1:], self.rng.integers(self.choices))
        else:
            self.mean = np.concatenate([self.mean[1:], [[0.3, 0.0]]])
            self.spread = np.maximum(np.concatenate([self.spread[1:], [[0.6, 0.6]]]), 0.3)
            self.best = np.concatenate([self.best[1:], [[0.3, 0.0]]])

    def action(self, move: np.ndarray) -> Any:
        if self.choices:
            return int(move)
        camera = np.zeros(6, np.float32)
        camera[FORWARD], camera[YAW] = move
        return {"camera": camera, "text": ""}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="SpatiaNav-v0", choices=("Spatia-v0", "SpatiaNav-v0", "SpatiaTruth-v0"))
    parser.add_argument("--image", default=None, help="the picture to start from (default: a bundled sample)")
    parser.add_argument("--world", type=int, default=None, help="SpatiaTruth-v0: the world's seed (default: drawn from --seed)")
    parser.add_argument("--task", default="reach-view", choices=("reach-view", "return-home", "explore"))
    parser.add_argument("--steps", type=int, default=12, help="the most steps to take (default: %(default)s)")
    parser.add_argument("--horizon", type=int, default=4)
    parser.add_argument("--population", type=int, default=8)
    parser.add_argument("--elites", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    arguments: dict[str, Any] = {"world": args.world} if args.env == "SpatiaTruth-v0" else {"image": args.image}
    env = gym.make(args.env, task=args.task, **arguments)
    try:
        agent = CemPlanner(env, args.seed, args.horizon, args.population, args.elites, args.iterations)
    except ValueError as error:
        print(f"cem: error: {error}", file=sys.stderr)
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
