"""Camera paths through a world: a walk with turns, made of clips of one constant-velocity twist each, as an agent would ask for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from spatia_model.geometry import se3

if TYPE_CHECKING:
    from spatia_model.worlds.world import World

FRAMES_PER_SECOND = 8.0
CLEARANCE = 0.3  # metres to anything static
MAX_ROTATION = math.radians(30.0)


def pose_from(x: float, y: float, z: float, yaw: float, pitch: float, roll: float) -> torch.Tensor:
    """T_world_camera (4, 4) float64. Yaw turns right (0 looks along +z), pitch looks up, roll turns clockwise; radians."""
    cy, sy, cp, sp, cr, sr = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch), math.cos(roll), math.sin(roll)
    Ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    Rx = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    Rz = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    T = np.eye(4)
    T[:3, :3] = Ry @ Rx @ Rz
    T[:3, 3] = (x, y, z)
    return torch.from_numpy(T)


def yaw_pitch_roll(T_world_camera: torch.Tensor) -> tuple[float, float, float]:
    R = T_world_camera[:3, :3]
    pitch = math.asin(max(-1.0, min(1.0, -float(R[1, 2]))))
    return math.atan2(float(R[0, 2]), float(R[2, 2])), pitch, math.atan2(float(R[1, 0]), float(R[1, 1]))


def clips_between(T_world_a: torch.Tensor, T_world_b: torch.Tensor, frames: int) -> torch.Tensor:
    """One pose (4, 4) and N poses (N, 4, 4) to (N, frames, 4, 4): constant velocity from a (not included) to each b (included)."""
    steps = torch.arange(1, frames + 1, dtype=torch.float64) / frames
    twists = se3.log(se3.inverse(T_world_a) @ T_world_b)
    paths = T_world_a @ se3.exp(steps[:, None] * twists[:, None])
    paths[:, -1] = T_world_b
    return paths


def sample_path(
    world: World,
    rng: np.random.Generator,
    clips: int,
    frames_per_clip: int = 8,
    max_translation: float = 0.5,
    max_rotation: float = MAX_ROTATION,
    start: torch.Tensor | None = None,
    start_time: float = 0.0,
) -> torch.Tensor:
    """A walk: (1 + clips * frames_per_clip, 4, 4) float64, `CLEARANCE` from everything static and clear of what moves.

    Frame i is at start_time + i / 8 seconds. Every clip is one twist of at most max_translation metres and max_rotation radians.
    Speeds change smoothly; now and then it looks up or down, stands and looks around, or turns back to where it came from.
    """
    if clips < 0 or frames_per_clip < 1:
        raise ValueError(f"clips must be >= 0 and frames_per_clip >= 1, got {clips} and {frames_per_clip}")
    if not (max_translation > 0 and max_rotation > 0):
        raise ValueError(f"max_translation (metres) and max_rotation (radians) must be positive, got {max_translation} and {max_rotation}")
    now = world.start_pose(rng) if start is None else torch.as_tensor(start).double()
    path = [now[None]]
    height = float(now[1, 3])
    yaw, pitch, roll = yaw_pitch_roll(now)
    forward, sideways, turn = float(rng.uniform(0.0, 0.4)), 0.0, float(rng.normal(0, 0.2))
    plan: list[tuple[float, float]] = []  # (forward, turn) shares still to do of a manoeuvre
    for c in range(clips):
        options: list[tuple[float, float, float]] = []
        if not plan and rng.random() < 0.22:
            way = float(rng.choice([-1.0, 1.0]))
            what = rng.random()
            if what < 0.4:  # look around on the spot
                plan = [(0.05, way)] * int(rng.integers(2, 5))
            elif what < 0.7:  # turn back
                plan = [(0.2, way)] * 6
            elif what < 0.85:  # look aside and back
                plan = [(0.1, way * 0.9), (0.1, way * 0.9), (0.1, -way * 0.9), (0.1, -way * 0.9)]
            else:  # step back
                plan = [(-0.7, 0.1 * way)] * 2
        if plan:
            f, t = plan.pop(0)
            options.append((f * max_translation, 0.0, t * max_rotation * float(rng.uniform(0.8, 0.97))))
        for k in range(24):
            wide = 0.25 + 0.1 * k
            options.append(
                (
                    float(np.clip(0.55 * forward + rng.normal(0.16, 0.12 + 0.1 * wide), -0.3, 0.47)) * max_translation / 0.5,
                    float(np.clip(0.4 * sideways + rng.normal(0, 0.05), -0.2, 0.2)) * max_translation / 0.5,
                    float(np.clip(0.6 * turn + rng.normal(0, 0.2 * wide), -0.95, 0.95)) * max_rotation
                    if k < 16
                    else float(rng.choice([-0.9, 0.9])) * max_rotation,
                )
            )
        new_pitch = (
            float(np.clip(0.8 * pitch + rng.normal(0, 0.05), -0.3, 0.25)) if rng.random() > 0.08 else float(rng.uniform(-0.35, 0.25))
        )
        new_pitch = float(np.clip(new_pitch, pitch - 0.2, pitch + 0.2))
        new_roll = float(np.clip(0.6 * roll + rng.normal(0, 0.012), -0.06, 0.06))
        bob = float(np.clip(height + rng.normal(0, 0.02), -1.65, -1.1)) if abs(height) > 1.0 else height
        x, z = float(now[0, 3]), float(now[2, 3])
        ends = torch.stack(
            [
                pose_from(
                    x + f * math.sin(yaw + t / 2) + s * math.cos(yaw + t / 2),
                    bob,
                    z + f * math.cos(yaw + t / 2) - s * math.sin(yaw + t / 2),
                    yaw + t,
                    new_pitch,
                    new_roll,
                )
                for f, s, t in options
            ]
            + [now]  # the way out: stand still
        )
        segments = clips_between(now, ends, frames_per_clip)
        segments[-1] = now
        ends = segments[:, -1]
        free = world.is_free(segments[:, :, :3, 3].reshape(-1, 3), CLEARANCE).reshape(len(ends), -1).all(1)
        times = start_time + (c * frames_per_clip + torch.arange(1, frames_per_clip + 1, dtype=torch.float64)) / FRAMES_PER_SECOND
        for mover in world.movers:
            gap = (segments[:, :, :3, 3] - mover.position(times).double()[None]).norm(dim=-1).amin(1)
            free &= gap > mover.bounding_radius + CLEARANCE
        twists = se3.log(se3.inverse(now) @ ends)
        small = (twists[:, :3].norm(dim=-1) <= max_translation + 1e-9) & (twists[:, 3:].norm(dim=-1) <= max_rotation + 1e-9)
        good = free & small
        choice = int(good.float().argmax()) if bool(good.any()) else len(options)
        if choice > 0:
            plan = []  # a manoeuvre that is in the way is given up
        f, s, t = options[choice] if choice < len(options) else (0.0, 0.0, 0.0)
        forward, sideways, turn = f / max_translation * 0.5, s / max_translation * 0.5, t / max_rotation
        now = ends[choice]
        height = float(now[1, 3])
        yaw, pitch, roll = yaw_pitch_roll(now)
        path.append(segments[choice])
    return torch.cat(path)


def out_and_back(
    world: World,
    rng: np.random.Generator,
    clips: int,
    frames_per_clip: int = 8,
    max_translation: float = 0.5,
    max_rotation: float = MAX_ROTATION,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Away and back along the same places: (1 + clips * frames_per_clip, 4, 4) float64 that ends exactly at its first pose.

    Turns by 30-96 degrees in all (as far as the clips allow) while walking a little, then undoes it. With an odd number of clips the
    camera waits one clip at the far end.
    """
    if clips < 2:
        raise ValueError(f"clips must be at least 2 (one away, one back), got {clips}")
    half = clips // 2
    best = torch.empty(0)
    for attempt in range(40):
        here = (world.start_pose(rng) if start is None else torch.as_tensor(start).double()).clone()
        most = min(half * max_rotation * 0.97, math.radians(96.0))
        total = float(rng.uniform(min(math.radians(30.0), most), most)) * float(rng.choice([-1.0, 1.0]))
        step = float(rng.uniform(-0.1, 0.9)) * max_translation * (1.0 - attempt / 40)
        x, y, z = (float(v) for v in here[:3, 3])
        yaw, pitch, roll = yaw_pitch_roll(here)
        knots = [here]
        for _ in range(half):
            yaw += total / half
            x, z = x + step * math.sin(yaw - total / half / 2), z + step * math.cos(yaw - total / half / 2)
            knots.append(pose_from(x, y, z, yaw, pitch, roll))
        away = torch.cat([clips_between(a, b[None], frames_per_clip)[0] for a, b in zip(knots, knots[1:], strict=False)])
        wait = [knots[-1].expand(frames_per_clip, 4, 4).clone()] if clips % 2 else []
        back = torch.cat((here[None], away)).flip(0)[1:]
        best = torch.cat([here[None], away, *wait, back])
        times = torch.arange(len(best), dtype=torch.float64) / FRAMES_PER_SECOND
        clear = bool(world.is_free(best[:, :3, 3], CLEARANCE).all())
        for mover in world.movers:
            clear &= bool(((best[:, :3, 3] - mover.position(times).double()).norm(dim=-1) > mover.bounding_radius + CLEARANCE).all())
        if clear:
            break
    else:
        raise RuntimeError(f"no clear way out and back in {world!r} after 40 tries; use another seed or fewer clips")
    return best
