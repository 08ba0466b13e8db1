"""Things that move: where they are is a pure function of time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from spatia_model.worlds import textures as tx
from spatia_model.worlds.palette import MOVER_COLORS
from spatia_model.worlds.scene import Material
from spatia_model.worlds.shapes import BOX, CYLINDER, SPHERE

MOTIONS = ("roll", "slide", "bounce", "swing")
SCHEDULE_SECONDS = 64  # after this the schedule runs backwards, and so on
GRAVITY = 9.81
SWING_PERIOD = 4.0  # turns round at odd seconds, so one clip of a second holds one direction


@dataclass(frozen=True)
class Mover:
    """A moving object. Positions are of its centre, in world metres; y points down.

    Rolling, sliding and bouncing things run along a straight lane of half length `reach` through `anchor`; at whole seconds they may
    turn round or pause, so that the past does not tell the future. A swing hangs from `anchor` on a rope.
    """

    name: str  # "red ball"
    color_name: str
    color: tuple[int, int, int]  # 0..255
    shape: str  # ball, box, cylinder
    motion: str  # roll, slide, bounce, swing
    radius: float  # metres: sphere radius, or half the side
    anchor: tuple[float, float, float]
    heading: float  # radians: the lane runs along (cos, sin) in x, z
    reach: float  # metres (swing: largest angle in radians)
    schedule: tuple[float, ...]  # metres along the lane at whole seconds
    hop: float = 0.0  # metres
    rope: float = 0.0  # metres from the pivot to the centre
    sign: float = 1.0  # +1 as generated, -1 the other way, 0 at rest
    pattern: int = tx.PLAIN
    seed: int = 1

    @property
    def direction(self) -> tuple[float, float, float]:
        return math.cos(self.heading), 0.0, math.sin(self.heading)

    @property
    def bounding_radius(self) -> float:
        return self.radius if self.shape == "ball" else self.radius * math.sqrt(3.0)

    def turned(self, sign: float) -> Mover:
        return replace(self, sign=sign)

    def along(self, times: torch.Tensor) -> torch.Tensor:
        """(T,) place along the lane in metres (swing: angle in radians), float64."""
        t = times.to(torch.float64).abs()
        if self.motion == "swing":
            return self.sign * self.reach * torch.sin(2 * math.pi * t / SWING_PERIOD)
        t = torch.remainder(t, 2 * SCHEDULE_SECONDS)
        t = torch.where(t > SCHEDULE_SECONDS, 2 * SCHEDULE_SECONDS - t, t)
        knots = torch.tensor(self.schedule, dtype=torch.float64, device=t.device)
        i = t.floor().long().clamp(max=SCHEDULE_SECONDS - 1)
        f = t - i
        return self.sign * (knots[i] * (1 - f) + knots[i + 1] * f)

    def position(self, times: torch.Tensor) -> torch.Tensor:
        """Centre at the given seconds: (T,) -> (T, 3) float32."""
        s = self.along(times)
        dx, _, dz = self.direction
        ax, ay, az = self.anchor
        if self.motion == "swing":
            out = torch.stack((ax + self.rope * dx * s.sin(), ay + self.rope * s.cos(), az + self.rope * dz * s.sin()), -1)
            return out.float()
        y = torch.full_like(s, ay)
        if self.hop > 0 and self.sign != 0:
            phase = torch.remainder(times.to(s) / (2 * math.sqrt(2 * self.hop / GRAVITY)), 1.0)
            y = y - 4 * self.hop * phase * (1 - phase)
        return torch.stack((ax + dx * s, y, az + dz * s), -1).float()

    def parts(self, materials: dict[Material, int], index: int) -> list[list[list[float]]]:
        """Rows of the kernel's `parts` table."""
        r = self.radius
        r255, g255, b255 = self.color
        rgb = (r255 / 255, g255 / 255, b255 / 255)
        dark = (rgb[0] * 0.55, rgb[1] * 0.55, rgb[2] * 0.55)
        skin = Material(self.pattern, rgb, dark, dark, scale=r * 0.7, contrast=0.06, gloss=0.25, glow=0.12, extra=6.0)
        kind, half = {"ball": (SPHERE, (r, r, r)), "box": (BOX, (r, r, r)), "cylinder": (CYLINDER, (r, r, r))}[self.shape]
        rows = [
            [
                [*half, kind],
                [materials.setdefault(skin, len(materials)), self.seed, index, 0.0],
                [0.0, 0.0, 0.0, self.bounding_radius * 1.001],
            ]
        ]
        if self.motion == "swing":
            cord = Material(tx.PLAIN, dark, glow=0.05)
            length = (self.rope - r) / 2
            rows.append(
                [
                    [0.018, length, 0.018, CYLINDER],
                    [materials.setdefault(cord, len(materials)), 1, index, 0.0],
                    [0.0, 0.0, 0.0, length + 0.03],
                ]
            )
        return rows

    def poses(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Place and turn of every part: (T, parts, 3) and quaternions xyzw (T, parts, 4), float32."""
        centre = self.position(times).double()
        s = self.along(times)
        dx, _, dz = self.direction
        zero = torch.zeros_like(s)
        yaw = -self.heading  # the box's x axis along the lane
        base = torch.tensor([0.0, math.sin(yaw / 2), 0.0, math.cos(yaw / 2)], dtype=torch.float64, device=s.device)
        if self.motion == "swing":
            half = s / 2
            turn = torch.stack((dz * half.sin(), zero, -dx * half.sin(), half.cos()), -1)
            pivot = torch.tensor(self.anchor, dtype=torch.float64, device=s.device)
            cord = pivot + (centre - pivot) * ((self.rope - self.radius) / 2 / self.rope)
            spin = quaternion_product(turn, base.expand_as(turn))
            return torch.stack((centre, cord), 1).float(), torch.stack((spin, spin), 1).float()
        if self.shape == "ball":
            half = s / (2 * self.radius)
            turn = torch.stack((-dz * half.sin(), zero, dx * half.sin(), half.cos()), -1)
            tilt = torch.tensor([math.sin(0.6), 0.0, 0.0, math.cos(0.6)], dtype=torch.float64, device=s.device)
            spin = quaternion_product(turn, tilt.expand_as(turn))
        else:
            spin = base.expand(*s.shape, 4)
        return centre.float()[:, None], spin.float()[:, None]


def quaternion_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Hamilton product of quaternions xyzw, (..., 4): first b, then a."""
    ax, ay, az, aw = a.unbind(-1)
    bx, by, bz, bw = b.unbind(-1)
    return torch.stack(
        (
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ),
        -1,
    )


def make_schedule(rng: np.random.Generator, reach: float, speed: float) -> tuple[float, ...]:
    """Places at whole seconds: legs of 2-4 s at constant speed within +-reach, some pauses. Starts at 0 with a leg of full speed."""
    knots = [0.0]
    way = 1.0
    while len(knots) <= SCHEDULE_SECONDS:
        here = knots[-1]
        seconds = int(rng.integers(2, 5))
        if len(knots) > 1:
            if rng.random() < 0.12:
                knots += [here] * 2
                continue
            way = float(rng.choice([-1.0, 1.0]))
        room = int((reach - way * here) / speed + 1e-9)
        if room < 2:
            way = -way
            room = int((reach - way * here) / speed + 1e-9)
        for _ in range(max(1, min(seconds, room))):
            knots.append(knots[-1] + way * speed)
    return tuple(float(np.clip(k, -reach, reach)) for k in knots[: SCHEDULE_SECONDS + 1])


def draw_mover(rng: np.random.Generator, motion: str, color_name: str) -> Mover:
    """A mover without its place: shape, size and looks."""
    shape = {
        "roll": "ball",
        "bounce": "ball",
        "slide": str(rng.choice(["box", "box", "cylinder"])),
        "swing": str(rng.choice(["ball", "ball", "box"])),
    }[motion]
    radius = float(rng.uniform(0.13, 0.28)) if shape == "ball" else float(rng.uniform(0.12, 0.22))
    pattern = int(rng.choice([tx.BALL, tx.BALL, tx.SPOTS])) if shape == "ball" else int(rng.choice([tx.PLAIN, tx.STRIPES]))
    hop = float(rng.uniform(0.25, 0.6)) if motion == "bounce" else 0.0
    return Mover(
        name=f"{color_name} {shape}",
        color_name=color_name,
        color=MOVER_COLORS[color_name],
        shape=shape,
        motion=motion,
        radius=radius,
        anchor=(0.0, -radius, 0.0),
        heading=float(rng.uniform(-math.pi, math.pi)),
        reach=0.0,
        schedule=(0.0,) * (SCHEDULE_SECONDS + 1),
        hop=hop,
        pattern=pattern,
        seed=int(rng.integers(1, 1 << 15)),
    )
