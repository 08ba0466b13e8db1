"""Does the world teach? Policies trained in the generated world, there and in the true one, against random motions and an explorer.

    python benchmarks/teaches.py --out runs/teaches                       # everything: 2 tasks, 2 worlds, 3 seeds
    python benchmarks/teaches.py --out runs/try --tasks reach-view --seeds 1 --steps 512 --episodes 4   # a rehearsal

PPO (`agents/ppo.py`) is trained on `explore` and `reach-view`, in SpatiaNav-v0 (frames from the model) and in SpatiaTruth-v0 (frames from
a ray-cast world), with every seed. Every policy is then run in both, in worlds that no training has seen; so are random motions and the
frontier explorer, which is made for `explore` and knows nothing of goals.

The folder fills up with one folder per training and one file per evaluation. Stopped and started again, what is there is kept and an
interrupted training goes on from its last update. At the end: teaches.json (all figures), curves.png, and one strip of pictures per policy.
What the figures are compared with: PPO at least twice random's return on `explore`; success at least 60 % on `reach-view`; in the true
world at least 75 % of the success in the generated one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ENVS = {"generated": "SpatiaNav-v0", "true": "SpatiaTruth-v0"}
BASELINES = ("random", "explorer")
SMOOTHED = 256  # steps
STEPS = {"reach-view": 1024, "explore": 1280}  # of a training, all worlds together; an hour is the longest that one may take
AIMS = {"explore_times_random": 2.0, "reach_view_success": 0.6, "kept_in_truth": 0.75}


def agent_module(name: str) -> Any:
    """A file of agents/ as a module."""
    spec = importlib.util.spec_from_file_location(f"spatia_agent_{name}", ROOT / "agents" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/teaches"))
    parser.add_argument("--tasks", nargs="+", default=["explore", "reach-view"], choices=("explore", "reach-view"))
    parser.add_argument("--worlds", nargs="+", default=list(ENVS), choices=tuple(ENVS), help="which worlds to evaluate in")
    parser.add_argument("--trained-in", nargs="+", choices=tuple(ENVS), help="which worlds to train in (default: those of --worlds)")
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES), choices=BASELINES, help="what else to evaluate")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, help=f"of each training (default: {', '.join(f'{n} of {task}' for task, n in STEPS.items())})")
    parser.add_argument("--minutes", type=float, default=60.0, help="the longest each training may take (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation (default: %(default)s)")
    parser.add_argument("--first-world", type=int, default=2_000_000, help="evaluations use this world and those after it")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--model", default="spatia-mini", help="name of a model or a folder of weights")
    parser.add_argument("--image-size", type=int, default=128, help="of the true world's frames; the model's own, for a fair comparison")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    args.trained_in = args.trained_in or args.worlds
    return args


class Study:
    """All trainings and evaluations, each done once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.ppo, self.explorer = agent_module("ppo"), agent_module("frontier_explorer")
        self.arguments: dict[str, dict[str, Any]] = {"generated": {"model": args.model}, "true": {"image_size": args.image_size}}

    def run(self) -> dict[str, Any]:
        args, results, curves = self.args, [], {}
        for task in args.tasks:
            for seed in range(args.seeds):
                for world in args.trained_in:
                    folder = args.out / f"{task}_{world}_{seed}"
                    steps = args.steps or STEPS[task]
                    log = self.ppo.train(ENVS[world], task, folder, seed, steps, args.minutes, args.num_envs, **self.arguments[world])
                    curves[folder.name] = log["curve"]
        for task in args.tasks:
            for world in args.worlds:
                for seed in range(args.seeds):
                    for trained in args.trained_in:
                        results.append(
                            self.evaluation(task, f"ppo trained in the {trained} world", world, args.out / f"{task}_{trained}_{seed}")
                        )
            for name in args.baselines:
                results += [self.evaluation(task, name, world, None) for world in args.worlds]
        summary = summarise(results, args.tasks, args.worlds)
        report = {
            "config": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if key != "json"},
            "summary": summary,
            "aims": AIMS,
            "reached": {key: None if summary.get(key) is None else bool(summary[key] >= aim) for key, aim in AIMS.items()},
            "evaluations": results,
            "curves": curves,
        }
        self.ppo.write_json(args.out / "teaches.json", report)
        self.pictures()
        draw_curves(args.out / "curves.png", curves, results)
        return report

    def evaluation(self, task: str, agent: str, world: str, trained: Path | None) -> dict[str, Any]:
        """One agent in one world; read from its file when it was done before with the same settings and the same weights."""
        args = self.args
        file = args.out / "evaluations" / f"{task}_{agent.replace(' ', '-')}_{trained.name if trained else 'baseline'}_in_{world}.json"
        steps = 0 if trained is None else self.ppo.read_policy(trained / "policy.safetensors")[1]["steps"]
        asked = {"episodes": args.episodes, "first_world": args.first_world, "trained_steps": steps, "arguments": self.arguments[world]}
        if file.exists():
            known = json.loads(file.read_text())
            if known["asked"] == asked:
                return known
        print(f"evaluating: {agent} on {task} in the {world} world", file=sys.stderr, flush=True)
        started = time.monotonic()
        found = self.ppo.evaluate(
            self.maker(agent, trained), ENVS[world], task, args.episodes, args.first_world, args.num_envs, **self.arguments[world]
        )
        found |= {"agent": agent, "world": world, "asked": asked, "seconds": round(time.monotonic() - started, 1)}
        file.parent.mkdir(parents=True, exist_ok=True)
        self.ppo.write_json(file, found)
        return found

    def maker(self, agent: str, trained: Path | None) -> Any:
        if agent == "random":
            return self.ppo.RandomMotions
        if agent == "explorer":
            return self.explorer.FrontierExplorer
        assert trained is not None
        return lambda env, seed: self.ppo.PpoPolicy(env, seed, str(trained / "policy.safetensors"))

    def pictures(self) -> None:
        """What the first seed's policies see in the first world of the evaluations: one row per world, a goal first where there is one."""
        args = self.args
        for task in args.tasks:
            for trained in args.trained_in:
                rows = []
                for world in args.worlds:
                    env = gym.make(
                        ENVS[world],
                        task=self.ppo.TASKS[task],
                        max_steps=self.ppo.LONGEST[task],
                        **({"discrete": True} if world == "true" else {}),
                        **self.arguments[world],
                    )
                    agent = self.maker("ppo", args.out / f"{task}_{trained}_0")(env, args.first_world)
                    beginnings = self.ppo.Beginnings(ENVS[world], args.image_size)
                    observation, info = env.reset(seed=args.first_world, options=beginnings.options(args.first_world))
                    agent.reset(observation, info)
                    shown, ended = [framed(info["goal_image"])] if "goal_image" in info else [], False
                    shown.append(observation)
                    while not ended:
                        observation, _, terminated, truncated, info = env.step(agent.act(observation, info))
                        shown.append(observation)
                        ended = terminated or truncated
                    env.close()
                    rows.append(shown)
                save_rows(args.out / f"walk_{task}_{trained}.png", rows)


