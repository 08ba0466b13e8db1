"""Captions in a small fixed vocabulary: what is there, what moves how, what comes into view."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from spatia_model.types import Camera
from spatia_model.worlds.movers import SWING_PERIOD, Mover
from spatia_model.worlds.palette import COLORS, MOVER_COLORS

if TYPE_CHECKING:
    from spatia_model.worlds.world import World

MAX_WORDS = 32  # of a window caption, full stops included
NOUNS = (
    "table", "chair", "stool", "sofa", "armchair", "bed", "bookshelf", "cabinet", "wardrobe", "lamp", "plant",
    "column", "crate", "box", "barrel", "bench", "screen", "fireplace", "bush", "tree", "planter", "fountain",
    "umbrella", "statue", "door", "window", "picture", "shelf", "clock", "hedge", "fence", "house", "frame",
)  # fmt: skip
SILENT = (
    "floor",
    "ceiling",
    "wall",
    "skirting",
    "garden",
    "ground",
    "path",
    "rug",
    "window",
    "picture",
)  # not announced when they come into view
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*COLORS, *MOVER_COLORS, *NOUNS}
        | {
            "tall",
            "low",
            "round",
            "ceiling",
            "wooden",
            "stone",
            "brick",
            "plaster",
            "striped",
            "patterned",
            "tiled",
            "plain",
            "checkered",
            "carpet",
            "marble",
            "concrete",
            "grass",
            "gravel",
            "sand",
        }
        | {
            "a",
            "an",
            "and",
            "with",
            "there",
            "is",
            "are",
            "in",
            "the",
            "to",
            "of",
            "on",
            "into",
            "it",
            "side",
            "view",
            "room",
            "courtyard",
            "walls",
            "floor",
            "ground",
            "comes",
            "left",
            "right",
            "up",
            "down",
            "away",
            "toward",
            "camera",
            "middle",
            "ball",
            "cylinder",
        }
        | {"rolls", "slides", "bounces", "swings", "slowly", "quickly", "stands", "still", "from", ".", ","}
    )
)
SLOW, QUICK = 0.5, 0.67  # metres a second: thirds of the speeds that movers have
VERBS = {"roll": "rolls", "slide": "slides", "bounce": "bounces", "swing": "swings"}


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def place(world: World) -> str:
    """The place: "a room with white brick walls and a wooden floor"."""
    plan = world.plan
    if plan.kind == "room":
        return f"a room with {plan.wall_words} walls and {article(plan.floor_words)} floor"
    return f"a courtyard with {plan.wall_words} walls and {plan.floor_words} ground"


def motion_words(mover: Mover, times: torch.Tensor, T_camera_world: torch.Tensor) -> str:
    """How a mover goes over `times`, as seen from the camera: "rolls to the left", "slides slowly right and away", "bounces up and down".

    Slowly is below SLOW, quickly above QUICK, by the way along the floor (of a swing, through the air).
    """
    verb = VERBS[mover.motion]
    t = torch.linspace(float(times[0]), float(times[-1]), 17, dtype=torch.float64)
    track = mover.position(t).double()
    flat = track[:, (0, 2)]
    walked = float((flat[1:] - flat[:-1]).norm(dim=-1).sum())
    seconds = float(times[-1] - times[0])
    net = T_camera_world[:3, :3] @ (track[-1] - track[0])
    gone = math.hypot(float(net[0]), float(net[2]))
    if mover.motion == "swing":
        if mover.sign == 0 or walked < 0.05:
            return "stands still"
        if gone < 0.5 * walked or seconds > SWING_PERIOD * 0.75:
            return f"{verb} from side to side"
    elif gone < 0.12:
        if mover.motion == "bounce" and mover.sign != 0 and len(times) > 1:
            return f"{verb} up and down"
        if walked < 0.2:
            return "stands still"
        return f"{verb} from side to side"
    if walked < SLOW * seconds:
        verb += " slowly"
    elif walked > QUICK * seconds:
        verb += " quickly"
    aside, ahead = float(net[0]), float(net[2])
    side, way = "right" if aside > 0 else "left", "away" if ahead > 0 else "toward the camera"
    if min(abs(aside), abs(ahead)) > math.tan(math.pi / 8) * max(abs(aside), abs(ahead)):  # eight ways to go
        return f"{verb} {side} and {way}"
    return f"{verb} to the {side}" if abs(aside) >= abs(ahead) else f"{verb} {way}"


def world_caption(world: World) -> str:
    text = place(world)
    named = [
        f"{t.words} {t.noun}".strip()
        for t in world.things
        if t.noun in NOUNS and t.noun not in SILENT and t.noun not in ("door", "house", "hedge", "fence") and inside(world, t)
    ]
    unique = list(dict.fromkeys(named))[:4]
    if unique:
        listed = [article(n) for n in unique]
        text += " . there is " + (" , ".join(listed[:-1]) + " and " + listed[-1] if len(listed) > 1 else listed[0])
    for mover in world.movers:
        how = (
            {"bounce": "bounces up and down"}.get(mover.motion, f"{VERBS[mover.motion]} from side to side")
            if mover.sign
            else "stands still"
        )
        text += f" . {article(mover.name)} {how}"
    return text


def inside(world: World, thing) -> bool:
    x, z = (thing.low[0] + thing.high[0]) / 2, (thing.low[2] + thing.high[2]) / 2
    return abs(x) < world.plan.width / 2 and abs(z) < world.plan.depth / 2


def window_caption(world: World, T_world_camera: torch.Tensor, camera: Camera, times: torch.Tensor) -> str:
    """Caption of a window of frames; the first camera is the point of view. At most MAX_WORDS words, whole clauses."""
    from spatia_model.worlds.world import MOVING

    times = torch.as_tensor(times)
    poses = torch.as_tensor(T_world_camera)
    size = 40
    K = camera.K.double().clone()
    K[0] *= size / camera.width
    K[1] *= size / camera.height
    small = Camera(K, size, size)
    picks = sorted({0, len(poses) // 2, len(poses) - 1})
    ident = world.identities(poses[picks], small, times[picks])
    seen = [set(frame.unique().tolist()) for frame in ident]
    T_camera_world = torch.linalg.inv(poses[0].double())
    parts = [place(world)]
    arrivals: list[str] = []
    for i, mover in enumerate(world.movers):
        how = motion_words(mover, times, T_camera_world)
        if MOVING + i in seen[0]:
            parts.append(f"{article(mover.name)} {how}")
        elif any(MOVING + i in s for s in seen[1:]):
            arrivals.append(f"{article(mover.name)} {arrival(ident, MOVING + i)}")
    counts = [(int((frame == k).sum()), k) for frame in ident[1:] for k in frame.unique().tolist() if 0 <= k < MOVING and k not in seen[0]]
    for _, k in sorted(counts, reverse=True):
        thing = world.things[k]
        if thing.noun in NOUNS and thing.noun not in SILENT and int((ident[1:] == k).sum()) >= 12:
            clause = f"{article((thing.words + ' ' + thing.noun).strip())} {arrival(ident, k)}"
            if clause not in arrivals:
                arrivals.append(clause)
    text = parts[0]
    for clause in parts[1:] + arrivals[:2]:
        if len((text + " . " + clause).split()) <= MAX_WORDS:
            text += " . " + clause
    return text


def arrival(ident: torch.Tensor, k: int) -> str:
    """Where something shows up: by its place in the last picture that has it."""
    for frame in reversed(list(ident)):
        columns = (frame == k).nonzero()[:, 1].float()
        if len(columns):
            side = "left" if float(columns.mean()) < frame.shape[1] / 2 else "right"
            return f"comes into view on the {side}"
    return "comes into view"
