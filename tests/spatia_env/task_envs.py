"""What the tests of tasks share: a walker's actions, and one true world."""

from __future__ import annotations

from spatia_env import SpatiaTruthEnv

FORWARD, LEFT, RIGHT, UP, DOWN, STAY = range(6)
WORLD = 2_000_003


def truth(task, **arguments):
    given = {"world": WORLD, "kind": "room", "movers": 0, "discrete": True, "image_size": 24, "supersample": 1, **arguments}
    return SpatiaTruthEnv(task=task, **given)
