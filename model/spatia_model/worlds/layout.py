"""Laying out a place: walls with openings, furniture along the walls and in the middle, lights and sky."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from spatia_model.worlds import furniture as fu
from spatia_model.worlds import textures as tx
from spatia_model.worlds.palette import (
    metal,
    paint,
    pick_color,
    scaled,
    vary,
    wood,
)
from spatia_model.worlds.scene import Material, Piece, Scene, wall


@dataclass
class Plan:
    """A place being furnished: its rectangle, its words, and the circles that are taken."""

    kind: str
    width: float
    depth: float
    height: float
    wall_words: str = ""
    floor_words: str = ""
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)  # rectangles x0, z0, x1, z1

    def fits(self, x: float, z: float, wide: float, deep: float, gap: float) -> bool:
        if abs(x) + wide > self.width / 2 or abs(z) + deep > self.depth / 2:
            return False
        return all(x + wide + gap < a or x - wide - gap > c or z + deep + gap < b or z - deep - gap > d for a, b, c, d in self.taken)

    def take(self, x: float, z: float, wide: float, deep: float) -> None:
        self.taken.append((x - wide, z - deep, x + wide, z + deep))


def side_pose(plan: Plan, side: int, at: float, off: float) -> tuple[float, float, float]:
    """A place along a wall (0: -z, 1: +x, 2: +z, 3: -x) `off` metres from it, and the yaw that looks into the room."""
    if side == 2:
        return at, plan.depth / 2 - off, 0.0
    if side == 0:
        return at, -plan.depth / 2 + off, math.pi
    if side == 1:
        return plan.width / 2 - off, at, math.pi / 2
    return -plan.width / 2 + off, at, -math.pi / 2


def furnish(
    scene: Scene, plan: Plan, rng: np.random.Generator, makers: list[tuple[fu.Maker, float, bool]], count: int, wall_share: float
) -> None:
    """Place about `count` pieces, some along the walls looking inwards, some free with passages of 0.7 m around them."""
    weights = np.array([m[1] for m in makers])
    weights = weights * rng.uniform(0.3, 1.7, len(weights))  # every place has its own taste
    placed = 0
    for _ in range(count * 6):
        if placed >= count:
            break
        make, _, free = makers[int(rng.choice(len(makers), p=weights / weights.sum()))]
        piece = make(rng)
        wide, deep, high, radius = piece.footprint()
        if plan.kind == "room" and high > plan.height - 0.05:
            continue
        if not free or rng.random() < wall_share:
            side = int(rng.integers(4))
            span = (plan.width if side in (0, 2) else plan.depth) / 2
            at = float(rng.uniform(-span + wide, span - wide)) if span > wide else 0.0
            x, z, yaw = side_pose(plan, side, at, deep + 0.04)
            fx, fz = (wide, deep) if side in (0, 2) else (deep, wide)
            gap = 0.12
        else:
            yaw = float(rng.uniform(-math.pi, math.pi)) if rng.random() < 0.5 else float(rng.integers(4)) * math.pi / 2
            x = float(rng.uniform(-0.5, 0.5)) * (plan.width - 1.2)
            z = float(rng.uniform(-0.5, 0.5)) * (plan.depth - 1.2)
            fx = fz = radius
            if abs(math.sin(2 * yaw)) < 1e-6:
                fx, fz = (wide, deep) if abs(math.cos(yaw)) > 0.5 else (deep, wide)
            gap = 0.75
        if plan.fits(x, z, fx, fz, gap):
            scene.add(piece, x, z, yaw)
            plan.take(x, z, fx, fz)
            placed += 1
            if make is fu.table and rng.random() < 0.6:  # a chair or two at the table
                for sz in (-1.0, 1.0):
                    seat = fu.chair(rng)
                    off = deep + 0.22
                    cx, cz = x - sz * off * math.sin(yaw), z - sz * off * math.cos(yaw)
                    if rng.random() < 0.7 and abs(cx) < plan.width / 2 - 0.4 and abs(cz) < plan.depth / 2 - 0.4:
                        fits = Plan(plan.kind, plan.width, plan.depth, plan.height, taken=plan.taken[:-1])
                        if fits.fits(cx, cz, 0.3, 0.3, 0.1):
                            scene.add(seat, cx, cz, yaw if sz < 0 else yaw + math.pi)
                            plan.taken.insert(0, (cx - 0.3, cz - 0.3, cx + 0.3, cz + 0.3))


def window_frame(
    piece: Piece, along_x: bool, line: float, a: float, b: float, bottom: float, top: float, material: Material, bars: int
) -> None:
    """Frame and glazing bars of a window in a wall."""

    def bar(s0: float, s1: float, y0: float, y1: float, thick: float) -> None:
        centre, half = (s0 + s1) / 2, (s1 - s0) / 2
        if along_x:
            piece.box((centre, -(y0 + y1) / 2, line), (half, (y1 - y0) / 2, thick), material)
        else:
            piece.box((line, -(y0 + y1) / 2, centre), (thick, (y1 - y0) / 2, half), material)

    w = 0.06
    bar(a - w, a + 0.02, bottom - w, top + w, 0.12)
    bar(b - 0.02, b + w, bottom - w, top + w, 0.12)
    bar(a, b, top - 0.02, top + w, 0.12)
    bar(a - 0.1, b + 0.1, bottom - w, bottom + 0.01, 0.2)
    for k in range(1, bars + 1):
        s = a + (b - a) * k / (bars + 1)
        bar(s - 0.025, s + 0.025, bottom, top, 0.04)
    if bars:
        y = bottom + (top - bottom) * 0.55
        bar(a, b, y - 0.025, y + 0.025, 0.04)


def door(rng: np.random.Generator, width: float = 0.9, height: float = 2.05) -> Piece:
    """A closed door with its frame, to be put against a wall (its back at z = 0)."""
    word, material = fu.surface(rng)
    piece = Piece("door", word)
    frame = paint(rng, pick_color(rng, ("white", "brown", "grey", "black"))[1])
    for sx in (-1, 1):
        piece.stand(sx * (width / 2 + 0.04), 0, 0.09, 0.08, height + 0.08, 0.0, frame)
    piece.stand(0, 0, width, 0.08, height + 0.08, height, frame)
    piece.stand(0, 0, width, 0.04, height, 0.01, material)
    panel = paint(rng, scaled(material.a, float(rng.choice([0.75, 1.2]))))
    if rng.random() < 0.7:
        for y in (0.55, 1.45):
            piece.box((0, -y, -0.02), (width / 2 - 0.14, 0.36, 0.012), panel)
    piece.sphere((width / 2 - 0.1, -1.0, -0.06), 0.035, metal(rng))
    return piece


def hang(scene: Scene, plan: Plan, rng: np.random.Generator, count: int, busy: list[tuple[int, float, float]]) -> None:
    """Pictures, posters and shelves on the walls; `busy` lists (side, from, to) already used by doors and windows."""
    for _ in range(count):
        side = int(rng.integers(4))
        span = (plan.width if side in (0, 2) else plan.depth) / 2
        w, h = float(rng.uniform(0.2, 0.6)), float(rng.uniform(0.2, 0.45))
        at = float(rng.uniform(-span + w + 0.1, span - w - 0.1))
        if any(s == side and at + w > a and at - w < b for s, a, b in busy):
            continue
        busy.append((side, at - w - 0.1, at + w + 0.1))
        y = float(rng.uniform(1.4, min(1.8, plan.height - h - 0.1)))
        what = rng.random()
        if what < 0.75:
            piece = Piece("picture", "")
            rim = pick_color(rng, ("white", "black", "brown", "yellow", "grey"))[1]
            piece.box((0, -y, 0), (w, h, 0.02), Material(tx.PICTURE, pick_color(rng)[1], pick_color(rng)[1], rim))
        elif what < 0.9:
            piece = Piece("shelf", "wooden")
            board = wood(rng)
            piece.box((0, -y, -0.1), (w, 0.02, 0.12), board)
            fu.clutter(rng, piece, w, 0.08, y + 0.02, int(rng.integers(2, 5)))
            piece.bodies = [
                b if i == 0 else type(b)(b.kind, (b.centre[0], b.centre[1], b.centre[2] - 0.1), b.half, b.material, b.yaw)
                for i, b in enumerate(piece.bodies)
            ]
        else:
            piece = Piece("clock", "round")
            piece.lying((0, -y, 0), 0.03, 0.17, paint(rng, (0.92, 0.91, 0.88)), math.pi / 2)
            piece.box((0, -y - 0.05, -0.035), (0.01, 0.06, 0.005), paint(rng, (0.1, 0.1, 0.1)))
            piece.box((0.04, -y, -0.035), (0.05, 0.01, 0.005), paint(rng, (0.1, 0.1, 0.1)))
        x, z, yaw = side_pose(plan, side, at, 0.03)
        scene.add(piece, x, z, yaw)


def mood(scene: Scene, rng: np.random.Generator, outdoors: bool) -> tuple[np.ndarray, float]:
    """Sky, exposure and white balance. Returns the sun's direction and its strength (0: overcast)."""
    env = scene.env
    what = str(rng.choice(["clear", "clear", "cloudy", "overcast", "evening"]))
    zenith = {"clear": (0.2, 0.42, 0.8), "cloudy": (0.3, 0.48, 0.76), "overcast": (0.62, 0.66, 0.72), "evening": (0.3, 0.36, 0.6)}[what]
    horizon = {"clear": (0.7, 0.8, 0.9), "cloudy": (0.75, 0.8, 0.85), "overcast": (0.78, 0.8, 0.82), "evening": (0.95, 0.66, 0.42)}[what]
    cover = {"clear": -0.3, "cloudy": 0.05, "overcast": 0.4, "evening": -0.1}[what] + float(rng.normal(0, 0.1))
    env[0] = [*(np.square(vary(rng, zenith, 0.03)) * 1.5), cover]
    env[1] = [*(np.square(vary(rng, horizon, 0.03)) * 1.5), float(rng.uniform(0.5, 1.4))]
    env[5] = [
        *np.square(vary(rng, [(0.3, 0.38, 0.3), (0.45, 0.5, 0.58), (0.35, 0.42, 0.25)][int(rng.integers(3))], 0.04)),
        float(rng.uniform(0.02, 0.2)),
    ]
    cloud = 0.75 if what == "overcast" else (1.3 if what != "evening" else 1.0)
    env[6] = [
        cloud,
        cloud * (0.8 if what == "evening" else 1.0),
        cloud * (0.65 if what == "evening" else 1.0),
        float(rng.integers(1, 1 << 15)),
    ]
    elevation = float(rng.uniform(0.2, 0.4)) if what == "evening" else float(rng.uniform(0.5, 1.15))
    azimuth = float(rng.uniform(-math.pi, math.pi))
    sun = np.array([math.cos(elevation) * math.cos(azimuth), -math.sin(elevation), math.cos(elevation) * math.sin(azimuth)])
    strength = {"clear": 1.0, "cloudy": 0.85, "overcast": 0.0, "evening": 0.8}[what]
    exposure = float(np.exp(rng.normal(0.0, 0.22)))
    balance = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0, 0.07) * np.array([1.0, 0.0, -1.0]))
    env[4] = [*(exposure * balance), float(np.clip(rng.normal(1.05, 0.2), 0.55, 1.5))]
    env[7, :3] = [float(np.clip(rng.normal(1.05, 0.08), 0.85, 1.25)), float(max(0.0, rng.normal(0.25, 0.3))), 0.0]
    if what == "evening":
        scene.env[4, :3] *= 1.15
    return sun, strength


