"""`SpatiaNavEnv`: the generated world with six discrete motions."""

from __future__ import annotations

from typing import Any

from spatia_env.actions import NavMotion
from spatia_env.env import SpatiaEnv
from spatia_env.inputs import load_model
from spatia_env.obstacles import RADIUS


class SpatiaNavEnv(SpatiaEnv):
    """`SpatiaEnv` with six discrete motions, usable by stable-baselines3 as it is.

    ## Action space
    `Discrete(6)`: 0 forward 0.25 m, 1 turn left 15 degrees, 2 turn right 15 degrees, 3 look up 15 degrees, 4 look down 15 degrees,
    5 stay. Walking and turning are level with the ground (`spatia_env.NavMotion`); the pitch stays within 60 degrees.

    Observation space, reward, end, info, errors: as in `SpatiaEnv`, from which it takes all arguments but the motion limits.
    Obstacles are on: ``obstacles="slide"``.

    ## Version history
    * v0: first version
    """

    def __init__(
        self,
        image: Any = None,
        prompt: str = "",
        model: Any = "spatia-mini",
        task: Any = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
        device: str = "auto",
        memory: bool = True,
        obstacles: str | None = "slide",
        body_radius: float = RADIUS,
    ) -> None:
        self._setup(load_model(model, device), task, max_steps, render_mode, NavMotion, (), obstacles, body_radius)
        self._take(image, prompt, memory)
