"""`spatia eval memory`: the checks of `spatia_env.testing` on any Gymnasium env, over many worlds."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import spatia_env  # noqa: F401  registers the ids
from spatia_env import testing
from spatia_env.agent_file import find_modules_here, load_module

UNITS = {
    "deterministic": "of 255: largest difference of two equal episodes",
    "seed_matters": "of 255: largest difference of episodes with other seeds",
    "returns_to_view": "dB, the first view again after 90 degrees away and back",
    "static_memory": "dB, second visit of a place out of sight at the start",
    "stands_still": "dB, worst of four steps that stand still",
    "snapshot_restores": "of 255: largest difference of two runs from one snapshot",
    "turns_as_asked": "degrees that a turn of 15 is off",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env", default="Spatia-v0", help="a registered env, or MODULE:ID where MODULE registers it (default: %(default)s)"
    )
    parser.add_argument("--env-args", default="{}", metavar="JSON", help="arguments of gym.make, such as '{\"memory\": false}'")
    parser.add_argument(
        "--adapter",
        metavar="FILE:NAME",
        help="a spatia_env.testing.Adapter, by file or module and name, for envs whose actions are not those of Spatia-v0 or SpatiaNav-v0",
    )
    parser.add_argument("--worlds", type=int, default=4, help="episodes each check begins, with seeds from --seed (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=2_000_000,
        help="first seed. Spatia envs without a picture start from that of the procedural world with this number (default: %(default)s)",
    )
    parser.add_argument(
        "--checks", nargs="+", choices=sorted(testing.CHECKS), metavar="CHECK", help=f"some of: {', '.join(testing.CHECKS)}"
    )
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="CHECK=NUMBER", help="another threshold for one check; may be repeated"
    )
    parser.add_argument("--require", action="store_true", help="exit with status 1 unless every check passes in every world")
    parser.add_argument("--strips", type=Path, metavar="DIR", help="write the compared views of every check and world")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when measured; with --require, 1 unless everything passed."""
    from spatia_model.evaluation.report import Progress, print_report, summarise

    if args.worlds < 1 or args.seed < 0:
        raise ValueError(f"--worlds is {args.worlds} and --seed {args.seed}; give at least 1 world and a seed of 0 or more")
    thresholds = read_thresholds(args.threshold)
    adapter = load_adapter(args.adapter) if args.adapter else None
    env, begin = make_env(args.env, args.env_args)
    adapter = adapter or testing.adapter_for(env)
    names = args.checks or [name for name in testing.CHECKS if name != "snapshot_restores" or hasattr(env.unwrapped, "snapshot")]
    progress = Progress("memory checks", args.worlds)
    worlds: list[dict[str, float | None]] = []
    failed: list[str] = []
    for seed in range(args.seed, args.seed + args.worlds):
        figures: dict[str, float | None] = {}
        for name in names:
            found = testing.CHECKS[name](env, adapter, seed=seed, options=begin(seed), **thresholds.get(name, {}))
            figures[name] = found.value
            figures[f"{name}_passed"] = float(found.passed)
            figures |= {f"{name}_{key}": value for key, value in found.figures.items()}
            if not found.passed:
                failed.append(f"{name} in world {seed}: {found.message}")
            if args.strips and found.views:
                save_views(args.strips / f"{name}_{seed}.png", found.views)
        worlds.append(figures)
        progress.step(f"{sum(1 for name in names if figures[f'{name}_passed'])} of {len(names)} checks passed")
    env.close()
    details = sorted({key for figures in worlds for key in figures} - set(names) - {f"{name}_passed" for name in names})
    asked = {"env": args.env, "env_args": json.loads(args.env_args), "worlds": args.worlds, "seed": args.seed, "thresholds": thresholds}
    result: dict[str, Any] = {
        **summarise(worlds, names),
        "passed": {name: sum(int(figures[f"{name}_passed"] or 0) for figures in worlds) for name in names},
        "failures": failed,
        "config": asked,
        "details": summarise(worlds, details),
    }
    print_report(result, args.json, UNITS)
    if not args.json:
        print("passed: " + ", ".join(f"{name} {count}/{args.worlds}" for name, count in result["passed"].items()))
        print("\n".join(failed))
    return 1 if args.require and failed else 0


def make_env(name: str, arguments: str) -> tuple[gym.Env[Any, Any], Any]:
    """The env, and what `reset` is given as options in the world of a seed."""
    try:
        given = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise ValueError(f"--env-args is not JSON ({error}); give an object such as '{{\"memory\": false}}'") from error
    if not isinstance(given, dict):
        raise ValueError(f"--env-args is {given!r}; give an object such as '{{\"memory\": false}}'")
    if ":" in name:
        find_modules_here()
    try:
        env = gym.make(name, **given)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"{name} cannot be made: {error}") from error
    known = getattr(env.unwrapped, "reset_options", ())
    if "image" in known and given.get("image") is None:
        truth = gym.make("SpatiaTruth-v0")
        return env, lambda seed: {"image": truth.reset(seed=seed, options={"world": seed})[0]}
    if "world" in known and given.get("world") is None:
        return env, lambda seed: {"world": seed}
    return env, lambda seed: None


def load_adapter(given: str) -> testing.Adapter:
    """The adapter NAME of `FILE.py:NAME` or `module:NAME`."""
    place, _, name = given.rpartition(":")
    if not place:
        raise ValueError(f"--adapter is {given!r}; give FILE:NAME, such as my_env.py:adapter")
    if place.endswith(".py"):
        if not Path(place).expanduser().is_file():
            raise ValueError(f"there is no file {place!r} (looked from {Path.cwd()}); give FILE:NAME, such as my_env.py:adapter")
        module = load_module(place)
    else:
        find_modules_here()
        try:
            module = importlib.import_module(place)
        except Exception as error:  # whatever the module does when it is run
            raise ValueError(f"{place!r} cannot be imported ({error}); give FILE:NAME or MODULE:NAME") from error
    adapter = getattr(module, name, None)
    if not isinstance(adapter, testing.Adapter):
        raise ValueError(f"{given!r} is {'not there' if adapter is None else type(adapter).__name__}; give a spatia_env.testing.Adapter")
    return adapter


def read_thresholds(given: list[str]) -> dict[str, dict[str, float]]:
    """`["returns_to_view=22"]` -> `{"returns_to_view": {"at_least": 22.0}}`."""
    import inspect

    found: dict[str, dict[str, float]] = {}
    for item in given:
        name, _, number = item.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if name not in testing.CHECKS or not np.isfinite(value):
            raise ValueError(f"--threshold is {item!r}; give CHECK=NUMBER with one of {', '.join(testing.CHECKS)}")
        parameters = inspect.signature(testing.CHECKS[name]).parameters
        found[name] = {"at_least" if "at_least" in parameters else "at_most": value}
    return found


def save_views(file: Path, views: dict[str, np.ndarray]) -> None:
    """The views side by side, in the order in which they are compared."""
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(views.values()), axis=1)).save(file)
