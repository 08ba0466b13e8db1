"""The study of what policies learn: its figures are those of its evaluations, and what was done is not done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.agents.loading import load

pytest.importorskip("stable_baselines3")


def one(task: str, agent: str, world: str, value: float, success: float) -> dict:
    return {"task": task, "agent": agent, "world": world, "return": value, "success": success}


def test_the_summary_compares_what_the_aims_are_about():
    ours, theirs = "ppo trained in the generated world", "ppo trained in the true world"
    results = [
        one("explore", "random", "generated", 4.0, 0),
        one("explore", ours, "generated", 9.0, 0),
        one("explore", ours, "generated", 11.0, 0),
        one("reach-view", ours, "generated", 2.0, 0.8),
        one("reach-view", ours, "true", 2.0, 0.4),
        one("reach-view", theirs, "true", 2.0, 0.5),
        *(one(t, a, w, 1.0, 0.0) for t, a, w in [("explore", "explorer", "generated"), ("explore", theirs, "generated")]),
    ]
    found = load("teaches", "benchmarks").summarise(results, ["explore", "reach-view"], ["generated", "true"])
    assert found["explore_times_random"] == 2.5 and found["reach_view_success"] == 0.8
    assert found["kept_in_truth"] == 0.5 and found["of_those_trained_in_truth"] == 0.8
    assert found[f"explore | {ours} | in the generated world | return"] == {"mean": 10.0, "seeds": [9.0, 11.0]}
    empty = load("teaches", "benchmarks").summarise([], ["explore"], ["generated"])
    assert empty["explore_times_random"] is None and empty["kept_in_truth"] is None
    assert "NaN" not in json.dumps(empty)


def test_curves_are_means_over_the_episodes_of_the_last_steps():
    teaches = load("teaches", "benchmarks")
    curve = [
        {"steps": 100, "episodes": 0, "success": None},
        {"steps": 200, "episodes": 1, "success": 1.0},
        {"steps": 300, "episodes": 3, "success": 0.0},
        {"steps": 500, "episodes": 2, "success": 0.5},
        {"steps": 800, "episodes": 0, "success": None},
    ]
    assert teaches.smoothed(curve, "success", 250) == [(300, 0.25), (500, 0.2)]


@pytest.mark.slow
def test_a_small_study_is_whole_and_resumes(tmp_path: Path, capsys):
    teaches = load("teaches", "benchmarks")
    arguments = ["--out", str(tmp_path), "--worlds", "true", "--tasks", "reach-view", "--seeds", "1", "--steps", "64", "--num-envs", "2"]
    arguments += ["--episodes", "1", "--image-size", "16", "--json"]
    assert teaches.main(arguments) == 0
    first, said = capsys.readouterr()
    report = json.loads(first)
    assert report == json.loads((tmp_path / "teaches.json").read_text())
    assert {(each["agent"], each["episodes"]) for each in report["evaluations"]} == {
        ("random", 1),
        ("explorer", 1),
        ("ppo trained in the true world", 1),
    }
    assert (tmp_path / "walk_reach-view_true.png").exists() and report["reached"]["reach_view_success"] is None
    assert "evaluating" in said
    assert teaches.main(arguments) == 0
    again, said = capsys.readouterr()
    assert json.loads(again) == report and "evaluating" not in said and "ppo " not in said
    assert teaches.main(["--seeds", "0"]) == 1