def partitions(scene: Scene, plan: Plan, rng: np.random.Generator, material: Material) -> None:
    """Walls inside the place: a stub, a corner, or a whole wall with a doorway, so that there are places not yet seen."""
    what = str(rng.choice(["none", "stub", "stub", "corner", "doorway", "doorway"]))
    hx, hz = plan.width / 2, plan.depth / 2
    along_x = bool(rng.random() < 0.5)
    span, other = (hx, hz) if along_x else (hz, hx)
    if what == "none" or other < 2.3:
        return
    line = float(rng.uniform(-0.35, 0.35)) * other
    thick = float(rng.uniform(0.12, 0.25))
    top = plan.height if plan.kind == "room" else float(rng.uniform(1.9, 2.4))
    piece = Piece("wall", "")
    end = float(rng.choice([-1, 1]))
    pieces = []
    if what == "doorway":
        at = float(rng.uniform(-span + 1.0, span - 1.0))
        w = float(rng.uniform(0.55, 0.8))
        wall(piece, along_x, line, -span, span, top, thick, material, [(at - w, at + w, 0.0, min(2.15, top) if top > 2.3 else top)])
        pieces = [(-span, at - w, line, along_x), (at + w, span, line, along_x)]
        clear = (at - w, line - 0.8, at + w, line + 0.8) if along_x else (line - 0.8, at - w, line + 0.8, at + w)
        plan.taken.append(clear)
    else:
        reach = float(rng.uniform(0.4, 0.62)) * 2 * span
        a, b = (-span, -span + reach) if end < 0 else (span - reach, span)
        wall(piece, along_x, line, a, b, top, thick, material)
        pieces = [(a, b, line, along_x)]
        if what == "corner":
            tip = b if end < 0 else a
            length = float(rng.uniform(0.8, 1.4)) * float(rng.choice([-1, 1]))
            c, d = sorted((line, line + length))
            wall(piece, not along_x, tip, c, d, top, thick, material)
            pieces.append((c, d, tip, not along_x))
    scene.add(piece, anchored=True)
    for a, b, at, flat in pieces:
        plan.taken.append((a, at - 0.2, b, at + 0.2) if flat else (at - 0.2, a, at + 0.2, b))
    for a, b, at, flat in pieces:  # something to see on it
        for face in (-1.0, 1.0):
            if b - a > 1.0 and rng.random() < 0.6:
                w, h = float(rng.uniform(0.2, 0.45)), float(rng.uniform(0.2, 0.4))
                s, off = float(rng.uniform(a + w + 0.05, b - w - 0.05)), face * (thick / 2 + 0.015)
                hung = Piece("picture", "")
                hung.box((0, -1.5, 0), (w, h, 0.02), Material(tx.PICTURE, pick_color(rng)[1], pick_color(rng)[1], pick_color(rng)[1]))
                scene.add(hung, *((s, at + off, 0.0) if flat else (at + off, s, math.pi / 2)))
