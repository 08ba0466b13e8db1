"""Closed loop: walk away in a held-out world and come back, and compare what is shown with what is there.

`spatia eval closed-loop --worlds 16 --clips 6 --memory on --json`

Every world gives one figure per key, the report their mean and, as `<key>_ci95`, the half width of its 95 % interval (Student's t over
worlds; null with fewer than two). A key is null where nothing was measured. PSNR in dB over pooled pixels of all frames of a walk.

* `psnr_c`, `ssim_c`: last generated frame, back at the start, against the first picture (whole frames, movers included).
* `psnr_revisit`: with `--revisit`: a place out of sight from the start is walked to, left and visited again; second visit against first,
  on pixels where the truth has nothing moving either time.
* `psnr_covered`, `psnr_uncovered`: against the truth on its static pixels, by whether the memory's projection shown to the generator
  covers them. With `--memory off` the generator is shown nothing; the split is then by what the first picture's points would cover.
* `psnr_moving`: against the truth where it has something moving.
* `gradient_energy_*`: that of the frames over that of the truth on the same pixels: 1 is as sharp, below is blur.
* `psnr_vae`: the VAE's own reconstruction of the true frames: a ceiling off the map; on it the refiner may pass it.
* `ghost_rate`: see `ghosts.ghost_rate`, after the walk.
* `rotation_error_deg`, `translation_error_pct`: camera motion of each clip, estimated from its pictures (`motion.py`), against the path.
  The frame before the clip is put into space with true depth where the first picture saw the surface (elsewhere the model may invent, and
  there is no true depth) and aligned with the clip's last frame. A clip counts where the same estimate on true frames is within 1 degree
  and 5 cm. Degrees: mean over clips. Percent: sum of the errors over the sum of the lengths asked, of clips that walk 10 cm or more.
  `own_*` in `details` are the estimator's errors on the true frames.
* `coverage`: share of pixels that the mask of the split covers.

`details` holds what helps to read these: `psnr_c_truth` (the truth's own last frame against its first: what movers cost),
`psnr_c_static` (without moving pixels), `psnr_seen` (covered pixels whose surface the first picture showed: what the memory holds of the
rest was invented, and can't agree with the truth), `mover_ghost_rate` (ghosts where a mover was: what it left behind), `depth_error`
(median of |depth - truth| / truth of perception on seen static pixels nearer than 40 m: from 2 % on, most points are farther than two
voxels from their surface), `gradient_energy_uncovered_median` over worlds (where the truth is a bare wall, any pattern is many times as
sharp, and one such world carries the mean).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatia_model.evaluation.camera_control import clip_motions
from spatia_model.evaluation.ghosts import ghost_rate, mover_ghost_rate
from spatia_model.evaluation.metrics import gradient_energy, psnr, ssim
from spatia_model.evaluation.motion import motion_errors, seen_in
from spatia_model.evaluation.report import Progress, median, print_report, save_strip, summarise
from spatia_model.evaluation.setting import (
    SEED,
    Walk,
    add_common_arguments,
    check_counts,
    load_model,
    model_steps,
    vae_reconstruction,
    walk,
)
from spatia_model.types import Camera, GroundTruth
from spatia_model.world_model import WorldModel
from spatia_model.worlds import World
from spatia_model.worlds.trajectories import CLEARANCE, clips_between, out_and_back, pose_from, yaw_pitch_roll

UNITS = {
    "psnr_c": "dB, last frame against first picture",
    "ssim_c": "",
    "psnr_revisit": "dB, second visit of a generated place against the first",
    "psnr_covered": "dB",
    "psnr_uncovered": "dB",
    "psnr_moving": "dB",
    "gradient_energy_covered": "of the truth's",
    "gradient_energy_uncovered": "of the truth's",
    "psnr_vae": "dB, ceiling",
    "ghost_rate": "of the memory's points",
    "rotation_error_deg": "degrees per clip",
    "translation_error_pct": "% of the way",
    "coverage": "of the pixels",
}
DETAILS = (
    "psnr_c_truth",
    "psnr_c_static",
    "psnr_seen",
    "gradient_energy_seen",
    "mover_ghost_rate",
    "depth_error",
    "own_rotation_error_deg",
    "own_translation_error_pct",
    "motion_clips",
    "revisit_seen_from_start",
)
LEAST_WAY = 0.1  # metres of a clip that counts as walking


def evaluate_closed_loop(
    model: WorldModel,
    worlds: int = 16,
    seed: int = SEED,
    clips: int = 6,
    memory: bool = True,
    perception: str = "model",
    revisit: bool = False,
    strips: Path | None = None,
    on_world: Callable[[dict[str, float | None]], None] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """All figures over worlds `seed`, `seed` + 1, ...; the same arguments give the same figures.

    Args:
        clips: length of the walk, at least 2.
        perception: "model", or "oracle" for true depth and masks.
        strips: folder for picture strips (truth, projection, generated), or None.
        on_world: called with each world's figures as they come.
        name: the model's, for the report.
    """
    check_counts(worlds=(worlds, 1), seed=(seed, 0), clips=(clips, 2))
    if perception not in ("model", "oracle"):
        raise ValueError(f'perception must be "model" or "oracle", got {perception!r}')
    found = []
    for number in range(seed, seed + worlds):
        world = World.generate(number)
        options = {"seed": number, "memory": memory, "oracle": perception == "oracle"}
        path = out_and_back(world, np.random.default_rng([number, 11]), clips, model.config.frames_per_clip)
        walked = walk(model, world, path, **options)
        figures = closed_loop_figures(model, world, walked)
        if strips is not None:
            _strip(Path(strips) / f"loop_{number}.png", walked, model.config.frames_per_clip)
        if revisit:
            away, visit = revisit_path(world, np.random.default_rng([number, 13]), model.config.frames_per_clip, max(2, clips // 2))
            again = walk(model, world, away, **options)
            figures |= revisit_figures(again, visit, model.camera)
            if strips is not None:
                _strip(Path(strips) / f"revisit_{number}.png", again, model.config.frames_per_clip)
        found.append(figures)
        if on_world is not None:
            on_world(figures)
    return {
        **summarise(found, list(UNITS)),
        "config": {
            "worlds": worlds,
            "seed": seed,
            "clips": clips,
            "memory": "on" if memory else "off",
            "model": name or type(model.generator).__name__,
            "steps": model_steps(model),
            "perception": perception,
            "revisit": revisit,
        },
        "details": summarise(found, DETAILS) | {"gradient_energy_uncovered_median": median(found, "gradient_energy_uncovered")},
    }


def closed_loop_figures(model: WorldModel, world: World, walked: Walk) -> dict[str, float | None]:
    """The figures of one walk that ends where it began."""
    truth, frames, step = walked.truth, walked.frames, model.config.frames_per_clip
    later = GroundTruth(truth.rgb[1:], truth.depth[1:], truth.dynamic[1:])
    first = GroundTruth(truth.rgb[:1], truth.depth[:1], truth.dynamic[:1])
    static = ~later.dynamic
    seen = seen_in(truth, walked.path, first, walked.path[0], model.camera)
    covered, uncovered, grounded = static & walked.mask, static & ~walked.mask, walked.mask & seen[1:]
    both = ~(first.dynamic[0] | later.dynamic[-1])
    rebuilt = vae_reconstruction(model, truth.rgb)
    figures = {
        "psnr_c": psnr(frames[-1], first.rgb[0], span=255),
        "ssim_c": ssim(frames[-1], first.rgb[0]),
        "psnr_covered": _psnr_on(frames, later.rgb, covered),
        "psnr_uncovered": _psnr_on(frames, later.rgb, uncovered),
        "psnr_moving": _psnr_on(frames, later.rgb, later.dynamic),
        "gradient_energy_covered": _sharpness(frames, later.rgb, covered),
        "gradient_energy_uncovered": _sharpness(frames, later.rgb, uncovered),
        "psnr_vae": None if rebuilt is None else psnr(rebuilt, later.rgb, span=255),
        "ghost_rate": ghost_rate(walked.state.memory, world),
        "coverage": float(walked.mask.float().mean()),
        "psnr_c_truth": psnr(later.rgb[-1], first.rgb[0], span=255),
        "psnr_c_static": psnr(frames[-1], first.rgb[0], both[..., None], span=255),
        "psnr_seen": _psnr_on(frames, later.rgb, grounded),
        "gradient_energy_seen": _sharpness(frames, later.rgb, grounded),
        "mover_ghost_rate": mover_ghost_rate(walked.state.memory, world, walked.times),
        "depth_error": _depth_error(walked.depth, later.depth, seen[1:]),
    }
    return figures | motion_figures(walked, seen, model.camera, step)


def motion_figures(walked: Walk, seen: torch.Tensor, camera: Camera, step: int) -> dict[str, float | None]:
    """Camera errors of a walk's clips; `seen` (1 + N, H, W) as `motion.seen_in` gives it for the first picture."""
    motions = clip_motions(walked, seen, camera, step)
    turns, gaps = [list(values) for values in zip(*(motion_errors(m.estimated, m.asked) for m in motions), strict=True)] or ([], [])
    own_turns, own_gaps = [list(values) for values in zip(*(motion_errors(m.own, m.asked) for m in motions), strict=True)] or ([], [])
    asked_way = [float(m.asked[:3, 3].norm()) for m in motions]
    walking = [i for i, way in enumerate(asked_way) if way >= LEAST_WAY]  # a clip that only turns has no way to be wrong by a share of

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    def share(errors: list[float]) -> float | None:
        return 100 * sum(errors[i] for i in walking) / sum(asked_way[i] for i in walking) if walking else None

    return {
        "rotation_error_deg": mean(turns),
        "translation_error_pct": share(gaps),
        "own_rotation_error_deg": mean(own_turns),
        "own_translation_error_pct": share(own_gaps),
        "motion_clips": float(len(turns)),
    }


