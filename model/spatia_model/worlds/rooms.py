"""Rooms: walls with windows and doors, furniture, lamps and daylight."""

from __future__ import annotations

import math

import numpy as np

from spatia_model.worlds import furniture as fu
from spatia_model.worlds import garden
from spatia_model.worlds import textures as tx
from spatia_model.worlds.layout import Plan, door, furnish, hang, mood, partitions, side_pose, window_frame
from spatia_model.worlds.palette import floor_material, ground_material, paint, pick_color, vary, wall_material, wood
from spatia_model.worlds.scene import Material, Piece, Scene, wall


def build_room(rng: np.random.Generator) -> tuple[Scene, Plan]:
    scene = Scene(rng)
    width, depth, height = float(rng.uniform(4, 9)), float(rng.uniform(4, 9)), float(rng.uniform(2.4, 3.5))
    plan = Plan("room", width, depth, height)
    plan.wall_words, walls = wall_material(rng, False)
    plan.floor_words, floor = floor_material(rng)
    sun, strength = mood(scene, rng, False)
    hx, hz, thick = width / 2, depth / 2, 0.24
    shell = Piece("floor", "")
    shell.box((0, 0.1, 0), (hx + thick, 0.1, hz + thick), floor)
    scene.add(shell, anchored=True)
    roof = Piece("ceiling", "")
    above = paint(rng, vary(rng, (0.88, 0.87, 0.84), 0.03), 0.0) if rng.random() < 0.75 else wall_material(rng, False)[1]
    roof.box((0, -height - 0.1, 0), (hx + thick, 0.1, hz + thick), above)
    if rng.random() < 0.3:  # beams
        beam = wood(rng)
        for k in range(int(rng.integers(2, 5))):
            roof.box((-hx + width * (k + 0.5) / 4, -height + 0.08, 0), (0.08, 0.08, hz), beam)
    scene.add(roof, anchored=True)
    windows = int(rng.choice([0, 1, 1, 2, 2, 3]))
    sides = list(rng.permutation(4))
    busy: list[tuple[int, float, float]] = []
    openings: dict[int, list[tuple[float, float, float, float]]] = {s: [] for s in range(4)}
    frame = paint(rng, pick_color(rng, ("white", "white", "brown", "black"))[1], 0.1)
    for side in sides[:windows]:
        span = hx if side in (0, 2) else hz
        for _ in range(int(rng.integers(1, 3))):
            w = float(rng.uniform(0.4, 0.9))
            at = float(rng.uniform(-span + w + 0.3, span - w - 0.3))
            bottom, top = float(rng.uniform(0.5, 1.0)), float(rng.uniform(1.9, min(2.3, height - 0.15)))
            if any(s == side and at + w + 0.15 > a and at - w - 0.15 < b for s, a, b in busy):
                continue
            openings[side].append((at - w, at + w, bottom, top))
            busy.append((side, at - w - 0.15, at + w + 0.15))
    accent = wall_material(rng, False)[1] if rng.random() < 0.3 else walls
    for side in range(4):
        along = side in (0, 2)
        line = {0: -hz - thick / 2, 1: hx + thick / 2, 2: hz + thick / 2, 3: -hx - thick / 2}[side]
        span = hx if along else hz + thick
        piece = Piece("wall", "")
        wall(piece, along, line, -span, span, height, thick, accent if side == sides[0] else walls, openings[side])
        scene.add(piece, anchored=True)
        for a, b, bottom, top in openings[side]:
            bars = Piece("window", "")
            window_frame(bars, along, line, a, b, bottom, top, frame, int(rng.integers(0, 3)))
            scene.add(bars, anchored=True)
    skirting = Piece("skirting", "")
    tall = float(rng.uniform(0.06, 0.14))
    for sx in (-1, 1):
        skirting.stand(sx * (hx - 0.008), 0, 0.016, depth, tall, 0, frame)
        skirting.stand(0, sx * (hz - 0.008), width, 0.016, tall, 0, frame)
    scene.add(skirting, anchored=True)
    if windows:  # a garden outside
        lawn = Piece("garden", "")
        lawn.box((0, 0.3, 0), (22.0, 0.1, 22.0), ground_material(rng)[1])
        scene.add(lawn, anchored=True)
        for side in sides[:windows]:
            for _ in range(3):
                x, z, yaw = side_pose(plan, side, float(rng.uniform(-3, 3)), -float(rng.uniform(2.5, 7.0)))
                make = garden.tree if rng.random() < 0.4 else garden.bush
                scene.add(make(rng), x, z, yaw, y=0.2)
    for side in sides[windows : windows + int(rng.integers(1, 3))]:
        span = hx if side in (0, 2) else hz
        at = float(rng.uniform(-span + 0.7, span - 0.7))
        x, z, yaw = side_pose(plan, side, at, 0.04)
        scene.add(door(rng), x, z, yaw)
        busy.append((side, at - 0.6, at + 0.6))
        wide, deep = (0.55, 0.45) if side in (0, 2) else (0.45, 0.55)
        plan.take(x, z, wide, deep)
    partitions(scene, plan, rng, walls if rng.random() < 0.6 else wall_material(rng, False)[1])
    for _ in range(int(rng.integers(0, 3))):  # rugs
        w, d = float(rng.uniform(0.6, 1.5)), float(rng.uniform(0.5, 1.0))
        x, z = float(rng.uniform(-hx + w, hx - w)), float(rng.uniform(-hz + d, hz - d))
        rug = Piece("rug", "")
        cloth = Material(tx.RUG, pick_color(rng)[1], pick_color(rng)[1], pick_color(rng)[1], scale=float(rng.uniform(2, 6)), contrast=0.4)
        rug.stand(0, 0, 2 * w, 2 * d, 0.012, 0.0, cloth)
        scene.add(rug, x, z, 0.0 if rng.random() < 0.7 else math.pi / 2 if w < hz and d < hx else 0.0)
    furnish(scene, plan, rng, fu.INDOORS, int(np.clip(width * depth * 0.26, 7, 15)), 0.6)
    hang(scene, plan, rng, int(rng.integers(3, 9)), busy)
    lamps(scene, plan, rng, windows, sun, strength)
    return scene, plan


