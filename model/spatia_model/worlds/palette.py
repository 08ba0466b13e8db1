"""Named colours and ready-made materials, drawn at random."""

from __future__ import annotations

import numpy as np

from spatia_model.worlds import textures as tx
from spatia_model.worlds.scene import Material, Vec

# Colours of furniture and walls, as captions name them.
COLORS: dict[str, list[Vec]] = {
    "white": [(0.92, 0.91, 0.88), (0.88, 0.88, 0.9)],
    "black": [(0.13, 0.13, 0.14), (0.18, 0.16, 0.15)],
    "grey": [(0.5, 0.5, 0.52), (0.62, 0.61, 0.58), (0.4, 0.42, 0.44)],
    "brown": [(0.45, 0.3, 0.2), (0.38, 0.25, 0.17), (0.55, 0.38, 0.25)],
    "beige": [(0.82, 0.74, 0.6), (0.86, 0.8, 0.68), (0.76, 0.68, 0.55)],
    "red": [(0.62, 0.2, 0.18), (0.55, 0.24, 0.2)],
    "green": [(0.28, 0.45, 0.3), (0.45, 0.55, 0.38), (0.2, 0.38, 0.32)],
    "blue": [(0.22, 0.32, 0.52), (0.35, 0.48, 0.62), (0.18, 0.26, 0.4)],
    "yellow": [(0.8, 0.68, 0.35), (0.85, 0.76, 0.48)],
    "orange": [(0.75, 0.48, 0.28), (0.7, 0.42, 0.26)],
    "purple": [(0.42, 0.3, 0.46), (0.5, 0.4, 0.54)],
    "pink": [(0.8, 0.6, 0.62), (0.74, 0.52, 0.54)],
}
# Moving objects: saturated and far apart, so that they can be found in a picture by colour.
MOVER_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 32),
    "green": (36, 178, 62),
    "blue": (36, 74, 224),
    "yellow": (242, 212, 32),
    "orange": (244, 132, 22),
    "purple": (142, 52, 196),
    "pink": (244, 104, 172),
    "cyan": (32, 204, 222),
}
WOODS: list[tuple[Vec, Vec]] = [
    ((0.52, 0.34, 0.2), (0.66, 0.46, 0.3)),
    ((0.36, 0.23, 0.15), (0.46, 0.31, 0.2)),
    ((0.74, 0.57, 0.38), (0.84, 0.69, 0.5)),
    ((0.6, 0.5, 0.4), (0.7, 0.6, 0.48)),
    ((0.45, 0.26, 0.18), (0.56, 0.34, 0.22)),
    ((0.3, 0.27, 0.25), (0.42, 0.38, 0.35)),
]


def vary(rng: np.random.Generator, color: Vec, amount: float = 0.05) -> Vec:
    """The colour, a little different in lightness and in each channel."""
    shift = rng.normal(0, amount) + rng.normal(0, amount * 0.4, 3)
    r, g, b = np.clip(np.asarray(color) + shift, 0.04, 0.97)
    return float(r), float(g), float(b)


def scaled(color: Vec, factor: float) -> Vec:
    return min(color[0] * factor, 0.98), min(color[1] * factor, 0.98), min(color[2] * factor, 0.98)


def pick_color(rng: np.random.Generator, names: tuple[str, ...] | None = None) -> tuple[str, Vec]:
    name = str(rng.choice(names or tuple(COLORS)))
    options = COLORS[name]
    return name, vary(rng, options[int(rng.integers(len(options)))], 0.035)


def wood(rng: np.random.Generator) -> Material:
    a, b = WOODS[int(rng.integers(len(WOODS)))]
    return Material(
        tx.WOOD,
        vary(rng, a, 0.03),
        vary(rng, b, 0.03),
        scale=float(rng.uniform(12, 40)),
        contrast=float(rng.uniform(0.25, 0.6)),
        gloss=float(rng.choice([0.0, 0.15, 0.4])),
    )


def paint(rng: np.random.Generator, color: Vec, gloss: float | None = None) -> Material:
    return Material(
        tx.PLAIN, color, contrast=float(rng.uniform(0.04, 0.14)), gloss=float(rng.choice([0.0, 0.1, 0.5])) if gloss is None else gloss
    )


def metal(rng: np.random.Generator) -> Material:
    g = float(rng.choice([0.2, 0.35, 0.6, 0.75]))
    a = vary(rng, (g, g, g), 0.03)
    return Material(tx.METAL, a, scaled(a, 1.25), contrast=0.3, gloss=0.6)


def fabric(rng: np.random.Generator, color: Vec) -> Material:
    if rng.random() < 0.25:
        other = pick_color(rng)[1]
        return Material(tx.STRIPES, color, other, scale=float(rng.uniform(0.08, 0.25)), contrast=0.12)
    return Material(
        tx.FABRIC,
        color,
        scaled(color, float(rng.choice([0.7, 1.25]))),
        scale=float(rng.uniform(30, 90)),
        contrast=float(rng.uniform(0.3, 0.8)),
    )