def revisit_path(world: World, rng: np.random.Generator, frames_per_clip: int, away: int) -> tuple[torch.Tensor, int]:
    """To a place out of sight from the start, on, and back to it: (poses (1 + k * frames_per_clip, 4, 4), frame of the first visit).

    Four clips turn by 100-112 degrees, more than a view is wide, walking a little where there is room; `away` clips lead on by 25-28
    degrees each, and as many back along the same poses, so the last frame is the second visit.
    """
    check_counts(frames_per_clip=(frames_per_clip, 1), away=(away, 1))
    path: torch.Tensor | None = None
    for attempt in range(60):
        here = world.start_pose(rng)
        way = float(rng.choice([-1.0, 1.0]))
        x, y, z = here[:3, 3].tolist()
        yaw, pitch, roll = yaw_pitch_roll(here)
        knots = [here]
        reach = float(rng.uniform(0.1, 0.4)) * (1 - attempt / 60)
        for turn in [math.radians(float(rng.uniform(25, 28)))] * 4 + [math.radians(float(rng.uniform(25, 28)))] * away:
            yaw += way * turn
            x, z = x + reach * math.sin(yaw - way * turn / 2), z + reach * math.cos(yaw - way * turn / 2)
            knots.append(pose_from(x, y, z, yaw, pitch, roll))
        out = torch.cat([here[None], *(clips_between(a, b[None], frames_per_clip)[0] for a, b in zip(knots, knots[1:], strict=False))])
        visit = 4 * frames_per_clip
        path = torch.cat([out, out[visit:-1].flip(0)])
        times = torch.arange(len(path), dtype=torch.float64) / 8
        clear = bool(world.is_free(path[:, :3, 3], CLEARANCE).all())
        for mover in world.movers:
            clear &= bool(((path[:, :3, 3] - mover.position(times).double()).norm(dim=-1) > mover.bounding_radius + CLEARANCE).all())
        if clear:
            return path, visit
    raise RuntimeError(f"no clear way to a place out of sight in {world!r} after 60 tries; use another seed or fewer clips")


