"""Rollouts: what an episode depends on, and what an agent's and an env's mistakes cost."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from spatia_env.recording import EnvFace, LeRobotWriter, MinariWriter
from spatia_env.rollouts import BatchedWorlds, EnvRequest, SingleWorlds, collect, missing
from tests.fakes import FakeWorld
from tests.spatia_env.datasets import ID, minari_contents, run
from tests.spatia_env.fast_env import Clumsy, FastWorld, Stubborn, Walker

minari = pytest.importorskip("minari", reason="minari (extra: rollouts) is not installed")
pytest.importorskip("h5py", reason="h5py (extra: rollouts) is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: rollouts) is not installed")


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
    expected = minari_contents(tmp_path / "one")
    assert len(expected) == len(set(expected.values())) == 7
    for name in ("three", "pieces", "reseeded"):
        assert minari_contents(tmp_path / name) == expected
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
    assert minari_contents(tmp_path / "batched") == minari_contents(tmp_path / "single")
    run(tmp_path / "pieces", Nudger, request, 3, indices=[4, 2])  # fewer than worlds
    run(tmp_path / "pieces", Nudger, request, 2)
    assert minari_contents(tmp_path / "pieces") == minari_contents(tmp_path / "single")
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
    assert [minari_contents(tmp_path / "walker")[f"episode_{index:08d}"] for index in (0, 4)] == [
        minari_contents(tmp_path / "clumsy")[f"episode_{index:08d}"] for index in (0, 4)
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