def foliage(rng: np.random.Generator, flowers: bool = False) -> Material:
    a = vary(rng, [(0.1, 0.2, 0.08), (0.14, 0.24, 0.12), (0.16, 0.22, 0.06)][int(rng.integers(3))], 0.02)
    b = vary(rng, [(0.42, 0.58, 0.24), (0.34, 0.52, 0.28), (0.55, 0.62, 0.28), (0.5, 0.45, 0.2)][int(rng.integers(4))], 0.03)
    bloom = [(0.9, 0.85, 0.8), (0.85, 0.45, 0.5), (0.9, 0.75, 0.3), (0.65, 0.45, 0.75)][int(rng.integers(4))]
    return Material(tx.FOLIAGE, a, b, bloom, scale=float(rng.uniform(8, 18)), extra=float(flowers) * 0.9)


def stone(rng: np.random.Generator) -> Material:
    a = vary(rng, [(0.55, 0.52, 0.48), (0.66, 0.62, 0.55), (0.42, 0.42, 0.43)][int(rng.integers(3))], 0.03)
    kind = int(rng.choice([tx.PLASTER, tx.MARBLE]))
    return Material(kind, a, scaled(a, 0.72), scale=float(rng.uniform(1.5, 4)), contrast=0.7)


def wall_material(rng: np.random.Generator, outdoors: bool) -> tuple[str, Material]:
    """A wall and its name in captions, e.g. "white brick"."""
    choices = (
        ["brick", "brick", "stone", "plaster", "wooden"]
        if outdoors
        else ["plaster", "plaster", "brick", "striped", "patterned", "patterned", "wooden", "stone", "tiled", "plain"]
    )
    what = str(rng.choice(choices))
    names = ("white", "grey", "beige", "yellow", "green", "blue", "pink", "orange", "red", "brown", "purple")
    weights = np.array([4, 2, 3, 1.5, 1.5, 1.5, 1, 1, 0.7, 0.7, 0.6])
    name, a = pick_color(rng, (str(rng.choice(names, p=weights / weights.sum())),))
    if what == "brick":
        name, a = pick_color(rng, (str(rng.choice(["red", "brown", "white", "grey", "beige", "orange"])),))
        b = vary(rng, scaled(a, float(rng.uniform(0.7, 1.2))), 0.04)
        mortar = vary(rng, [(0.75, 0.72, 0.68), (0.5, 0.48, 0.46), (0.85, 0.84, 0.82)][int(rng.integers(3))], 0.03)
        return f"{name} brick", Material(
            tx.BRICK,
            a,
            b,
            mortar,
            scale=float(rng.uniform(0.08, 0.2)),
            contrast=float(rng.uniform(0.04, 0.09)),
            aspect=float(rng.uniform(1.8, 3.2)),
            extra=0.5,
        )
    if what == "stone":
        name, a = pick_color(rng, (str(rng.choice(["grey", "beige", "brown"])),))
        return f"{name} stone", Material(
            tx.COBBLE, a, vary(rng, scaled(a, 0.75), 0.03), scaled(a, 0.5), scale=float(rng.uniform(0.2, 0.42)), contrast=0.05
        )
    if what == "tiled":
        other = pick_color(rng)[1] if rng.random() < 0.3 else vary(rng, a, 0.05)
        kind = tx.CHECKER if rng.random() < 0.3 else tx.BRICK
        return f"{name} tiled", Material(
            kind,
            a,
            other,
            (0.8, 0.8, 0.78),
            scale=float(rng.uniform(0.12, 0.3)),
            contrast=0.02,
            gloss=0.6,
            aspect=float(rng.choice([1.0, 2.0])),
            extra=float(rng.choice([0.0, 0.5])),
        )
    if what == "striped":
        return f"{name} striped", Material(
            tx.STRIPES,
            a,
            vary(rng, scaled(a, float(rng.choice([0.8, 0.88, 1.12]))), 0.03),
            scale=float(rng.uniform(0.12, 0.5)),
            contrast=0.05,
        )
    if what == "patterned":
        b = vary(rng, scaled(a, float(rng.uniform(0.6, 0.85))), 0.05) if rng.random() < 0.7 else pick_color(rng)[1]
        return f"{name} patterned", Material(
            tx.WALLPAPER,
            a,
            b,
            scale=float(rng.uniform(0.16, 0.5)),
            contrast=0.06,
            aspect=float(rng.uniform(0.2, 0.42)),
            extra=float(rng.integers(2, 8)),
        )
    if what == "wooden":
        a, b = WOODS[int(rng.integers(len(WOODS)))]
        if rng.random() < 0.5:
            return "wooden", Material(
                tx.SIDING, vary(rng, a), vary(rng, b), scale=float(rng.uniform(0.1, 0.22)), contrast=0.25, aspect=12.0
            )
        return "wooden", Material(tx.PLANK, vary(rng, a), vary(rng, b), scale=float(rng.uniform(0.1, 0.25)), contrast=0.35, aspect=9.0)
    if what == "plain":
        return f"{name} plain", Material(tx.PLAIN, a, contrast=0.04)
    return f"{name} plaster", Material(
        tx.PLASTER, scaled(a, 0.9), scaled(a, 1.08), scale=float(rng.uniform(1.2, 4)), contrast=float(rng.uniform(0.25, 0.8))
    )


