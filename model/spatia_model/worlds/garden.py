"""Pieces that stand out of doors; see `furniture.py`."""

from __future__ import annotations

import numpy as np

from spatia_model.worlds import furniture as fu
from spatia_model.worlds import textures as tx
from spatia_model.worlds.palette import foliage, metal, paint, pick_color, scaled, stone, vary, wood
from spatia_model.worlds.scene import Material, Piece


def bush(rng: np.random.Generator) -> Piece:
    piece = Piece("bush", "green")
    leaves = foliage(rng, rng.random() < 0.5)
    size = float(rng.uniform(0.3, 0.55))
    for _ in range(int(rng.integers(4, 8))):
        s = size * float(rng.uniform(0.5, 0.9))
        piece.sphere((float(rng.normal(0, 0.45)) * size, -s * float(rng.uniform(0.6, 1.5)), float(rng.normal(0, 0.45)) * size), s, leaves)
    return piece


def tree(rng: np.random.Generator) -> Piece:
    piece = Piece("tree", "")
    bark = Material(tx.PLANK, (0.34, 0.27, 0.2), (0.48, 0.4, 0.32), scale=0.05, contrast=0.6, aspect=4.0)
    h, r = float(rng.uniform(1.4, 2.2)), float(rng.uniform(0.1, 0.18))
    piece.cylinder(0, 0, r, h + 0.5, 0.0, bark)
    leaves = foliage(rng, rng.random() < 0.2)
    for _ in range(int(rng.integers(6, 11))):
        s = float(rng.uniform(0.4, 0.8))
        piece.sphere((float(rng.normal(0, 0.45)), -(h + 0.6 + float(rng.uniform(0, 1.2))), float(rng.normal(0, 0.45))), s, leaves)
    return piece


def planter(rng: np.random.Generator) -> Piece:
    piece = Piece("planter", "stone")
    w, h = float(rng.uniform(0.4, 0.8)), float(rng.uniform(0.3, 0.5))
    edge = stone(rng) if rng.random() < 0.6 else wood(rng)
    piece.stand(0, 0, 2 * w, 0.5, h, 0.0, edge)
    leaves = foliage(rng, True)
    for k in range(int(3 + 5 * w)):
        s = float(rng.uniform(0.12, 0.22))
        piece.sphere(
            (-w + 0.15 + (2 * w - 0.3) * k / int(2 + 5 * w), -(h + s * float(rng.uniform(0.2, 0.9))), float(rng.normal(0, 0.06))), s, leaves
        )
    return piece


def fountain(rng: np.random.Generator) -> Piece:
    piece = Piece("fountain", "stone")
    material = stone(rng)
    water = Material(tx.MARBLE, (0.25, 0.42, 0.48), (0.6, 0.75, 0.8), scale=3.0, contrast=0.6, gloss=0.9)
    r = float(rng.uniform(0.6, 0.9))
    piece.cylinder(0, 0, r, 0.38, 0.0, material)
    piece.cylinder(0, 0, r - 0.1, 0.385, 0.3, water)
    piece.cylinder(0, 0, 0.12, 1.0, 0.3, material)
    piece.cylinder(0, 0, 0.38, 1.05, 0.95, material)
    piece.cylinder(0, 0, 0.32, 1.056, 1.0, water)
    piece.sphere((0, -1.2, 0), 0.15, material)
    return piece


def lamp_post(rng: np.random.Generator) -> Piece:
    piece = Piece("lamp", "tall")
    pole = paint(rng, pick_color(rng, ("black", "green", "grey"))[1], 0.3)
    h = float(rng.uniform(2.2, 2.8))
    piece.cylinder(0, 0, 0.12, 0.25, 0.0, pole)
    piece.cylinder(0, 0, 0.04, h, 0.0, pole)
    piece.cylinder(0, 0, 0.16, h + 0.36, h + 0.3, pole)
    piece.cylinder(0, 0, 0.11, h + 0.3, h, Material(tx.PLAIN, (0.95, 0.92, 0.8), glow=0.4, contrast=0.05))
    return piece


def umbrella(rng: np.random.Generator) -> Piece:
    name, color = pick_color(rng, ("red", "green", "blue", "yellow", "beige", "orange", "white"))
    piece = Piece("umbrella", name)
    cloth = Material(tx.STRIPES, color, vary(rng, (0.9, 0.88, 0.84)) if rng.random() < 0.5 else scaled(color, 0.8), scale=0.4, contrast=0.1)
    piece.cylinder(0, 0, 0.5, 0.74, 0.7, wood(rng))
    piece.cylinder(0, 0, 0.035, 2.3, 0.0, metal(rng))
    piece.cylinder(0, 0, 0.2, 0.06, 0.0, stone(rng))
    piece.cylinder(0, 0, 1.0, 2.14, 2.08, cloth)
    piece.cylinder(0, 0, 0.62, 2.22, 2.14, cloth)
    piece.cylinder(0, 0, 0.28, 2.3, 2.22, cloth)
    return piece


def statue(rng: np.random.Generator) -> Piece:
    piece = Piece("statue", "stone")
    material = stone(rng)
    piece.stand(0, 0, 0.6, 0.6, 0.5, 0.0, material)
    if rng.random() < 0.5:
        piece.sphere((0, -0.88, 0), 0.38, material)
        piece.sphere((0, -1.4, 0), 0.22, material)
    else:
        for k in range(4):
            piece.box((0, -(0.65 + 0.3 * k), 0), (0.22 - 0.03 * k, 0.16, 0.22 - 0.03 * k), material, 0.35 * k)
    return piece


# (maker, weight, may stand free in the middle)
OUTDOORS: list[tuple[fu.Maker, float, bool]] = [
    (fu.bench, 1.4, True), (bush, 1.8, True), (tree, 1.5, True), (planter, 1.4, True), (fountain, 0.6, True),
    (lamp_post, 0.8, True), (umbrella, 0.7, True), (statue, 0.8, True), (fu.barrel, 0.8, True), (fu.crates, 0.8, True),
    (fu.table, 0.7, True), (fu.chair, 0.8, True), (fu.column, 0.8, True), (fu.block, 0.6, True), (fu.plant, 0.8, True),
]  # fmt: skip
