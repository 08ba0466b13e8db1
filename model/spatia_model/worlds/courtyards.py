"""Courtyards: ground, walls, hedges, fences and house fronts around, things to sit on and to walk round, sky."""

from __future__ import annotations

import math

import numpy as np

from spatia_model.worlds import garden
from spatia_model.worlds import textures as tx
from spatia_model.worlds.layout import Plan, door, furnish, mood, partitions, side_pose
from spatia_model.worlds.palette import foliage, ground_material, paint, pick_color, stone, vary, wall_material, wood
from spatia_model.worlds.scene import Material, Piece, Scene


def build_courtyard(rng: np.random.Generator) -> tuple[Scene, Plan]:
    scene = Scene(rng)
    width, depth, height = float(rng.uniform(8, 14)), float(rng.uniform(8, 14)), 6.0
    plan = Plan("courtyard", width, depth, height)
    plan.wall_words, walls = wall_material(rng, True)
    plan.floor_words, floor = ground_material(rng)
    sun, strength = mood(scene, rng, True)
    hx, hz = width / 2, depth / 2
    ground = Piece("ground", "")
    ground.box((0, 0.1, 0), (24.0, 0.1, 24.0), floor)
    scene.add(ground, anchored=True)
    if rng.random() < 0.6:  # a path
        path = Piece("path", "")
        paving = ground_material(rng)[1]
        at = float(rng.uniform(-0.25, 0.25))
        if rng.random() < 0.5:
            path.box((at * width, -0.005, 0), (float(rng.uniform(0.5, 0.9)), 0.006, hz), paving)
        else:
            path.box((0, -0.005, at * depth), (hx, 0.006, float(rng.uniform(0.5, 0.9))), paving)
        scene.add(path, anchored=True)
    for side in range(4):
        border(scene, plan, rng, side, walls)
    partitions(scene, plan, rng, walls if rng.random() < 0.6 else foliage(rng, True))
    for _ in range(int(rng.integers(2, 6))):  # trees beyond the walls
        a = float(rng.uniform(-math.pi, math.pi))
        far = max(hx, hz) + float(rng.uniform(2.5, 7.0))
        scene.add(garden.tree(rng), far * math.cos(a), far * math.sin(a))
    furnish(scene, plan, rng, garden.OUTDOORS, int(np.clip(width * depth * 0.13, 8, 16)), 0.5)
    if strength > 0:
        low = sun[1] > -0.42
        color = (3.0, 2.1, 1.25) if low else (3.0, 2.75, 2.35)
        scene.light(tuple(sun), (strength * color[0], strength * color[1], strength * color[2]), point=False)
    env = scene.env
    bright = 1.0 if strength == 0 else 0.62
    dome = (env[0, :3] + env[1, :3]) * 0.5
    dome = dome / dome.mean() * bright
    env[2] = [*(0.5 * dome + 0.5 * bright), 0.8]
    env[3] = [*(np.square(floor.a) * bright * 0.7 + 0.08), float(rng.choice([0.002, 0.006, 0.015]))]
    env[4, :3] *= 1.1
    return scene, plan


def border(scene: Scene, plan: Plan, rng: np.random.Generator, side: int, walls: Material) -> None:
    """One side of a courtyard: a wall, a hedge, a fence or the front of a house."""
    along = side in (0, 2)
    span = (plan.width if along else plan.depth) / 2
    what = str(rng.choice(["wall", "wall", "hedge", "fence", "house", "house"]))
    x, z, yaw = side_pose(plan, side, 0.0, 0.0)
    if what == "hedge":
        piece = Piece("hedge", "green")
        leaves = foliage(rng, rng.random() < 0.3)
        h = float(rng.uniform(1.5, 2.4))
        piece.stand(0, 0.4, 2 * span + 1.2, 0.8, h, 0.0, leaves)
        for k in range(int(span * 2.2)):
            r = float(rng.uniform(0.25, 0.42))
            piece.sphere((-span + 2 * span * k / int(span * 2.2), -h + float(rng.uniform(0.0, 0.2)), 0.4), r, leaves)
        scene.add(piece, x, z, yaw)
        return
    if what == "fence":
        piece = Piece("fence", "wooden")
        board = Material(
            tx.SIDING,
            *(vary(rng, c) for c in [(0.5, 0.38, 0.27), (0.6, 0.47, 0.34)]),
            scale=float(rng.uniform(0.12, 0.2)),
            contrast=0.3,
            aspect=20.0,
        )
        post = wood(rng)
        h = float(rng.uniform(1.6, 2.1))
        piece.stand(0, 0.08, 2 * span + 0.3, 0.05, h, 0.05, board)
        for k in range(int(span) + 1):
            piece.stand(-span + 2 * span * k / int(span), 0.08, 0.12, 0.12, h + 0.12, 0.0, post)
        scene.add(piece, x, z, yaw)
        return
    own = walls if rng.random() < 0.6 else wall_material(rng, True)[1]
    if what == "wall":
        piece = Piece("wall", "")
        h = float(rng.uniform(2.0, 3.2))
        piece.stand(0, 0.15, 2 * span + 0.6, 0.3, h, 0.0, own)
        piece.stand(0, 0.15, 2 * span + 0.7, 0.42, h + 0.08, h, stone(rng))
        scene.add(piece, x, z, yaw)
        if rng.random() < 0.5:
            at = float(rng.uniform(-span + 1.0, span - 1.0))
            gx, gz, gyaw = side_pose(plan, side, at, 0.03)
            scene.add(door(rng, 1.0, 1.9), gx, gz, gyaw)
        return
    h = float(rng.uniform(3.6, 5.6))
    front = Piece("house", "")
    front.stand(0, 1.5, 2 * span + 0.8, 3.0, h, 0.0, own)
    front.stand(
        0,
        1.4,
        2 * span + 1.6,
        3.6,
        h + 0.25,
        h,
        Material(tx.SIDING, vary(rng, (0.5, 0.28, 0.2)), vary(rng, (0.42, 0.24, 0.18)), scale=0.12, aspect=2.0),
    )
    scene.add(front, x, z, yaw)
    frame = paint(rng, pick_color(rng, ("white", "brown", "green", "grey"))[1], 0.1)
    glass = Material(tx.MARBLE, (0.16, 0.2, 0.26), (0.5, 0.6, 0.7), scale=1.0, contrast=0.5, gloss=0.9)
    count = max(2, round(span * 0.9))
    gate = int(rng.integers(count))
    for k in range(count):
        at = -span + 2 * span * (k + 0.5) / count
        if k == gate:
            dx, dz, dyaw = side_pose(plan, side, at, 0.03)
            scene.add(door(rng, 1.0, 2.1), dx, dz, dyaw)
        pane = Piece("window", "")
        for floor in range(2):
            y = 1.55 + 2.2 * floor
            if (floor == 0 and k == gate) or y + 0.7 > h:
                continue
            pane.box((at, -y, 0.0), (0.45, 0.6, 0.03), frame)
            pane.box((at, -y, -0.01), (0.38, 0.53, 0.03), glass)
            pane.box((at, -y, -0.02), (0.03, 0.55, 0.03), frame)
            pane.box((at, -y + 0.65, -0.06), (0.55, 0.04, 0.1), frame)
        if pane.bodies:
            scene.add(pane, x, z, yaw)
