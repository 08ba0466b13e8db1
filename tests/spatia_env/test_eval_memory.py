"""`spatia eval memory` finds what `spatia_env.testing` finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from spatia_env import cli, testing
from spatia_env.commands import eval_memory
from tests.spatia_env.test_testing import ADAPTER, Panorama

ROOT = Path(__file__).resolve().parents[2]
TRUTH = ["--env", "SpatiaTruth-v0", "--env-args", '{"movers": 0, "image_size": 32, "supersample": 1}', "--seed", "2000003"]


@pytest.fixture
def panoramas(tmp_path, monkeypatch):
    """A module with an adapter, and envs registered under its name."""
    for fault, name in (("", "Honest-v0"), ("forgets", "Forgetful-v0")):
        gym.register(name, entry_point=Panorama, kwargs={"fault": fault})
    file = tmp_path / "my_envs.py"
    file.write_text("from tests.spatia_env.test_testing import ADAPTER as adapter\nnot_one = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    for name in ("Honest-v0", "Forgetful-v0"):
        del gym.registry[name]
    sys.modules.pop("my_envs", None)


def spatia(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["eval", "memory", *arguments])
    return status, *capsys.readouterr()


def test_the_true_world_passes_all(capsys, tmp_path):
    checks = ["--checks", "deterministic", "returns_to_view", "static_memory"]
    status, out, err = spatia(capsys, *TRUTH, "--worlds", "2", "--require", "--json", "--strips", str(tmp_path), *checks)
    found = json.loads(out)
    assert status == 0 and found["failures"] == [] and "2/2" in err
    assert found["passed"] == {"deterministic": 2, "returns_to_view": 2, "static_memory": 2}
    assert found["deterministic"] == 0 and found["returns_to_view"] == testing.EQUAL and found["static_memory"] == testing.EQUAL
    assert found["details"]["returns_to_view_psnr_elsewhere"] < 90
    assert {file.name for file in tmp_path.glob("*.png")} == {f"{n}_{s}.png" for n in checks[2:] for s in (2000003, 2000004)}
    assert Image.open(tmp_path / "returns_to_view_2000003.png").size == (96, 32)


def test_another_env_that_forgets_is_found_out(capsys, panoramas):
    ours = ["--env", "Forgetful-v0", "--adapter", f"{panoramas}:adapter", "--worlds", "2", "--seed", "3"]
    status, out, _ = spatia(capsys, *ours, "--require", "--json")
    found = json.loads(out)
    assert status == 1
    assert found["passed"]["deterministic"] == 2 and found["passed"]["returns_to_view"] == 0 and found["passed"]["static_memory"] == 0
    assert len(found["failures"]) == 4 and "in world 3" in found["failures"][0]
    assert found["returns_to_view"] == pytest.approx(
        np.mean([testing.check_returns_to_view(Panorama("forgets"), ADAPTER, seed=s).value for s in (3, 4)]), abs=1e-3
    )
    assert spatia(capsys, *ours, "--checks", "returns_to_view")[0] == 0  # measured, not required


def test_thresholds_and_the_table(capsys, panoramas):
    ours = ["--env", "Honest-v0", "--adapter", "my_envs:adapter", "--worlds", "1", "--require", "--checks", "turns_as_asked"]
    status, out, _ = spatia(capsys, *ours)
    assert status == 0 and "turns_as_asked" in out and "1/1" in out and "degrees" in out
    status, out, _ = spatia(capsys, *ours, "--threshold", "turns_as_asked=-1")
    assert status == 1 and "0/1" in out and "the picture turned by" in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--env", "NoSuch-v0"], "cannot be made"),
        (["--env", "SpatiaTruth-v0", "--env-args", "{"], "not JSON"),
        (["--env", "SpatiaTruth-v0", "--env-args", "[1]"], "give an object"),
        (["--env", "SpatiaTruth-v0", "--env-args", '{"nonsense": 1}'], "cannot be made"),
        (["--env", "Honest-v0"], "give an adapter"),
        (["--env", "Honest-v0", "--adapter", "nowhere.py:adapter"], "no file"),
        (["--env", "Honest-v0", "--adapter", "adapter"], "FILE:NAME"),
        (["--env", "Honest-v0", "--adapter", "no_such_module:adapter"], "cannot be imported"),
        (["--env", "Honest-v0", "--adapter", "my_envs:not_one"], "Adapter"),
        (["--env", "Honest-v0", "--adapter", "broken.py:adapter"], "cannot be run (SyntaxError"),
        (["--env", "Honest-v0", "--adapter", "broken:adapter"], "cannot be imported"),
        (["--env", "Honest-v0", "--worlds", "0"], "at least 1"),
        (["--env", "Honest-v0", "--threshold", "returns=3"], "CHECK=NUMBER"),
        (["--env", "Honest-v0", "--threshold", "returns_to_view"], "CHECK=NUMBER"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, panoramas, monkeypatch, arguments, why):
    monkeypatch.chdir(panoramas.parent)
    (panoramas.parent / "broken.py").write_text("adapter = (")
    status, out, err = spatia(capsys, *arguments)
    assert status == 1 and out == "" and why in err and err.count("\n") == 1, err


def test_a_module_of_the_folder_one_stands_in_is_found(tmp_path):
    """By the `spatia` command too, whose own folder is another."""
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium as gym\nfrom tests.spatia_env.test_testing import ADAPTER as adapter, Panorama\n"
        "gym.register('Own-v0', entry_point=Panorama, kwargs={'fault': ''})\n"
    )
    code = f"import sys; sys.path[:1] = {[str(ROOT), str(ROOT / 'model')]!r}; from spatia_env.cli import main; sys.exit(main(sys.argv[1:]))"
    line = ["eval", "memory", "--env", "own_envs:Own-v0", "--adapter", "own_envs.py:adapter", "--worlds", "1", "--require", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code, *line, "--checks", "deterministic"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] == {"deterministic": 1}


def test_spatia_worlds_begin_from_pictures_of_procedural_worlds(monkeypatch, fake):
    """Without a picture of their own; the fake world takes the place of the model."""
    monkeypatch.setattr("spatia_env.env.load_model", lambda model, device: fake)
    env, begin = eval_memory.make_env("Spatia-v0", "{}")
    one, two = begin(2_000_003)["image"], begin(2_000_004)["image"]
    assert one.shape == (128, 128, 3) and not np.array_equal(one, two)
    assert env.reset(seed=1, options={"image": one})[0].shape == (24, 24, 3)
    assert eval_memory.make_env("Spatia-v0", '{"image": "spatia_env/assets/room.png"}')[1](3) is None


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", "memory", "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out and textwrap.dedent("--adapter my_envs.py:adapter") in out
