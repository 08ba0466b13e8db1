"""Save and load: the same future, in this process and in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from spatia_env import SpatiaEnv, SpatiaNavEnv
from tests.conftest import needs_weights
from tests.fakes import load_fake_state, save_fake_state

ROOT = Path(__file__).resolve().parents[2]
ACTION = {"camera": np.array([0, 0, 0.5, 0, 0.2, 0], np.float32), "text": "a red ball"}


@pytest.fixture
def make(fake, picture, monkeypatch):
    monkeypatch.setattr(SpatiaEnv, "_save_state", lambda self, state, folder: save_fake_state(state, folder))
    monkeypatch.setattr(SpatiaEnv, "_load_state", lambda self, folder: load_fake_state(folder))
    return lambda **arguments: SpatiaEnv(image=picture, model=fake, **arguments)


def test_loaded_episode_goes_on_alike(make, tmp_path):
    env = make(max_steps=3)
    env.reset(seed=0)
    env.step(ACTION)
    folder = env.save(tmp_path / "deep" / "episode")
    observation = env.state.frames[-1].numpy()
    expected = [env.step(ACTION) for _ in range(2)]
    draw = env.np_random.integers(1000)
    other = make(max_steps=3)
    seen, info = other.load(folder)
    np.testing.assert_array_equal(seen, observation)
    assert info["poses"].shape == (8, 4, 4)
    assert data_equivalence([other.step(ACTION) for _ in range(2)], expected, exact=True)
    assert expected[-1][3] is True
    assert other.np_random.integers(1000) == draw
    np.testing.assert_array_equal(other._episode.trail.poses(), env._episode.trail.poses())


def test_saving_over_an_episode_replaces_it_and_over_other_things_is_refused(make, tmp_path):
    env = make()
    env.reset(seed=0)
    folder = env.save(tmp_path / "episode")
    env.step(ACTION)
    env.save(folder)
    assert json.loads((folder / "episode.json").read_text())["steps"] == 1
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    for place in (precious, precious / "thesis.tex"):
        with pytest.raises(ValueError, match="not a saved episode; give a new folder"):
            env.save(place)
    assert (precious / "thesis.tex").exists()
    with pytest.raises(ValueError, match="cannot write"):
        env.save(precious / "thesis.tex" / "episode")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode", "precious"]  # nothing half-written is left


def test_a_failing_write_leaves_the_older_save(make, tmp_path, monkeypatch):
    env = make()
    env.reset(seed=0)
    folder = env.save(tmp_path / "episode")

    def full(self, state, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SpatiaEnv, "_save_state", full)
    with pytest.raises(ValueError, match="No space left"):
        env.save(folder)
    make().load(folder)


def test_folders_that_are_no_episodes(make, tmp_path, fake, picture):
    env = make()
    env.reset(seed=0)
    folder = env.save(tmp_path / "episode")
    episode = env._episode
    with pytest.raises(ValueError, match=r"no episode\.json"):
        env.load(tmp_path)
    with pytest.raises(ValueError, match="saved by a SpatiaEnv, this is a SpatiaNavEnv"):
        SpatiaNavEnv(image=picture, model=fake).load(folder)
    header = (folder / "episode.json").read_text()
    for damaged in (header[: len(header) // 2], "{}", header.replace('"format": 1', '"format": 99'), header.replace("PCG64", "RC4")):
        (folder / "episode.json").write_text(damaged)
        with pytest.raises(ValueError, match="damaged"):
            env.load(folder)
    (folder / "episode.json").write_text(header)
    (folder / "trail.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        env.load(folder)
    assert env._episode is episode


@needs_weights
@pytest.mark.weights
def test_another_process_goes_on_with_the_same_frames(picture, tmp_path):
    pytest.importorskip("spatia_model.world_state", reason="spatia_model.world_state is not here yet")
    env = SpatiaEnv(image=picture)
    env.reset(seed=0)
    env.step(ACTION)
    folder = env.save(tmp_path / "episode")
    expected = [env.step(ACTION)[0] for _ in range(2)]
    code = (
        "import sys, numpy as np\nfrom spatia_env import SpatiaEnv\nimport torch\ntorch.set_num_threads(1)\n"
        "env = SpatiaEnv()\nenv.load(sys.argv[1])\n"
        "action = {'camera': np.array([0, 0, 0.5, 0, 0.2, 0], np.float32), 'text': 'a red ball'}\n"
        "np.save(sys.argv[2], np.stack([env.step(action)[0] for _ in range(2)]))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}"}
    arguments = [sys.executable, "-c", code, str(folder), str(tmp_path / "frames.npy")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "frames.npy"), np.stack(expected))
