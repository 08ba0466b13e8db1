"""Explore: see as much surface as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.tasks.base import Scene, State, Task, Verdict, check_number

if TYPE_CHECKING:
    from spatia_model.memory.point_memory import PointMemory

CELL = 0.24  # metres: side of the cells that surface is counted in
FARTHEST = 2 * CELL  # metres: points drawn larger than this lie too far away (about 40 m) to count


class Explore(Task):
    """Reward: square metres of surface that the memory knows after the step and has not known before.

    Ends (termination, success) when `target` square metres are known; never without one.

    Info: `explored_area` (m², all that is known), `new_area` (m², of this step, the reward), `is_success`.

    Args:
        target: square metres at which the episode is a success; None for no end.
    """

    name = "explore"

    def __init__(self, target: float | None = None) -> None:
        check_number(target, "target", 0.1, 1e6, "square metres", none=True)
        self.target = target

    def begin(self, scene: Scene, np_random: np.random.Generator) -> State:
        return {"best": explored_area(scene.state.memory)}

    def metrics(self, scene: Scene, state: State) -> dict[str, Any]:
        return {"explored_area": state["best"], "new_area": 0.0, "is_success": self._reached(state["best"])}

    def judge(self, scene: Scene, state: State) -> Verdict:
        # What was forgotten and found again is not new: only more than the most so far counts.
        best = max(state["best"], explored_area(scene.state.memory))
        new = best - state["best"]
        reached = self._reached(best)
        return Verdict(new, reached, {"best": best}, {"explored_area": best, "new_area": new, "is_success": reached})

    def _reached(self, area: float) -> bool:
        return self.target is not None and area >= self.target


def explored_area(memory: PointMemory) -> float:
    """Square metres of surface in a memory, counted in cells of `CELL` metres that hold a point.

    Exact for large surfaces along the axes of the world (floors, ceilings, the walls of procedural rooms). One at an angle crosses more
    cells: up to 1.4 times as many when upright, 1.7 in any position. The sky and what is about 40 m away or farther does not count.
    """
    import torch

    if not len(memory):
        return 0.0
    near = memory.radii < FARTHEST
    cells = (memory.positions[near] / CELL).floor().long()
    keys = (cells[:, 0] << 42) + (cells[:, 1] << 21) + cells[:, 2]
    return float(len(torch.unique(keys))) * CELL**2
