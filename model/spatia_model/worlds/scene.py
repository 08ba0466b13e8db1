"""Building the tables that the kernels read: materials, pieces of furniture, groups of bodies, lights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from spatia_model.worlds import textures as tx
from spatia_model.worlds.shapes import BOX, CYLINDER, LYING_CYLINDER, SPHERE

Vec = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """A texture with its numbers. Colours are display values in 0..1; `glow` is emitted light."""

    kind: int = tx.PLAIN
    a: Vec = (0.8, 0.8, 0.8)
    b: Vec = (0.7, 0.7, 0.7)
    c: Vec = (0.5, 0.5, 0.5)
    scale: float = 1.0
    contrast: float = 0.1
    gloss: float = 0.0
    glow: float = 0.0
    aspect: float = 1.0
    extra: float = 0.0

    def row(self) -> list[list[float]]:
        def linear(c: Vec) -> list[float]:
            return [float(x) ** 2 for x in c]

        return [
            [float(self.kind), self.scale, self.contrast, self.gloss],
            [*linear(self.a), self.glow],
            [*linear(self.b), self.aspect],
            [*linear(self.c), self.extra],
        ]


@dataclass(frozen=True)
class Body:
    """One primitive in the frame of its piece: y points down, the piece stands on y = 0 and looks towards -z."""

    kind: int
    centre: Vec
    half: Vec  # sphere: radius first; vertical cylinder: radius, half height, radius; lying: half length, radius, radius
    material: Material
    yaw: float = 0.0
    share: float = 1.0  # how much of the ambient light reaches it


@dataclass
class Piece:
    """Furniture: bodies, a noun, and a word or two for the caption ("tall blue")."""

    noun: str
    words: str
    bodies: list[Body] = field(default_factory=list)

    def box(self, centre: Vec, half: Vec, material: Material, yaw: float = 0.0) -> None:
        self.bodies.append(Body(BOX, centre, half, material, yaw))

    def stand(self, x: float, z: float, width: float, depth: float, top: float, bottom: float, material: Material) -> None:
        """A box given by its footprint and its heights above the floor."""
        self.box((x, -(top + bottom) / 2, z), (width / 2, (top - bottom) / 2, depth / 2), material)

    def cylinder(self, x: float, z: float, radius: float, top: float, bottom: float, material: Material) -> None:
        self.bodies.append(Body(CYLINDER, (x, -(top + bottom) / 2, z), (radius, (top - bottom) / 2, radius), material))

    def lying(self, centre: Vec, half_length: float, radius: float, material: Material, yaw: float = 0.0) -> None:
        self.bodies.append(Body(LYING_CYLINDER, centre, (half_length, radius, radius), material, yaw))

    def sphere(self, centre: Vec, radius: float, material: Material) -> None:
        self.bodies.append(Body(SPHERE, centre, (radius, radius, radius), material))

    def footprint(self) -> tuple[float, float, float, float]:
        """(half width, half depth, height, radius) of what stands on the floor, about the piece's origin."""
        wide = deep = high = 0.0
        for body in self.bodies:
            hx, hy, hz = extent(body.half, body.yaw)
            wide = max(wide, abs(body.centre[0]) + hx)
            deep = max(deep, abs(body.centre[2]) + hz)
            high = max(high, -body.centre[1] + hy)
        return wide, deep, high, math.hypot(wide, deep)


def extent(half: Vec, yaw: float) -> Vec:
    """Half sizes of the axis-aligned box around a box turned about y."""
    c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
    return c * half[0] + s * half[2], half[1], s * half[0] + c * half[2]


@dataclass(frozen=True)
class Thing:
    """What a group of bodies is called, and where it is."""

    noun: str
    words: str
    low: Vec
    high: Vec