def framed(picture: np.ndarray, width: int = 5) -> np.ndarray:
    """A picture in a yellow frame: the goal."""
    inner = np.array(picture)
    for side in (inner, inner.transpose(1, 0, 2)):
        side[:width] = side[-width:] = (255, 205, 0)
    return inner


def save_rows(file: Path, rows: list[list[np.ndarray]], most: int = 14) -> None:
    """Rows of frames as one picture; of long ones, evenly chosen frames with the first and the last."""
    chosen = [[row[k] for k in np.unique(np.linspace(0, len(row) - 1, min(most, len(row))).round().astype(int))] for row in rows]
    side, columns = 96, max(map(len, chosen))
    sheet = Image.new("RGB", (columns * (side + 2), len(chosen) * (side + 2)), (24, 24, 24))
    for y, row in enumerate(chosen):
        for x, frame in enumerate(row):
            sheet.paste(Image.fromarray(frame).resize((side, side)), (x * (side + 2), y * (side + 2)))
    sheet.save(file)


def summarise(results: list[dict[str, Any]], tasks: list[str], worlds: list[str]) -> dict[str, Any]:
    """Means over seeds and their spread, and the three ratios that the aims are about; None where something was not run."""
    summary: dict[str, Any] = {}

    def values(task: str, agent: str, world: str, key: str) -> list[float]:
        return [one[key] for one in results if (one["task"], one["agent"], one["world"]) == (task, agent, world)]

    for task in tasks:
        for world in worlds:
            for agent in (*BASELINES, *(f"ppo trained in the {trained} world" for trained in worlds)):
                for key in ("return", "success"):
                    if found := values(task, agent, world, key):
                        mean_found = round(float(np.mean(found)), 4)
                        summary[f"{task} | {agent} | in the {world} world | {key}"] = {"mean": mean_found, "seeds": found}

    def mean(task: str, agent: str, world: str, key: str) -> float | None:
        found = values(task, agent, world, key)
        return float(np.mean(found)) if found else None

    ours = "ppo trained in the generated world"
    taught, chance = mean("explore", ours, "generated", "return"), mean("explore", "random", "generated", "return")
    there, here = mean("reach-view", ours, "true", "success"), mean("reach-view", ours, "generated", "success")
    at_home = mean("reach-view", "ppo trained in the true world", "true", "success")
    summary["explore_times_random"] = None if taught is None or not chance else round(taught / chance, 3)
    summary["reach_view_success"] = here
    summary["kept_in_truth"] = None if there is None or not here else round(there / here, 3)
    summary["of_those_trained_in_truth"] = None if there is None or not at_home else round(there / at_home, 3)
    return summary


