"""`spatia rollout`: an agent's episodes as a dataset."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatia_env.agent_file import AgentFile
from spatia_env.commands import common
from spatia_env.recording.card import dataset_card
from spatia_env.recording.face import EnvFace, EpisodeSummary
from spatia_env.recording.folder import DatasetWriter
from spatia_env.rollouts import EnvRequest, collect, missing
from spatia_env.rollouts_ray import check_address, cluster, collect_on_ray, import_ray

_PUBLISH_EVERY = 60.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agent", required=True, metavar="FILE:CLASS", help="the agent: a class in a file (docs/agents.md)")
    parser.add_argument("--agent-option", action="append", default=[], metavar="KEY=VALUE", help="an argument of the agent; repeatable")
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="how many; episode i has the seed SEED + i")
    parser.add_argument("--out", required=True, metavar="DIR", help="the dataset's folder: a new one, or one that the same command began")
    parser.add_argument("--format", choices=("minari", "lerobot"), default="minari", help="of the dataset (default: %(default)s)")
    parser.add_argument("--env", default="Spatia-v0", metavar="ID", help="id of the env, or module:Id (default: %(default)s)")
    parser.add_argument("--env-option", action="append", default=[], metavar="KEY=VALUE", help="an argument of the env; repeatable")
    parser.add_argument("--task", default=None, help="a task's name, or FILE:NAME of a callable (default: none)")
    parser.add_argument("--image", default=None, help="the picture to start from")
    parser.add_argument("--prompt", default=None, help="a sentence about the place")
    parser.add_argument("--model", default=None, help="name of a model or a folder of weights")
    parser.add_argument("--device", default=None, help="auto, cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, default=100, metavar="N", help="an episode is truncated after N (default: %(default)s)")
    parser.add_argument("--num-envs", type=int, default=1, metavar="N", help="worlds side by side, per actor (default: %(default)s)")
    parser.add_argument("--infos", default=None, metavar="KEY,KEY", help="minari: keys of the info to keep (default: all)")
    parser.add_argument("--ray", default=None, metavar="ADDRESS", help="spread over a Ray cluster: host:port, auto, or local")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")


def run(args: argparse.Namespace) -> int:
    start = time.monotonic()
    _check_numbers(args)
    request = _env_request(args)
    agent_file = AgentFile.parse(args.agent, _pairs(args.agent_option, "--agent-option"))
    agent = agent_file.load()
    request.arguments()  # raises for what the env does not take, before anything is loaded
    weights = _weights(request)
    settings = _settings(args, request, agent_file, weights)
    writer = _writer(args, settings, agent_file)
    if args.ray is not None:
        import_ray()
        check_address(args.ray)
    try:
        writer.check()
    except ImportError as error:
        raise ValueError(str(error)) from error
    say_at = _Progress(args.episodes, writer)

    def finish(final: bool) -> None:
        face = writer.face
        summaries = [writer.summaries[index] for index in sorted(writer.summaries)]
        spec = face.spec if face is not None else None
        writer.card = dataset_card(writer.folder.resolve().name, args.format, _command(args), settings, spec, weights, summaries)
        writer.publish(final)

    with _episodes(args, request, agent_file, agent, writer) as episodes:
        last = 0.0  # the first episode makes the dataset one that can be opened
        try:
            for summary in episodes:
                say_at.episode(summary)
                if time.monotonic() - last > _PUBLISH_EVERY:
                    finish(False)
                    last = time.monotonic()
            finish(True)
        except BaseException:
            if writer.face is not None:
                with contextlib.suppress(Exception):  # the error that stopped the run is the one to tell
                    finish(False)
                done = sum(index < args.episodes for index in writer.summaries)
                common.say(f"stopped; {done} of {args.episodes} episodes are kept, and the same command goes on")
            raise
    return _tell(args, writer, time.monotonic() - start)


@contextlib.contextmanager
def _episodes(
    args: argparse.Namespace, request: EnvRequest, agent_file: AgentFile, agent: type, writer: DatasetWriter
) -> Iterator[Iterator[EpisodeSummary]]:
    """An iterator that runs the missing episodes; the folder is open meanwhile."""
    with _stopped_by_sigterm(), contextlib.ExitStack() as stack:
        todo: list[int] = []

        def opened(face: EnvFace) -> list[int]:
            writer.open(face)
            stack.callback(writer.close)
            todo.extend(missing(writer, args.episodes))
            return todo

        if args.ray is not None:
            ray = stack.enter_context(cluster(args.ray))
            episodes = collect_on_ray(ray, request, agent_file, writer, opened, args.seed, args.num_envs)
            stack.callback(episodes.close)
        else:
            first = request.make()
            stack.callback(first.close)
            agent_file.try_on(first, args.seed)
            opened(request.face(first))
            worlds = request.worlds(max(1, min(args.num_envs, len(todo))), first, bool(getattr(agent, "needs_world", False)))
            stack.callback(worlds.close)
            episodes = collect(worlds, agent, agent_file.options, writer, todo, args.seed)
            stack.callback(episodes.close)
        yield episodes


def _tell(args: argparse.Namespace, writer: DatasetWriter, seconds: float) -> int:
    summaries = [writer.summaries[index] for index in sorted(writer.summaries) if index < args.episodes]
    failed = [summary for summary in summaries if summary.error is not None]
    judged = [summary.success for summary in summaries if summary.success is not None]
    found = {
        "out": str(writer.folder),
        "format": args.format,
        "episodes": len(summaries),
        "steps": sum(summary.steps for summary in summaries),
        "mean_return": sum(summary.total_reward for summary in summaries) / len(summaries),
        "success": sum(judged) / len(judged) if judged else None,
        "errors": [{"episode": summary.index, "steps": summary.steps, "error": summary.error} for summary in failed],
        "seconds": round(seconds, 1),
    }
    if args.json:
        print(json.dumps(found))
    else:
        told = f", success {found['success']:.0%}" if judged else ""
        print(f"{writer.folder}: {found['episodes']} episodes, {found['steps']} steps, mean return {found['mean_return']:.3f}{told}")
    if failed:
        common.say(f"{len(failed)} episodes were closed by an error of the agent; the first: {failed[0].error}")
    return 1 if len(failed) == len(summaries) else 0


class _Progress:
    """Lines on stderr: one per episode, but at most one a second."""

    def __init__(self, episodes: int, writer: DatasetWriter) -> None:
        self.episodes, self.writer, self.new, self.start, self.last = episodes, writer, 0, time.monotonic(), 0.0

    def episode(self, summary: EpisodeSummary) -> None:
        self.done = sum(index < self.episodes for index in self.writer.summaries)
        self.new += 1
        if self.new == 1 and self.done > 1:
            common.say(f"{self.done - 1} of {self.episodes} episodes were there already")
        now = time.monotonic()
        if now - self.last < 1 and self.done < self.episodes and summary.error is None:
            return
        self.last = now
        left = (now - self.start) / self.new * (self.episodes - self.done)
        error = f" ({summary.error})" if summary.error else ""
        common.say(f"episode {summary.index}: {summary.steps} steps{error}; {self.done}/{self.episodes}, about {left:.0f} s left")


# -- what the command line says ----------------------------------------------------------------------------


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("episodes", "max_steps", "num_envs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; give a whole number of at least 1")
    if not 0 <= args.seed < 2**31 - args.episodes:
        raise ValueError(f"--seed is {args.seed}; give a whole number from 0 to {2**31 - 1 - args.episodes:,}")


def _env_request(args: argparse.Namespace) -> EnvRequest:
    options = _pairs(args.env_option, "--env-option")
    options |= {name: value for name in ("image", "prompt", "model", "device") if (value := getattr(args, name)) is not None}
    return EnvRequest(args.env, options, args.task, args.max_steps)


def _pairs(given: list[str], name: str) -> dict[str, Any]:
    """KEY=VALUE with VALUE as JSON where it is JSON, as text otherwise."""
    found: dict[str, Any] = {}
    for pair in given:
        key, mark, value = pair.partition("=")
        if not mark or not key.isidentifier():
            raise ValueError(f"{name} is {pair!r}; give KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _settings(args: argparse.Namespace, request: EnvRequest, agent: AgentFile, weights: dict[str, str]) -> dict[str, Any]:
    """What makes two runs the same collection. Paths count by what the files hold."""
    from spatia_env import __version__

    settings: dict[str, Any] = {
        "agent": {"file": Path(agent.path).name, "class": agent.name, "sha256": agent.sha256, "options": agent.options},
        "env": request.env_id,
        "env_options": {key: value for key, value in request.options.items() if key != "device"},
        "task": args.task,
        "seed": args.seed,
        "max_steps": args.max_steps,
        "spatia": __version__,
    }
    if args.image is not None and Path(args.image).expanduser().is_file():
        settings["image_sha256"] = hashlib.sha256(Path(args.image).expanduser().read_bytes()).hexdigest()
    if args.infos is not None:
        settings["infos"] = sorted(args.infos.split(","))
    if weights:
        settings["weights"] = weights
    return settings


def _weights(request: EnvRequest) -> dict[str, str]:
    """SHA-256 of the model's files, as its config.json has them; empty for an env without a model."""
    parameter = request.parameters().get("model")
    model = request.options.get("model", parameter.default if parameter is not None else None)
    if not isinstance(model, str):
        return {}
    from spatia_model.model_folder import resolve

    config = resolve(model) / "config.json"
    sums = {config.name: hashlib.sha256(config.read_bytes()).hexdigest()}
    described = json.loads(config.read_text()).get("sha256")
    return sums | {str(key): str(value) for key, value in (described or {}).items()}


def _writer(args: argparse.Namespace, settings: dict[str, Any], agent: AgentFile) -> DatasetWriter:
    from spatia_env.recording import LeRobotWriter, MinariWriter

    if args.format == "lerobot":
        if args.infos is not None:
            raise ValueError("--infos chooses what a minari dataset keeps; a lerobot dataset has its fixed columns")
        return LeRobotWriter(args.out, settings)
    infos = None if args.infos is None else tuple(args.infos.split(","))
    return MinariWriter(args.out, settings, infos=infos, algorithm=agent.name)


def _command(args: argparse.Namespace) -> str:
    """The command line as it was typed."""
    return shlex.join(["spatia", *getattr(args, "argv", sys.argv[1:])])


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: finished episodes are in the dataset's index."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
