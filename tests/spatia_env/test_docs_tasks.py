"""The examples of docs/tasks.md run, with a world without weights behind them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spatia_env.tasks import FollowText, ReachView, ReturnHome
from spatia_env.tasks.follow_text import WORDS
from tests.fakes import FakeWorld

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number, monkeypatch, capsys):
    code = EXAMPLES[number]
    if "stable_baselines3" in code:
        pytest.importorskip("stable_baselines3", reason="stable-baselines3 (extra: agents) is not installed")
        code = code.replace("20_000", "8").replace("n_steps=64, batch_size=64", "n_steps=8, batch_size=8")
    world = FakeWorld(image_size=40)
    for module in ("env", "nav_env", "vector_env"):
        monkeypatch.setattr(f"spatia_env.{module}.load_model", lambda model, device: world)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out or "print" not in code


def test_the_numbers_it_names_are_the_defaults():
    reach, home, follow = ReachView(), ReturnHome(), FollowText()
    assert (reach.radius, reach.angle, reach.success_reward, reach.step_cost, reach.angle_weight, reach.clips) == (
        0.3,
        15,
        2.5,
        0.01,
        0.5,
        3,
    )
    assert (home.radius, home.angle, home.min_distance) == (0.3, 15, 1.0)
    assert (follow.fill, follow.success_reward, follow.step_cost, len(WORDS)) == (0.2, 2.5, 0.01, 45)
