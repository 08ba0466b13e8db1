"""Pieces of furniture, made of a few boxes, cylinders and spheres each. Every function draws one piece at random.

A piece stands on y = 0 (y points down), its front looks towards -z, its back is at +z.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from spatia_model.worlds import textures as tx
from spatia_model.worlds.palette import WOODS, fabric, foliage, metal, paint, pick_color, scaled, stone, vary, wood
from spatia_model.worlds.scene import Material, Piece

Maker = Callable[[np.random.Generator], Piece]


def surface(rng: np.random.Generator) -> tuple[str, Material]:
    """Wood mostly, else paint: (caption word, material)."""
    if rng.random() < 0.6:
        return "wooden", wood(rng)
    name, color = pick_color(rng)
    return name, paint(rng, color)


def clutter(rng: np.random.Generator, piece: Piece, half_w: float, half_d: float, top: float, count: int) -> None:
    """Small things on a table or a shelf: vases, books, bowls, boxes."""
    for i in range(count):
        x = (
            float(rng.uniform(-0.8, 0.8)) * half_w * 0.9
            if count == 1
            else (-0.75 + 1.5 * (i + float(rng.uniform(0.2, 0.8))) / count) * half_w
        )
        z = float(rng.uniform(-0.6, 0.6)) * half_d
        color = pick_color(rng)[1]
        what = rng.integers(4)
        if what == 0:
            r, h = float(rng.uniform(0.04, 0.08)), float(rng.uniform(0.1, 0.28))
            piece.cylinder(x, z, r, top + h, top, paint(rng, color))
            if rng.random() < 0.5:
                piece.sphere((x, -(top + h + 0.08), z), 0.12, foliage(rng, True))
        elif what == 1:
            for k in range(int(rng.integers(1, 4))):
                piece.box(
                    (x, -(top + 0.02 + 0.04 * k), z), (0.11, 0.02, 0.08), paint(rng, pick_color(rng)[1]), float(rng.uniform(-0.5, 0.5))
                )
        elif what == 2:
            r = float(rng.uniform(0.05, 0.09))
            piece.sphere((x, -(top + r), z), r, paint(rng, color, 0.5))
        else:
            s = float(rng.uniform(0.06, 0.12))
            piece.box((x, -(top + s), z), (s, s, s * 0.8), paint(rng, color), float(rng.uniform(0, 1.5)))


def table(rng: np.random.Generator) -> Piece:
    word, material = surface(rng)
    w, d = float(rng.uniform(0.45, 0.85)), float(rng.uniform(0.35, 0.5))
    h = float(rng.choice([0.45, 0.74, 0.76]))
    piece = Piece("table", word)
    if rng.random() < 0.3:
        r = float(rng.uniform(0.4, 0.65))
        piece.cylinder(0, 0, r, h, h - 0.05, material)
        piece.cylinder(0, 0, 0.05, h - 0.05, 0.03, material)
        piece.cylinder(0, 0, 0.28, 0.04, 0.0, material)
        clutter(rng, piece, r * 0.7, r * 0.5, h, int(rng.integers(0, 3)))
        return piece
    piece.stand(0, 0, 2 * w, 2 * d, h, h - 0.05, material)
    leg = float(rng.uniform(0.05, 0.09))
    legs = material if rng.random() < 0.6 else metal(rng)
    for sx in (-1, 1):
        for sz in (-1, 1):
            piece.stand(sx * (w - leg), sz * (d - leg), leg, leg, h - 0.05, 0.0, legs)
    if rng.random() < 0.5:
        piece.stand(0, 0, 2 * w - 0.2, 2 * d - 0.16, h - 0.05, h - 0.13, material)
    clutter(rng, piece, w, d, h, int(rng.integers(0, 4)))
    return piece


def chair(rng: np.random.Generator) -> Piece:
    word, material = surface(rng)
    piece = Piece("chair", word)
    s = float(rng.uniform(0.2, 0.24))
    seat = fabric(rng, pick_color(rng)[1]) if rng.random() < 0.5 else material
    piece.stand(0, 0, 2 * s, 2 * s, 0.47, 0.42, seat)
    for sx in (-1, 1):
        for sz in (-1, 1):
            piece.stand(sx * (s - 0.03), sz * (s - 0.03), 0.05, 0.05, 0.42, 0.0, material)
        piece.stand(sx * (s - 0.03), s - 0.03, 0.05, 0.05, 0.95, 0.47, material)
    if rng.random() < 0.5:
        piece.stand(0, s - 0.03, 2 * s - 0.1, 0.035, 0.93, 0.6, seat)
    else:
        for k in range(3):
            piece.stand(0, s - 0.03, 2 * s - 0.1, 0.03, 0.66 + 0.13 * k, 0.59 + 0.13 * k, material)
    return piece


def stool(rng: np.random.Generator) -> Piece:
    word, material = surface(rng)
    piece = Piece("stool", word)
    h = float(rng.uniform(0.45, 0.7))
    piece.cylinder(0, 0, 0.19, h, h - 0.06, material)
    for k in range(4):
        a = math.pi * (k / 2 + 0.25)
        piece.cylinder(0.13 * math.cos(a), 0.13 * math.sin(a), 0.025, h - 0.05, 0.0, material)
    return piece


def sofa(rng: np.random.Generator) -> Piece:
    name, color = pick_color(rng, ("red", "green", "blue", "grey", "beige", "brown", "yellow", "purple", "white", "orange"))
    material = fabric(rng, color)
    single = rng.random() < 0.35
    w = 0.45 if single else float(rng.uniform(0.75, 1.05))
    piece = Piece("armchair" if single else "sofa", name)
    arm, back = float(rng.uniform(0.1, 0.18)), float(rng.uniform(0.75, 0.92))
    piece.stand(0, 0, 2 * w, 0.84, 0.28, 0.08, material)
    piece.stand(0, 0.34, 2 * w, 0.18, back, 0.2, material)
    for sx in (-1, 1):
        piece.stand(sx * (w - arm / 2), 0, arm, 0.84, 0.6, 0.1, material)
        piece.stand(sx * (w - 0.06), 0, 0.06, 0.7, 0.09, 0.0, wood(rng))
    count = 1 if single else (2 if w < 0.9 else 3)
    inner = 2 * (w - arm)
    for k in range(count):
        x = -inner / 2 + inner * (k + 0.5) / count
        piece.stand(x, -0.08, inner / count - 0.025, 0.64, 0.44, 0.28, material)
    if rng.random() < 0.7:
        cushion = fabric(rng, pick_color(rng)[1])
        piece.box((float(rng.choice([-1, 1])) * (inner / 2 - 0.18), -0.6, 0.16), (0.18, 0.16, 0.07), cushion, 0.3)
    return piece


def bed(rng: np.random.Generator) -> Piece:
    name, color = pick_color(rng, ("red", "green", "blue", "grey", "beige", "white", "yellow", "purple", "pink"))
    frame = wood(rng)
    piece = Piece("bed", name)
    w = float(rng.uniform(0.5, 0.85))
    piece.stand(0, 0, 2 * w, 2.0, 0.3, 0.08, frame)
    piece.stand(0, 0, 2 * w - 0.06, 1.94, 0.48, 0.3, paint(rng, (0.9, 0.89, 0.87), 0.0))
    piece.stand(0, -0.22, 2 * w, 1.5, 0.53, 0.3, fabric(rng, color))
    piece.stand(0, 0.97, 2 * w + 0.06, 0.06, float(rng.uniform(0.8, 1.15)), 0.0, frame)
    for sx in (-1, 1):
        piece.box((sx * w * 0.5, -0.55, 0.72), (w * 0.38, 0.07, 0.18), paint(rng, (0.88, 0.87, 0.84), 0.0))
    return piece


def bookshelf(rng: np.random.Generator) -> Piece:
    material = wood(rng) if rng.random() < 0.7 else paint(rng, pick_color(rng, ("white", "grey", "black", "green"))[1])
    piece = Piece("bookshelf", "")
    w, h, d = float(rng.uniform(0.4, 0.75)), float(rng.uniform(1.2, 2.1)), 0.3
    rows = max(2, round(h / 0.36))
    for sx in (-1, 1):
        piece.stand(sx * (w - 0.02), 0, 0.04, d, h, 0.0, material)
    piece.stand(0, d / 2 - 0.01, 2 * w, 0.02, h, 0.0, material)
    dark = scaled(material.a, 0.3)
    for k in range(rows + 1):
        y = 0.04 + (h - 0.08) * k / rows
        piece.stand(0, 0, 2 * w - 0.04, d, y + 0.02, y - 0.02, material)
        if k == rows or rng.random() < 0.12:
            continue
        room = (h - 0.08) / rows - 0.04
        tint = pick_color(rng)[1]
        books = Material(tx.BOOKS, tint, scaled(tint, 0.7), dark, scale=float(rng.uniform(0.04, 0.065)))
        share = float(rng.uniform(0.5, 1.0))
        piece.stand(
            (share - 1) * (w - 0.05) * float(rng.choice([-1, 1])),
            0.03,
            (2 * w - 0.1) * share,
            d - 0.1,
            y + 0.02 + room * 0.88,
            y + 0.02,
            books,
        )
    return piece


def cabinet(rng: np.random.Generator) -> Piece:
    word, material = surface(rng)
    tall = rng.random() < 0.4
    piece = Piece("wardrobe" if tall else "cabinet", word)
    w, h, d = (
        (float(rng.uniform(0.5, 0.8)), float(rng.uniform(1.7, 2.1)), 0.55)
        if tall
        else (float(rng.uniform(0.45, 0.9)), float(rng.uniform(0.6, 1.0)), 0.42)
    )
    piece.stand(0, 0, 2 * w, d, h, 0.06, material)
    piece.stand(0, 0.02, 2 * w - 0.08, d - 0.06, 0.06, 0.0, paint(rng, (0.15, 0.14, 0.13)))
    door = material if rng.random() < 0.5 else paint(rng, vary(rng, scaled(material.a, 1.15), 0.04))
    columns, rows = int(rng.integers(1, 4)), 1 if tall else int(rng.integers(1, 4))
    if tall:
        columns = 2
    knob = metal(rng)
    for i in range(columns):
        for j in range(rows):
            cw, ch = 2 * w / columns, (h - 0.06) / rows
            x, y = -w + cw * (i + 0.5), 0.06 + ch * (j + 0.5)
            piece.box((x, -y, -d / 2 - 0.01), (cw / 2 - 0.02, ch / 2 - 0.02, 0.015), door)
            piece.sphere((x + (cw / 2 - 0.07) * (1 if i % 2 == 0 else -1) * (columns > 1), -y, -d / 2 - 0.045), 0.025, knob)
    if not tall:
        clutter(rng, piece, w, d / 2, h, int(rng.integers(0, 4)))
    return piece


def floor_lamp(rng: np.random.Generator) -> Piece:
    piece = Piece("lamp", "tall")
    h = float(rng.uniform(1.4, 1.75))
    pole = metal(rng)
    piece.cylinder(0, 0, 0.15, 0.03, 0.0, pole)
    piece.cylinder(0, 0, 0.02, h - 0.2, 0.0, pole)
    shade = vary(rng, [(0.95, 0.88, 0.7), (0.9, 0.7, 0.45), (0.85, 0.85, 0.8)][int(rng.integers(3))], 0.03)
    glow = float(rng.choice([0.3, 0.9, 1.4]))
    if rng.random() < 0.6:
        piece.cylinder(0, 0, float(rng.uniform(0.16, 0.24)), h, h - 0.3, Material(tx.PLAIN, shade, contrast=0.05, glow=glow))
    else:
        piece.sphere((0, -(h - 0.1), 0), 0.18, Material(tx.PLAIN, shade, contrast=0.05, glow=glow))
    return piece


def plant(rng: np.random.Generator) -> Piece:
    piece = Piece("plant", "")
    r, h = float(rng.uniform(0.14, 0.24)), float(rng.uniform(0.25, 0.45))
    pot = paint(rng, pick_color(rng, ("orange", "white", "grey", "brown", "blue", "black"))[1])
    piece.cylinder(0, 0, r, h, 0.0, pot)
    piece.cylinder(0, 0, r + 0.02, h, h - 0.06, pot)
    leaves = foliage(rng, rng.random() < 0.3)
    tall = rng.random() < 0.5
    trunk = float(rng.uniform(0.3, 0.7)) if tall else 0.05
    piece.cylinder(0, 0, 0.025, h + trunk, h, paint(rng, (0.35, 0.26, 0.18), 0.0))
    for _ in range(int(rng.integers(4, 8))):
        s = float(rng.uniform(0.12, 0.24))
        piece.sphere((float(rng.normal(0, 0.12)), -(h + trunk + float(rng.uniform(0.0, 0.4))), float(rng.normal(0, 0.12))), s, leaves)
    return piece


def column(rng: np.random.Generator) -> Piece:
    material = stone(rng)
    piece = Piece("column", "stone")
    r, h = float(rng.uniform(0.12, 0.24)), float(rng.uniform(1.2, 2.35))
    piece.stand(0, 0, 2.8 * r, 2.8 * r, 0.14, 0.0, material)
    piece.cylinder(0, 0, r, h - 0.14, 0.14, material)
    piece.stand(0, 0, 2.8 * r, 2.8 * r, h, h - 0.14, material)
    if h < 1.7:
        piece.sphere((0, -(h + 0.2), 0), 0.2, material)
    return piece


def crates(rng: np.random.Generator) -> Piece:
    a, b = WOODS[int(rng.integers(len(WOODS)))]
    material = Material(tx.PLANK, vary(rng, a), vary(rng, b), scale=float(rng.uniform(0.07, 0.12)), contrast=0.4, aspect=12.0)
    piece = Piece("crate", "wooden")
    s = float(rng.uniform(0.22, 0.36))
    rim = wood(rng)
    top = 0.0
    for _ in range(int(rng.integers(1, 3))):
        yaw = float(rng.uniform(-0.3, 0.3))
        piece.box((0, -(top + s), 0), (s, s, s), material, yaw)
        for y in (top + 0.04, top + 2 * s - 0.04):
            piece.box((0, -y, 0), (s + 0.02, 0.04, s + 0.02), rim, yaw)
        top += 2 * s
        s *= float(rng.uniform(0.7, 0.95))
    return piece


def block(rng: np.random.Generator) -> Piece:
    name, color = pick_color(rng, ("red", "green", "blue", "yellow", "white", "black", "grey", "orange", "purple", "beige"))
    tall = rng.random() < 0.5
    piece = Piece("box", ("tall " if tall else "low ") + name)
    w, d = float(rng.uniform(0.2, 0.45)), float(rng.uniform(0.2, 0.45))
    h = float(rng.uniform(1.1, 1.9)) if tall else float(rng.uniform(0.3, 0.7))
    options = [
        paint(rng, color),
        Material(tx.CHECKER, color, scaled(color, 0.7), scale=0.2, contrast=0.0),
        Material(tx.STRIPES, color, scaled(color, 1.3), scale=0.2),
        Material(tx.MARBLE, color, scaled(color, 0.5), scale=2.0, contrast=0.7, gloss=0.4),
    ]
    piece.stand(0, 0, 2 * w, 2 * d, h, 0.0, options[int(rng.integers(4))])
    return piece


def barrel(rng: np.random.Generator) -> Piece:
    name, color = pick_color(rng, ("brown", "blue", "grey", "green", "red"))
    piece = Piece("barrel", name)
    r, h = float(rng.uniform(0.24, 0.34)), float(rng.uniform(0.7, 0.95))
    body = wood(rng) if name == "brown" else paint(rng, color, 0.3)
    ring = metal(rng)
    piece.cylinder(0, 0, r, h, 0.0, body)
    for k in (0.12, 0.5, 0.88):
        piece.cylinder(0, 0, r + 0.015, h * k + 0.03, h * k - 0.03, ring)
    return piece


def bench(rng: np.random.Generator) -> Piece:
    word, material = surface(rng)
    piece = Piece("bench", word)
    w = float(rng.uniform(0.55, 0.9))
    for k in range(3):
        piece.stand(0, -0.15 + 0.14 * k, 2 * w, 0.12, 0.46, 0.42, material)
    legs = stone(rng) if rng.random() < 0.4 else material
    for sx in (-1, 1):
        piece.stand(sx * (w - 0.12), 0, 0.08, 0.38, 0.42, 0.0, legs)
    if rng.random() < 0.6:
        for sx in (-1, 1):
            piece.stand(sx * (w - 0.12), 0.19, 0.06, 0.05, 0.9, 0.4, legs)
        for k in range(2):
            piece.stand(0, 0.19, 2 * w, 0.04, 0.72 + 0.16 * k, 0.6 + 0.16 * k, material)
    return piece


def television(rng: np.random.Generator) -> Piece:
    piece = Piece("screen", "black")
    w = float(rng.uniform(0.4, 0.65))
    dark = paint(rng, (0.1, 0.1, 0.11), 0.5)
    piece.stand(0, 0, 2 * w + 0.2, 0.4, 0.45, 0.0, wood(rng))
    piece.stand(0, 0, 0.3, 0.2, 0.48, 0.45, dark)
    piece.stand(0, 0.02, 0.06, 0.05, 0.6, 0.48, dark)
    piece.stand(0, 0.0, 2 * w, 0.05, 0.55 + 1.1 * w, 0.55, dark)
    picture = Material(
        tx.PICTURE, pick_color(rng)[1], pick_color(rng)[1], (0.05, 0.05, 0.05), glow=float(rng.choice([0.0, 0.5])), gloss=0.4
    )
    piece.box((0, -(0.55 + 0.55 * w), -0.03), (w - 0.02, 0.55 * w - 0.02, 0.006), picture)
    return piece


def fireplace(rng: np.random.Generator) -> Piece:
    piece = Piece("fireplace", "")
    brick = Material(
        tx.BRICK,
        vary(rng, (0.6, 0.3, 0.24)),
        vary(rng, (0.5, 0.25, 0.2)),
        (0.7, 0.66, 0.6),
        scale=0.09,
        contrast=0.06,
        aspect=2.4,
        extra=0.5,
    )
    frame = brick if rng.random() < 0.5 else stone(rng)
    w = float(rng.uniform(0.6, 0.75))
    for sx in (-1, 1):
        piece.stand(sx * (w - 0.13), 0, 0.26, 0.45, 0.85, 0.0, frame)
    piece.stand(0, 0, 2 * w, 0.45, 1.15, 0.85, frame)
    piece.stand(0, -0.03, 2 * w + 0.12, 0.5, 1.22, 1.15, wood(rng))
    piece.stand(0, 0.18, 2 * w - 0.4, 0.08, 0.85, 0.0, paint(rng, (0.1, 0.09, 0.08), 0.0))
    piece.stand(0, 0.05, 2 * w - 0.1, 0.36, 2.35, 1.22, frame)
    for k in range(3):
        piece.lying((0, -0.08 - 0.1 * (k == 2), -0.06 + 0.13 * (k % 2)), 0.24, 0.055, wood(rng), 0.2 * k)
    if rng.random() < 0.6:
        piece.sphere((0, -0.22, 0.02), 0.1, Material(tx.FOLIAGE, (0.95, 0.3, 0.05), (1.0, 0.8, 0.3), scale=14.0, glow=2.0))
    return piece


# (maker, weight, may stand free in the middle)
INDOORS: list[tuple[Maker, float, bool]] = [
    (table, 1.6, True), (chair, 1.6, True), (stool, 0.6, True), (sofa, 1.6, True), (bed, 0.7, False), (bookshelf, 1.5, False),
    (cabinet, 1.6, False), (floor_lamp, 0.9, False), (plant, 1.2, True), (column, 0.5, True), (crates, 0.6, True), (block, 1.0, True),
    (television, 0.6, False), (fireplace, 0.5, False), (barrel, 0.3, True), (bench, 0.4, True),
]  # fmt: skip
