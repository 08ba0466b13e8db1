"""What both evaluations share: the model as the command line asks for it, and how a model is walked through a true world."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from spatia_model.config import FRAME_RATE
from spatia_model.generator.conditioning import to_frames, to_model
from spatia_model.perception.oracle import OraclePerceiver
from spatia_model.types import Camera, Clip, GroundTruth, WorldState
from spatia_model.world_model import WorldModel
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import sample_path

SEED = 2_000_000  # first of the test worlds
Figures = dict[str, float | None]


@dataclass
class Clock:
    """Says at what times the frames asked of an oracle are. The walk sets it before every clip."""

    first: int = 0  # number of the next clip's first frame
    rate: float = FRAME_RATE

    def __call__(self, frames: int) -> torch.Tensor:
        return (self.first + torch.arange(frames, dtype=torch.float64)) / self.rate


@dataclass(frozen=True)
class Walk:
    """What a model showed along a path. N new frames; `truth` and `path` have one more, the first picture."""

    path: torch.Tensor  # (1 + N, 4, 4)
    times: torch.Tensor  # (1 + N,) seconds
    truth: GroundTruth  # 1 + N frames
    frames: torch.Tensor  # (N, H, W, 3) uint8
    projection: torch.Tensor  # (N, H, W, 3) uint8: what the memory, or without memory the first picture's points, would show
    mask: torch.Tensor  # (N, H, W) bool: where it shows something
    depth: torch.Tensor  # (N, H, W) metres: what perception made of the frames; NaN where it did not look
    texts: tuple[str, ...]
    state: WorldState  # after the walk


def frame_times(count: int, first: int = 0) -> torch.Tensor:
    """Seconds (count,) of frames number `first` and on."""
    return (first + torch.arange(count, dtype=torch.float64)) / FRAME_RATE


def with_oracle(model: WorldModel, world: World) -> tuple[WorldModel, Clock]:
    """The model with eyes that read `world`, and the clock they go by."""
    clock = Clock()
    return WorldModel(model.generator, OraclePerceiver(world, clock), model.config, model.mapping, model.planner), clock


def walk(
    model: WorldModel,
    world: World,
    path: torch.Tensor,
    *,
    seed: int,
    memory: bool = True,
    oracle: bool = False,
    truth: GroundTruth | None = None,
) -> Walk:
    """Begin with the truth's picture at the path's start and advance along it, each clip told what the truth would show.

    path: (1 + k * frames_per_clip, 4, 4), frame i at i / 8 s. `memory` False leaves the generator without projection and references.
    truth: what was rendered of the path already, its first frame at least; no more is looked at. None: all of it is rendered.
    """
    step = model.config.frames_per_clip
    if len(path) < 1 + step or (len(path) - 1) % step:
        raise ValueError(f"a path of 1 + {step}k poses is needed, one clip being {step} frames, got {len(path)}")
    clock = Clock()
    if oracle:
        model, clock = with_oracle(model, world)
    times = frame_times(len(path))
    camera = model.camera
    truth = world.render(path, camera, times) if truth is None else truth
    state = model.begin(truth.rgb[0], world.caption(), seed, camera, path[0])
    texts, clips, shown = [], [], []
    for first in range(0, len(path) - 1, step):
        window = slice(first, first + step + 1)
        ahead = path[first + 1 : first + step + 1]
        texts.append(world.describe(path[window], camera, times[window]))
        clock.first = first + 1
        before = state
        state, clip = model.advance(state, ahead, texts[-1], memory)
        clips.append(clip)
        shown.append(clip.projection if memory else before.memory.project(ahead, camera))
    return Walk(
        path,
        times,
        truth,
        torch.cat([clip.frames for clip in clips]),
        torch.cat([projection.rgb for projection in shown]),
        torch.cat([projection.mask for projection in shown]),
        torch.cat([clip.perception.depth.where(clip.perception.confidence > 0, torch.nan) for clip in clips]),
        tuple(texts),
        state,
    )


def walk_worlds(
    model: WorldModel,
    figures_of: Callable[[Walk], Figures],
    stream: int,
    worlds: int,
    seed: int,
    clips: int,
    memory: bool,
    on_world: Callable[[Figures], None] | None,
    name: str,
) -> tuple[list[Figures], dict[str, Any]]:
    """The figures of a walk of `clips` clips in each of the worlds `seed`, `seed` + 1, ..., and the report's config.

    stream: which walks; the same number gives the same walks. on_world: called with each world's figures as they come.
    """
    check_counts(worlds=(worlds, 1), seed=(seed, 0), clips=(clips, 1))
    found = []
    for number in range(seed, seed + worlds):
        world = World.generate(number)
        path = sample_path(world, np.random.default_rng([number, stream]), clips, model.config.frames_per_clip)
        found.append(figures_of(walk(model, world, path, seed=number, memory=memory)))
        if on_world is not None:
            on_world(found[-1])
    config = {
        "worlds": worlds,
        "seed": seed,
        "clips": clips,
        "memory": "on" if memory else "off",
        "model": name,
        "steps": model_steps(model),
    }
    return found, config


def advance_all(model: WorldModel, state: WorldState, path: torch.Tensor, texts: Sequence[str]) -> tuple[WorldState, list[Clip]]:
    """Advance along `path` (k * frames_per_clip, 4, 4), one text per clip."""
    step = model.config.frames_per_clip
    clips = []
    for i, text in enumerate(texts):
        state, clip = model.advance(state, path[i * step : (i + 1) * step], text)
        clips.append(clip)
    return state, clips


def descriptions(world: World, path: torch.Tensor, camera: Camera, times: torch.Tensor, step: int) -> list[str]:
    """One window caption per clip of a path of 1 + k * step poses."""
    windows = [slice(i, i + step + 1) for i in range(0, len(path) - 1, step)]
    return [world.describe(path[window], camera, times[window]) for window in windows]


def vae_reconstruction(model: WorldModel, frames: torch.Tensor) -> torch.Tensor | None:
    """The VAE's own picture of true frames (1 + N, H, W, 3), clip by clip with their history as in generation: (N, H, W, 3) uint8.

    It is the ceiling of whatever the generator draws. None for a generator without a VAE.
    """
    vae = getattr(model.generator, "vae", None)
    if vae is None:
        return None
    step, known = model.config.frames_per_clip, model.config.history_frames
    padded = torch.cat([frames[:1].expand(known - 1, -1, -1, -1), frames])  # before the picture, time stood still
    with torch.inference_mode():
        clips = []
        for first in range(0, len(frames) - 1, step):
            window = to_model(padded[None, first : first + known + step])
            weights = next(iter(vae.parameters()), None) if hasattr(vae, "parameters") else None
            window = window if weights is None else window.to(weights.device)
            clips.append(to_frames(vae.decode(vae.encode(window)))[0, known:].cpu())
    return torch.cat(clips).clone()


# -- command line


def add_common_arguments(parser: argparse.ArgumentParser, worlds: int) -> None:
    parser.add_argument("--worlds", type=_count, default=worlds, help="how many worlds (default: %(default)s)")
    parser.add_argument(
        "--seed", type=_seed, default=SEED, help="seed of the first world; the others follow (default: %(default)s, a test world)"
    )
    parser.add_argument("--model", default="spatia-mini", help="name of a model or a folder of weights (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--steps", type=_count, help="sampler steps (default: the model's own)")
    parser.add_argument(
        "--surroundings", choices=("on", "off"), help="whether unseen places begin as the first picture mirrored (default: the model's own)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of a table")


def add_walk_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the evaluations that call `walk_worlds`."""
    add_common_arguments(parser, worlds=16)
    parser.add_argument("--clips", type=int, default=4, help="clips of a walk (default: %(default)s)")
    parser.add_argument("--memory", choices=("on", "off"), default="on", help="off: neither projection nor references")


def load_model(args: argparse.Namespace) -> WorldModel:
    """The model of the arguments, with `--steps` and `--surroundings` in place of its own."""
    model = WorldModel.from_pretrained(args.model, args.device)
    if args.surroundings is not None:
        if not hasattr(model.config, "surroundings"):
            raise ValueError(f"{args.model!r} has no surroundings to turn on or off: leave --surroundings out")
        model = WorldModel(
            model.generator, model.perceiver, replace(model.config, surroundings=args.surroundings == "on"), model.mapping, model.planner
        )
    return model if args.steps is None else with_steps(model, args.steps)


def with_steps(model: WorldModel, steps: int) -> WorldModel:
    """The same model with another number of sampler steps."""
    generator = copy.copy(model.generator)  # shares every part
    generator.options = replace(generator.options, steps=steps)
    return WorldModel(generator, model.perceiver, replace(model.config, steps=steps), model.mapping, model.planner)


def model_steps(model: WorldModel) -> int | None:
    return getattr(getattr(model.generator, "options", None), "steps", None)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"a seed is a whole number of at least 0, got {text}")
    return value


def check_counts(**given: Any) -> None:
    """ValueError for a count below its least: `check_counts(worlds=(n, 1))`."""
    for name, (value, least) in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
