"""Cameras before things that move: where to stand to watch them, and short walks that do."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from spatia_model.geometry.camera import resize
from spatia_model.types import Camera
from spatia_model.worlds.trajectories import FRAMES_PER_SECOND, clips_between, pose_from
from spatia_model.worlds.world import MOVING, World

SMALL = 48  # pixels a side, to see whether something is in view
LEAST_SHOWN = 40.0  # pixels of a mover at the start


def inhabited(seed: int) -> World:
    """The world of a seed, with a mover at least where there is room for one."""
    world = World.generate(seed)
    return world if world.movers else World.generate(seed, movers=1)


def stands(
    world: World,
    rng: np.random.Generator,
    times: torch.Tensor,
    attempts: int = 120,
    nearest: float = 1.2,
    farthest: float = 3.5,
    aside: float = 0.15,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Index of a mover and a pose (4, 4) that looks at it: free places at random, the mover `nearest` to `farthest` metres away.

    `times` (T,) are when it is watched; where it is at the first is ahead but for `aside` radians. Each mover has its turn.
    """
    cells = world.free_cells()
    for attempt in range(attempts if world.movers else 0):
        index = attempt % len(world.movers)
        at = world.movers[index].position(times)
        x, z = cells[int(rng.integers(len(cells)))].tolist()
        height = -min(float(rng.uniform(1.2, 1.6)), world.plan.height - 0.4)
        offset = at.double() - torch.tensor([x, height, z], dtype=torch.float64)
        if not nearest < float(offset.norm(dim=-1).min()) < farthest:
            continue
        dx, dy, dz = offset[0].tolist()
        yaw = math.atan2(dx, dz) + float(rng.uniform(-aside, aside))
        pitch = float(np.clip(-math.atan2(dy, math.hypot(dx, dz)) * 0.7, -0.45, 0.25))
        yield index, pose_from(x, height, z, yaw, pitch, 0.0)


def shown(world: World, index: int, poses: torch.Tensor, camera: Camera, times: torch.Tensor) -> torch.Tensor:
    """(T,) about how many of the camera's pixels a mover fills."""
    mask = world.identities(poses, resize(camera, SMALL, SMALL), times) == MOVING + index
    return mask.float().mean((1, 2)) * camera.width * camera.height


def drift(here: torch.Tensor, rng: np.random.Generator, clips: int, step: int) -> torch.Tensor:
    """A path (1 + clips * step, 4, 4) that wanders by a few centimetres and degrees a clip."""
    knots = [here]
    for _ in range(clips):
        turn = float(rng.choice([-1.0, 1.0])) * math.radians(float(rng.uniform(1, 4)))
        nudge = pose_from(float(rng.uniform(-0.08, 0.08)), 0.0, float(rng.uniform(-0.1, 0.1)), turn, 0.0, 0.0)
        knots.append(knots[-1] @ nudge)
    return torch.cat([here[None], *(clips_between(a, b[None], step)[0] for a, b in zip(knots, knots[1:], strict=False))])


def watching_walk(seed: int, clips: int, step: int, camera: Camera) -> tuple[World, torch.Tensor, torch.Tensor] | None:
    """A world, a path (1 + clips * step, 4, 4) before one of its movers, and the frames' times; None where no camera finds one.

    What the picture can't tell is drawn anew: the mover goes as the seed has it, the other way, or stands still, from a random second on.
    The camera stands still for every third walk and drifts for the others.
    """
    world, rng = inhabited(seed), np.random.default_rng([seed, 23])
    times = float(rng.integers(0, 48)) + torch.arange(1 + clips * step, dtype=torch.float64) / FRAMES_PER_SECOND
    still = rng.random() < 1 / 3
    for index in range(len(world.movers)):
        world = world.with_motion(index, int(rng.choice([1, -1, 0], p=[0.45, 0.45, 0.1])))
    best: tuple[float, torch.Tensor] | None = None
    for index, here in stands(world, rng, times[:: step // 2], 60, 1.0, 4.0, 0.4):
        path = here.expand(len(times), 4, 4).clone() if still else drift(here, rng, clips, step)
        if not bool(world.is_free(path[::4, :3, 3], 0.3).all()):
            continue
        picks = torch.arange(0, len(times), step)
        seen = shown(world, index, path[picks], camera, times[picks])
        if float(seen[0]) < LEAST_SHOWN:
            continue
        score = float(seen.clamp(max=150).min())
        if best is None or score > best[0]:
            best = score, path
        if score >= 80:
            break
    return None if best is None else (world, best[1], times)
