"""`SpatiaVectorEnv`: N worlds that share one model and its batches, as a Gymnasium vector env."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from spatia_env.base import WorldEnv
from spatia_env.env import SpatiaEnv
from spatia_env.episode import Granted, Outcome, Routine, Wish, grant_all
from spatia_env.inputs import load_model
from spatia_env.nav_env import SpatiaNavEnv
from spatia_env.truth import SpatiaTruthEnv


class SpatiaVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """N worlds of `Spatia-v0` side by side: one copy of the weights, one batched forward pass for all worlds that move.

    ```python
    envs = gym.make_vec("Spatia-v0", num_envs=8, image="kitchen.jpg", max_steps=50)
    envs = gym.make_vec("SpatiaNav-v0", num_envs=8, task="explore", autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    ```

    Every world does what it would do alone in a `SpatiaEnv` with its seed: noise is drawn per world, and the worlds run the very code
    of the single env. Frames are equal bit for bit where the model's arithmetic does not depend on the size of the batch; docs/tasks.md
    says how far that holds.

    ## Arguments
    Those of the env it is made of (`SpatiaEnv`, `SpatiaNavEnv` or `SpatiaTruthEnv`), for all worlds, and

    * `num_envs`: N, at least 1.
    * `autoreset_mode`: what happens to a world whose episode has ended, an `AutoresetMode` or its value:
      * NEXT_STEP (default): the next `step` resets it instead of moving it (reward 0, its action is not looked at).
      * SAME_STEP: it is reset in the same step; its last observation and info are `info["final_obs"]` and `info["final_info"]`.
      * DISABLED: it rests until `reset(options={"reset_mask": mask})`; `step` hands out its last observation, reward 0 and its flags as
        they were. (Gymnasium's own vector envs must not be stepped then.)

      In every mode a finished world costs nothing until it is reset.
    * `images`, `prompts`: one per world, instead of `image` and `prompt` for all.
    * `max_episode_steps`: another name for `max_steps`, as `gym.make_vec` has it.

    ## Seeds
    ``reset(seed=7)`` seeds world i with 7 + i; ``reset(seed=[3, 1, 4])`` each as told, None for an unseeded one.

    ## Options
    ``reset(options={"reset_mask": array of N bools})`` starts anew where True; the others stay as they are. All other options are those
    of the single env.

    ## Beyond Gymnasium
    `envs` are the single envs: `call`, `get_attr` and `set_attr` reach them, and so does your code (`envs.envs[2].snapshot()`).

    ## Errors
    Bad input for one world raises ValueError with its number, before any world has moved: all stay as they were.
    """

    single: ClassVar[type[WorldEnv]] = SpatiaEnv
    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        images: Sequence[Any] | None = None,
        prompts: Sequence[str] | None = None,
        max_episode_steps: int | None = None,
        **arguments: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs is {num_envs!r}; give a whole number of at least 1")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            accepted = [mode.value for mode in AutoresetMode]
            raise ValueError(f"autoreset_mode is {autoreset_mode!r}; give a gymnasium.vector.AutoresetMode or one of {accepted}") from None
        if max_episode_steps is not None:
            if arguments.get("max_steps") is not None:
                raise ValueError("max_steps and max_episode_steps say the same; give one of them")
            arguments["max_steps"] = max_episode_steps
        each: list[dict[str, Any]] = [dict(arguments) for _ in range(num_envs)]
        for name, values in (("image", images), ("prompt", prompts)):
            if values is None:
                continue
            if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != num_envs:
                raise ValueError(f"{name}s must be a sequence of {num_envs}, one {name} per world, got {type(values).__name__}")
            if name in arguments:
                raise ValueError(f"{name} and {name}s exclude each other; give one of them")
            for own, value in zip(each, values, strict=True):
                own[name] = value
        self.num_envs = int(num_envs)
        self.envs: list[WorldEnv] = self._make(each)
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_action_space, self.single_observation_space = first.action_space, first.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._observations: list[Any] = [
            create_empty_array(self.single_observation_space, n=1, fn=np.zeros) for _ in self.envs
        ]  # replaced by the first reset
        self._terminated = np.zeros(self.num_envs, dtype=np.bool_)
        self._truncated = np.zeros(self.num_envs, dtype=np.bool_)
        self.timing: dict[str, float] = {}

    def _make(self, each: list[dict[str, Any]]) -> list[WorldEnv]:
        """The single envs. Tasks that keep state of their own become one per world."""
        model = load_model(each[0].pop("model", "spatia-mini"), each[0].pop("device", "auto"))
        shared = [{**own, "model": model} for own in each]
        for own in shared:
            own.pop("device", None)
        return [self.single(**{**own, "task": deepcopy(own.get("task"))}) for own in shared]

    # -- the calls of a vector env -------------------------------------------------------------------

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every world, or in those that `options["reset_mask"]` says."""
        start_time = perf_counter()
        seeds = self._seeds(seed)
        options = dict(options) if isinstance(options, dict) else options
        mask = self._mask(options.pop("reset_mask")) if isinstance(options, dict) and "reset_mask" in options else None
        if mask is None:
            mask = np.ones(self.num_envs, dtype=np.bool_)
        elif missing := [i for i in np.nonzero(~mask)[0].tolist() if self.envs[i]._episode is None]:
            raise ResetNeeded(f"the reset_mask leaves out worlds {missing}, which have never been reset: reset() all of them first")
        chosen = np.nonzero(mask)[0].tolist()
        outcomes = self._grant({i: self.envs[i].reset_routine(seeds[i], options) for i in chosen})
        infos: dict[str, Any] = {}
        for i in chosen:
            self._observations[i], info = self._done(i, outcomes[i])
            infos = self._add_info(infos, info, i)
        self._terminated[mask], self._truncated[mask] = False, False
        self.timing = {"reset": perf_counter() - start_time}
        return self._batch(), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move every world whose episode goes on. What happens to the others is the `autoreset_mode`'s."""
        start_time = perf_counter()
        ended = self._terminated | self._truncated
        resting = np.nonzero(ended)[0].tolist() if self.autoreset_mode is AutoresetMode.DISABLED else []
        renewed = np.nonzero(ended)[0].tolist() if self.autoreset_mode is AutoresetMode.NEXT_STEP else []
        each = self._each_action(actions)
        routines: dict[int, Routine] = {}
        for i, env in enumerate(self.envs):
            if i in renewed:
                routines[i] = env.reset_routine(None, None)
            elif i not in resting:
                routines[i] = env.step_routine(each[i])
        outcomes = self._grant(routines)
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        infos: dict[str, Any] = {}
        for i, outcome in outcomes.items():
            result = self._done(i, outcome)
            if i in renewed:
                self._observations[i], info = result
                self._terminated[i] = self._truncated[i] = False
            else:
                self._observations[i], rewards[i], self._terminated[i], self._truncated[i], info = result
            outcomes[i] = info
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            again = np.nonzero(self._terminated | self._truncated)[0].tolist()
            for i in again:
                infos = self._add_info(infos, {"final_obs": self._observations[i], "final_info": outcomes[i]}, i)
            fresh = self._grant({i: self.envs[i].reset_routine(None, None) for i in again})
            for i in again:
                self._observations[i], outcomes[i] = self._done(i, fresh[i])
        for i, info in sorted(outcomes.items()):
            infos = self._add_info(infos, info, i)
        flags = self._terminated.copy(), self._truncated.copy()
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._terminated[:], self._truncated[:] = False, False
        self.timing = {"step": perf_counter() - start_time}
        return self._batch(), rewards, *flags, infos

    def rest(self, worlds: Sequence[int]) -> None:
        """Let worlds rest as if their episodes had been truncated: they cost nothing until `reset_mask` wakes them. Mode DISABLED only."""
        if self.autoreset_mode is not AutoresetMode.DISABLED:
            raise ValueError(f"rest() is for the autoreset mode DISABLED, this vector env has {self.autoreset_mode.value}")
        ended = self._terminated | self._truncated
        for number in worlds:
            self._truncated[number] |= not ended[number]

    def render(self) -> tuple[Any, ...]:
        """What every world renders."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        for env in getattr(self, "envs", ()):
            env.close()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every single env (or read an attribute) by name."""
        found = [env.get_wrapper_attr(name) for env in self.envs]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every single env."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of the single envs: a list or tuple has one value per world, anything else is for all."""
        values = values if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{len(values)} values for {self.num_envs} worlds; give one value, or a list with one per world")
        for env, value in zip(self.envs, values, strict=True):
            env.set_wrapper_attr(name, value)

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random generators of the worlds."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the worlds."""
        return self.get_attr("np_random_seed")

    # -- small things --------------------------------------------------------------------------------

    def _grant(self, routines: dict[int, Routine]) -> dict[int, Any]:
        return grant_all(routines, self._advance) if routines else {}

    def _advance(self, numbers: list[int], wishes: list[Wish]) -> list[Granted]:
        """The clips that worlds wish for, in one batch for each setting of `memory`; and the worlds that begin."""
        made: list[Granted | None] = [(wish.begin(), None) if wish.begin else None for wish in wishes]
        for memory in (True, False):
            rows = [k for k, n in enumerate(numbers) if made[k] is None and self.envs[n]._with_memory is memory]
            if rows:
                for k, clip in zip(rows, self._clips([wishes[k] for k in rows], [numbers[k] for k in rows], memory), strict=True):
                    made[k] = clip
        return made  # type: ignore[return-value]

    def _clips(self, wishes: list[Wish], numbers: list[int], memory: bool) -> list[Granted]:
        world = self.envs[0].world
        batched: Callable[..., list[Granted]] | None = getattr(world, "advance_batch", None)
        plans = [wish.plan for wish in wishes]
        if batched is None or any(self.envs[n].world is not world for n in numbers):
            return [self.envs[n]._advance(wish.state, wish.plan) for n, wish in zip(numbers, wishes, strict=True)]  # type: ignore[arg-type]
        return batched([wish.state for wish in wishes], [p.T_world_camera for p in plans], [p.text for p in plans], memory)  # type: ignore[union-attr]

    def _done(self, number: int, outcome: Outcome) -> Any:
        outcome.commit()
        return outcome.result

    def _each_action(self, actions: Any) -> list[Any]:
        try:
            each = list(iterate(self.action_space, actions))
        except Exception as error:  # `iterate` raises many kinds for what it cannot take apart
            raise ValueError(f"the actions cannot be taken apart ({error}); give what action_space.sample() gives") from error
        if len(each) != self.num_envs:
            raise ValueError(f"there are {len(each)} actions for {self.num_envs} worlds; give one for each")
        return each

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
            return [int(seed) + i for i in range(self.num_envs)]
        if isinstance(seed, (str, bytes)) or not isinstance(seed, (Sequence, np.ndarray)) or len(seed) != self.num_envs:
            raise ValueError(f"seed is {seed!r}; give a whole number, None, or a sequence with one for each of the {self.num_envs} worlds")
        return [None if one is None else int(one) for one in seed]

    def _mask(self, mask: Any) -> np.ndarray:
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"options['reset_mask'] is {mask!r}; give a numpy array of {self.num_envs} bools, True for worlds to reset, at least one"
            )
        return mask

    def _batch(self) -> Any:
        out = create_empty_array(self.single_observation_space, n=self.num_envs, fn=np.zeros)
        return concatenate(self.single_observation_space, self._observations, out)


class SpatiaNavVectorEnv(SpatiaVectorEnv):
    """N worlds of `SpatiaNav-v0`; all else as in `SpatiaVectorEnv`."""

    single = SpatiaNavEnv


class SpatiaTruthVectorEnv(SpatiaVectorEnv):
    """N worlds of `SpatiaTruth-v0`, drawn one after the other; all else as in `SpatiaVectorEnv`."""

    single = SpatiaTruthEnv

    def _make(self, each: list[dict[str, Any]]) -> list[WorldEnv]:
        return [self.single(**{**own, "task": deepcopy(own.get("task"))}) for own in each]

    def _advance(self, numbers: list[int], wishes: list[Wish]) -> list[Granted]:
        return [
            (wish.begin(), None) if wish.begin else self.envs[n]._advance(wish.state, wish.plan)  # type: ignore[arg-type]
            for n, wish in zip(numbers, wishes, strict=True)
        ]
