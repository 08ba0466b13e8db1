"""Events: do moving things appear where the truth has them, and do they go where the text says?

`spatia eval events --worlds 16 --json`

For every world a camera is put before one of its movers. Figures are means over worlds, `<key>_ci95` the half width of the 95 % interval.

* `place_rate`: two clips from one picture, the camera drifting a little, the text saying what the mover does. Share of frames that show a
  patch of the mover's colour and size (`blobs.py`) within 10 px of where the truth has it. Only frames count in which the truth shows at
  least 12 px of its colour, all of it unhidden.
* `place_rate_warm`: the same for the second clip after the model has watched the true first one (`WorldModel.observe`): how things move is
  known then.
* `psnr_moving_warm`: of that second clip against the truth, in dB, where the truth has something moving.
* `motion_rate`: two trials per world: one picture, one seed, a still camera, and a text that asks for the one or for the opposite motion.
  Recognised when the mover's patch is, over the frames, nearer to where the asked motion puts it than to where the opposite does.
  A mover that is not found is not recognised; chance alone stays below a half.
* `place_rate_truth`, `place_rate_erased`, `motion_rate_truth`: the same detectors on the true frames, and on true frames of the world
  without that mover. They should be near 1, 0 and 1.

`details`: `place_rate_frozen`: true frames in which the mover stays where the picture has it: what a world in which nothing moves gets.
`motion_clear`: as `motion_rate`, and by at least LEAST_CLEAR of the way between the two motions. `place_rate_unasked`: one clip generated
from the picture without the mover, with a text that does not name it, against the truth with it: near 0, else colours leak.
`motion_found`: share of trials in which the mover was found at all.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatia_model.evaluation.blobs import Look, blobs, found_near, look
from spatia_model.evaluation.metrics import psnr
from spatia_model.evaluation.report import Progress, print_report, save_strip, summarise
from spatia_model.evaluation.setting import (
    SEED,
    add_common_arguments,
    advance_all,
    check_counts,
    descriptions,
    frame_times,
    load_model,
    model_steps,
)
from spatia_model.geometry.camera import resize
from spatia_model.types import Camera, GroundTruth
from spatia_model.world_model import WorldModel
from spatia_model.worlds import World
from spatia_model.worlds.watching import LEAST_SHOWN, SMALL, drift, inhabited, shown, stands
from spatia_model.worlds.world import MOVING

UNITS = {
    "place_rate": "of frames",
    "place_rate_warm": "of frames, after watching a true clip",
    "psnr_moving_warm": "dB, after watching a true clip",
    "place_rate_truth": "of true frames: near 1",
    "place_rate_erased": "of true frames without the mover: near 0",
    "motion_rate": "of two-way trials",
    "motion_rate_truth": "of trials on true frames: near 1",
}
DETAILS = ("place_rate_frozen", "place_rate_unasked", "motion_clear", "motion_found", "place_frames", "motion_trials")
CLIPS = 2  # of a place trial
LEAST_AREA = 12  # pixels of the mover's colour
LEAST_CLEAR = 0.3
LEAST_APART = 6.0  # pixels between what the two texts ask for, at the end of the clip


@dataclass(frozen=True)
class Scene:
    """A camera before a mover."""

    world: World
    index: int  # of the mover
    path: torch.Tensor  # (1 + CLIPS * step, 4, 4)
    opposite: World | None  # the same picture, the mover going the other way; None where that can't be told apart

    @property
    def erased(self) -> World:
        """The world without that mover."""
        movers = list(self.world.movers)
        movers[self.index] = replace(movers[self.index], anchor=(0.0, -500.0, 0.0))  # out of sight
        return World(self.world.seed, self.world.plan, self.world.tables, self.world.things, tuple(movers))


def evaluate_events(
    model: WorldModel,
    worlds: int = 16,
    seed: int = SEED,
    strips: Path | None = None,
    on_world: Callable[[dict[str, float | None]], None] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """All figures over worlds `seed`, `seed` + 1, ...; the same arguments give the same figures.

    A world in which no camera finds a mover counts in no figure (`details.place_frames` says how many frames a world gave).
    """
    check_counts(worlds=(worlds, 1), seed=(seed, 0))
    found = []
    for number in range(seed, seed + worlds):
        figures: dict[str, float | None] = {}
        scene = find_scene(number, model.camera, model.config.frames_per_clip)
        if scene is not None:
            figures |= place_figures(model, scene, number, strips)
            if scene.opposite is not None:
                figures |= motion_figures(model, scene, number, strips)
        found.append(figures)
        if on_world is not None:
            on_world(figures)
    return {
        **summarise(found, list(UNITS)),
        "config": {
            "worlds": worlds,
            "seed": seed,
            "model": name or type(model.generator).__name__,
            "steps": model_steps(model),
            "worlds_with_motion": sum("place_rate" in f for f in found),
        },
        "details": summarise(found, DETAILS),
    }


# -- scenes


def find_scene(seed: int, camera: Camera, step: int) -> Scene | None:
    """A camera at 1.2-3.5 m before a mover of the world of `seed`, with the mover in view as long as possible; None if none was found."""
    world, rng = inhabited(seed), np.random.default_rng([seed, 17])
    small = resize(camera, SMALL, SMALL)
    best: tuple[float, Scene] | None = None
    times = frame_times(1 + CLIPS * step)
    for index, here in stands(world, rng, times[:: step // 2]):
        path = drift(here, rng, CLIPS, step)
        if not bool(world.is_free(path[::4, :3, 3], 0.3).all()):
            continue
        picks = torch.tensor([0, step, 2 * step])
        seen = shown(world, index, path[picks], camera, times[picks])
        if float(seen[0]) < LEAST_SHOWN:
            continue
        opposite = _opposite(world, index, here, small, times[[0, step]], camera)
        score = seen.clamp(max=150).min().item() + (100 if opposite is not None else 0)
        if best is None or score > best[0]:
            best = score, Scene(world, index, path, opposite)
        if score >= 180:
            break
    return None if best is None else best[1]


def _opposite(world: World, index: int, here: torch.Tensor, small: Camera, times: torch.Tensor, camera: Camera) -> World | None:
    """The world with the mover's motion turned round, if the still camera sees both ends well and the two far apart."""
    other = world.with_motion(index, "reverse")
    scale = camera.width / small.width
    centres = []
    for w in (world, other):
        mask = w.identities(here[None], small, times[1:])[0] == MOVING + index
        if float(mask.sum()) * scale**2 < 40:
            return None
        centres.append(mask.nonzero().double().mean(0) * scale)
    if float((centres[0] - centres[1]).norm()) < LEAST_APART:
        return None
    still = here.expand(9, 4, 4)
    ends = torch.linspace(0, float(times[1]), 9, dtype=torch.float64)
    asked = [w.describe(still, camera, ends) for w in (world, other)]
    return other if asked[0] != asked[1] else None  # nothing to be told apart by, for instance a way straight to the side and up


