"""Open country: meadows, hills, woods, houses, animals and people. For perception alone, which photographs take farther than gardens.

No test or agent walks here: nothing is fenced, so there is no plan to walk on, and what the camera cannot reach it need not fit.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from spatia_model.worlds import garden
from spatia_model.worlds import textures as tx
from spatia_model.worlds.layout import Plan, daylight, door, mood
from spatia_model.worlds.palette import fabric, foliage, ground_material, paint, pick_color, scaled, stone, vary, wall_material, wood
from spatia_model.worlds.scene import Material, Piece, Scene, Vec
from spatia_model.worlds.trajectories import pose_from
from spatia_model.worlds.world import World

REACH = 45.0  # metres around the middle that are filled
CLEAR = 0.5  # metres around a camera


def landscape(seed: int) -> World:
    """The landscape of a seed; worlds of the same seed have nothing to do with it."""
    rng = np.random.default_rng([seed, 31])
    scene = Scene(rng)
    plan = Plan("landscape", 2 * REACH, 2 * REACH, 20.0)
    sun, strength = mood(scene, rng, True)
    plan.floor_words, ground = ground_material(rng)
    if rng.random() < 0.5:
        plan.floor_words, ground = "grass", _meadow(rng)
    _land(scene, rng, ground)
    _woods(scene, rng)
    _buildings(scene, rng)
    makers = [maker for maker, _, _ in garden.OUTDOORS] + [_animal, _person, _car, _rock, _rock, garden.bush, garden.bush]
    taste = rng.dirichlet(np.full(len(makers), 0.3))
    for _ in range(int(rng.integers(0, 30))):
        _scatter(scene, rng, makers[int(rng.choice(len(makers), p=taste))](rng), float(rng.uniform(2.0, 16.0)))
    daylight(scene, rng, ground, sun, strength)
    return World.assemble(seed, scene, plan, ())


def standpoint(world: World, rng: np.random.Generator) -> torch.Tensor:
    """Somewhere near the middle where a camera has room: (4, 4) float64 T_world_camera, nearly level."""
    for _ in range(50):
        x, z = rng.uniform(-8, 8, 2).tolist()
        height = float(rng.uniform(0.9, 1.8))
        pose = pose_from(x, -height, z, float(rng.uniform(-math.pi, math.pi)), float(rng.normal(-0.04, 0.08)), 0.0)
        if float(world.static_sdf(pose[None, :3, 3])[0]) > CLEAR:
            return pose
    raise RuntimeError(f"no room for a camera in landscape {world.seed}; use another seed")


def _scatter(scene: Scene, rng: np.random.Generator, piece: Piece, far: float) -> None:
    around = float(rng.uniform(-math.pi, math.pi))
    scene.add(piece, far * math.cos(around), far * math.sin(around), float(rng.uniform(-math.pi, math.pi)))


def _meadow(rng: np.random.Generator) -> Material:
    """Grass, short or so long that it is a texture of stalks and flowers."""
    if rng.random() < 0.5:
        return foliage(rng, rng.random() < 0.6)
    a = vary(rng, (0.3, 0.42, 0.16), 0.08)
    return Material(tx.GRASS, a, scaled(a, 1.6), vary(rng, scaled(a, 1.9), 0.1), contrast=float(rng.uniform(0.2, 0.6)))


def _land(scene: Scene, rng: np.random.Generator, ground: Material) -> None:
    piece = Piece("ground", "")
    piece.box((0, 0.1, 0), (60.0, 0.1, 60.0), ground)
    scene.add(piece, anchored=True)
    if rng.random() < 0.4:
        path = Piece("path", "")
        path.box((float(rng.uniform(-4, 4)), -0.005, 0), (float(rng.uniform(0.5, 2.5)), 0.006, 60.0), ground_material(rng)[1])
        scene.add(path, yaw=float(rng.uniform(-0.5, 0.5)), anchored=True)
    for _ in range(int(rng.integers(0, 7))):  # parts of spheres: near ones rise gently, far ones stand as a wall
        height, radius = float(np.exp(rng.uniform(math.log(0.8), math.log(25)))), float(np.exp(rng.uniform(math.log(15), math.log(120))))
        radius = max(radius, height)
        foot = math.sqrt(radius * radius - (radius - height) ** 2)
        hill = Piece("hill", "")
        hill.sphere((0, radius - height, 0), radius, ground if rng.random() < 0.5 else foliage(rng))
        _scatter(scene, rng, hill, foot + float(rng.uniform(0.0, 25.0)))


def _tree(rng: np.random.Generator) -> Piece:
    if rng.random() < 0.25:
        return garden.tree(rng)
    piece = Piece("tree", "tall")
    bark, leaves = wood(rng), foliage(rng)
    height, wide = float(rng.uniform(2.5, 14)), float(rng.uniform(0.12, 0.3))
    bare = height * float(rng.uniform(0.05, 0.45))
    piece.cylinder(0, 0, wide * 0.15 * height**0.5, 0.8 * height, 0.0, bark)
    if rng.random() < 0.5:  # a conifer: discs that get smaller
        count = int(rng.integers(5, 9))
        for k in range(count):
            low = bare + (height - bare) * k / count
            piece.cylinder(0, 0, wide * height * (1 - 0.85 * k / count), low + (height - bare) / count, low, leaves)
        return piece
    for _ in range(int(rng.integers(3, 8))):
        size = wide * height * float(rng.uniform(0.5, 1.0))
        at = float(rng.uniform(bare + 0.5 * size, max(height - size, bare + 0.6 * size)))
        piece.sphere((float(rng.normal(0, 0.5)) * size, -at, float(rng.normal(0, 0.5)) * size), size, leaves)
    return piece


def _woods(scene: Scene, rng: np.random.Generator) -> None:
    """Single trees, and rows so dense that nothing is seen behind them."""
    for _ in range(int(rng.integers(0, 10))):
        _scatter(scene, rng, _tree(rng), float(rng.uniform(3, REACH)))
    for _ in range(int(rng.choice([0, 1, 2, 3, 5]))):
        far, middle, spread = float(rng.uniform(8, REACH)), float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.3, 2.0))
        kinds = [_tree(rng) for _ in range(3)]
        for _ in range(int(rng.integers(8, 40))):
            away, around = far * float(rng.uniform(0.85, 1.25)), middle + spread * float(rng.uniform(-1, 1))
            scene.add(kinds[int(rng.integers(3))], away * math.cos(around), away * math.sin(around), float(rng.uniform(-math.pi, math.pi)))


def _buildings(scene: Scene, rng: np.random.Generator) -> None:
    for _ in range(int(rng.choice([0, 0, 1, 2, 4]))):
        wide, deep, high = float(rng.uniform(2, 7)), float(rng.uniform(2, 5)), float(rng.uniform(2.2, 9))
        house = Piece("house", "")
        walls = wall_material(rng, True)[1]
        house.stand(0, 0, 2 * wide, 2 * deep, high, 0.0, walls)
        roof, eaves = scaled(pick_color(rng, ("red", "brown", "grey", "black"))[1], 0.8), float(rng.uniform(0.1, 0.8))
        cover = Material(tx.SIDING, roof, scaled(roof, 0.8), scale=0.15, aspect=2.0)
        for k in range(int(rng.integers(1, 6))):  # steps stand for a slope
            house.stand(0, 0, 2 * (wide + eaves), 2 * (deep + eaves) * (1 - 0.18 * k), high + 0.35 * (k + 1), high + 0.35 * k, cover)
        frame, glass = paint(rng, pick_color(rng, ("white", "brown", "grey"))[1], 0.1), paint(rng, (0.2, 0.24, 0.3), 0.9)
        for k in range(int(wide)):
            for y in np.arange(1.4, high - 0.8, 2.4):
                at = -wide + 2 * wide * (k + 0.5) / int(wide)
                house.box((at, -y, -deep), (0.5, 0.65, 0.04), frame)
                house.box((at, -y, -deep - 0.01), (0.42, 0.57, 0.04), glass)
        _scatter(scene, rng, house, math.hypot(wide, deep) + 9.0 + float(rng.uniform(0, 25)))
    if rng.random() < 0.4:  # a wall, a hedge or a fence across
        piece, long = Piece("wall", ""), float(rng.uniform(4, 20))
        material = [wall_material(rng, True)[1], foliage(rng, True), wood(rng), stone(rng)][int(rng.integers(4))]
        piece.stand(0, 0, 2 * long, float(rng.uniform(0.05, 0.5)), float(rng.uniform(0.5, 2.5)), 0.0, material)
        _scatter(scene, rng, piece, float(rng.uniform(9, 25)))
    if rng.random() < 0.2:
        _scatter(scene, rng, door(rng, 1.0, 2.0), float(rng.uniform(3, 10)))


def _hide(rng: np.random.Generator) -> Material:
    base: Vec = vary(rng, [(0.85, 0.83, 0.78), (0.35, 0.24, 0.16), (0.12, 0.11, 0.11), (0.62, 0.45, 0.3)][int(rng.integers(4))], 0.05)
    other: Vec = vary(rng, [(0.3, 0.2, 0.14), (0.9, 0.88, 0.84), (0.1, 0.1, 0.1)][int(rng.integers(3))], 0.05)
    return Material(int(rng.choice([tx.MARBLE, tx.SPOTS, tx.PLASTER])), base, other, other, scale=float(rng.uniform(0.8, 4)), contrast=0.8)


def _animal(rng: np.random.Generator) -> Piece:
    piece = Piece("animal", "")
    hide, size = _hide(rng), float(rng.uniform(0.35, 1.1))
    long, thick, legs = 0.75 * size, 0.32 * size, 0.65 * size
    piece.lying((0, -(legs + thick), 0), long, thick, hide)
    piece.sphere((-long, -(legs + thick), 0), thick, hide)
    for x in (-0.8, 0.8):
        for z in (-0.5, 0.5):
            piece.cylinder(x * long, z * thick, 0.16 * thick + 0.02, legs + 0.5 * thick, 0.0, hide)
    bowed = float(rng.uniform(0.1, 1.3))
    piece.sphere((long + 0.25 * size, -(legs + thick) * bowed - 0.1, 0), 0.2 * size, hide)
    piece.sphere((long + 0.05 * size, -(legs + thick) * (1 + bowed) / 2, 0), 0.2 * size, hide)
    return piece


def _person(rng: np.random.Generator) -> Piece:
    piece = Piece("person", "")
    cloth, legs = fabric(rng, pick_color(rng)[1]), fabric(rng, pick_color(rng)[1])
    skin = Material(tx.PLAIN, vary(rng, [(0.85, 0.68, 0.56), (0.55, 0.38, 0.27), (0.32, 0.22, 0.16)][int(rng.integers(3))]))
    high = float(rng.uniform(1.1, 1.9))
    for x in (-0.1, 0.1):
        piece.cylinder(x, 0, 0.08, 0.5 * high, 0.0, legs)
    piece.stand(0, 0, float(rng.uniform(0.34, 0.5)), 0.24, 0.84 * high, 0.47 * high, cloth)
    piece.sphere((0, -0.92 * high, 0), 0.075 * high, skin)
    return piece


def _car(rng: np.random.Generator) -> Piece:
    piece = Piece("car", "")
    body, tyre, glass = paint(rng, pick_color(rng)[1], 0.6), paint(rng, (0.08, 0.08, 0.08), 0.0), paint(rng, (0.15, 0.18, 0.22), 0.9)
    piece.stand(0, 0, 4.2, 1.7, 0.85, 0.3, body)
    piece.stand(0.2, 0, 2.2, 1.5, 1.4, 0.85, glass)
    piece.stand(0.2, 0, 2.0, 1.45, 1.46, 1.4, body)
    for x in (-1.3, 1.3):
        piece.lying((x, -0.32, 0), 0.88, 0.32, tyre, math.pi / 2)
    return piece


def _rock(rng: np.random.Generator) -> Piece:
    piece, material = Piece("rock", ""), stone(rng)
    for _ in range(int(rng.integers(1, 4))):
        size = float(np.exp(rng.uniform(math.log(0.15), math.log(1.8))))
        at = (float(rng.normal(0, 0.6)) * size, float(rng.uniform(-0.2, 0.5)) * size, float(rng.normal(0, 0.6)) * size)
        if rng.random() < 0.6:
            piece.sphere(at, size, material)
        else:
            piece.box(at, (size, 0.7 * size, size * float(rng.uniform(0.4, 1.0))), material, float(rng.uniform(0, 3)))
    return piece
