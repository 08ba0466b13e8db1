"""Explore: see as much surface as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatia_env.tasks.base import Scene, State, Task, Verdict, check_number

if TYPE_CHECKING:
    from spatia_model.memory.point_memory import PointMemory

CELL = 0.24  # metres: side of the cells that surface is measured in
FARTHEST = 2 * CELL  # metres: points as large as this lie too far away (about 40 m) to count
FEW = 4  # points that are no plane yet


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
    """Square metres of surface in a memory.

    Space is cut into cells of `CELL` metres. The points of each cell are taken for one piece of a plane: seen along that axis of the world
    that is nearest to its normal, it covers so many squares of twice a point's voxel (its pixel was at most as large), and its area is
    theirs over the cosine of the angle between the two. So neither the surface's position nor its thickness in the map counts. The sky
    and what is about 40 m away or farther does not count.
    """
    import torch

    near = (memory.radii < FARTHEST).nonzero()[:, 0]
    if not len(near):
        return 0.0
    points, sides = memory.positions[near].double(), memory.radii[near].double()
    place = (points / CELL).floor().long()
    _, cell = torch.unique((place[:, 0] << 42) + (place[:, 1] << 21) + place[:, 2], return_inverse=True)
    cells = int(cell.max()) + 1

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(cells, *values.shape[1:], dtype=values.dtype, device=values.device).index_add_(0, cell, values) / count

    count = torch.bincount(cell, minlength=cells).double()[:, None]
    offset = points - mean(points)[cell]
    spread = mean((offset[:, :, None] * offset[:, None, :]).flatten(1)).view(-1, 3, 3)
    normal = torch.linalg.eigh(spread).eigenvectors[:, :, 0].abs()  # (cells, 3), the direction of least spread
    normal[count[:, 0] < FEW] = torch.tensor([0.0, 1.0, 0.0], dtype=normal.dtype, device=normal.device)  # no saying how they lie
    cosine, axis = normal.max(1)

    square = (points / (2 * sides[:, None])).floor().long()
    flat = torch.where(torch.arange(3, device=axis.device) == axis[cell, None], 0, square) & 7  # a cell is a few squares wide
    level = torch.log2(sides / memory.voxel_size).round().long()
    keys = torch.unique((cell * 8 + level) << 9 | flat[:, 0] << 6 | flat[:, 1] << 3 | flat[:, 2])
    layers, squares = torch.unique(keys >> 9, return_counts=True)  # one surface may be there at several levels: the fullest counts
    covered = squares.double() * (2 * memory.voxel_size * torch.pow(2.0, (layers % 8).double())) ** 2
    area = torch.zeros(cells, dtype=torch.float64, device=covered.device)
    area.scatter_reduce_(0, layers // 8, covered, "amax")
    return float((area.clamp(max=CELL**2) / cosine).sum())