# -- where


def place_figures(model: WorldModel, scene: Scene, seed: int, strips: Path | None = None) -> dict[str, float | None]:
    """Rates of one scene in which the mover is found at its place."""
    step, camera, path = model.config.frames_per_clip, model.camera, scene.path
    times = frame_times(len(path))
    truth = scene.world.render(path, camera, times)
    looks = true_looks(scene, truth, camera, times, path)
    if not any(looks[1:]):
        return {}
    texts = descriptions(scene.world, path, camera, times, step)
    state = model.begin(truth.rgb[0], "", seed, camera, path[0])
    _, clips = advance_all(model, state, path[1:], texts)
    cold = torch.cat([clip.frames for clip in clips])

    past, _ = model.observe(state, truth.rgb[1 : 1 + step], path[1 : 1 + step], texts[0])
    _, clips = advance_all(model, past, path[1 + step :], texts[1:])
    warm, moving = torch.cat([clip.frames for clip in clips]), truth.dynamic[1 + step :]

    erased = scene.erased.render(path, camera, times).rgb
    unasked = descriptions(scene.erased, path[: 1 + step], camera, times[: 1 + step], step)
    _, clips = advance_all(model, model.begin(erased[0], "", seed, camera, path[0]), path[1 : 1 + step], unasked)
    if strips is not None:
        rows = torch.arange(1, len(path) - 1, 2)
        shown = {"truth": truth.rgb[1:][rows], "generated": cold[rows], "after truth": torch.cat([truth.rgb[1 : 1 + step], warm])[rows]}
        save_strip(Path(strips) / f"place_{seed}.png", shown)
    return {
        "place_rate": rate(cold, looks[1:]),
        "place_rate_warm": rate(warm, looks[1 + step :]),
        "psnr_moving_warm": psnr(warm, truth.rgb[1 + step :], moving[..., None], span=255) if bool(moving.any()) else None,
        "place_rate_truth": rate(truth.rgb[1:], looks[1:]),
        "place_rate_erased": rate(erased[1:], looks[1:]),
        "place_rate_frozen": rate(scene.world.with_motion(scene.index, "still").render(path[1:], camera, times[1:]).rgb, looks[1:]),
        "place_rate_unasked": rate(torch.cat([clip.frames for clip in clips]), looks[1 : 1 + step]),
        "place_frames": float(sum(known is not None for known in looks[1:])),
    }


def true_looks(scene: Scene, truth: GroundTruth, camera: Camera, times: torch.Tensor, path: torch.Tensor) -> list[Look | None]:
    """The mover's look in every true frame; None where less than LEAST_AREA of it is seen or something hides a part of it."""
    mask = scene.world.identities(path, camera, times) == MOVING + scene.index
    alone = _unhidden(scene, camera, times, path)
    result: list[Look | None] = []
    for frame, own, whole in zip(truth.rgb, mask, alone, strict=True):
        known = look(frame, own)
        visible = known is not None and known.area >= LEAST_AREA and int(own.sum()) >= 0.6 * whole
        result.append(known if visible else None)
    return result


