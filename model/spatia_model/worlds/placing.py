"""Finding room for what moves: straight lanes and arcs that touch nothing static and no other mover."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from spatia_model.worlds.layout import Plan
from spatia_model.worlds.movers import Mover, draw_mover, make_schedule
from spatia_model.worlds.palette import wood
from spatia_model.worlds.scene import Piece

Distance = Callable[[torch.Tensor], torch.Tensor]
TRIES = 240


def place_mover(rng: np.random.Generator, sdf: Distance, plan: Plan, motion: str, color: str, others: list[Mover]) -> Mover | None:
    """A mover with its lane, or None where there is no room for it."""
    mover = draw_mover(rng, motion, color)
    placed = _place_swing(rng, sdf, plan, mover, others) if motion == "swing" else _place_lane(rng, sdf, plan, mover, others)
    if placed is None and motion == "swing":
        return place_mover(rng, sdf, plan, "roll", color, others)
    return placed


def _candidates(rng: np.random.Generator, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = rng.uniform(-0.5, 0.5, TRIES) * (plan.width - 0.8)
    z = rng.uniform(-0.5, 0.5, TRIES) * (plan.depth - 0.8)
    return x, z, rng.uniform(-math.pi, math.pi, TRIES)


def _place_lane(rng: np.random.Generator, sdf: Distance, plan: Plan, mover: Mover, others: list[Mover]) -> Mover | None:
    x, z, heading = _candidates(rng, plan)
    steps = np.linspace(-2.0, 2.0, 33)
    px = x[:, None] + np.cos(heading)[:, None] * steps
    pz = z[:, None] + np.sin(heading)[:, None] * steps
    bound = mover.radius if mover.shape == "ball" else mover.radius * math.sqrt(3.0)
    # the body on the floor, and a slightly larger ball just above it, all the way up its hops
    checks = [(mover.radius, mover.radius - 0.004)]
    checks += [(bound + 0.06 + h, bound + 0.05) for h in np.arange(0.0, mover.hop + 0.2, 0.2)]
    ok = np.ones_like(px, bool)
    for height, need in checks:
        points = torch.from_numpy(np.stack((px, np.full_like(px, -height), pz), -1).reshape(-1, 3)).float()
        ok &= (sdf(points).numpy() >= need).reshape(px.shape)
    ok &= (np.abs(px) < plan.width / 2) & (np.abs(pz) < plan.depth / 2)
    for other in others:
        ax, _, az = other.anchor
        dx, _, dz = other.direction
        span = other.rope * math.sin(other.reach) if other.motion == "swing" else other.reach
        s = np.clip((px - ax) * dx + (pz - az) * dz, -span, span)
        ok &= np.hypot(px - ax - s * dx, pz - az - s * dz) > bound + other.bounding_radius + 0.1
    mid = len(steps) // 2
    ahead = np.cumprod(ok[:, mid:], 1).sum(1) - 1  # clear steps of 0.125 m each way
    behind = np.cumprod(ok[:, mid::-1], 1).sum(1) - 1
    reach = np.minimum(ahead, behind) * 0.125
    best = int(np.argmax(reach - 0.04 * np.hypot(x, z) + rng.uniform(0, 0.5, TRIES) * (reach > 0.7)))
    if reach[best] < 0.7:
        return None
    length = float(reach[best])
    speed = float(min(rng.uniform(0.32, 0.85), length / 2))
    return replace(
        mover,
        anchor=(float(x[best]), -mover.radius, float(z[best])),
        heading=float(heading[best]),
        reach=length,
        schedule=make_schedule(rng, length, speed),
    )


def _place_swing(rng: np.random.Generator, sdf: Distance, plan: Plan, mover: Mover, others: list[Mover]) -> Mover | None:
    x, z, heading = _candidates(rng, plan)
    top = plan.height if plan.kind == "room" else 2.6
    rope = top - float(rng.uniform(0.6, 1.2)) - mover.radius
    angle = math.asin(min(0.85, float(rng.uniform(0.35, 0.7)) / rope))
    need = (mover.radius if mover.shape == "ball" else mover.radius * math.sqrt(3.0)) + 0.05
    thetas = np.linspace(-angle, angle, 9)
    sway = np.sin(thetas)[None] * rope
    ok = np.ones(TRIES, bool)
    for fraction, gap in ((1.0, need), (0.6, 0.08), (0.25, 0.05)):
        px = x[:, None] + np.cos(heading)[:, None] * sway * fraction
        pz = z[:, None] + np.sin(heading)[:, None] * sway * fraction
        py = np.broadcast_to(-top + np.cos(thetas)[None] * rope * fraction, px.shape)
        points = torch.from_numpy(np.stack((px, py, pz), -1).reshape(-1, 3)).float()
        ok &= (sdf(points).numpy().reshape(px.shape) >= gap).all(1)
        ok &= ((np.abs(px) < plan.width / 2) & (np.abs(pz) < plan.depth / 2)).all(1)
    if plan.kind == "courtyard":  # the posts of its frame
        for side in (-0.75, 0.75):
            bx, bz = x - np.sin(heading) * side, z + np.cos(heading) * side
            for height in (0.3, 1.0, 2.0):
                points = torch.from_numpy(np.stack((bx, np.full_like(bx, -height), bz), -1)).float()
                ok &= sdf(points).numpy() > 0.15
    for other in others:
        ax, _, az = other.anchor
        span = other.rope * math.sin(other.reach) if other.motion == "swing" else other.reach
        ok &= np.hypot(x - ax, z - az) > span + rope * math.sin(angle) + 0.8
    if not ok.any():
        return None
    best = int(np.argmax(ok * (10.0 - np.hypot(x, z) + rng.uniform(0, 2, TRIES))))
    return replace(mover, anchor=(float(x[best]), -top, float(z[best])), heading=float(heading[best]), reach=angle, rope=rope)


def swing_frame(rng: np.random.Generator, mover: Mover) -> Piece:
    """Two posts and a beam to hang a swing from out of doors, across the direction it swings in (its own x axis)."""
    piece = Piece("frame", "wooden")
    material = wood(rng)
    top = -mover.anchor[1]
    for side in (-0.75, 0.75):
        piece.stand(0, side, 0.09, 0.09, top + 0.1, 0.0, material)
    piece.stand(0, 0, 0.1, 1.7, top + 0.1, top + 0.01, material)
    return piece
