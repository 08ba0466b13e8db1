"""What an agent may hand over as an action, and how its file is found."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from spatia_env.agent_file import AgentFile
from spatia_env.rollouts import as_action, info_of

BOX = spaces.Box(-1, 1, (2,), np.float32)
CAMERA = spaces.Dict({"camera": BOX, "text": spaces.Text(5, min_length=0)})


@pytest.mark.parametrize(
    ("space", "given", "expected"),
    [
        (spaces.Discrete(3), 2, 2),
        (spaces.Discrete(3), np.array(1), 1),
        (spaces.Discrete(3), np.uint8(1), 1),
        (BOX, [0.5, -1], np.array([0.5, -1], np.float32)),
        (BOX, np.array([0.25, 1]), np.array([0.25, 1], np.float32)),
        (spaces.MultiDiscrete([2, 3]), (1, 2), np.array([1, 2])),
        (spaces.Tuple((spaces.Discrete(2), BOX)), [1, [0, 0]], (1, np.zeros(2, np.float32))),
    ],
)
def test_actions_become_elements_of_the_space(space, given, expected):
    action = as_action(space, given)
    assert space.contains(action)
    for a, b in zip(action, expected, strict=True) if isinstance(expected, tuple) else [(action, expected)]:
        np.testing.assert_array_equal(a, b)
    both = as_action(CAMERA, {"text": "ab", "camera": [0, 1]})
    assert CAMERA.contains(both) and both["text"] == "ab"


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (spaces.Discrete(3), 3),
        (spaces.Discrete(3), 1.0),
        (spaces.Discrete(3), None),
        (spaces.Discrete(3), [1]),
        (spaces.Discrete(3), "forward"),
        (BOX, [2, 0]),
        (BOX, [np.nan, 0]),
        (BOX, [0, 0, 0]),
        (BOX, [[0], [0, 1]]),
        (BOX, None),
        (CAMERA, {"camera": [0, 0]}),
        (CAMERA, {"camera": [0, 0], "text": "", "more": 1}),
        (CAMERA, {"camera": [0, 0], "text": "too long"}),
        (CAMERA, [0, 0]),
    ],
)
def test_what_is_no_action_is_said(space, given):
    with pytest.raises(ValueError, match="the agent returned .* an action is an element of"):
        as_action(space, given)


def test_infos_of_one_world():
    batch = {"a": np.array([1, 2]), "_a": np.array([True, False]), "_b": np.array([True, True]), "b": np.array(["x", None], object)}
    batch |= {"c": {"d": np.array([[1.0], [2.0]]), "_d": np.array([True, True])}, "_c": np.array([False, True])}
    assert info_of(batch, 0) == {"a": 1, "b": "x"}
    assert info_of(batch, 1) == {"b": None, "c": {"d": np.array([2.0])}}


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("", "Agent", "has no class Agent; its classes are \\[\\]"),
        ("class Other: pass", "Agent", "its classes are \\['Other'\\]"),
        ("class Agent: pass", "Agent", "has no method reset and no method act"),
        ("Agent = 3", "Agent", "has no class Agent"),
        ("import no_such_package", "Agent", "cannot be run \\(ModuleNotFoundError: No module named 'no_such_package'\\)"),
        ("def broken(:", "Agent", "cannot be run \\(SyntaxError"),
        ("raise SystemExit(3)", "Agent", "cannot be run \\(SystemExit: 3\\)"),
    ],
)
def test_a_file_without_the_agent_is_told(tmp_path, source, name, message):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ValueError, match=message):
        AgentFile.parse(f"{tmp_path}/mine.py:{name}").load()


@pytest.mark.parametrize("text", ["", "mine.py", "mine.py:", ":Agent", "no_such.py:Agent", "mine.py:not a name"])
def test_what_names_no_agent_is_told(text):
    with pytest.raises(ValueError, match="give FILE:Class"):
        AgentFile.parse(text)


def test_an_agent_file_finds_its_neighbours(tmp_path):
    (tmp_path / "rollout_neighbour.py").write_text("STEP = 7")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom rollout_neighbour import STEP\n"
        "@dataclass\nclass Agent:\n    env: object\n    seed: int = STEP\n    def reset(self, o, i): ...\n    def act(self, o, i): ...\n"
    )
    assert AgentFile.parse(f"{tmp_path}/mine.py:Agent").load()(None).seed == 7
