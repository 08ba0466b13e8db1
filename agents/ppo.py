"""PPO: train a policy inside a world with stable-baselines3, keep it, and see how good it is.

    python agents/ppo.py train --task reach-view --minutes 30 --out runs/reach
    python agents/ppo.py train --env SpatiaTruth-v0 --task explore --steps 5120 --out runs/explore-truth
    python agents/ppo.py evaluate --policy runs/reach/policy.safetensors --env SpatiaTruth-v0 --episodes 20
    spatia rollout --agent agents/ppo.py:PpoPolicy --agent-option policy=runs/reach/policy.safetensors --env SpatiaNav-v0 \
        --task reach-view --episodes 20 --out outputs/reach-v0

A step of a generated world takes a good part of a second, so everything here spares steps: N worlds share one batch, the policy is a small
network on a small picture and a few numbers (where the goal is, how much of the view was known, what was done last), and every update reads
its samples several times. Each episode begins from another picture (the first view of a procedural training world) or, in SpatiaTruth-v0,
in that world itself. `benchmarks/teaches.py` measures what such policies are worth.

Stopped and started again with the same --out, training goes on from the last update. The folder holds policy.safetensors (weights, and in
its metadata the task and steps trained) and curve.json (return and success of the episodes, by steps).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import spatia_env  # noqa: F401  (registers the envs)

PIXELS = 32  # side of the policy's picture
MOTIONS = 6  # of SpatiaNav-v0
NUMBERS = 6 + 3 + MOTIONS  # goal, coverage, pitch, bumped, last motion
TASKS = {"reach-view": {"name": "reach-view", "observe": "info"}, "explore": "explore"}
LONGEST = {"reach-view": 20, "explore": 32}  # steps of an episode
RECIPES = {  # `n_steps` of each world between two updates; a goal is about 7 steps away, a new view one: what comes later is noise
    "reach-view": {"n_steps": 8, "learning_rate": 4e-3, "gamma": 0.9},
    "explore": {"n_steps": 8, "learning_rate": 3e-3, "gamma": 0.9},
}
SCALE = {"reach-view": 1.0, "explore": 0.1}  # of the rewards that PPO learns from: square metres come by the dozen
PICTURES = 1000  # training worlds to begin in: seeds 0..999
EVALUATED = 2_000_000  # first of the worlds to evaluate in


# -- what the policy sees ------------------------------------------------------------------------------


def senses(info: dict[str, Any], last_motion: int | None) -> dict[str, np.ndarray]:
    """One world's info -> image (3, 32, 32) uint8 and numbers (15,) float32."""
    frame = Image.fromarray(info["frames"][-1]).resize((PIXELS, PIXELS), Image.Resampling.BOX)
    pose = info["poses"][-1]
    numbers = np.zeros(NUMBERS, np.float32)
    if "goal_pose" in info:
        T_camera_goal = np.linalg.inv(pose) @ info["goal_pose"]
        right, ahead = T_camera_goal[0, 3], T_camera_goal[2, 3]
        far = math.hypot(right, ahead)
        turn = math.atan2(T_camera_goal[0, 2], T_camera_goal[2, 2])  # from this heading to the goal's
        sure = far / (far + 0.15)  # standing on the goal, its direction says nothing
        numbers[:2] = sure * right / max(far, 1e-6), sure * ahead / max(far, 1e-6)
        numbers[2:4] = min(far, 3.0), max(0.0, 1 - far / 0.6)  # the second tells near from nearer
        numbers[4:6] = 2 * math.sin(turn), math.cos(turn)  # twice: 15 degrees must be told from none
    numbers[6] = info["coverage"]
    numbers[7] = -math.asin(float(np.clip(pose[1, 2], -1, 1)))
    numbers[8] = float(info.get("collided", False))
    if last_motion is not None:
        numbers[9 + last_motion] = 1
    return {"image": np.asarray(frame).transpose(2, 0, 1).copy(), "numbers": numbers}


