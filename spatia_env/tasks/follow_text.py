"""FollowText: go to the thing that an instruction names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from gymnasium import spaces

from spatia_env.tasks.base import Scene, State, Task, Verdict, check_choice, check_number
from spatia_env.tasks.colors import HUES, color_share

# The words `goal` has a place for. Colours and nouns are those of the procedural worlds' captions.
COLORS = ("white", "black", "grey", "brown", "beige", "red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
NOUNS = (
    "armchair", "ball", "barrel", "bed", "bench", "bookshelf", "box", "bush", "cabinet", "chair", "clock", "column", "crate",
    "cylinder", "door", "fireplace", "fountain", "lamp", "picture", "plant", "planter", "screen", "shelf", "sofa", "statue", "stool",
    "table", "tree", "umbrella", "wardrobe", "window", "thing",
)  # fmt: skip
WORDS = (*COLORS, *NOUNS)
OBSERVE = ("dict", "info")
JUDGES = ("auto", "objects", "colors")
NEAR = 6.0  # metres from the start within which things are named
LEAST_SHARE = 0.003  # of the first view: smaller patches of colour are noise


class FollowText(Task):
    """Go to the thing that the instruction names, until it fills the view: `fill` of all pixels.

    How the thing is found in a frame:

    * "objects" (SpatiaTruth-v0): the true pixels of that very thing. The instruction names a thing of the world ("go to the green
      armchair"), one that the start sees where there is one.
    * "colors" (generated worlds, whose things nobody knows): the largest connected patch of the named colour, whatever it is. The
      instruction names a colour that the first view shows ("go to the green thing").

    Reward: growth of the thing's side in the view (the square root of its share) - `step_cost`, + `success_reward` when it fills the
    view, which ends the episode (termination).

    Observation with ``observe="dict"``: `Dict(image=Box(H, W, 3), goal=Box(len(WORDS),))`, 1 for every word of the instruction that is in
    `spatia_env.tasks.follow_text.WORDS`; with "info" the frame alone.

    Info: `instruction` (str), `target_share` (0..1 of the view), `is_success`.

    Args:
        instruction: what to do in every episode, with a colour and perhaps a noun in it; None: drawn per episode.
        fill: share of the view at which the thing fills it.
        judge: "objects", "colors", or "auto" for what the world allows.
        observe: "dict" or "info".
        success_reward, step_cost: see above.
    """

    name = "follow-text"

    def __init__(
        self,
        instruction: str | None = None,
        fill: float = 0.2,
        judge: str = "auto",
        observe: str = "dict",
        success_reward: float = 2.5,
        step_cost: float = 0.01,
    ) -> None:
        if instruction is not None and not (isinstance(instruction, str) and named_words(instruction)):
            raise ValueError(
                f"the instruction is {instruction!r}; name a colour ({', '.join(COLORS)}) or a thing ({', '.join(NOUNS)}), or give None"
            )
        check_number(fill, "fill", 0.01, 1.0, "a share of the view")
        check_choice(judge, "judge", JUDGES)
        check_choice(observe, "observe", OBSERVE)
        check_number(success_reward, "success_reward", 0.0, 1e6)
        check_number(step_cost, "step_cost", 0.0, 1e3)
        if judge == "colors" and instruction is not None and not set(named_words(instruction)) & set(HUES):
            raise ValueError(f"the instruction {instruction!r} names no colour that can be told in a picture; name one of {list(HUES)}")
        self.instruction, self.fill, self._judge, self._observe = instruction, fill, judge, observe
        self.success_reward, self.step_cost = success_reward, step_cost

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "judge": self._judge, "observe": self._observe}

    def observation_space(self, image: spaces.Box) -> spaces.Space[Any]:
        if self._observe == "info":
            return image
        return spaces.Dict({"image": image, "goal": spaces.Box(0.0, 1.0, (len(WORDS),), np.float32)})

    def observe(self, scene: Scene, state: State) -> Any:
        if self._observe == "info":
            return scene.observation
        named = named_words(state["instruction"])
        return {"image": scene.observation, "goal": np.array([word in named for word in WORDS], np.float32)}

    def begin(self, scene: Scene, np_random: np.random.Generator) -> State:
        target = -1
        if self._knows_things(scene):
            target, instruction = choose_thing(scene, np_random, self.instruction, self.fill)
        else:
            instruction = self.instruction or f"go to the {choose_color(scene.observation, np_random, self.fill)} thing"
        state = {"instruction": instruction, "target": target}
        return {**state, "share": self._share(scene, state)}

    def metrics(self, scene: Scene, state: State) -> dict[str, Any]:
        return {"instruction": state["instruction"], "target_share": state["share"], "is_success": False}

    def judge(self, scene: Scene, state: State) -> Verdict:
        share = self._share(scene, state)
        success = share >= self.fill
        reward = share**0.5 - state["share"] ** 0.5 - self.step_cost + (self.success_reward if success else 0.0)
        metrics = {"instruction": state["instruction"], "target_share": share, "is_success": success}
        return Verdict(reward, success, {**state, "share": share}, metrics)

    def _knows_things(self, scene: Scene) -> bool:
        known = callable(getattr(scene.world, "seen_things", None))
        if self._judge == "objects" and not known:
            raise ValueError('judge is "objects", but only SpatiaTruth-v0 knows its things; give "auto" or "colors"')
        return known and self._judge != "colors"

    def _share(self, scene: Scene, state: State) -> float:
        if state["target"] >= 0:
            return float((scene.world.seen_things(scene.state) == state["target"]).mean())
        return color_share(scene.observation, next(word for word in named_words(state["instruction"]) if word in HUES))


def named_words(instruction: str) -> list[str]:
    """The words of an instruction that are among `WORDS`, in their order there."""
    spoken = set(re.findall(r"[a-z]+", instruction.lower()))
    if "gray" in spoken:
        spoken.add("grey")
    return [word for word in WORDS if word in spoken]


def choose_color(frame: np.ndarray, np_random: np.random.Generator, fill: float) -> str:
    """A colour that a frame (H, W, 3) shows a patch of, not too large already; any where it shows none."""
    shares = {color: color_share(frame, color) for color in HUES}
    shown = [color for color, share in shares.items() if LEAST_SHARE <= share < fill / 2]
    return str(np_random.choice(shown or [color for color in HUES if shares[color] < fill / 2] or list(HUES)))


def choose_thing(scene: Scene, np_random: np.random.Generator, instruction: str | None, fill: float) -> tuple[int, str]:
    """The identity of a thing of a true world, and the instruction that names it.

    With an instruction, the nearest thing that has all its known words; ValueError when the world has none. Without one, a thing that
    does not take half of `fill` of the view already, where there is one.
    """
    things = scene.world.named_things(scene.state)  # identity -> (name, metres away)
    if instruction is not None:
        sought = set(named_words(instruction)) - {"thing"}
        fitting = [(away, identity) for identity, (name, away) in things.items() if sought <= set(name.split())]
        if not fitting:
            listed = sorted({name for name, _ in things.values()})
            raise ValueError(f"this world has nothing for {instruction!r}; it has: {', '.join(listed) or 'nothing with a name'}")
        return min(fitting)[1], instruction
    names = [name for name, _ in things.values()]
    single = {identity: name for identity, (name, away) in things.items() if names.count(name) == 1 and away <= NEAR}
    if not single:  # a bare place, or one with pairs of everything: the nearest thing will do
        nearest = min(things, key=lambda identity: things[identity][1], default=None)
        if nearest is None:
            raise ValueError("this world has nothing with a name to go to; take another world")
        single = {nearest: things[nearest][0]}
    colored = {identity: name for identity, name in single.items() if set(name.split()) & set(COLORS)} or single
    pixels = scene.world.seen_things(scene.state)
    share = {identity: float((pixels == identity).mean()) for identity in colored}
    away = [identity for identity in colored if share[identity] < fill / 2] or list(colored)  # before the others one stands already
    seen = [identity for identity in away if share[identity] > 0] or away
    target = int(np_random.choice(seen))
    return target, f"go to the {things[target][0]}"
