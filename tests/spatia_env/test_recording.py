"""Recording: what goes into a dataset comes out of it, read by the format's own library or by plain Parquet."""

from __future__ import annotations

import json
import subprocess
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from spatia_env.recording import EnvFace, LeRobotWriter, MinariWriter, RecordEpisodes
from spatia_env.recording.lerobot_stats import ImageCounts, merged, vector_stats
from tests.spatia_env.fast_env import FRAMES, FastWorld

minari = pytest.importorskip("minari", reason="minari (extra: rollouts) is not installed")
h5py = pytest.importorskip("h5py", reason="h5py (extra: rollouts) is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: rollouts) is not installed")

ID = "tests.spatia_env.fast_env:FastWorld-v0"


def walk(env: gym.Env, episodes: int, first_seed: int = 0) -> list[dict[str, Any]]:
    """Episodes with random actions; everything that was seen and done."""
    told = []
    for seed in range(first_seed, first_seed + episodes):
        rng = np.random.default_rng(seed)
        observation, info = env.reset(seed=seed)
        episode = {"observations": [observation], "infos": [info], "actions": [], "results": []}
        over = False
        while not over:
            action = {"camera": rng.uniform(-1, 1, 6).astype(np.float32), "text": "go on" if rng.random() < 0.5 else ""}
            observation, reward, terminated, truncated, info = env.step(action)
            episode["observations"].append(observation)
            episode["infos"].append(info)
            episode["actions"].append(action)
            episode["results"].append((reward, terminated, truncated))
            over = terminated or truncated
        told.append(episode)
    return told


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


