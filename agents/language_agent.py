"""Language agent: "go to the green box, then come back" becomes steps of the camera.

    python agents/language_agent.py "go to the red ball, then come back" --env SpatiaTruth-v0 --world 7
    python agents/language_agent.py "turn left 90, walk 1 m, look around" --env SpatiaNav-v0 --image yours.jpg
    python agents/language_agent.py "fetch a look at the green one" --llm path/or/name-of-a-transformers-model
    spatia rollout --agent agents/language_agent.py:LanguageAgent --env SpatiaNav-v0 --task follow-text --episodes 4 --out outputs/follow-v0

First a sentence becomes a plan: a list of goals in a small language (`go green box`, `back`, `turn -90`, `walk 1.0`, `look`). Rules
read it, or, with --llm, a transformers text-generation model writes the plan, and rules take over where it writes nonsense. Then each goal
is carried out. Things are found by colour, in the picture and, when they are out of view, in the point cloud memory; what has not been seen
yet is looked for by turning around. The way back follows the trail.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from scipy import ndimage

import spatia_env  # noqa: F401  (registers the envs)

# Degrees on the colour wheel from and to, and the least saturation.
HUES = {
    "red": (345, 15, 0.45),
    "orange": (15, 40, 0.62),
    "yellow": (40, 68, 0.5),
    "green": (75, 165, 0.3),
    "cyan": (165, 200, 0.35),
    "blue": (200, 255, 0.35),
    "purple": (255, 305, 0.3),
    "pink": (305, 345, 0.3),
}
SEEN = 0.004  # share of the picture that a patch of colour must take to be a thing
FILLED = 0.2  # share at which one stands before it
NEAR = 0.7  # metres at which one stands before it, too
PATIENCE = 60  # steps for one goal
UNDERSTOOD = "go to the COLOUR thing; come back; turn left/right/around [DEGREES]; walk [METRES]; look around"
PROMPT = """Translate the instruction into commands, one per line. Commands: go COLOUR NOUN / back / turn DEGREES (right is positive) / \
walk METRES / look
Instruction: walk to the red chair and turn left
go red chair
turn -90
Instruction: find the blue thing, look around, then return
go blue thing
look
back
Instruction: {instruction}
"""


@dataclass(frozen=True)
class Goal:
    """One thing to do: "go" to a colour, "back", "turn" by degrees, "walk" metres, "look" around."""

    kind: str
    color: str = ""
    amount: float = 0.0


def read_plan(instruction: str) -> list[Goal]:
    """The goals of a sentence, by rules. Raises ValueError for what they do not understand."""
    clauses = [clause.strip() for clause in re.split(r"[,;.](?!\d)|\bthen\b|\band\b", instruction.lower()) if clause.strip()]
    if not clauses:
        raise ValueError(f"the instruction is empty; say what to do: {UNDERSTOOD}")
    return [_read_clause(clause) for clause in clauses]


def _read_clause(clause: str) -> Goal:
    number = re.search(r"-?\d+(\.\d+)?", clause)
    color = next((word for word in re.findall(r"[a-z]+", clause) if word in HUES), "")
    if color:
        return Goal("go", color)
    if re.search(r"\b(come|go|walk|turn) back\b|\breturn\b|\bhome\b|^back$", clause):
        return Goal("back")
    if re.search(r"\blook( around)?\b", clause):
        return Goal("look", amount=360.0)
    if re.search(r"\bturn\b", clause):
        degrees = float(number.group()) if number else 180.0 if "around" in clause else 90.0
        return Goal("turn", amount=-abs(degrees) if "left" in clause else degrees)
    if re.search(r"\b(walk|go|move|step)\b", clause) and not re.search(r"\bto\b", clause):
        return Goal("walk", amount=float(number.group()) if number else 1.0)
    raise ValueError(f"{clause!r} is not understood; say: {UNDERSTOOD} (colours: {', '.join(HUES)})")


def written_plan(instruction: str, write: Callable[[str], str]) -> list[Goal]:
    """The goals that a language model writes (`write`: prompt -> what follows it); those of the rules when it writes none."""
    text = write(PROMPT.format(instruction=instruction)).split("Instruction:")[0]
    goals = []
    for line in filter(None, map(str.strip, text.lower().splitlines())):
        try:
            goals.append(_read_clause(line))
        except ValueError:
            break  # models go on after the answer
    if not goals:
        print(f"language_agent: the model wrote no plan ({text.strip()[:60]!r}); the rules read the instruction", file=sys.stderr)
        return read_plan(instruction)
    return goals


def text_model(name: str) -> Callable[[str], str]:
    """A transformers text-generation model by name or folder, as prompt -> text."""
    try:
        from transformers import pipeline
    except ImportError as error:
        raise ImportError("--llm needs transformers: pip install transformers") from error
    generate = pipeline("text-generation", model=name)
    return lambda prompt: str(generate(prompt, max_new_tokens=64, do_sample=False, return_full_text=False)[0]["generated_text"])


def color_mask(colors: np.ndarray, name: str) -> np.ndarray:
    """(...,) bool: which of the colours (..., 3) uint8 go by that name."""
    low, high, least = HUES[name]
    rgb = colors.astype(np.float64) / 255
    value, spread = rgb.max(-1), np.ptp(rgb, axis=-1)
    safe = np.where(spread > 0, spread, 1.0)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    wheel = np.where(value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    hue = wheel * 60 % 360
    inside = (hue >= low) & (hue < high) if low < high else (hue >= low) | (hue < high)
    return inside & (spread >= least * value) & (value > 0.15) & (spread > 0)


class LanguageAgent:
    """Carries out `instruction`; without one, what the task's info says under `instruction`. Stands still when done (`done`).

    `llm` is the name of a transformers text-generation model, or a function from prompt to text.
    """

    needs_world = True

    def __init__(self, env: gym.Env, seed: int = 0, instruction: str = "", llm: Any = None) -> None:
        self.world: Any = env.unwrapped
        self.discrete = isinstance(env.action_space, gym.spaces.Discrete)
        limits = (0.25, math.radians(15)) if self.discrete else (self.world.motion.limits[2], self.world.motion.limits[4])
        self.stride, self.turn = float(limits[0]), float(limits[1])
        self.instruction = instruction
        self.write = text_model(llm) if isinstance(llm, str) else llm
        if instruction:
            self.goals = self._plan(instruction)  # what is not understood is said before any world is built

    def _plan(self, instruction: str) -> list[Goal]:
        return written_plan(instruction, self.write) if self.write else read_plan(instruction)

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        if not self.instruction and "instruction" not in info:
            raise ValueError("there is no instruction; give one: LanguageAgent(env, instruction='go to the green box, then come back')")
        self.plan = list(self.goals) if self.instruction else self._plan(info["instruction"])
        self.trail = [info["poses"][-1]]
        self.given_up: list[Goal] = []
        self.asked_forward = 0.0  # metres asked of the last step
        self._begin_goal()

    def _begin_goal(self) -> None:
        self.steps, self.turned, self.walked, self.stuck = 0, 0.0, 0.0, 0
        self.way_back = [pose for pose in reversed(self.trail)]

    @property
    def done(self) -> bool:
        return not self.plan

    def act(self, observation: Any, info: dict[str, Any]) -> Any:
        pose = info["poses"][-1]
        moved = float(np.linalg.norm(pose[:3, 3] - self.trail[-1][:3, 3]))
        self.walked += moved
        self.stuck = self.stuck + 1 if self.asked_forward and moved < 0.3 * self.asked_forward else 0
        self.trail.append(pose)
        while self.plan:
            self.steps += 1
            if self.steps > PATIENCE:
                self.given_up.append(self.plan[0])
                way = None
            else:
                way = getattr(self, f"_{self.plan[0].kind}")(self.plan[0], info["frames"][-1], pose, info["K"])
            if way is not None:
                return self._drive(*way)
            self.plan.pop(0)
            self._begin_goal()
        return self._drive(0.0, 0.0)

    def _drive(self, bearing: float, metres: float) -> Any:
        """A step that turns towards `bearing` (radians to the right) and walks once it looks there."""
        turn = float(np.clip(bearing, -self.turn, self.turn))
        ready = abs(bearing) <= (self.turn / 2 if self.discrete else self.turn)
        forward = min(self.stride, metres) if metres > 0.05 and ready else 0.0
        if self.discrete:
            action = 0 if forward else 5 if abs(bearing) < self.turn / 2 else 2 if bearing > 0 else 1
            self.asked_forward = self.stride if action == 0 else 0.0
            self.turned += {1: -self.turn, 2: self.turn}.get(action, 0.0)
            return action
        self.asked_forward, self.turned = forward, self.turned + turn
        camera = np.zeros(6, np.float32)
        camera[2], camera[4] = forward / self.stride, turn / self.turn
        return {"camera": camera, "text": ""}

    # -- goals: (bearing, metres) of the next step, or None when done ------------------------------------

    def _turn(self, goal: Goal, *_: Any) -> tuple[float, float] | None:
        left = math.radians(goal.amount) - self.turned
        return (left, 0.0) if abs(left) > (self.turn / 2 if self.discrete else 0.01) else None

    _look = _turn

    def _walk(self, goal: Goal, *_: Any) -> tuple[float, float] | None:
        left = goal.amount - self.walked
        return (0.0, left) if left > (self.stride / 2 if self.discrete else 0.05) and self.stuck < 2 else None

    def _go(self, goal: Goal, frame: np.ndarray, pose: np.ndarray, K: np.ndarray) -> tuple[float, float] | None:
        share, bearing = self._in_picture(goal.color, frame, K)
        metres, known = self._in_memory(goal.color, pose)
        if share >= FILLED or (share >= SEEN and (metres < NEAR or self.stuck >= 2)):
            return None
        if share >= SEEN:
            return bearing, max(metres - NEAR / 2, 0.1) if math.isfinite(metres) else self.stride
        if math.isfinite(metres) and metres > NEAR and self.stuck < 2:
            return known, metres - NEAR / 2
        if abs(self.turned) < 2 * math.pi:  # not seen yet: look around, then go on and look around there
            return self.turn, 0.0
        if self.stuck or self.walked > 1.0:
            self.turned = self.walked = 0.0
            return self.turn, 0.0
        return 0.0, self.stride

    def _back(self, goal: Goal, frame: np.ndarray, pose: np.ndarray, K: np.ndarray) -> tuple[float, float] | None:
        start, near = self.trail[0], self.stride * 0.6 if self.discrete else 0.15
        while len(self.way_back) > 1 and np.linalg.norm(self.way_back[0][:3, 3] - pose[:3, 3]) < max(near, self.stride):
            self.way_back.pop(0)
        target = self.way_back[0]
        metres = float(np.linalg.norm((target[:3, 3] - pose[:3, 3])[[0, 2]]))
        if metres > near and not (target is start and self.stuck >= 2):
            return self._bearing(target[:3, 3], pose), metres
        facing = self._bearing(pose[:3, 3] + start[:3, 2], pose)
        return (facing, 0.0) if abs(facing) > (self.turn / 2 if self.discrete else 0.02) else None

    # -- where things are ----------------------------------------------------------------------------------

    @staticmethod
    def _bearing(place: np.ndarray, pose: np.ndarray) -> float:
        """Radians to the right at which a place (3,) lies, seen from a pose (4, 4)."""
        seen = pose[:3, :3].T @ (place - pose[:3, 3])
        return math.atan2(seen[0], seen[2])

    @staticmethod
    def _in_picture(color: str, frame: np.ndarray, K: np.ndarray) -> tuple[float, float]:
        """Share of the picture that the largest patch of a colour takes, and its bearing."""
        labels: np.ndarray = ndimage.label(color_mask(frame, color), np.ones((3, 3)))[0]  # type: ignore[index]
        if not labels.any():
            return 0.0, 0.0
        sizes = np.bincount(labels.ravel())[1:]
        column = np.argwhere(labels == 1 + sizes.argmax())[:, 1].mean() + 0.5
        return float(sizes.max() / labels.size), math.atan2(column - K[0, 2], K[0, 0])

    def _in_memory(self, color: str, pose: np.ndarray) -> tuple[float, float]:
        """Metres along the ground and bearing of the densest heap of points of a colour; infinity where there is none."""
        memory = self.world.memory
        points = memory.positions.cpu().numpy()[color_mask(memory.colors.cpu().numpy(), color)]
        if len(points) < 12:
            return math.inf, 0.0
        cells, which = np.unique(np.floor(points[:, [0, 2]] / 0.3).astype(int), axis=0, return_inverse=True)
        counts = np.bincount(which.ravel(), minlength=len(cells))
        heap = points[which.ravel() == counts.argmax()]
        if counts.max() < 12:
            return math.inf, 0.0
        place = heap.mean(0)
        return float(np.linalg.norm((place - pose[:3, 3])[[0, 2]])), self._bearing(place, pose)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instruction", help=f"what to do: {UNDERSTOOD}")
    parser.add_argument("--env", default="Spatia-v0", choices=("Spatia-v0", "SpatiaNav-v0", "SpatiaTruth-v0"))
    parser.add_argument("--image", default=None, help="the picture to start from (default: a bundled sample)")
    parser.add_argument("--world", type=int, default=None, help="SpatiaTruth-v0: the world's seed (default: drawn from --seed)")
    parser.add_argument("--llm", default=None, help="a transformers text-generation model, name or folder (default: rules)")
    parser.add_argument("--steps", type=int, default=60, help="the most steps to take (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    arguments: dict[str, Any] = {"world": args.world} if args.env == "SpatiaTruth-v0" else {"image": args.image}
    try:
        goals = read_plan(args.instruction) if args.llm is None else []  # before weights are loaded
        env = gym.make(args.env, **arguments)
        agent = LanguageAgent(env, args.seed, args.instruction, args.llm)
    except (ValueError, OSError, ImportError) as error:
        print(f"language_agent: error: {error}", file=sys.stderr)
        return 1
    goals = agent.goals
    observation, info = env.reset(seed=args.seed)
    agent.reset(observation, info)
    steps = 0
    while steps < args.steps:
        action = agent.act(observation, info)
        if agent.done:
            break
        observation, _, terminated, truncated, info = env.step(action)
        steps += 1
        x, _, z = info["poses"][-1][:3, 3]
        print(f"step {steps}: {agent.plan[0].kind} {agent.plan[0].color}, at ({x:+.2f}, {z:+.2f}) m", file=sys.stderr)
        if terminated or truncated:
            break
    env.close()
    found = {
        "instruction": args.instruction,
        "plan": [f"{goal.kind} {goal.color or (goal.amount or '')}".strip() for goal in goals],
        "done": agent.done and not agent.given_up,
        "given_up": [f"{goal.kind} {goal.color}".strip() for goal in agent.given_up],
        "steps": steps,
        "metres_from_start": round(float(np.linalg.norm(info["poses"][-1][:3, 3] - agent.trail[0][:3, 3])), 3),
    }
    print(json.dumps(found) if args.json else f"plan: {', '.join(found['plan'])}; done: {found['done']}, after {steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