def floor_material(rng: np.random.Generator) -> tuple[str, Material]:
    what = str(rng.choice(["wooden", "wooden", "wooden", "tiled", "checkered", "carpet", "stone", "marble", "concrete"]))
    if what == "wooden":
        a, b = WOODS[int(rng.integers(len(WOODS)))]
        return "wooden", Material(
            tx.PLANK,
            vary(rng, a),
            vary(rng, b),
            scale=float(rng.uniform(0.09, 0.22)),
            contrast=float(rng.uniform(0.3, 0.6)),
            gloss=float(rng.choice([0.0, 0.25])),
            aspect=float(rng.uniform(5, 10)),
        )
    name, a = pick_color(rng, ("white", "grey", "beige", "brown", "red", "blue", "green"))
    if what == "tiled":
        return f"{name} tiled", Material(
            tx.BRICK,
            a,
            vary(rng, scaled(a, 0.88), 0.04),
            scaled(a, 0.55),
            scale=float(rng.uniform(0.25, 0.6)),
            contrast=0.02,
            gloss=0.4,
            extra=float(rng.choice([0.0, 0.0, 0.5])),
        )
    if what == "checkered":
        b = pick_color(rng, ("black", "grey", "white", "brown"))[1]
        return "checkered", Material(tx.CHECKER, a, b, scaled(b, 0.6), scale=float(rng.uniform(0.3, 0.6)), contrast=0.01, gloss=0.4)
    if what == "carpet":
        return f"{name} carpet", Material(tx.FABRIC, a, scaled(a, 0.7), scale=float(rng.uniform(25, 60)), contrast=0.7)
    if what == "stone":
        return f"{name} stone", Material(
            tx.COBBLE, a, vary(rng, scaled(a, 0.75)), scaled(a, 0.45), scale=float(rng.uniform(0.35, 0.8)), contrast=0.03
        )
    if what == "marble":
        return f"{name} marble", Material(tx.MARBLE, a, scaled(a, 0.5), scale=float(rng.uniform(0.7, 1.6)), contrast=0.8, gloss=0.5)
    return "concrete", Material(tx.PLASTER, (0.48, 0.48, 0.47), (0.66, 0.65, 0.63), scale=float(rng.uniform(1.0, 3.0)), contrast=0.8)


def ground_material(rng: np.random.Generator) -> tuple[str, Material]:
    what = str(rng.choice(["grass", "grass", "stone", "stone", "brick", "tiled", "gravel", "sand"]))
    if what == "grass":
        return "grass", Material(
            tx.GRASS,
            vary(rng, (0.24, 0.36, 0.13), 0.03),
            vary(rng, (0.46, 0.58, 0.26), 0.03),
            vary(rng, (0.6, 0.58, 0.34), 0.04),
            contrast=0.3,
        )
    if what == "stone":
        a = pick_color(rng, ("grey", "beige", "brown"))[1]
        return "stone", Material(
            tx.COBBLE, a, vary(rng, scaled(a, 0.7)), scaled(a, 0.45), scale=float(rng.uniform(0.2, 0.6)), contrast=0.05
        )
    if what == "brick":
        a = pick_color(rng, ("red", "brown", "orange"))[1]
        return "brick", Material(
            tx.BRICK, a, scaled(a, 0.75), (0.5, 0.46, 0.4), scale=float(rng.uniform(0.12, 0.2)), contrast=0.05, aspect=2.0, extra=0.5
        )
    if what == "tiled":
        a = pick_color(rng, ("grey", "beige", "white"))[1]
        return "tiled", Material(
            tx.BRICK,
            a,
            scaled(a, 0.85),
            scaled(a, 0.5),
            scale=float(rng.uniform(0.4, 0.8)),
            contrast=0.02,
            extra=float(rng.choice([0.0, 0.5])),
        )
    if what == "gravel":
        a = pick_color(rng, ("grey", "beige"))[1]
        return "gravel", Material(tx.FOLIAGE, scaled(a, 0.65), scaled(a, 1.1), scale=float(rng.uniform(14, 24)))
    return "sand", Material(
        tx.PLASTER, vary(rng, (0.62, 0.53, 0.38)), vary(rng, (0.8, 0.72, 0.55)), scale=float(rng.uniform(2, 5)), contrast=0.7
    )
