"""Every agent runs from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needs_weights

ROOT = Path(__file__).resolve().parents[2]
AGENTS = sorted((ROOT / "agents").glob("*.py"))
WITH_COMMANDS = {"ppo.py": "train", "behaviour_cloning.py": "train"}


def run(name: str, *arguments: str, status: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "agents" / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.mark.parametrize("path", AGENTS, ids=lambda path: path.name)
def test_help(path):
    """Each shows how it is called, takes a seed, and says what class `spatia rollout` finds in it."""
    command = [WITH_COMMANDS[path.name]] if path.name in WITH_COMMANDS else []
    assert "--seed" in run(path.name, *command, "--help")
    text = path.read_text()
    assert f"python agents/{path.name}" in text and "def act(self, observation" in text and "def main() -> int" in text


def test_random_walk_in_the_true_world(tmp_path):
    out = run("random_walk.py", "--env", "SpatiaTruth-v0", "--steps", "2", "--out", str(tmp_path))
    assert "step 1:" in out and "return 0.000" in out
    assert len(list(tmp_path.glob("step_*.png"))) == 3 and (tmp_path / "walk.gif").exists()


def test_loop_closure_in_the_true_world_closes():
    found = json.loads(run("loop_closure.py", "--env", "SpatiaTruth-v0", "--clips", "4", "--seed", "1", "--json"))
    assert found["clips"] == 4 and found["farthest_m"] > 0.2
    assert found["pose_error_m"] < 1e-6
    assert found["psnr"] > 20 and found["ssim"] > 0.8  # things may have moved; the place has not


def test_frontier_explorer_in_the_true_world(tmp_path):
    found = json.loads(
        run("frontier_explorer.py", "--env", "SpatiaTruth-v0", "--world", "7", "--steps", "2", "--json", "--out", str(tmp_path))
    )
    assert found["steps"] == 2 and found["free_floor_m2"] > 1
    assert {path.name for path in tmp_path.iterdir()} == {"map.png", "overview.png", "walk.gif"}


@pytest.mark.parametrize(
    ("name", "arguments", "imagined"),
    [("cem.py", ("--population", "3", "--elites", "1", "--iterations", "1"), 6), ("mppi.py", ("--samples", "3"), 6)],
)
def test_planners_in_the_true_world(name, arguments, imagined):
    out = run(name, "--env", "SpatiaTruth-v0", "--world", "7", "--steps", "1", "--horizon", "2", *arguments, "--json")
    found = json.loads(out)
    assert found["steps"] == 1 and 0 < found["imagined_steps"] <= imagined


def test_language_agent_in_the_true_world():
    out = run("language_agent.py", "turn left 30, come back", "--env", "SpatiaTruth-v0", "--world", "7", "--steps", "4", "--json")
    found = json.loads(out)
    assert found["plan"] == ["turn -30.0", "back"] and found["done"] and found["steps"] == 2 and found["metres_from_start"] < 1e-6


def test_ppo_trains_and_evaluates_in_the_true_world(tmp_path):
    pytest.importorskip("stable_baselines3")
    small = ("--env", "SpatiaTruth-v0", "--image-size", "16", "--num-envs", "2", "--json")
    found = json.loads(run("ppo.py", "train", "--task", "explore", "--steps", "64", "--out", str(tmp_path), *small))
    assert found["steps"] == 64
    found = json.loads(run("ppo.py", "evaluate", "--policy", str(tmp_path / "policy.safetensors"), "--episodes", "1", *small))
    assert found["task"] == "explore" and found["episodes"] == 1


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("language_agent.py", "sing a song"), "is not understood"),
        (("ppo.py", "evaluate", "--policy", "nowhere.safetensors"), "no policy of this agent"),
        (("behaviour_cloning.py", "train", "--dataset", "nowhere-v0", "--out", "unused"), "cannot be opened"),
        (("behaviour_cloning.py", "act", "--policy", "unused", "--env-args", "3"), "as a JSON object"),
        (("cem.py", "--env", "SpatiaTruth-v0", "--elites", "9"), "elites"),
        (("loop_closure.py", "--clips", "1"), "at least 2"),
    ],
)
def test_errors_are_one_clear_line(command, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = run(*command, status=1)
    assert why in err.splitlines()[-1] and "Traceback" not in err


@needs_weights
@pytest.mark.weights
@pytest.mark.parametrize("env_id", ["Spatia-v0", "SpatiaNav-v0"])
def test_random_walk(env_id):
    assert "step 1:" in run("random_walk.py", "--env", env_id, "--steps", "2")


@needs_weights
@pytest.mark.weights
def test_loop_closure_remembers():
    with_memory, without = (json.loads(run("loop_closure.py", "--clips", "6", "--memory", memory, "--json")) for memory in ("on", "off"))
    assert with_memory["psnr"] > without["psnr"] + 1