def _unhidden(scene: Scene, camera: Camera, times: torch.Tensor, path: torch.Tensor) -> list[float]:
    """About how many pixels the mover would fill were nothing before it and the picture endless: its disc at its distance."""
    mover = scene.world.movers[scene.index]
    centre = mover.position(times).double()
    T_camera_world = torch.linalg.inv(path)
    z = (T_camera_world[:, :3, :3] @ centre[..., None])[:, 2, 0] + T_camera_world[:, 2, 3]
    return [math.pi * (float(camera.K[0, 0]) * mover.radius / max(0.1, float(depth))) ** 2 for depth in z]


def rate(frames: torch.Tensor, looks: list[Look | None]) -> float | None:
    """Share of the frames with a look in which the mover is at its place."""
    hits = [found_near(frame, known) for frame, known in zip(frames, looks, strict=True) if known is not None]
    return sum(hits) / len(hits) if hits else None


# -- how


def motion_figures(model: WorldModel, scene: Scene, seed: int, strips: Path | None = None) -> dict[str, float | None]:
    """Rates of one scene's two trials: the mover asked to go one way, and the other."""
    assert scene.opposite is not None
    step, camera = model.config.frames_per_clip, model.camera
    path, times = scene.path[:1].expand(1 + step, 4, 4).clone(), frame_times(1 + step)
    pair = [scene.world, scene.opposite]
    truths = [world.render(path, camera, times) for world in pair]
    looks = [true_looks(replace(scene, world=w), t, camera, times, path) for w, t in zip(pair, truths, strict=True)]
    if not _tellable(looks):
        return {}
    state = model.begin(truths[0].rgb[0], "", seed, camera, path[0])
    recognised, clear, known, own, rows = [], [], [], [], {}
    for asked in (0, 1):
        text = pair[asked].describe(path, camera, times)
        _, clip = model.advance(state, path[1:], text)
        lead = leaning(clip.frames, looks[asked], looks[1 - asked])
        known.append(lead is not None)
        recognised.append(lead is not None and lead > 0)
        clear.append(lead is not None and lead >= LEAST_CLEAR)
        own.append((leaning(truths[asked].rgb[1:], looks[asked], looks[1 - asked]) or 0) > 0)
        rows |= {f"true {'ab'[asked]}": truths[asked].rgb[1:], f"asked {'ab'[asked]}": clip.frames}
    if strips is not None:
        save_strip(Path(strips) / f"motion_{seed}.png", rows)
    return {
        "motion_rate": sum(recognised) / 2,
        "motion_rate_truth": sum(own) / 2,
        "motion_clear": sum(clear) / 2,
        "motion_found": sum(known) / 2,
        "motion_trials": 2.0,
    }


def _apart(a: Look | None, b: Look | None) -> bool:
    return a is not None and b is not None and float(np.linalg.norm(a.place - b.place)) >= LEAST_APART


def _tellable(looks: list[list[Look | None]]) -> bool:
    """Whether at least two frames have both motions in view and apart."""
    return sum(_apart(a, b) for a, b in zip(*looks, strict=True)) >= 2


def leaning(frames: torch.Tensor, asked: Sequence[Look | None], opposite: Sequence[Look | None]) -> float | None:
    """How far the mover in frames (T, H, W, 3) goes as asked rather than the opposite way: 1 as asked, 0 neither, -1 the opposite.

    It is the mean of (distance to the opposite's place - distance to the asked one's) / distance between the two, over frames in which
    they are apart; None where the mover is not found in a quarter of these. `asked`, `opposite`: the true looks, with the first picture's
    before them (1 + T). The largest patch of its colour counts wherever it is within reach of both motions, so that none is favoured.
    """
    leads = []
    usable = 0
    for frame, a, b in zip(frames, asked[1:], opposite[1:], strict=True):
        if a is None or b is None or not _apart(a, b):
            continue
        usable += 1
        middle, reach = (a.place + b.place) / 2, float(np.linalg.norm(a.place - b.place)) / 2 + 12
        centres = [c for _, c in blobs(frame, a) if float(np.linalg.norm(c - middle)) <= reach]
        if centres:
            near, far = (float(np.linalg.norm(centres[0] - known.place)) for known in (a, b))
            leads.append((far - near) / float(np.linalg.norm(a.place - b.place)))
    if not leads or len(leads) < 0.25 * usable:
        return None
    return sum(leads) / len(leads)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia eval events`."""
    add_common_arguments(parser, worlds=16)
    parser.add_argument("--strips", type=Path, metavar="DIR", help="write strips of pictures: truth and generated")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when done."""
    model = load_model(args)
    progress = Progress("events", args.worlds)

    def tell(figures: dict[str, float | None]) -> None:
        known = [f"{k} {v:.2f}" for k in ("place_rate", "motion_rate") if (v := figures.get(k)) is not None]
        progress.step(", ".join(known) or "no mover in view")

    result = evaluate_events(model, args.worlds, args.seed, args.strips, tell, str(args.model))
    print_report(result, args.json, UNITS)
    return 0
