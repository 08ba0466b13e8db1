"""Bad input at the door: a clear error that names the mend, and the world as it was."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

import spatia_env
from tests.fakes import reading

GOOD = {"camera": np.array([0, 0, 0.5, 0, 0.2, 0], np.float32), "text": "a red ball"}
SIX = np.zeros(6, np.float32)


def camera(index: int, value: float) -> np.ndarray:
    values = SIX.copy()
    values[index] = value
    return values


ACTIONS = {
    "nan": ({"camera": camera(2, np.nan), "text": ""}, "nan for forward"),
    "inf": ({"camera": camera(4, np.inf), "text": ""}, "inf for yaw"),
    "too far": ({"camera": camera(0, 1.01), "text": ""}, "1.01 for right.*several steps"),
    "too far back": ({"camera": camera(5, -7), "text": ""}, "-7 for roll"),
    "five numbers": ({"camera": SIX[:5], "text": ""}, r"\(5,\).*right, down, forward, pitch, yaw, roll"),
    "a matrix": ({"camera": SIX[None], "text": ""}, r"\(1, 6\)"),
    "a scalar": ({"camera": 0.5, "text": ""}, r"\(\)"),
    "words for numbers": ({"camera": ["left"] * 6, "text": ""}, "numbers"),
    "nothing for camera": ({"camera": None, "text": ""}, r"camera"),
    "ragged": ({"camera": [[0, 1], 2, 3, 4, 5, 6], "text": ""}, "numbers"),
    "no text": ({"camera": SIX}, "'text': '' for no text"),
    "another key": ({"camera": SIX, "text": "", "speed": 3}, "speed"),
    "an array": (SIX, "dictionary"),
    "None": (None, "dictionary"),
    "text of bytes": ({"camera": SIX, "text": b"ball"}, "bytes"),
    "text None": ({"camera": SIX, "text": None}, "NoneType"),
    "text too long": ({"camera": SIX, "text": "ball " * 60}, "300 characters, the limit is 240"),
    "foreign letters": ({"camera": SIX, "text": "красный мяч"}, "characters the world cannot read: 'а'"),
    "a line break": ({"camera": SIX, "text": "a ball\nrolls"}, re.escape(r"'\n'")),
    "an emoji": ({"camera": SIX, "text": "a \U0001f534 ball"}, "cannot read"),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_bad_actions_leave_the_world(name, world, picture):
    action, message = ACTIONS[name]
    env = spatia_env.SpatiaEnv(image=picture, model=world)
    env.reset(seed=0)
    mark = env.snapshot()
    expected = env.step(GOOD)
    env.restore(mark)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env._episode is mark.episode
    assert data_equivalence(env.step(GOOD), expected, exact=True)


@pytest.mark.parametrize("action", [6, -1, 1.0, "forward", None, True, np.array([1]), np.float32(1)])
def test_bad_nav_actions_leave_the_world(action, fake, picture):
    env = spatia_env.SpatiaNavEnv(image=picture, model=fake)
    env.reset(seed=0)
    episode = env._episode
    with pytest.raises(ValueError, match="0 forward, 1 turn_left"):
        env.step(action)
    assert env._episode is episode and fake.advanced == 0


@pytest.mark.parametrize("action", [0, np.int64(3), np.int32(3), np.array(3)])
def test_integers_of_any_kind_are_nav_actions(action, fake, picture):
    env = spatia_env.SpatiaNavEnv(image=picture, model=fake)
    env.reset(seed=0)
    env.step(action)
    assert fake.advanced == 1


def test_a_failing_model_leaves_the_world(fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake, render_mode="rgb_array_list")
    env.reset(seed=0)
    mark, shown = env.snapshot(), list(env._shown)
    fake.fail_next = True
    with pytest.raises(RuntimeError):
        env.step(GOOD)
    assert env._episode is mark.episode and len(env._shown) == len(shown)


def test_a_failing_task_or_edit_leaves_the_world(fake, picture):
    def task(observation, info):
        return "well done"

    env = spatia_env.SpatiaEnv(image=picture, model=fake, task=task)
    env.reset(seed=0)
    episode = env._episode
    with pytest.raises(ValueError, match="'well done'.*finite reward"):
        env.step(GOOD)
    with pytest.raises(ZeroDivisionError):
        env.edit(lambda memory: 1 // 0)  # type: ignore[arg-type, return-value]
    assert env._episode is episode


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "no/such/file.jpg"}, "does not exist"),
        ({"image": np.zeros((1, 1, 3), np.uint8)}, "1 x 1"),
        ({"prompt": "кухня"}, "prompt holds characters"),
        ({"prompt": 3}, "prompt is a int"),
        ({"world": 3}, r"\['world'\].*known are \['image', 'prompt'\]"),
        ("image.png", "dictionary"),
    ],
)
def test_bad_reset_options_leave_the_world_and_its_generator(options, message, fake, picture):
    env = spatia_env.SpatiaEnv(image=picture, model=fake)
    env.reset(seed=0)
    episode, random_state = env._episode, env.np_random.bit_generator.state
    with pytest.raises(ValueError, match=message):
        env.reset(seed=9, options=options)
    assert env._episode is episode
    assert env.np_random.bit_generator.state == random_state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"render_mode": "human3d"}, "rgb_array_list"),
        ({"max_steps": 0}, "at least 1"),
        ({"max_steps": 2.5}, "whole number"),
        ({"max_steps": True}, "whole number"),
        ({"max_translation": 0}, "metres per step"),
        ({"max_translation": float("inf")}, "metres per step"),
        ({"max_rotation": -0.1}, "radians per step"),
        ({"max_rotation": "30"}, "radians per step"),
        ({"task": 5}, "callable"),
        ({"prompt": "x" * 2001}, "2001 characters, the limit is 2000"),
        ({"memory": "off"}, "True or False"),
        ({"model": 3}, "a name"),
    ],
)
def test_bad_arguments(arguments, message, fake, picture):
    with pytest.raises(ValueError, match=message):
        spatia_env.SpatiaEnv(**{"image": picture, "model": fake, **arguments})


def test_a_prompt_that_the_model_does_not_read_to_its_end(fake, picture):
    words = "a red ball rolls to the left"  # seven
    with pytest.raises(ValueError, match="prompt: 7 known words.*of which the model reads the first 6; shorten it"):
        spatia_env.SpatiaEnv(image=picture, model=reading(fake, 6), prompt=words)
    env = spatia_env.SpatiaEnv(image=picture, model=reading(fake, 7), prompt=words)
    env.reset(seed=0)
    episode, random_state = env._episode, env.np_random.bit_generator.state
    with pytest.raises(ValueError, match="prompt: 500 known words.*the first 7"):
        env.reset(seed=9, options={"prompt": "a " * 500})
    assert env._episode is episode and env.np_random.bit_generator.state == random_state


def test_a_text_that_no_longer_fits_behind_the_prompt_is_cut_with_a_warning(fake, picture):
    """Every element of the action space is an action, so this is no error."""
    env = spatia_env.SpatiaEnv(image=picture, model=reading(fake, 7), prompt="sunny kitchen")
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="prompt and text together have 9 known words.*reads the first 7: shorten them"):
        env.step({"camera": SIX, "text": "a red ball rolls to the left"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step({"camera": SIX, "text": "a red ball rolls left"})
        env.step({"camera": SIX, "text": ""})