class Brain(nn.Module):
    """image (B, 3, 32, 32) in 0..1 and numbers (B, 15) -> features (B, 64)."""

    features = 64

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.glance = nn.Sequential(nn.Linear(16 * 16, 32), nn.Tanh())
        self.think = nn.Sequential(nn.Linear(32 + NUMBERS, 64), nn.Tanh(), nn.Linear(64, self.features), nn.Tanh())

    def forward(self, senses: dict[str, torch.Tensor]) -> torch.Tensor:
        # Numbers speak louder at first: what a picture means takes more steps to learn, and until then it is noise.
        return self.think(torch.cat([0.2 * self.glance(self.eye(senses["image"])), senses["numbers"]], -1))


class PpoPolicy:
    """A trained policy as an agent: `policy` is the file that training wrote. It draws its actions unless `greedy`."""

    def __init__(self, env: gym.Env, seed: int = 0, policy: str = "", greedy: bool = False) -> None:
        if not isinstance(env.action_space, gym.spaces.Discrete) or env.action_space.n != MOTIONS:
            raise ValueError(f"the action space is {env.action_space}; use SpatiaNav-v0, or SpatiaTruth-v0 with discrete=True")
        self.brain, self.head = Brain().eval(), nn.Linear(Brain.features, MOTIONS)
        tensors, self.trained = read_policy(policy)
        try:
            self.brain.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("brain.")})
            self.head.load_state_dict({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("action.")})
        except RuntimeError as error:
            raise ValueError(f"{policy!r} was trained by another version of this agent ({error}); train it anew") from error
        self.rng, self.greedy = np.random.default_rng(seed), greedy

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        self.last: int | None = None

    @torch.no_grad()
    def act(self, observation: Any, info: dict[str, Any]) -> int:
        seen = senses(info, self.last)
        batch = {"image": torch.from_numpy(seen["image"])[None] / 255.0, "numbers": torch.from_numpy(seen["numbers"])[None]}
        chances = self.head(self.brain(batch))[0].double().softmax(0).numpy()
        self.last = int(chances.argmax() if self.greedy else self.rng.choice(MOTIONS, p=chances / chances.sum()))
        return self.last


