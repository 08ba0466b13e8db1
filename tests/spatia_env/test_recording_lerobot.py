"""Recording for LeRobot: what goes into a dataset comes out of it, read as plain Parquet and video."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from spatia_env.recording import LeRobotWriter, RecordEpisodes
from spatia_env.recording.lerobot_stats import ImageCounts, merged, vector_stats
from tests.spatia_env.datasets import ID, decoded, lerobot_contents, walk
from tests.spatia_env.fast_env import FRAMES, FastWorld, Odd

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: rollouts) is not installed")


def frames_and_seconds(path: Path) -> tuple[int | None, float | None]:
    import imageio_ffmpeg

    return imageio_ffmpeg.count_frames_and_secs(str(path))


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


def test_lerobot_in_several_files_is_the_same_dataset(tmp_path):
    for name, limit in (("one", 200.0), ("many", 1e-9)):
        env = RecordEpisodes(gym.make(ID), LeRobotWriter(tmp_path / name, video_mb=limit))
        walk(env, 3)
        env.close()
    assert len(list((tmp_path / "many" / "data").rglob("*.parquet"))) == len(list((tmp_path / "many" / "videos").rglob("*.mp4"))) == 3
    assert lerobot_contents(tmp_path / "one") == lerobot_contents(tmp_path / "many")
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
    assert lerobot_contents(folder) == lerobot_contents(tmp_path / "whole")
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
