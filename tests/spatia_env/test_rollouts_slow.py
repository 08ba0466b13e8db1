"""Rollouts under hard conditions: killed at any moment, for hours, over a Ray cluster, and read by LeRobot itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.spatia_env.datasets import AGENTS, ID, ROOT_PATHS, lerobot_contents, minari_contents

minari = pytest.importorskip("minari", reason="minari (extra: rollouts) is not installed")
pytest.importorskip("pyarrow", reason="pyarrow (extra: rollouts) is not installed")

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT_PATHS, "OMP_NUM_THREADS": "1"}


def command(out: Path, episodes: int, *more: str) -> list[str]:
    line = [sys.executable, "-m", "spatia_env.cli", "rollout", "--agent", f"{AGENTS}:Walker", "--env", ID]
    return [*line, "--episodes", str(episodes), "--out", str(out), *more]


def finished(out: Path) -> set[str]:
    """Names of the finished episodes, as they lie in the folder (LeRobot: also of those published)."""
    units = {path.name.split(".")[0] for place in ("data/episodes", ".episodes") for path in (out / place).glob("episode_*")}
    state = out / "meta" / "spatia.json"
    published = json.loads(state.read_text())["next"] if state.exists() else 0
    return units | {f"episode_{index:08d}" for index in range(published)}


@pytest.mark.parametrize(("dataset", "episodes", "kills"), [("minari", 130, 20), ("lerobot", 24, 6)])
def test_no_finished_episode_is_lost_to_kills(tmp_path, dataset, episodes, kills):
    """`kill -9` at random moments while about 8 steps per episode are collected; the run goes on each time where it was."""
    chance = random.Random(0)
    killed, whole = tmp_path / "killed-v0", tmp_path / "whole-v0"
    before: dict[str, bytes] = {}
    for number in range(kills):
        process = subprocess.Popen(
            command(killed, episodes, "--format", dataset, "--num-envs", "3"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        goal = len(finished(killed)) + chance.randint(1, max(1, (episodes - 2) // kills))
        while process.poll() is None and len(finished(killed)) < goal:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))  # into the next episodes, their files, or the index
        assert process.poll() is None, f"round {number} ended by itself: {process.communicate()[1]}"
        have = finished(killed)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert have <= finished(killed) and len(finished(killed)) < episodes
        now = {path.name: path.read_bytes() for path in (killed / "data" / "episodes").glob("episode_*")}
        assert all(now[name] == content for name, content in before.items())
        before = now
    for out in (killed, whole):
        subprocess.run(command(out, episodes, "--format", dataset), env=ENVIRONMENT, check=True, capture_output=True)
    if dataset == "minari":
        dataset = minari.MinariDataset(killed / "data")
        assert dataset.total_episodes == episodes and dataset.total_steps >= 1000
        assert minari_contents(killed) == minari_contents(whole)
    else:
        assert lerobot_contents(killed) == lerobot_contents(whole)


@pytest.mark.parametrize("dataset", ["minari", "lerobot"])
def test_memory_does_not_grow_with_the_length_of_an_episode(tmp_path, dataset):
    """One episode of 12 MB and one of 240 MB of pictures, with 10,000 characters of text per step: the same memory, but for a little."""
    code = (
        "import resource, sys\nimport numpy as np\nfrom spatia_env.recording import *\nfrom tests.spatia_env.fast_env import FastWorld\n"
        "class Long(FastWorld):\n"
        "    def reset(self, **more):\n        found = super().reset(**more)\n        self._length = 10**9\n        return found\n"
        "    def _see(self):\n        observation, info = super()._see()\n        info['frames'] = np.repeat(observation[None], 4, 0)\n"
        "        return observation, info\n"
        f"env = RecordEpisodes(Long(size=128), {'MinariWriter' if dataset == 'minari' else 'LeRobotWriter'}(sys.argv[1]))\n"
        "action = {'camera': np.zeros(6, np.float32), 'text': 'a long story ' * 770}\n"
        "env.reset(seed=0)\nfor _ in range(int(sys.argv[2])):\n    env.step(action)\nenv.close()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    used = []
    for steps in (50, 1000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"long{steps}-v0"), str(steps)], env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        used.append(int(done.stdout))
    assert used[1] - used[0] < 40, f"{used} MB"


def test_over_a_local_ray_cluster_the_dataset_is_the_same(tmp_path):
    pytest.importorskip("ray", reason="ray (extra: ray) is not installed")
    for out, more in ((tmp_path / "ray-v0", ["--ray", "local", "--num-envs", "2", "--json"]), (tmp_path / "here-v0", [])):
        done = subprocess.run(command(out, 5, *more), env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        if more:
            assert json.loads(done.stdout)["episodes"] == 5
    assert minari_contents(tmp_path / "ray-v0") == minari_contents(tmp_path / "here-v0")
    broken = command(tmp_path / "broken-v0", 2, "--ray", "local", "--agent-option", "speed=3")
    done = subprocess.run(broken, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1 and "cannot be made (TypeError" in done.stderr


def test_lerobot_opens_what_we_write(tmp_path):
    """With SPATIA_LEROBOT_PYTHON=/a/venv/bin/python, a venv with the package lerobot (which brings torchvision) and nothing of ours."""
    python = os.environ.get("SPATIA_LEROBOT_PYTHON")
    if not python:
        pytest.skip("SPATIA_LEROBOT_PYTHON names no Python with lerobot")
    subprocess.run(command(tmp_path / "walks", 5, "--format", "lerobot"), env=ENVIRONMENT, check=True, capture_output=True)
    script = Path(__file__).with_name("lerobot_check.py")
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, str(script), str(tmp_path / "walks")], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["episodes"] == 5 and told["statistics agree"] is True
    rows = lerobot_contents(tmp_path / "walks")["rows"]
    assert told["frames"] == len(rows)
    np.testing.assert_allclose(told["actions"], [row["action"] for row in rows], rtol=1e-6)
