"""Rollouts: what an episode depends on, what an agent's mistakes cost, and what the command says."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from spatia_env import cli
from spatia_env.agent_file import AgentFile
from spatia_env.recording import EnvFace, LeRobotWriter, MinariWriter
from spatia_env.rollouts import BatchedWorlds, EnvRequest, SingleWorlds, as_action, collect, info_of, missing
from tests.conftest import needs_weights
from tests.fakes import FakeWorld
from tests.spatia_env.fast_env import Clumsy, FastWorld, Stubborn, Walker

minari = pytest.importorskip("minari", reason="minari (extra: rollouts) is not installed")
h5py = pytest.importorskip("h5py", reason="h5py (extra: rollouts) is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: rollouts) is not installed")

ID = "tests.spatia_env.fast_env:FastWorld-v0"
AGENTS = str(Path(__file__).with_name("fast_env.py"))
ROOT_PATHS = f"{Path(__file__).parents[2]}:{Path(__file__).parents[2] / 'model'}"


def contents(folder: Path) -> dict[str, str]:
    """Episode to a digest of all that it holds."""
    found = {}
    for path in sorted((folder / "data" / "episodes").glob("episode_*.hdf5")):
        digest = hashlib.sha256()

        def take(name: str, item: Any, digest: Any = digest) -> None:
            digest.update(f"{name} {sorted((key, str(value)) for key, value in item.attrs.items())}".encode())
            if isinstance(item, h5py.Dataset):
                digest.update(np.asarray(item[()]).tobytes() if item.dtype.kind != "O" else b"|".join(item[()]))

        with h5py.File(path) as file:
            take("", file["episode"])
            file["episode"].visititems(take)
        found[path.stem] = digest.hexdigest()
    return found


def run(folder: Path, agent: type, request: EnvRequest, count: int, indices: Any = None, episodes: int = 7, seed: int = 5, **options: Any):
    """Collect into a Minari folder; returns the summaries in the order in which episodes ended."""
    writer = MinariWriter(folder)
    first = request.make()
    writer.open(request.face(first))
    worlds = request.worlds(count, first, bool(getattr(agent, "needs_world", False)))
    try:
        indices = missing(writer, episodes) if indices is None else indices
        return list(collect(worlds, agent, options, writer, indices, seed)), worlds
    finally:
        writer.publish()
        writer.close()
        worlds.close()


# -- episodes ----------------------------------------------------------------------------------------------


def test_an_episode_depends_on_its_seed_alone(tmp_path):
    request = EnvRequest(ID)
    run(tmp_path / "one", Walker, request, 1)
    run(tmp_path / "three", Walker, request, 3)
    run(tmp_path / "pieces", Walker, request, 2, indices=[6, 1])
    ended, _ = run(tmp_path / "pieces", Walker, request, 3)
    assert sorted(summary.index for summary in ended) == [0, 2, 3, 4, 5]
    Stubborn.made = 0
    run(tmp_path / "reseeded", Stubborn, request, 2)
    assert Stubborn.made == 2  # one per world
    expected = contents(tmp_path / "one")
    assert len(expected) == len(set(expected.values())) == 7
    for name in ("three", "pieces", "reseeded"):
        assert contents(tmp_path / name) == expected
    shifted, _ = run(tmp_path / "shifted", Walker, request, 1, indices=[0], seed=6)
    assert shifted[0].seed == 6
    plain = minari.MinariDataset(tmp_path / "one" / "data")
    moved = minari.MinariDataset(tmp_path / "shifted" / "data")
    np.testing.assert_array_equal(next(iter(moved)).observations, list(plain)[1].observations)


class Nudger:
    """For Spatia's own spaces."""

    def __init__(self, env: Any, seed: int = 0) -> None:
        assert env.action_space is not None and env.observation_space is not None
        self.space, self.rng, self.seed = env.action_space, np.random.default_rng(seed), seed

    def reset(self, observation: Any, info: dict[str, Any]) -> None:
        self.steps = 0

    def act(self, observation: Any, info: dict[str, Any]) -> Any:
        self.steps += 1
        if self.steps > 1 + self.seed % 3:
            raise RuntimeError("enough")  # episodes of different lengths
        if isinstance(self.space, spaces.Discrete):
            return self.rng.integers(6)
        return {"camera": self.rng.uniform(-0.5, 0.5, 6), "text": "a red ball rolls"}