def read_policy(file: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights, and what is known of their training. Raises ValueError for another kind of file."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            known = json.loads((opened.metadata() or {})["spatia_ppo"])
            return {name: opened.get_tensor(name) for name in opened.keys()}, known  # noqa: SIM118 - not a dictionary
    except Exception as error:
        raise ValueError(f"{str(file)!r} is no policy of this agent ({error}); give the policy.safetensors that `train` wrote") from error


# -- many worlds, as stable-baselines3 wants them ------------------------------------------------------


def worlds(env: str, task: str, number: int, **arguments: Any) -> gym.vector.VectorEnv:
    """`number` worlds that share one batch, with discrete motions."""
    if env == "SpatiaTruth-v0":
        arguments = {"discrete": True, **arguments}
    mode = gym.vector.AutoresetMode.DISABLED  # each new episode begins from another picture: see `begin`
    return gym.make_vec(env, num_envs=number, task=TASKS[task], max_steps=LONGEST[task], autoreset_mode=mode, **arguments)


class Beginnings:
    """What episodes begin from: the world with a number, or the first view of it."""

    def __init__(self, env: str, image_size: int = 128) -> None:
        self.env = env
        self.truth = None if env == "SpatiaTruth-v0" else gym.make("SpatiaTruth-v0", image_size=image_size)

    def options(self, world: int) -> dict[str, Any]:
        if self.truth is None:
            return {"world": world}
        return {"image": self.truth.reset(seed=world, options={"world": world})[0]}


def begin(envs: gym.vector.VectorEnv, which: np.ndarray, options: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
    """A new episode in the worlds of a mask; the infos."""
    seeds = None if seed is None else [seed + k if which[k] else None for k in range(envs.num_envs)]
    return envs.reset(seed=seeds, options={**options, "reset_mask": which})[1]  # type: ignore[arg-type]


def of_world(infos: dict[str, Any], number: int) -> dict[str, Any]:
    """One world's info out of a vector env's."""
    return {key: value[number] for key, value in infos.items() if not key.startswith("_") and infos["_" + key][number]}


def vec_env(envs: gym.vector.VectorEnv, beginnings: Beginnings, seed: int, scale: float = 1.0) -> Any:
    """The vector env as stable-baselines3's, with `senses` for observations and rewards times `scale`; `finished` has them as they are."""
    from stable_baselines3.common.vec_env import VecEnv

    class Worlds(VecEnv):
        def __init__(self) -> None:
            image, numbers = gym.spaces.Box(0, 255, (3, PIXELS, PIXELS), np.uint8), gym.spaces.Box(-4, 4, (NUMBERS,), np.float32)
            super().__init__(envs.num_envs, gym.spaces.Dict({"image": image, "numbers": numbers}), gym.spaces.Discrete(MOTIONS))
            self.rng = np.random.default_rng(seed)
            self.finished: deque[dict[str, float]] = deque(maxlen=1000)
            self.everyone = np.ones(envs.num_envs, bool)
            self.fresh = int(self.rng.integers(2**30))  # seeds of the worlds' chance

        def reset(self) -> Any:
            self.returns, self.last = np.zeros(self.num_envs), [None] * self.num_envs
            infos = self._begin(self.everyone)
            self.seen = [senses(of_world(infos, k), None) for k in range(self.num_envs)]
            return self._stacked()

        def _begin(self, which: np.ndarray) -> dict[str, Any]:
            self.fresh += self.num_envs
            return begin(envs, which, beginnings.options(int(self.rng.integers(PICTURES))), self.fresh)

        def _stacked(self) -> Any:
            return {key: np.stack([seen[key] for seen in self.seen]) for key in ("image", "numbers")}

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = np.asarray(actions)

        def step_wait(self) -> Any:
            _, rewards, terminated, truncated, infos = envs.step(self.actions)
            done, told = terminated | truncated, [{} for _ in range(self.num_envs)]
            self.returns += rewards
            for k in range(self.num_envs):
                info = of_world(infos, k)
                self.seen[k] = senses(info, int(self.actions[k]))
                if done[k]:
                    told[k] = {"terminal_observation": self.seen[k], "TimeLimit.truncated": bool(truncated[k] and not terminated[k])}
                    self.finished.append({"return": float(self.returns[k]), "success": float(info.get("is_success", False))})
            if done.any():
                infos = self._begin(done)
                for k in np.nonzero(done)[0].tolist():
                    self.returns[k], self.seen[k] = 0.0, senses(of_world(infos, k), None)
            return self._stacked(), (scale * rewards).astype(np.float32), done, told

        def close(self) -> None:
            envs.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            return [None] * self.num_envs

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

    return Worlds()


# -- training ------------------------------------------------------------------------------------------


def train(
    env: str, task: str, out: Path, seed: int = 0, steps: int = 5120, minutes: float = 60.0, num_envs: int = 8, **arguments: Any
) -> dict[str, Any]:
    """Train until `steps` steps or `minutes` minutes in all are reached. Returns what curve.json holds."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Features(BaseFeaturesExtractor):
        def __init__(self, space: gym.spaces.Dict) -> None:
            super().__init__(space, Brain.features)
            self.brain = Brain()

        def forward(self, observations: Any) -> torch.Tensor:
            return self.brain(observations)

    out.mkdir(parents=True, exist_ok=True)
    asked = {"env": env, "task": task, "seed": seed, "num_envs": num_envs, "arguments": arguments}
    log: dict[str, Any] = {**asked, "steps": 0, "seconds": 0.0, "curve": []}
    if (out / "curve.json").exists():
        log = json.loads((out / "curve.json").read_text())
        if any(log[key] != value for key, value in asked.items()):
            raise ValueError(f"{out} holds another training ({ {key: log[key] for key in asked} }); give another --out, or delete it")
    if log["steps"] >= steps or log["seconds"] >= 60 * minutes:
        return log
    envs = vec_env(
        worlds(env, task, num_envs, **arguments), Beginnings(env, arguments.get("image_size", 128)), seed + 1000 * log["steps"], SCALE[task]
    )
    rollout = RECIPES[task]["n_steps"] * num_envs
    learner = PPO(
        "MultiInputPolicy",
        envs,
        seed=seed + log["steps"],
        device="cpu",
        batch_size=min(64, rollout),
        n_epochs=8,
        gae_lambda=0.9,
        ent_coef=0.01,
        clip_range=0.2,
        policy_kwargs={"features_extractor_class": Features, "net_arch": []},
        **RECIPES[task],
    )
    parts = {"brain": learner.policy.features_extractor.brain, "action": learner.policy.action_net, "value": learner.policy.value_net}
    if log["steps"]:  # moments of Adam begin anew
        tensors, _ = read_policy(out / "policy.safetensors")
        for name, part in parts.items():
            part.load_state_dict({key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(name + ".")})
    before, started = dict(log), time.monotonic()
    while log["steps"] < steps and log["seconds"] < 60 * minutes:
        learner.learn(rollout, reset_num_timesteps=False)  # one rollout and one update; the worlds go on
        recent = list(envs.finished)
        envs.finished.clear()
        log["steps"] = before["steps"] + learner.num_timesteps
        log["seconds"] = round(before["seconds"] + time.monotonic() - started, 1)
        point = {"steps": log["steps"], "seconds": log["seconds"], "episodes": len(recent)}
        point |= {key: round(float(np.mean([each[key] for each in recent])), 4) if recent else None for key in ("return", "success")}
        log["curve"].append(point)
        write_policy(out / "policy.safetensors", parts, {"env": env, "task": task, "seed": seed, "steps": log["steps"]})
        write_json(out / "curve.json", log)
        print(
            f"ppo {task} seed {seed}: {log['steps']}/{steps} steps, {log['seconds']:.0f} s, return {point['return']}",
            file=sys.stderr,
            flush=True,
        )
    envs.close()
    return log


def write_policy(file: Path, parts: dict[str, nn.Module], known: dict[str, Any]) -> None:
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous() for name, part in parts.items() for key, value in part.state_dict().items()
    }
    save_file(tensors, str(file) + ".new", metadata={"spatia_ppo": json.dumps(known)})
    os.replace(str(file) + ".new", file)


def write_json(file: Path, content: Any) -> None:
    Path(str(file) + ".new").write_text(json.dumps(content, indent=1) + "\n")
    os.replace(str(file) + ".new", file)


# -- evaluation ----------------------------------------------------------------------------------------


def evaluate(
    make_agent: Any, env: str, task: str, episodes: int = 20, seed: int = EVALUATED, num_envs: int = 4, **arguments: Any
) -> dict[str, Any]:
    """An agent's return and success in the worlds `seed`, `seed` + 1, ...: one episode in each. `make_agent(env, seed)` gives the agent."""
    num_envs = min(num_envs, episodes)
    envs, beginnings = worlds(env, task, num_envs, **arguments), Beginnings(env, arguments.get("image_size", 128))
    found: dict[int, dict[str, float]] = {}
    at: list[int | None] = [None] * num_envs
    agents: list[Any] = [None] * num_envs
    told: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    shown: list[Any] = [None] * num_envs
    returns, waiting = np.zeros(num_envs), deque(range(seed, seed + episodes))
    envs.reset(seed=seed)  # a mask may leave out only worlds that have begun
    while waiting or any(world is not None for world in at):
        for k in range(num_envs):
            if at[k] is not None or not waiting:
                continue
            at[k] = world = waiting.popleft()
            options = {**beginnings.options(world), "reset_mask": np.arange(num_envs) == k}
            seeds: Any = [world if i == k else None for i in range(num_envs)]
            observations, infos = envs.reset(seed=seeds, options=options)
            told[k], shown[k], returns[k] = of_world(infos, k), observations[k], 0.0
            agents[k] = make_agent(envs.envs[k], world)  # type: ignore[attr-defined]
            agents[k].reset(shown[k], told[k])
        actions = np.array([agents[k].act(shown[k], told[k]) if at[k] is not None else MOTIONS - 1 for k in range(num_envs)])
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        for k in range(num_envs):
            if at[k] is None:
                continue
            told[k], shown[k] = of_world(infos, k), observations[k]
            returns[k] += rewards[k]
            if terminated[k] or truncated[k]:
                found[int(at[k] or 0)] = {"return": float(returns[k]), "success": float(told[k].get("is_success", False))}
                at[k] = None
                print(f"evaluate {task}: {len(found)}/{episodes} episodes", file=sys.stderr, flush=True)
    envs.close()
    each = [found[world] for world in sorted(found)]
    return {
        "env": env,
        "task": task,
        "episodes": len(each),
        "first_world": seed,
        "return": round(float(np.mean([one["return"] for one in each])), 4),
        "success": round(float(np.mean([one["success"] for one in each])), 4),
        "each": [[round(one["return"], 4), one["success"]] for one in each],
    }


class RandomMotions:
    """Draws from the action space: what a policy has to beat."""

    def __init__(self, env: gym.Env, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def reset(self, observation: Any, info: dict[str, Any]) -> None: ...

    def act(self, observation: Any, info: dict[str, Any]) -> int:
        return int(self.rng.integers(MOTIONS))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help in (("train", "train a policy"), ("evaluate", "see how good one is")):
        command = commands.add_parser(name, help=help)
        command.add_argument("--env", default="SpatiaNav-v0", choices=("SpatiaNav-v0", "SpatiaTruth-v0"))
        command.add_argument("--model", default=None, help="SpatiaNav-v0: name of a model or a folder of weights (default: spatia-mini)")
        command.add_argument("--image-size", type=int, default=None, help="SpatiaTruth-v0: side of its frames in pixels (default: 128)")
        command.add_argument("--num-envs", type=int, default=8, help="worlds side by side (default: %(default)s)")
        if name == "train":
            command.add_argument("--task", default="reach-view", choices=tuple(TASKS))
            command.add_argument("--steps", type=int, default=5120, help="steps of all worlds together (default: %(default)s)")
            command.add_argument("--minutes", type=float, default=60.0, help="the longest to train, over all calls (default: %(default)s)")
            command.add_argument(
                "--out", type=Path, required=True, help="folder for policy.safetensors and curve.json; goes on if they exist"
            )
            command.add_argument("--seed", type=int, default=0)
        else:
            command.add_argument("--policy", required=True, help="a policy.safetensors, or 'random'")
            command.add_argument("--task", default=None, choices=tuple(TASKS), help="default: the one it was trained for")
            command.add_argument("--episodes", type=int, default=20)
            command.add_argument("--greedy", action="store_true", help="the likeliest action instead of a drawn one")
            command.add_argument("--seed", type=int, default=EVALUATED, help="first world to evaluate in (default: %(default)s)")
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    arguments = {"model": args.model} if args.model and args.env == "SpatiaNav-v0" else {}
    if args.image_size and args.env == "SpatiaTruth-v0":
        arguments = {"image_size": args.image_size}
    try:
        if args.command == "train":
            found = train(args.env, args.task, args.out, args.seed, args.steps, args.minutes, args.num_envs, **arguments)
        elif args.policy == "random":
            found = evaluate(RandomMotions, args.env, args.task or "reach-view", args.episodes, args.seed, args.num_envs, **arguments)
        else:
            task = args.task or read_policy(args.policy)[1]["task"]

            def make_agent(env: gym.Env, seed: int) -> PpoPolicy:
                return PpoPolicy(env, seed, args.policy, args.greedy)

            found = evaluate(make_agent, args.env, task, args.episodes, args.seed, args.num_envs, **arguments)
    except (ValueError, ImportError) as error:
        mend = " (pip install stable-baselines3)" if isinstance(error, ImportError) else ""
        print(f"ppo: error: {error}{mend}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found))
    elif args.command == "train":
        last = found["curve"][-1] if found["curve"] else {}
        print(f"{found['steps']} steps, {found['seconds']:.0f} s, return {last.get('return')}, success {last.get('success')}: {args.out}")
    else:
        print(
            f"{found['episodes']} episodes of {found['task']} in {found['env']}: return {found['return']}, success {found['success']:.0%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
