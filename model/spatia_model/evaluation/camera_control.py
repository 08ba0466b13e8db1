"""Camera control as WorldScore scores it, and `spatia eval camera`.

`spatia eval camera --worlds 8 --json`

Of every clip the camera's motion is estimated from its pictures (`motion.py`) and compared with the path's. After one scale has been fitted
per walk, the errors e_R (degrees) and e_t (metres), each the mean over the walk's clips, give

    camera_control = 100 sqrt((1 - e_R / 15) (1 - e_t / 0.5)), both factors cut to 0..1.

WorldScore estimates the trajectory of a whole video with DROID-SLAM; here it is clip by clip, with true depth, so that drift of the
estimator does not count, and clips in which the same estimate on true frames fails are left out (`motion.py`). Compare these figures
with each other, not with the benchmark's table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spatia_model.evaluation.motion import Motion, estimate_motion, motion_errors, seen_in
from spatia_model.evaluation.report import Progress, print_report, summarise
from spatia_model.evaluation.setting import SEED, Figures, Walk, add_walk_arguments, load_model, walk_worlds
from spatia_model.geometry import se3
from spatia_model.types import Camera, GroundTruth
from spatia_model.world_model import WorldModel

UNITS = {
    "camera_control": "of 100",
    "rotation_error_deg": "degrees per clip",
    "translation_error_m": "metres per clip, after the scale fit",
    "scale": "by which estimated ways are multiplied to fit the path's",
}
WORST_TURN, WORST_WAY = 15.0, 0.5  # degrees and metres at which WorldScore's score is 0
MEASURABLE = 1.0, 0.05  # degrees and metres within which the estimate on true frames must be


@dataclass(frozen=True)
class ClipMotion:
    """How the camera moved in one clip: as asked, as the frames show it, and as true frames show it to the same estimator; T_end_start."""

    asked: torch.Tensor  # (4, 4)
    estimated: torch.Tensor
    own: torch.Tensor


def clip_motions(walked: Walk, seen: torch.Tensor, camera: Camera, step: int) -> list[ClipMotion]:
    """The motion of every clip that can be measured; `seen` (1 + N, H, W) as `motion.seen_in` gives it for the first picture."""
    shown = torch.cat([walked.truth.rgb[:1], walked.frames])
    found = []
    for start in range(0, len(walked.path) - 1, step):
        end = start + step
        asked = se3.inverse(walked.path[end]) @ walked.path[start]
        depth = walked.truth.depth[start]

        def estimate(pictures: torch.Tensor) -> Motion | None:
            return estimate_motion(pictures[start], depth, pictures[end], camera, asked, seen[start])  # noqa: B023 - used at once

        control = estimate(walked.truth.rgb)
        if control is None:
            continue
        own_turn, own_gap = motion_errors(control.T_target_source, asked)
        if own_turn > MEASURABLE[0] or own_gap > MEASURABLE[1]:
            continue
        motion = estimate(shown)
        # nothing of the place is to be found in the picture: as wrong as not moving at all
        estimated = torch.eye(4, dtype=torch.float64) if motion is None else motion.T_target_source
        found.append(ClipMotion(asked, estimated, control.T_target_source))
    return found


def camera_control(rotation_deg: float, translation_m: float) -> float:
    """WorldScore's camera control in 0..100 of mean errors."""
    turn = min(1.0, max(0.0, 1 - rotation_deg / WORST_TURN))
    way = min(1.0, max(0.0, 1 - translation_m / WORST_WAY))
    return 100 * (turn * way) ** 0.5


def control_figures(motions: Sequence[ClipMotion]) -> Figures:
    """The figures of one walk; None where no clip could be measured."""
    if not motions:
        return {"camera_control": None, "rotation_error_deg": None, "translation_error_m": None, "scale": None}
    asked, estimated = (torch.stack([getattr(m, name)[:3, 3] for m in motions]) for name in ("asked", "estimated"))
    power = float((estimated * estimated).sum())
    scale = max(0.0, float((asked * estimated).sum()) / power) if power > 1e-12 else 1.0
    turn = sum(motion_errors(m.estimated, m.asked)[0] for m in motions) / len(motions)
    way = float((estimated * scale - asked).norm(dim=1).mean())
    return {"camera_control": camera_control(turn, way), "rotation_error_deg": turn, "translation_error_m": way, "scale": scale}


def walk_control(model: WorldModel, walked: Walk) -> Figures:
    """`control_figures` of a walk."""
    truth = walked.truth
    first = GroundTruth(truth.rgb[:1], truth.depth[:1], truth.dynamic[:1])
    seen = seen_in(truth, walked.path, first, walked.path[0], model.camera)
    return control_figures(clip_motions(walked, seen, model.camera, model.config.frames_per_clip))


def evaluate_camera(
    model: WorldModel,
    worlds: int = 16,
    seed: int = SEED,
    clips: int = 4,
    memory: bool = True,
    on_world: Callable[[Figures], None] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Camera control over worlds `seed`, `seed` + 1, ..., on walks of `clips` clips."""
    found, config = walk_worlds(model, lambda walked: walk_control(model, walked), 17, worlds, seed, clips, memory, on_world, name)
    return {**summarise(found, list(UNITS)), "config": config, "details": {}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia eval camera`."""
    add_walk_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when done."""
    model, progress = load_model(args), Progress("camera", args.worlds)

    def tell(figures: Figures) -> None:
        score = figures["camera_control"]
        progress.step("nothing measured" if score is None else f"camera control {score:.1f}")

    result = evaluate_camera(model, args.worlds, args.seed, args.clips, args.memory == "on", tell, str(args.model))
    print_report(result, args.json, UNITS)
    return 0