def revisit_figures(walked: Walk, visit: int, camera: Camera) -> dict[str, float | None]:
    """Second visit (the last frame) against the first (frame `visit` of the path), which shows what was generated then."""
    still = ~(walked.truth.dynamic[visit] | walked.truth.dynamic[-1])
    first = GroundTruth(walked.truth.rgb[:1], walked.truth.depth[:1], walked.truth.dynamic[:1])
    there = GroundTruth(*(getattr(walked.truth, n)[visit : visit + 1] for n in ("rgb", "depth", "dynamic")))
    seen = seen_in(there, walked.path[visit : visit + 1], first, walked.path[0], camera)
    return {
        "psnr_revisit": psnr(walked.frames[-1], walked.frames[visit - 1], still[..., None], span=255),
        "revisit_seen_from_start": float(seen.float().mean()),
    }


def _psnr_on(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    """PSNR of uint8 (N, H, W, 3) on pixels (N, H, W); NaN where there are none."""
    return psnr(a, b, mask[..., None], span=255)


def _depth_error(depth: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    """Median relative error of depths (N, H, W) on pixels; NaN where there are none."""
    chosen = mask & (truth < 40.0) & ~depth.isnan()
    return float(((depth - truth).abs() / truth)[chosen].median()) if bool(chosen.any()) else math.nan


def _sharpness(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    """Gradient energy of `a` over that of `b` on the same pixels."""
    pixels = mask[:, None]
    energy = [gradient_energy(x.permute(0, 3, 1, 2), pixels) for x in (a, b)]
    return energy[0] / energy[1] if energy[1] > 0 else math.nan


def _strip(file: Path, walked: Walk, step: int) -> None:
    """Two frames per clip."""
    stride = max(1, step // 2)
    rows = torch.arange(stride - 1, len(walked.frames), stride)
    save_strip(file, {"truth": walked.truth.rgb[1:][rows], "projection": walked.projection[rows], "generated": walked.frames[rows]})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia eval closed-loop`."""
    add_common_arguments(parser, worlds=16)
    parser.add_argument("--clips", type=int, default=6, help="clips of the walk out and back, at least 2 (default: %(default)s)")
    parser.add_argument("--memory", choices=("on", "off"), default="on", help="off: the generator sees no projection and no references")
    parser.add_argument(
        "--perception", choices=("model", "oracle"), default="model", help="oracle: true depth and masks (default: %(default)s)"
    )
    parser.add_argument("--revisit", action="store_true", help="also visit a generated place twice (psnr_revisit)")
    parser.add_argument("--strips", type=Path, metavar="DIR", help="write strips of pictures: truth, projection, generated")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when done."""
    model = load_model(args)
    progress = Progress("closed loop", args.worlds)

    def tell(figures: dict[str, float | None]) -> None:
        revisited = figures.get("psnr_revisit")
        progress.step(f"psnr_c {figures['psnr_c']:.1f}" + ("" if revisited is None else f", revisit {revisited:.1f}"))

    result = evaluate_closed_loop(
        model,
        worlds=args.worlds,
        seed=args.seed,
        clips=args.clips,
        memory=args.memory == "on",
        perception=args.perception,
        revisit=args.revisit,
        strips=args.strips,
        on_world=tell,
        name=str(args.model),
    )
    print_report(result, args.json, UNITS)
    return 0