class Odd(gym.Env):
    """Spaces in spaces, and infos that come and go, change their kind, or have no fixed form."""

    observation_space = spaces.Dict(
        {"view": spaces.Box(0, 255, (40, 40, 3), np.uint8), "rest": spaces.Tuple((spaces.Discrete(5), spaces.Box(-1, 1, (), np.float64)))}
    )
    action_space = spaces.MultiDiscrete([3, 4])

    def _see(self, step: int) -> Any:
        view = self.np_random.integers(0, 256, (40, 40, 3), np.uint8)
        return {"view": view, "rest": (self.np_random.integers(5), np.array(self.np_random.random()))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._see(0), {
            "distance": 0,
            "note": "begin",
            "nested": {"a": np.arange(3)},
            "void": np.zeros((2, 0)),
            "thing": object(),
            "ragged": np.zeros(1),
        }

    def step(self, action):
        self.count += 1
        info = {
            "distance": 0.5 * self.count,
            "late": True,
            "nested": {"a": np.arange(3) + self.count, "b": -self.count},
            "void": np.zeros((2, 0)),
        }
        return self._see(self.count), 1, False, self.count == 3, info | {"ragged": np.zeros(1 + self.count), "none": None}


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


# -- LeRobot -----------------------------------------------------------------------------------------------


def frames_and_seconds(path: Path) -> tuple[int | None, float | None]:
    import imageio_ffmpeg

    return imageio_ffmpeg.count_frames_and_secs(str(path))


def decoded(path: Path) -> np.ndarray:
    import imageio.v2 as imageio

    with imageio.get_reader(str(path), format="FFMPEG") as reader:  # type: ignore[arg-type]
        return np.stack([np.asarray(frame) for frame in reader])  # type: ignore[attr-defined]


class Smooth(FastWorld):
    """Pictures that a video can hold: one grey level each, and one known pixel."""

    def _see(self):
        observation, info = super()._see()
        observation[...] = 10 * self._step + 20
        return observation, info


def test_lerobot_files_hold_what_was_recorded(tmp_path):
    folder = tmp_path / "walks"
    env = RecordEpisodes(Smooth(), LeRobotWriter(folder), task="walk about")
    told = walk(env, 3)
    env.close()
    info = json.loads((folder / "meta" / "info.json").read_text())
    lengths = [len(episode["actions"]) for episode in told]
    assert info["codebase_version"] == "v3.0" and info["fps"] == 8 / FRAMES and info["splits"] == {"train": "0:3"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, sum(lengths), 1)
    assert info["features"]["observation.image"]["dtype"] == "video" and info["features"]["action"]["shape"] == [6]
    rows = pq.read_table(folder / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(rows.column_names) == {key for key, feature in info["features"].items() if feature["dtype"] != "video"}
    found = {name: np.array(rows[name].to_pylist()) for name in rows.column_names}
    actions = np.concatenate([[action["camera"] for action in episode["actions"]] for episode in told])
    np.testing.assert_array_equal(found["action"].astype(np.float32), actions)
    assert found["text"].tolist() == [action["text"] for episode in told for action in episode["actions"]]
    np.testing.assert_allclose(found["next.reward"], [result[0] for episode in told for result in episode["results"]], rtol=1e-6)
    assert found["next.done"].tolist() == [result[1] for episode in told for result in episode["results"]]
    assert found["next.success"].tolist() == [bool(info.get("is_success")) for episode in told for info in episode["infos"][1:]]
    before = np.concatenate([[info["poses"][-1] for info in episode["infos"][:-1]] for episode in told])
    np.testing.assert_array_equal(found["camera.pose"].reshape(-1, 4, 4), before)
    np.testing.assert_allclose(found["observation.state"], np.c_[before[:, :3, 3], np.tile([0, 0, 0, 1.0], (len(before), 1))], atol=1e-6)
    assert found["camera.intrinsics"][0].tolist() == [20, 20, 16, 16]
    assert found["index"].tolist() == list(range(sum(lengths)))
    assert found["episode_index"].tolist() == np.repeat([0, 1, 2], lengths).tolist()
    frame_index = np.concatenate([np.arange(length) for length in lengths])
    assert found["frame_index"].tolist() == frame_index.tolist()
    np.testing.assert_allclose(found["timestamp"], frame_index / 2)
    video = folder / info["video_path"].format(video_key="observation.image", chunk_index=0, file_index=0)
    assert frames_and_seconds(video) == (sum(lengths), sum(lengths) / 2)
    shown = decoded(video)
    expected = np.concatenate([episode["observations"][:-1] for episode in told])
    assert np.abs(shown.astype(int) - expected).max() <= 3
    episodes = pq.read_table(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    starts = np.cumsum([0, *lengths])
    for number, row in enumerate(episodes):
        assert (row["episode_index"], row["length"], row["tasks"], row["seed"]) == (number, lengths[number], ["walk about"], number)
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (starts[number], starts[number + 1])
        assert row["videos/observation.image/from_timestamp"] == starts[number] / 2
        assert row["videos/observation.image/to_timestamp"] == starts[number + 1] / 2
    tasks = pq.read_table(folder / "meta" / "tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "__index_level_0__": ["walk about"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    for key in ("action", "observation.state", "next.reward", "timestamp", "index"):
        values = found[key].reshape(len(found[key]), -1).astype(np.float64)
        for name, expected in (("min", values.min(0)), ("max", values.max(0)), ("mean", values.mean(0)), ("std", values.std(0))):
            np.testing.assert_allclose(stats[key][name], expected, rtol=1e-5, atol=1e-6)
        assert stats[key]["count"] == [sum(lengths)]
    pictures = np.concatenate([episode["observations"][:-1] for episode in told]) / 255
    np.testing.assert_allclose(np.array(stats["observation.image"]["mean"]).reshape(3), pictures.mean((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(np.array(stats["observation.image"]["std"]).reshape(3), pictures.std((0, 1, 2)), atol=1e-9)
    assert not list((folder / ".episodes").iterdir())


def contents(folder: Path) -> dict[str, Any]:
    """All that a LeRobot dataset says, whatever files it is in."""
    info = json.loads((folder / "meta" / "info.json").read_text())
    data = [pq.read_table(path) for path in sorted((folder / "data").rglob("*.parquet"))]
    rows = [row for table in data for row in table.to_pylist()]
    episodes = [row for path in sorted((folder / "meta" / "episodes").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    kept = ("episode_index", "length", "tasks", "dataset_from_index", "dataset_to_index", "seed", "error", "rollout_index")
    pictures = [decoded(path) for path in sorted((folder / "videos").rglob("*.mp4"))]
    return {
        "counts": {key: info[key] for key in ("total_episodes", "total_frames", "total_tasks", "splits")},
        "rows": rows,
        "episodes": [{key: row[key] for key in kept} for row in episodes],
        "pictures": np.concatenate(pictures).tobytes(),
        "stats": {
            key: {name: np.round(np.asarray(value, float), 9).tolist() for name, value in found.items()}
            for key, found in stats_of(folder).items()
        },
    }


def stats_of(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "meta" / "stats.json").read_text())


def test_lerobot_in_several_files_is_the_same_dataset(tmp_path):
    for name, limit in (("one", 200.0), ("many", 1e-9)):
        env = RecordEpisodes(gym.make(ID), LeRobotWriter(tmp_path / name, video_mb=limit))
        walk(env, 3)
        env.close()
    assert len(list((tmp_path / "many" / "data").rglob("*.parquet"))) == len(list((tmp_path / "many" / "videos").rglob("*.mp4"))) == 3
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    last = pq.read_table(tmp_path / "many" / "meta" / "episodes" / "chunk-000" / "file-002.parquet").to_pylist()[0]
    assert last["data/file_index"] == last["videos/observation.image/file_index"] == last["meta/episodes/file_index"] == 2
    assert last["videos/observation.image/from_timestamp"] == 0


@pytest.mark.parametrize("moment", ["data", "videos", "episodes", "state", "units"])
def test_lerobot_publication_survives_a_crash_at_any_moment(tmp_path, monkeypatch, moment):
    from spatia_env.recording import lerobot_writer as module

    def record(folder: Path) -> None:
        writer = LeRobotWriter(folder)
        env = RecordEpisodes(gym.make(ID), writer)
        walk(env, 2 - writer.next_index, first_seed=writer.next_index)
        env.close()

    record(tmp_path / "whole")

    class Crash(BaseException):
        pass

    folder = tmp_path / "crashed"
    real_appear, real_write, real_remove = module.appear, module.write_atomically, module.remove

    def appear(temporary: Path, target: Path) -> None:
        real_appear(temporary, target)
        if moment != "state" and moment in target.parts:
            raise Crash

    def write(path: Path, text: str) -> None:
        real_write(path, text)
        if moment == "state" and path.name == "spatia.json":
            raise Crash

    def remove(path: Path) -> None:
        real_remove(path)
        if moment == "units" and not path.name.startswith("."):
            raise Crash

    with monkeypatch.context() as patched:
        for name, function in (("appear", appear), ("write_atomically", write), ("remove", remove)):
            patched.setattr(module, name, function)
        writer = LeRobotWriter(folder)
        env = RecordEpisodes(gym.make(ID), writer)
        walk(env, 2)
        with pytest.raises(Crash):
            env.close()
        writer.close()
    record(folder)
    assert contents(folder) == contents(tmp_path / "whole")
    assert not list((folder / ".episodes").iterdir())


def test_lerobot_statistics_match_plain_numpy():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 200, (5, 6, 7, 3), np.uint8)
    counts = ImageCounts()
    for frame in frames:
        counts.add(frame)
    found, pixels = counts.stats(), frames.reshape(-1, 3) / 255
    for name, expected in {"min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0)}.items():
        np.testing.assert_allclose(found[name].reshape(3), expected, atol=1e-12)
        assert found[name].shape == (3, 1, 1)
    for name, q in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        np.testing.assert_allclose(found[name].reshape(3), np.quantile(pixels, q, axis=0, method="inverted_cdf"), atol=1e-12)
    assert found["count"].tolist() == [5]
    values = rng.normal(size=(9, 4))
    whole, parts = vector_stats(values), merged(vector_stats(values[:2]), vector_stats(values[2:]))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-12)
    np.testing.assert_allclose(whole["q10"], np.quantile(values, 0.1, axis=0))
    expected = (2 * np.quantile(values[:2], 0.9, axis=0) + 7 * np.quantile(values[2:], 0.9, axis=0)) / 9
    np.testing.assert_allclose(parts["q90"], expected)


def test_lerobot_frame_times_are_exact_at_any_rate(tmp_path):
    """Streams joined without encoding again: frame k of all stands at k / fps."""
    import imageio_ffmpeg

    from spatia_env.recording.lerobot_video import StreamWriter, join

    streams = []
    for number, length in enumerate((3, 1, 4)):
        streams.append(tmp_path / f"{number}.h264")
        writer = StreamWriter(streams[-1], 32, 24)
        for k in range(length):
            writer.add(np.full((24, 32, 3), 30 * (number + k), np.uint8))
        writer.close()
    for fps in (1 / 3, 1, 24, 30):
        join(streams, tmp_path / "all.mp4", fps)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "all.mp4"), "-vf", "showinfo", "-f", "null", "-"]
        said = subprocess.run(command, capture_output=True, text=True).stderr
        times = [float(line.split("pts_time:")[1].split()[0]) for line in said.splitlines() if "pts_time:" in line]
        np.testing.assert_allclose(times, np.arange(8) / fps, atol=1e-4)
    with pytest.raises(OSError, match="ffmpeg could not write"):
        (tmp_path / "broken.h264").write_bytes(b"nonsense")
        join([tmp_path / "broken.h264"], tmp_path / "broken.mp4", 1)


def test_lerobot_says_what_it_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="LeRobot has no form for the observation 'rest' space"):
        RecordEpisodes(Odd(), LeRobotWriter(tmp_path / "odd"))
    assert not (tmp_path / "odd").exists()
    env = RecordEpisodes(gym.make("CartPole-v1", max_episode_steps=4), LeRobotWriter(tmp_path / "pole"))  # vectors and a discrete action
    env.reset(seed=0)
    for _ in range(4):
        env.step(1)
    env.close()
    rows = pq.read_table(tmp_path / "pole" / "data" / "chunk-000" / "file-000.parquet")
    assert rows["action"].to_pylist() == [1] * 4 and len(rows["observation.state"][0]) == 4
    assert rows["next.truncated"].to_pylist() == [False, False, False, True]


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
