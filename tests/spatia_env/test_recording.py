"""Recording: what goes into a Minari dataset comes out of it, read by Minari itself; and whose folders are written to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from spatia_env.recording import EnvFace, LeRobotWriter, MinariWriter, RecordEpisodes
from tests.spatia_env.datasets import ID, walk
from tests.spatia_env.fast_env import FastWorld, Odd

minari = pytest.importorskip("minari", reason="minari (extra: rollouts) is not installed")
h5py = pytest.importorskip("h5py", reason="h5py (extra: rollouts) is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: rollouts) is not installed")


@pytest.fixture
def load(monkeypatch):
    """A dataset by folder, the way a user loads it."""

    def by_folder(folder: Path) -> Any:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder.parent))
        return minari.load_dataset(folder.name)

    return by_folder


# -- Minari ------------------------------------------------------------------------------------------------


def test_minari_gives_back_what_was_recorded(tmp_path, load):
    env = RecordEpisodes(gym.make(ID), MinariWriter(tmp_path / "walks-v0"))
    told = walk(env, 3)
    env.close()
    dataset = load(tmp_path / "walks-v0")
    assert dataset.id == "walks-v0" and list(minari.list_local_datasets()) == ["walks-v0"]
    assert dataset.total_episodes == 3 and dataset.total_steps == sum(len(episode["actions"]) for episode in told)
    assert dataset.observation_space == env.observation_space and dataset.action_space == env.action_space
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a checkout, spatia is on the path and not installed
        assert isinstance(dataset.recover_environment().unwrapped, FastWorld)
    for episode, found, metadata in zip(told, dataset, dataset.storage.get_episode_metadata(range(3)), strict=True):
        np.testing.assert_array_equal(found.observations, np.stack(episode["observations"]))
        np.testing.assert_array_equal(found.actions["camera"], np.stack([action["camera"] for action in episode["actions"]]))
        assert found.actions["text"] == [action["text"] for action in episode["actions"]]
        assert [*zip(found.rewards, found.terminations, found.truncations, strict=True)] == episode["results"]
        for key in ("frames", "poses", "K", "coverage", "memory_points"):
            expected = np.stack([np.asarray(info[key]) for info in episode["infos"]])
            np.testing.assert_array_equal(found.infos[key], expected)
            assert found.infos[key].dtype == expected.dtype
        assert found.infos["is_success"].tolist() == [info.get("is_success", False) for info in episode["infos"]]
        assert metadata["seed"] == metadata["id"] == found.id
        assert metadata["total_reward"] == pytest.approx(sum(result[0] for result in episode["results"]))
        assert bool(metadata["success"]) is episode["infos"][-1]["is_success"]
    sampled = dataset.sample_episodes(2)
    assert len(sampled) == 2 and len(dataset.filter_episodes(lambda one: len(one) > 0)) == 3


def test_a_folder_is_continued_and_an_open_episode_is_truncated(tmp_path, load):
    folder = tmp_path / "walks"  # a name that is no Minari id
    for round in range(2):
        env = RecordEpisodes(gym.make(ID), MinariWriter(folder))
        env.reset(seed=0)  # nothing happens in it
        walk(env, 1, first_seed=round)
        env.reset(seed=9)
        env.step({"camera": np.zeros(6, np.float32), "text": ""})
        env.close()
        env.close()  # twice is fine
    dataset = load(folder)
    assert dataset.id == "walks-v0" and dataset.total_episodes == 4
    assert [bool(episode.truncations[-1]) for episode in dataset] == [False, True, False, True]
    assert [int(metadata["seed"]) for metadata in dataset.storage.get_episode_metadata(range(4))] == [0, 9, 1, 9]


@pytest.mark.filterwarnings("ignore:left out of the dataset")  # pytest hands on those that do not match
def test_minari_with_odd_spaces_and_infos(tmp_path, load):
    env = RecordEpisodes(Odd(), MinariWriter(tmp_path / "odd-v0"))
    with pytest.warns(UserWarning, match="left out of the dataset.*thing") as warned:
        observation, _ = env.reset(seed=1)
        seen = [observation]
        for _ in range(3):
            seen.append(env.step(np.array([1, 2]))[0])
    assert sum("ragged" in str(one.message) for one in warned) == 1  # named once
    env.close()
    dataset = load(tmp_path / "odd-v0")
    (episode,) = dataset
    assert dataset.env_spec is None and dataset.observation_space == env.observation_space
    np.testing.assert_array_equal(episode.observations["view"], np.stack([one["view"] for one in seen]))
    assert episode.observations["rest"][0].tolist() == [one["rest"][0] for one in seen]
    np.testing.assert_array_equal(episode.observations["rest"][1], [one["rest"][1] for one in seen])
    assert episode.actions.tolist() == [[1, 2]] * 3 and episode.truncations.tolist() == [False, False, True]
    infos = episode.infos
    assert infos["distance"].tolist() == [0, 0.5, 1, 1.5]  # an integer first
    assert infos["late"].tolist() == [False, True, True, True]
    assert [note.decode() for note in infos["note"]] == ["begin", "", "", ""]
    assert infos["nested"]["a"].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert infos["nested"]["b"].tolist() == [-1, -1, -2, -3]
    assert infos["void"].shape == (4, 2, 0)
    assert "thing" not in infos and "none" not in infos and infos["ragged"].shape == (4, 1)


def test_values_are_cast_to_the_spaces_dtype(tmp_path):
    from spatia_env.recording.columns import Table

    with h5py.File(tmp_path / "table.hdf5", "w") as file:
        table = Table(file)
        table.declare(spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}))
        assert table.add({"a": [0.1, 0.2], "b": np.uint8(2)}) == set()
        assert table.add({"a": np.zeros(3), "b": 1}) == {"a"}  # of another shape
        table.close()
        assert file["a"].dtype == np.float32 and file["b"].dtype == np.int64
        np.testing.assert_array_equal(file["a"][0], np.array([0.1, 0.2], np.float32))
        assert np.isnan(file["a"][1]).all() and file["b"][:].tolist() == [2, 1]


def test_minari_keeps_the_infos_it_is_told_to(tmp_path, load):
    env = RecordEpisodes(gym.make(ID), MinariWriter(tmp_path / "few-v0", infos=("poses", "coverage")))
    walk(env, 1)
    env.close()
    (episode,) = load(tmp_path / "few-v0")
    assert set(episode.infos) == {"poses", "coverage"}


def test_what_an_env_writes_into_again_is_copied(tmp_path, load):
    class Reusing(FastWorld):
        def _see(self):
            observation, info = super()._see()
            if not hasattr(self, "kept"):
                self.kept, self.poses = np.zeros_like(observation), np.zeros_like(info["poses"])
            self.kept[...], self.poses[...] = observation, info["poses"]
            return self.kept, info | {"poses": self.poses}

    for writer in (MinariWriter(tmp_path / "reused-v0"), LeRobotWriter(tmp_path / "reused")):
        env = RecordEpisodes(Reusing(), writer)
        walk(env, 1)
        env.close()
    (episode,) = load(tmp_path / "reused-v0")
    plain = walk(gym.make(ID), 1)[0]
    np.testing.assert_array_equal(episode.observations, np.stack(plain["observations"]))
    poses = np.stack([info["poses"][-1] for info in plain["infos"]])
    np.testing.assert_array_equal(episode.infos["poses"][:, -1], poses)
    rows = pq.read_table(tmp_path / "reused" / "data" / "chunk-000" / "file-000.parquet")
    np.testing.assert_array_equal(np.array(rows["camera.pose"].to_pylist()).reshape(-1, 4, 4), poses[:-1])


# -- folders -----------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    face = EnvFace.of(gym.make(ID))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="exists and is no recording"):
        MinariWriter(other).open(face)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        MinariWriter(tmp_path / "file").open(face)
    with pytest.raises(ValueError, match="cannot write to"):
        MinariWriter(tmp_path / "file" / "below").open(face)
    ours = MinariWriter(tmp_path / "ours-v0", {"seed": 1})
    ours.open(face)
    with pytest.raises(ValueError, match="another process is recording"):
        MinariWriter(tmp_path / "ours-v0", {"seed": 1}).open(face)
    ours.close()
    with pytest.raises(ValueError, match="seed was 1, now 2"):
        MinariWriter(tmp_path / "ours-v0", {"seed": 2}).open(face)
    with pytest.raises(ValueError, match="holds a minari dataset, not lerobot"):
        LeRobotWriter(tmp_path / "ours-v0", {"seed": 1}).open(face)
    (tmp_path / "ours-v0" / "rollout.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        MinariWriter(tmp_path / "ours-v0", {"seed": 1}).open(face)


def test_an_episode_that_cannot_be_read_is_recorded_again(tmp_path):
    env = RecordEpisodes(gym.make(ID), MinariWriter(tmp_path / "walks-v0"))
    walk(env, 2)
    env.close()
    (tmp_path / "walks-v0" / "data" / "episodes" / "episode_00000001.hdf5").write_bytes(b"torn")
    writer = MinariWriter(tmp_path / "walks-v0")
    with pytest.warns(UserWarning, match="cannot be read"):
        writer.open(EnvFace.of(gym.make(ID)))
    assert writer.next_index == 1
    writer.close()


def test_a_spec_that_json_cannot_hold_is_left_out():
    gym.register(id="FastPictured-v0", entry_point=lambda picture=None: FastWorld())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EnvFace.of(gym.make("FastPictured-v0", picture=np.zeros(3))).spec is None
    del gym.registry["FastPictured-v0"]
    assert json.loads(str(EnvFace.of(gym.make(ID)).spec))["id"] == "FastWorld-v0"
