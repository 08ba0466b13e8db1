"""Spatia for LeRobot's EnvHub: `make_env`, the one function that an `env.py` of the hub has to have.

```python
# env.py of a repository on the hub
from spatia_env.hub import make_env
```

The convention (https://huggingface.co/docs/lerobot/envhub): ``make_env(n_envs=1, use_async_envs=False)`` gives a vector env, or a
dictionary ``{suite: {task number: vector env}}``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

DEFAULT_STEPS = 100  # LeRobot rolls out until an episode ends: without an end it would not


def make_env(n_envs: int = 1, use_async_envs: bool = False, cfg: Any = None, **kwargs: Any) -> dict[str, dict[int, gym.vector.VectorEnv]]:
    """Vector envs the way LeRobot's EnvHub asks for them: ``{id: {0: vector env}}``.

    Args:
        n_envs: how many worlds.
        use_async_envs: True puts every world into a process of its own (`AsyncVectorEnv`), each with its own copy of the weights; False
            batches them on one copy (`SpatiaVectorEnv`), which is faster on one machine.
        cfg: LeRobot's configuration of the env; its attribute `task`, if it has one that is not None, is taken for `task`.
        kwargs: `id` of the env (default "SpatiaNav-v0") and the arguments of `gym.make(id, ...)`. `max_steps` is 100 unless given.

    Raises:
        ValueError: an unknown id or bad arguments.
    """
    import spatia_env  # noqa: F401  (registers the ids)

    env_id = kwargs.pop("id", "SpatiaNav-v0")
    if env_id not in gym.registry or not str(env_id).startswith("Spatia"):
        raise ValueError(f"id is {env_id!r}; give 'Spatia-v0', 'SpatiaNav-v0' or 'SpatiaTruth-v0'")
    arguments = {"max_steps": DEFAULT_STEPS, "render_mode": "rgb_array", **kwargs}
    if getattr(cfg, "task", None) is not None:
        arguments.setdefault("task", cfg.task)
    if use_async_envs:
        envs = gym.make_vec(env_id, num_envs=n_envs, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **arguments)
    else:
        envs = gym.make_vec(env_id, num_envs=n_envs, **arguments)
    return {str(env_id): {0: envs}}