class Scene:
    """Collects bodies in groups and writes them as float32 tables."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.materials: dict[Material, int] = {}
        self.prims: list[list[list[float]]] = []
        self.groups: list[tuple[Vec, Vec, int, int]] = []
        self.things: list[Thing] = []
        self.env = np.zeros((16, 4), np.float32)

    def material(self, material: Material) -> int:
        return self.materials.setdefault(material, len(self.materials))

    def add(self, piece: Piece, x: float = 0.0, z: float = 0.0, yaw: float = 0.0, y: float = 0.0, anchored: bool = False) -> int:
        """Place a piece; returns the number of its group. Anchored textures continue from one body to the next (walls)."""
        first = len(self.prims)
        c, s = math.cos(yaw), math.sin(yaw)
        low = np.full(3, np.inf)
        high = np.full(3, -np.inf)
        seed = int(self.rng.integers(1, 1 << 15))
        for body in piece.bodies:
            bx, by, bz = body.centre
            centre = np.array([x + c * bx + s * bz, y + by, z - s * bx + c * bz])
            turn = yaw + body.yaw
            body_half = body.half
            quarter = round(turn / (math.pi / 2))
            if body.kind == BOX and abs(turn - quarter * math.pi / 2) < 1e-6:  # along the axes: the kernel has a short cut for these
                if quarter % 2:
                    body_half = (body.half[2], body.half[1], body.half[0])
                turn = 0.0
            hx, hy, hz = extent(body_half, turn)
            if body.kind == SPHERE:
                hx = hy = hz = body.half[0]
            half = np.array([hx, hy, hz])
            low, high = np.minimum(low, centre - half), np.maximum(high, centre + half)
            offset = centre if anchored else np.zeros(3)
            number = seed if anchored else seed + len(self.prims) - first
            self.prims.append(
                [
                    [*centre, body.kind],
                    [*body_half, math.cos(turn)],
                    [math.sin(turn), self.material(body.material), number, len(self.groups)],
                    [*offset, body.share],
                ]
            )
        pad = 1e-4
        self.groups.append((tuple(low - pad), tuple(high + pad), first, len(self.prims)))
        self.things.append(Thing(piece.noun, piece.words, tuple(low), tuple(high)))
        return len(self.groups) - 1

    def light(self, position: Vec, color: Vec, point: bool, shadow: bool = True) -> None:
        """Add a lamp at a place, or a sun in a direction (towards the sun). Up to three."""
        i = int(self.env[7, 3])
        if i >= 3:
            return
        if not point:
            norm = math.sqrt(sum(p * p for p in position))
            position = (position[0] / norm, position[1] / norm, position[2] / norm)
        self.env[8 + 2 * i] = [*position, float(point)]
        self.env[9 + 2 * i] = [*color, float(shadow)]
        self.env[7, 3] = i + 1

    def tables(self) -> dict[str, np.ndarray]:
        groups = np.array([[[*lo, a], [*hi, b]] for lo, hi, a, b in self.groups], np.float32)
        return {
            "prims": np.array(self.prims, np.float32),
            "groups": groups,
            "mats": np.array([m.row() for m in self.materials], np.float32),
            "env": self.env.copy(),
        }


def wall(
    piece: Piece,
    along_x: bool,
    line: float,
    start: float,
    end: float,
    height: float,
    thickness: float,
    material: Material,
    openings: list[tuple[float, float, float, float]] | None = None,
) -> None:
    """Add a wall centred on `line`, from start to end, with rectangular openings (from, to, bottom, top) in metres along it and up."""

    def block(a: float, b: float, bottom: float, top: float) -> None:
        if b - a < 1e-3 or top - bottom < 1e-3:
            return
        mid, half = (a + b) / 2, (b - a) / 2
        y, hy = -(bottom + top) / 2, (top - bottom) / 2
        if along_x:
            piece.box((mid, y, line), (half, hy, thickness / 2), material)
        else:
            piece.box((line, y, mid), (thickness / 2, hy, half), material)

    at = start
    for a, b, bottom, top in sorted(openings or []):
        block(at, a, 0.0, height)
        block(a, b, 0.0, bottom)
        block(a, b, top, height)
        at = b
    block(at, end, 0.0, height)
