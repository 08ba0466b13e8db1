"""Each example agent runs from the command line."""

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


def run(name: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "agents" / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", AGENTS, ids=lambda path: path.name)
def test_help(path):
    assert "--seed" in run(path.name, "--help")


def test_random_walk_in_the_true_world(tmp_path):
    out = run("random_walk.py", "--env", "SpatiaTruth-v0", "--steps", "2", "--out", str(tmp_path))
    assert "step 1:" in out and "return 0.000" in out
    assert len(list(tmp_path.glob("step_*.png"))) == 3 and (tmp_path / "walk.gif").exists()


def test_loop_closure_in_the_true_world_closes():
    found = json.loads(run("loop_closure.py", "--env", "SpatiaTruth-v0", "--clips", "4", "--seed", "1", "--json"))
    assert found["clips"] == 4 and found["farthest_m"] > 0.2
    assert found["pose_error_m"] < 1e-6
    assert found["psnr"] > 20 and found["ssim"] > 0.8  # things may have moved; the place has not


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