@pytest.mark.filterwarnings("error:these words carry no meaning")  # nobody speaks for a world that rests
@pytest.mark.parametrize("env_id", ["Spatia-v0", "SpatiaNav-v0"])
def test_batched_worlds_give_the_episodes_of_single_ones(tmp_path, picture, env_id):
    model = FakeWorld()
    request = EnvRequest(env_id, {"model": model, "image": picture}, task="explore", max_steps=3)
    ended, single = run(tmp_path / "single", Nudger, request, 1)
    _, batched = run(tmp_path / "batched", Nudger, request, 3)
    assert isinstance(single, SingleWorlds) and isinstance(batched, BatchedWorlds)
    assert model.advanced == 2 * sum(summary.steps for summary in ended)  # a world without an agent costs nothing
    assert contents(tmp_path / "batched") == contents(tmp_path / "single")
    run(tmp_path / "pieces", Nudger, request, 3, indices=[4, 2])  # fewer than worlds
    run(tmp_path / "pieces", Nudger, request, 2)
    assert contents(tmp_path / "pieces") == contents(tmp_path / "single")
    (episode, *_) = minari.MinariDataset(tmp_path / "batched" / "data")
    assert episode.observations.dtype == np.uint8 and {"poses", "frames", "explored_area"} <= set(episode.infos)


def test_an_agent_that_needs_its_world_gets_a_whole_env(tmp_path, picture):
    class Looker(Nudger):
        needs_world = True

        def __init__(self, env: Any, seed: int = 0) -> None:
            super().__init__(env, seed)
            self.env = env

        def act(self, observation: Any, info: dict[str, Any]) -> Any:
            mark = self.env.unwrapped.snapshot()  # a planner looks ahead and goes back
            action = super().act(observation, info)
            self.env.step(action)
            self.env.unwrapped.restore(mark)
            return action

    request = EnvRequest("SpatiaNav-v0", {"model": FakeWorld(), "image": picture}, max_steps=3)
    _, worlds = run(tmp_path / "looking", Looker, request, 3)
    assert isinstance(worlds, SingleWorlds)
    run(tmp_path / "plain", Nudger, request, 1)
    looking, plain = (list(minari.MinariDataset(tmp_path / name / "data")) for name in ("looking", "plain"))
    for a, b in zip(looking, plain, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)


def test_an_agents_error_ends_its_own_episode_only(tmp_path):
    ended, _ = run(tmp_path / "clumsy", Clumsy, EnvRequest(ID), 3, episodes=8, seed=0)
    told = {summary.index: summary for summary in ended}
    assert sorted(told) == list(range(8))
    assert [told[index].error is None for index in range(8)] == [True, False, False, False] * 2
    assert told[1].error == "KeyError: 'lost my way'" and told[1].steps == 2
    assert "the agent returned {'camera': 'forwards'}; an action is an element of Dict" in str(told[2].error) and told[2].steps == 2
    assert told[3].error == "RuntimeError: cannot begin" and told[3].steps == 0
    assert all(told[index].truncated and not told[index].terminated for index in (1, 2, 3))
    dataset = minari.MinariDataset(tmp_path / "clumsy" / "data")
    assert [len(episode) for episode in dataset] == [told[index].steps for index in range(8)]
    for episode, metadata in zip(dataset, dataset.storage.get_episode_metadata(range(8)), strict=True):
        assert metadata.get("error") == told[episode.id].error and bool(metadata["truncated"]) is told[episode.id].truncated
        assert len(episode.observations) == len(episode) + 1
        if len(episode):
            assert bool(episode.truncations[-1]) is told[episode.id].truncated
    whole, _ = run(tmp_path / "walker", Walker, EnvRequest(ID), 1, indices=[0, 4], seed=0)
    assert [contents(tmp_path / "walker")[f"episode_{index:08d}"] for index in (0, 4)] == [
        contents(tmp_path / "clumsy")[f"episode_{index:08d}"] for index in (0, 4)
    ]


