"""What an agent is asked to do: reward, end of an episode, and figures in info.

```python
gym.make("SpatiaNav-v0", task="explore")                                    # by name
gym.make("SpatiaNav-v0", task={"name": "reach-view", "radius": 0.5})        # by name, with its arguments; fits into JSON
gym.make("SpatiaNav-v0", task=ReachView(radius=0.5))                        # as an object
gym.make("SpatiaNav-v0", task=lambda observation, info: info["coverage"])   # as any callable
```

docs/tasks.md tells what each task rewards, shows and counts as success.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatia_env.tasks.base import CallableTask, Scene, Task, Verdict
from spatia_env.tasks.explore import Explore
from spatia_env.tasks.follow_text import FollowText
from spatia_env.tasks.goals import ReachView, ReturnHome

TASKS: dict[str, type[Task]] = {task.name: task for task in (Explore, ReachView, ReturnHome, FollowText)}


def make_task(task: Any = None, **arguments: Any) -> Task | None:
    """A task from its name, a mapping with its name and arguments, a `Task`, or any callable; None for none.

    Args:
        task: "explore", "reach-view", "return-home" or "follow-text"; ``{"name": "explore", "target": 20.0}``; a `Task` (returned as
            it is); a callable ``task(observation, info) -> reward``, ``-> (reward, terminated)`` or ``-> (reward, terminated, metrics)``.
        arguments: of the named task.

    Raises:
        ValueError: no such task, or arguments it does not take.
    """
    if isinstance(task, Mapping):
        given = dict(task)
        task = given.pop("name", None)
        if not isinstance(task, str):
            raise ValueError(f"the task {dict(given)!r} has no name; give {{'name': one of {list(TASKS)}, ...its arguments}}")
        arguments = {**given, **arguments}
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"there is no task {task!r}; choose one of {list(TASKS)}, or give a callable task(observation, info)")
        try:
            return TASKS[task](**arguments)
        except TypeError as error:
            raise ValueError(f"the task {task!r} cannot be made ({error}); see help(spatia_env.tasks.{TASKS[task].__name__})") from error
    if arguments:
        raise ValueError(f"arguments {sorted(arguments)} go with the name of a task only, not with {task!r}")
    if task is None or isinstance(task, Task):
        return task
    if callable(task) and not isinstance(task, type):
        return CallableTask(task)
    raise ValueError(
        f"task is {task!r}; give None (reward 0.0), one of {list(TASKS)}, a Task, or a callable task(observation, info) -> "
        "(reward, terminated)"
    )


__all__ = ["TASKS", "CallableTask", "Explore", "FollowText", "ReachView", "ReturnHome", "Scene", "Task", "Verdict", "make_task"]
