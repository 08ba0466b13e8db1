"""`spatia rollout`: the dataset and its card, and what is said when something is wrong."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from spatia_env import cli
from spatia_env.rollouts import EnvRequest
from tests.conftest import needs_weights
from tests.spatia_env.datasets import AGENTS, command, minari_contents

minari = pytest.importorskip("minari", reason="minari (extra: rollouts) is not installed")
pytest.importorskip("h5py", reason="h5py (extra: rollouts) is not installed")
pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: rollouts) is not installed")


def test_command_makes_a_dataset_with_its_card(tmp_path, capsys):
    out = tmp_path / "walks-v0"
    line = command(
        out, "--task", "wander", "--agent-option", "words=hop hop", "--num-envs", "2", "--seed", "4", "--max-steps", "6", "--json"
    )
    assert cli.main(line) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    dataset = minari.MinariDataset(out / "data")
    assert found["episodes"] == dataset.total_episodes == 3 and found["steps"] == dataset.total_steps
    assert found["errors"] == [] and "episode" in captured.err
    assert [int(one["seed"]) for one in dataset.storage.get_episode_metadata(range(3))] == [4, 5, 6]
    assert max(len(episode) for episode in dataset) <= 6
    assert dataset[0].actions["text"][0] == "hop hop"
    assert dataset.env_spec.kwargs == {"task": "wander"} and dataset.env_spec.max_episode_steps == 6
    card = (out / "README.md").read_text()
    assert "spatia " + " ".join(line[:4]) in card and "--agent-option 'words=hop hop'" in card and "| episodes | 3 |" in card
    for word in ('"sha256"', '"task": "wander"', "| gymnasium |", "| minari |", "FastWorld-v0", "minari.load_dataset"):
        assert word in card
    before = minari_contents(out)
    assert cli.main(line) == 0  # nothing is left to do
    assert minari_contents(out) == before and json.loads(capsys.readouterr().out)["steps"] == found["steps"]
    line[line.index("--episodes") + 1] = "5"
    assert cli.main(line) == 0  # more of the same
    assert len(minari_contents(out)) == 5 and before.items() <= minari_contents(out).items()
    assert "3 of 5 episodes were there already" in capsys.readouterr().err
    assert cli.main([*line[:-1], "--seed", "1"]) == 1
    assert "was recorded with other settings (seed was 4, now 1)" in capsys.readouterr().err


def test_command_writes_lerobot(tmp_path, capsys):
    out = tmp_path / "walks"
    assert cli.main(command(out, "--format", "lerobot", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["total_frames"] == found["steps"] and info["total_episodes"] == 3
    card = (out / "README.md").read_text()
    assert card.startswith("---\ntags:\n- LeRobot\n") and "LeRobotDataset(" in card
    assert cli.main(command(out)) == 1
    assert "holds a lerobot dataset, not minari" in capsys.readouterr().err


def test_command_tells_of_an_agents_errors(tmp_path, capsys):
    assert cli.main(command(tmp_path / "clumsy-v0", "--json", agent="Clumsy", episodes=4)) == 0
    captured = capsys.readouterr()
    assert [error["episode"] for error in json.loads(captured.out)["errors"]] == [1, 2, 3]
    assert "3 episodes were closed by an error of the agent" in captured.err
    card = (tmp_path / "clumsy-v0" / "README.md").read_text()
    assert "- 1 (seed 1, 2 steps): KeyError: 'lost my way'" in card
    (tmp_path / "hopeless.py").write_text(
        "class Agent:\n    def __init__(self, env, seed=0): ...\n    def reset(self, o, i): 1 / 0\n    act = reset\n"
    )
    line = command(tmp_path / "hopeless-v0")
    line[2] = f"{tmp_path}/hopeless.py:Agent"
    assert cli.main(line) == 1  # not one episode went well


def test_command_interrupted_keeps_what_is_finished(tmp_path, capsys):
    (tmp_path / "leaving.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(AGENTS).parents[2])!r})\n"
        "from tests.spatia_env.fast_env import Walker\n"
        "class Agent(Walker):\n"
        "    made = 0\n"
        "    def __init__(self, env, seed=0):\n"
        "        super().__init__(env, seed)\n"
        "        Agent.made += 1\n"
        "    def act(self, o, i):\n"
        "        if Agent.made == 4:\n"
        "            raise KeyboardInterrupt\n"
        "        return super().act(o, i)\n"
    )
    line = command(tmp_path / "walks-v0", episodes=5)
    line[2] = f"{tmp_path}/leaving.py:Agent"
    assert cli.main(line) == 130
    assert "2 of 5 episodes are kept, and the same command goes on" in capsys.readouterr().err
    assert minari.MinariDataset(tmp_path / "walks-v0" / "data").total_episodes == 2
    assert cli.main(line) == 0
    assert cli.main(command(tmp_path / "whole-v0", episodes=5)) == 0
    assert minari_contents(tmp_path / "walks-v0") == minari_contents(tmp_path / "whole-v0")


def test_command_stopped_by_the_env_keeps_what_is_finished(tmp_path, capsys):
    line = command(tmp_path / "walks-v0", "--env-option", "broken_seed=2", episodes=5)
    assert cli.main(line) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: out of memory" in said and "2 of 5 episodes are kept" in said
    assert minari.MinariDataset(tmp_path / "walks-v0" / "data").total_episodes == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--env": "NoSuchEnv-v0"}, "there is no env 'NoSuchEnv-v0'"),
        ({"--env": "no_such_module:Env-v0"}, "there is no env 'no_such_module:Env-v0'"),
        ({"--env": "SpatiaTruth-v0", "--task": "no-such-task"}, "there is no task 'no-such-task'; choose one of"),
        ({"--task": "no-such-task"}, "known are ['wander']"),
        ({"--task": '{"name": '}, "is no JSON"),
        ({"--task": "no_such.py:task"}, "'no_such.py' is no file"),
        ({"--env-option": "height=3"}, "FastWorld-v0 takes no height; it takes ['broken_seed', 'delay', 'render_mode', 'size', 'task']"),
        ({"--image": "photo.jpg"}, "takes no image"),
        ({"--env-option": "size"}, "give KEY=VALUE"),
        ({"--agent-option": "speed=3"}, "cannot be made (TypeError"),
        ({"--agent": f"{AGENTS}:Nobody"}, "has no class Nobody; its classes are"),
        ({"--agent": "no_such.py:Agent"}, "is no Python file"),
        ({"--episodes": "0"}, "--episodes is 0"),
        ({"--num-envs": "0"}, "--num-envs is 0"),
        ({"--max-steps": "-1"}, "--max-steps is -1"),
        ({"--seed": "-1"}, "--seed is -1"),
        ({"--format": "lerobot", "--infos": "poses"}, "a lerobot dataset has its fixed columns"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(tmp_path, capsys, change, message):
    line = command(tmp_path / "out")
    for name, value in change.items():
        if name in line:
            line[line.index(name) + 1] = value
        else:
            line += [name, value]
    assert cli.main(line) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert len([text for text in captured.err.splitlines() if "error:" in text]) == 1 and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


def test_without_the_libraries_the_install_line_is_told(tmp_path, capsys, monkeypatch):

    for name, arguments in (("minari", ()), ("pyarrow", ("--format", "lerobot")), ("ray", ("--ray", "local"))):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            assert cli.main(command(tmp_path / "out", *arguments)) == 1
        assert 'install it: pip install "spatia[' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(command(tmp_path)) == 1
    assert "exists and is no recording" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@needs_weights
@pytest.mark.weights
def test_weights_are_told_by_their_checksums():
    from spatia_env.commands.rollout import _weights
    from spatia_model.model_folder import EMBEDDED

    found = _weights(EnvRequest("SpatiaNav-v0"))
    assert found["config.json"] == hashlib.sha256((EMBEDDED / "spatia-mini" / "config.json").read_bytes()).hexdigest()
    assert len(found) > 1 and all(len(value) == 64 for value in found.values())
    assert _weights(EnvRequest("SpatiaTruth-v0")) == {}


def test_the_examples_of_the_document_run(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
    blocks = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    (reading,) = (block for block in blocks if "minari.load_dataset" in block)
    (recording,) = (block for block in blocks if "RecordEpisodes(" in block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    assert cli.main(command(tmp_path / "outputs" / "walks-v0", episodes=1)) == 0
    exec(compile(reading, "reading", "exec"), {})
    exec(compile(recording, "recording", "exec"), {})
    dataset = minari.MinariDataset(tmp_path / "outputs" / "truth-v0" / "data")
    assert dataset.total_episodes == 2 and dataset.total_steps == 6 and dataset.env_spec.id == "SpatiaTruth-v0"