def test_lerobot_marks_errors_and_names_empty_episodes(tmp_path):
    writer = LeRobotWriter(tmp_path / "clumsy")
    env = gym.make(ID)
    writer.open(EnvFace.of(env))
    list(collect(SingleWorlds([env]), Clumsy, {}, writer, range(4), 0))
    writer.publish()
    assert [summary.index for summary in writer.empty] == [3]
    rows = pq.read_table(tmp_path / "clumsy" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [(row["episode_index"], row["rollout_index"], row["length"]) for row in rows[1:]] == [(1, 1, 2), (2, 2, 2)]
    assert [row["error"] is None for row in rows] == [True, False, False]
    steps = pq.read_table(tmp_path / "clumsy" / "data" / "chunk-000" / "file-000.parquet").to_pylist()
    last = [row for row in steps if row["episode_index"] == 1][-1]
    assert last["next.done"] and last["next.truncated"] and not last["next.success"]
    writer.close()
    again = LeRobotWriter(tmp_path / "clumsy")
    again.open(EnvFace.of(env))
    assert missing(again, 6) == [4, 5] and again.summaries[1].error == "KeyError: 'lost my way'"
    again.close()


def test_an_error_of_the_env_stops_the_run_and_keeps_what_is_finished(tmp_path):
    writer = MinariWriter(tmp_path / "broken-v0")
    env = FastWorld(broken_seed=7)
    writer.open(EnvFace.of(env))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(collect(SingleWorlds([env]), Walker, {}, writer, range(4), 5))
    assert sorted(writer.summaries) == [0, 1]
    assert not list((tmp_path / "broken-v0" / "data" / "episodes").glob(".*"))  # the open one leaves no trace
    writer.close()


# -- over Ray, as its driver sees it ---------------------------------------------------------------------------


class FakeRay:
    """As much of Ray as the driver calls, in this process: actors run when their results are asked for, and some die."""

    class exceptions:
        class RayActorError(Exception): ...

        class RayTaskError(Exception):
            cause: Exception | None = None

    def __init__(self, actors: int, deaths: int = 0) -> None:
        self.actors, self.deaths, self.alive, self.blocks = actors, deaths, 0, []

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": self.actors, "CPU": 64}

    def remote(self, made: type) -> Any:
        ray = self

        class Call:
            def __init__(self, function: Any) -> None:
                self.function = function

            def options(self, **options: Any) -> Call:
                return self

            def remote(self, *arguments: Any) -> Any:
                found = self.function(*arguments)
                if isinstance(found, Actor):
                    return found
                return ray.pieces(found, arguments) if hasattr(found, "__next__") else lambda: found

        class Actor:
            def __init__(self, *arguments: Any) -> None:
                ray.alive += 1
                self.real = made(*arguments)

            def __getattr__(self, name: str) -> Call:
                return Call(getattr(self.real, name))

        return Call(Actor)

    def pieces(self, found: Any, arguments: tuple[Any, ...]) -> Any:
        self.blocks.append(list(arguments[0]))
        dies = len(self.blocks) <= self.deaths

        def iterate() -> Any:
            for number, piece in enumerate(found):
                if dies and number == 3:  # in the middle of an episode's file
                    raise self.exceptions.RayActorError
                yield lambda piece=piece: piece

        return iterate()

    def wait(self, running: list[Any], num_returns: int) -> Any:
        return running[-1:], running[:-1]

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        return reference()

    def kill(self, actor: Any) -> None:
        self.alive -= 1


@pytest.mark.parametrize("deaths", [0, 2])
@pytest.mark.parametrize("writer_type", [MinariWriter, LeRobotWriter])
def test_episodes_come_whole_from_actors_and_again_from_others_when_one_dies(tmp_path, monkeypatch, writer_type, deaths):
    from spatia_env import rollouts_ray

    monkeypatch.setattr(rollouts_ray, "_PIECE", 1000)
    ray, writer = FakeRay(3, deaths), writer_type(tmp_path / "ray-v0")

    def todo(face: EnvFace) -> list[int]:
        writer.open(face)
        return missing(writer, 7)

    ended = list(rollouts_ray.collect_on_ray(ray, EnvRequest(ID), AgentFile.parse(f"{AGENTS}:Walker"), writer, todo, 5, 2))
    assert sorted(summary.index for summary in ended) == list(range(7)) and ray.alive == 0
    assert len(ray.blocks) == 4 + deaths  # blocks of two
    if writer_type is MinariWriter:
        run(tmp_path / "here", Walker, EnvRequest(ID), 1)
        assert contents(tmp_path / "ray-v0") == contents(tmp_path / "here")
    writer.publish()
    writer.close()
    assert not list((tmp_path / "ray-v0").rglob(".incoming*"))


def test_when_every_actor_dies_the_finished_episodes_stay(tmp_path):
    from spatia_env.rollouts_ray import collect_on_ray

    writer = MinariWriter(tmp_path / "ray-v0")

    def todo(face: EnvFace) -> list[int]:
        writer.open(face)
        return missing(writer, 4)

    with pytest.raises(OSError, match="every Ray actor has died"):
        list(collect_on_ray(FakeRay(2, deaths=9), EnvRequest(ID), AgentFile.parse(f"{AGENTS}:Walker"), writer, todo, 5, 2))
    assert 0 < len(writer.summaries) < 4
    writer.close()


# -- actions and agents ------------------------------------------------------------------------------------

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


# -- the command -------------------------------------------------------------------------------------------


def command(out: Path, *more: str, agent: str = "Walker", episodes: int = 3) -> list[str]:
    return ["rollout", "--agent", f"{AGENTS}:{agent}", "--env", ID, "--episodes", str(episodes), "--out", str(out), *more]


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
    before = contents(out)
    assert cli.main(line) == 0  # nothing is left to do
    assert contents(out) == before and json.loads(capsys.readouterr().out)["steps"] == found["steps"]
    line[line.index("--episodes") + 1] = "5"
    assert cli.main(line) == 0  # more of the same
    assert len(contents(out)) == 5 and before.items() <= contents(out).items()
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
    assert contents(tmp_path / "walks-v0") == contents(tmp_path / "whole-v0")


def test_command_stopped_by_the_env_keeps_what_is_finished(tmp_path, capsys):
    line = command(tmp_path / "walks-v0", "--env-option", "broken_seed=2", episodes=5)
    assert cli.main(line) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: out of memory" in said and "2 of 5 episodes are kept" in said
    assert minari.MinariDataset(tmp_path / "walks-v0" / "data").total_episodes == 2


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


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


def test_a_ray_address_that_does_not_answer(tmp_path, capsys):
    pytest.importorskip("ray", reason="ray (extra: ray) is not installed")
    for address, message in ((f"127.0.0.1:{free_port()}", "no Ray cluster answers at"), ("nonsense", "give host:port")):
        assert cli.main(command(tmp_path / "out", "--ray", address)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_start_is_told(tmp_path, capsys, monkeypatch):
    import sys
    from types import SimpleNamespace

    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    for address, message in (("local", "the local Ray cluster did not start (The current"), ("auto", "no Ray cluster answers at auto")):
        assert cli.main(command(tmp_path / "out", "--ray", address)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_libraries_the_install_line_is_told(tmp_path, capsys, monkeypatch):
    import sys

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