def smoothed(curve: list[dict[str, Any]], key: str, window: int = SMOOTHED) -> list[tuple[int, float]]:
    """(steps, mean over the episodes that ended in the last `window` steps), where there were any.

    The first window is left out but for its end: there only short episodes have ended, the lucky ones.
    """
    found = []
    for point in curve:
        recent = [p for p in curve if point["steps"] - window < p["steps"] <= point["steps"] and p["episodes"]]
        if recent and point["steps"] >= window:
            weights = [p["episodes"] for p in recent]
            found.append((point["steps"], float(np.average([p[key] for p in recent], weights=weights))))
    return found


def draw_curves(file: Path, curves: dict[str, list[dict[str, Any]]], results: list[dict[str, Any]]) -> None:
    """Learning curves by steps (means over the last `SMOOTHED`): a line per seed; random and explorer, as evaluated, in grey."""
    try:
        import matplotlib
    except ImportError:
        print(f"no {file.name}: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = sorted({name.rpartition("_")[0] for name in curves})
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.4 * len(kinds), 3.4), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        task, world = kind.split("_")
        key = "success" if task == "reach-view" else "return"
        for name, curve in curves.items():
            if name.rpartition("_")[0] == kind:
                points = smoothed(curve, key)
                axis.plot(*zip(*points, strict=True), label=f"seed {name.rpartition('_')[2]}") if points else None
        for agent, style in zip(BASELINES, (":", "--"), strict=True):
            for one in results:
                if (one["task"], one["agent"], one["world"]) == (task, agent, world):
                    axis.axhline(one[key], linestyle=style, color="gray", label=agent)
        if key == "success":
            axis.set_ylim(-0.02, 1.02)
        axis.set_title(f"{task}, trained in the {world} world", fontsize=9)
        axis.set_xlabel("steps")
        axis.set_ylabel(key if key == "success" else "return: new surface, m²")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if min(args.seeds, 1 if args.steps is None else args.steps, args.episodes, args.num_envs) < 1:
        print("teaches: error: give at least 1 for --seeds, --steps, --episodes and --num-envs", file=sys.stderr)
        return 1
    try:
        report = Study(args).run()
    except (ValueError, ImportError) as error:
        print(f"teaches: error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report))
        return 0
    for key, value in report["summary"].items():
        print(f"{key}: {value['mean'] if isinstance(value, dict) else value}")
    for key, reached in report["reached"].items():
        print(f"{key}: aim {AIMS[key]}, " + ("not measured" if reached is None else "reached" if reached else "not reached"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