def lamps(scene: Scene, plan: Plan, rng: np.random.Generator, windows: int, sun: np.ndarray, strength: float) -> None:
    """The room's light: lamps under the ceiling, daylight through the windows."""
    env = scene.env
    day = windows > 0 and rng.random() < 0.8
    warm = vary(rng, [(1.0, 0.92, 0.8), (1.0, 0.84, 0.64), (0.95, 0.97, 1.0)][int(rng.integers(3))], 0.02)
    if day and strength > 0:
        scene.light(tuple(sun), (3.6 * strength, 3.3 * strength, 2.8 * strength), point=False)
    elif windows == 0 or strength > 0:
        env[0, :3] *= 0.25 if not day else 1.0
        env[1, :3] *= 0.25 if not day else 1.0
    power = float(rng.uniform(0.7, 1.1)) if day else float(rng.uniform(1.3, 2.0))
    spots = [(float(rng.uniform(-0.2, 0.2)) * plan.width, float(rng.uniform(-0.2, 0.2)) * plan.depth)]
    if plan.width * plan.depth > 40 and rng.random() < 0.5:
        spots.append((-spots[0][0] * 1.5, -spots[0][1] * 1.5 + 0.8))
    for i, (x, z) in enumerate(spots):
        drop = float(rng.uniform(0.25, 0.7)) if plan.height > 2.7 else 0.12
        lamp = Piece("lamp", "ceiling")
        bulb = Material(tx.PLAIN, warm, contrast=0.02, glow=2.0)
        y = plan.height - drop
        lamp.cylinder(0, 0, 0.012, plan.height, y, paint(rng, (0.2, 0.2, 0.2)))
        if rng.random() < 0.5:
            lamp.sphere((0, -y, 0), 0.13, bulb)
        else:
            lamp.cylinder(0, 0, 0.22, y + 0.08, y - 0.06, bulb)
        scene.add(lamp, x, z)
        tint = (power * warm[0] ** 2, power * warm[1] ** 2, power * warm[2] ** 2)
        scene.light((x, -y, z), tint, point=True, shadow=i == 0)
    fill = float(rng.uniform(0.3, 0.5))
    tone = np.square(vary(rng, (0.95, 0.94, 0.92), 0.02)) * fill
    env[2] = [*(tone * 1.05), 0.85]
    env[3] = [*(tone * np.square(vary(rng, (0.85, 0.8, 0.74), 0.02))), 0.004]
    env[4, :3] *= 1.5
