"""The `spatia` command: help, results, and one clear line on error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatia_env import cli
from spatia_env.commands import common

ROOT = Path(__file__).resolve().parents[2]


def spatia(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}"}
    command = [sys.executable, "-m", "spatia_env.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def on_fake(monkeypatch, fake):
    """Commands that would load weights get a world without."""
    monkeypatch.setattr(common, "load_world", lambda model, device: fake)
    return fake


@pytest.fixture
def photo(tmp_path, picture) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path)
    return str(path)


def frames_of(path: Path) -> list[np.ndarray]:
    import imageio.v2 as imageio

    with imageio.get_reader(str(path), format="FFMPEG") as reader:  # type: ignore[arg-type]
        return [np.asarray(frame) for frame in reader]  # type: ignore[attr-defined]


def test_help_lists_every_command():
    done = spatia("--help")
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert name.split()[0] in done.stdout


@pytest.mark.parametrize("name", ["demo", "generate", "doctor"])
def test_each_help_has_examples(name):
    done = spatia(name, "--help")
    assert done.returncode == 0 and "examples:" in done.stdout and f"spatia {name}" in done.stdout


def test_doctor_prints_one_json_object():
    done = spatia("doctor", "--json")
    found = json.loads(done.stdout)
    assert found["packages"]["torch"] and found["python"].startswith("3.")
    assert done.returncode == (1 if found["missing"] else 0)


def test_a_command_whose_module_is_missing_breaks_alone(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "doctor", cli.Command("spatia_env.commands.nowhere", "nothing", "spatia doctor"))
    assert cli.main(["doctor"]) == 1
    assert "spatia doctor: error: this command needs spatia_env.commands.nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "no_such.jpg", "--motion", "forward 1"),
        ("generate", "PHOTO", "--motion", "fly 1"),
        ("generate", "PHOTO", "--path", "no_such.txt"),
        ("generate", "PHOTO", "--motion", "forward 1", "--fps", "0"),
        ("generate", "PHOTO", "--motion", "forward 1", "--prompt", "кухня"),
        ("demo", "--image", "no_such.jpg"),
        ("demo", "--image", "PHOTO", "--event", "мяч"),
        ("demo", "--image", "PHOTO", "--motion", "forward"),
    ],
)
def test_bad_input_is_one_line_on_stderr(arguments, on_fake, photo, tmp_path, capsys):
    arguments = [photo if word == "PHOTO" else word for word in arguments]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if "error:" in line]
    assert len(errors) == 1 and "Traceback" not in err and out == ""
    assert on_fake.advanced == 0


def test_unwritable_folder_is_told_before_any_work(on_fake, photo, tmp_path, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("")
    for command in (["demo"], ["generate", photo, "--motion", "forward 1"]):
        assert cli.main([*command, "--out", str(blocker / "out")]) == 1
        assert "cannot write to the folder" in capsys.readouterr().err
    assert on_fake.advanced == 0


def test_debug_shows_the_traceback(on_fake, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        cli.main(["generate", "no_such.jpg", "--motion", "forward 1", "--out", str(tmp_path), "--debug"])


def test_generate_along_a_motion(on_fake, photo, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["generate", photo, "--motion", "forward 0.5, right 45", "--prompt", "a kitchen", "--out", str(out), "--json"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)  # one object and nothing else
    assert figures == json.loads((out / "figures.json").read_text())
    assert "clip 3/3" in captured.err
    assert figures["clips"] == 3 and figures["frames"] == 25 and len(figures["coverage"]) == 3
    assert len(frames_of(out / "video.mp4")) == 25
    from spatia_env.paths import read_w2c
    from spatia_model.memory.point_memory import PointMemory

    assert len(PointMemory.load_ply(out / "memory.ply")) == figures["memory_points"]
    again = ["generate", photo, "--path", str(out / "w2c.txt"), "--out", str(tmp_path / "again"), "--prompt", "a kitchen"]
    assert cli.main(again) == 0  # the path it wrote is a path it reads, to the same video
    assert read_w2c(out / "w2c.txt").shape == (25, 4, 4)
    np.testing.assert_array_equal(frames_of(tmp_path / "again" / "video.mp4"), frames_of(out / "video.mp4"))


def test_generate_along_a_file_with_prompts_per_clip(on_fake, photo, tmp_path, monkeypatch):
    texts, cameras, paths = [], [], []
    advance, begin = on_fake.advance, on_fake.begin

    def watch_advance(state, path, text="", memory=True):
        texts.append(text)
        paths.append(path)
        return advance(state, path, text, memory)

    def watch_begin(image, prompt="", seed=0, camera=None):
        cameras.append(camera)
        return begin(image, prompt, seed)

    monkeypatch.setattr(on_fake, "advance", watch_advance)
    monkeypatch.setattr(on_fake, "begin", watch_begin)
    turn = np.eye(4)
    turn[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    turn[:3, 3] = [1, 2, 3]
    poses = []
    for k in range(12):  # the picture's pose and 11 frames, in a frame that is not the camera's own
        pose = np.eye(4)
        pose[2, 3] = -0.1 * k  # world to camera: the camera moves forward
        poses.append(pose @ turn)
    (tmp_path / "w2c.txt").write_text("\n".join(json.dumps(pose.tolist()) for pose in poses))
    (tmp_path / "intrinsics.txt").write_text("0.5 0.6666666666666666 0.5 0.5")  # of 120 x 90: 60 pixels both ways
    (tmp_path / "prompt.txt").write_text("a red ball\nthe ball rolls\n")
    arguments = ["generate", photo, "--path", str(tmp_path / "w2c.txt"), "--intrinsics", str(tmp_path / "intrinsics.txt")]
    assert cli.main([*arguments, "--prompt", str(tmp_path / "prompt.txt"), "--out", str(tmp_path / "out")]) == 0
    assert texts == ["a red ball", "the ball rolls"]
    assert len(frames_of(tmp_path / "out" / "video.mp4")) == 12  # the filling of the last clip is cut off
    np.testing.assert_allclose(np.concatenate(paths)[:11, 2, 3], 0.1 * np.arange(1, 12), atol=1e-9)
    size = on_fake.config.image_size
    np.testing.assert_allclose(cameras[0].K, [[60 / 90 * size, 0, size / 2], [0, 60 / 90 * size, size / 2], [0, 0, 1]], atol=1e-9)


def test_demo_walks_away_and_back(on_fake, photo, tmp_path, capsys):
    pytest.importorskip("spatia_model.geometry.overview", reason="spatia_model.geometry.overview is not here yet")
    assert cli.main(["demo", "--image", photo, "--out", str(tmp_path / "out"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["clips"] >= 14 and figures["event"]["text"] and figures["event"]["clip"] == figures["clips"] - 2  # the way back is whole
    assert len(figures["coverage"]) == figures["clips"] and figures["frames"] == 8 * figures["clips"]
    for figure in ("psnr_c", "ssim_c"):
        assert set(figures[figure]) == {"on", "off"}
    for name in ("demo.mp4", "demo.gif", "memory.ply", "figures.json"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    frames = frames_of(tmp_path / "out" / "demo.mp4")
    assert len(frames) == figures["frames"] + 1 and frames[0].shape[1] == 3 * 384
    with Image.open(tmp_path / "out" / "demo.gif") as gif:
        assert 10 < gif.n_frames <= 64  # type: ignore[attr-defined]


def test_demo_path_ends_where_it_began():
    from spatia_env.commands.demo import OUTWARD, there_and_back

    path = there_and_back(OUTWARD, 8).numpy()
    assert len(path) % 8 == 0 and len(path) >= 12 * 8
    np.testing.assert_allclose(path[-1], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(path[: len(path) // 2 - 1], path[len(path) // 2 : -1][::-1], atol=1e-12)


def test_figures_agree_with_scikit_image(picture):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image (extra: eval) is not installed")
    from spatia_env import psnr, ssim

    rng = np.random.default_rng(0)
    for strength in (2, 40):
        other = np.clip(picture + rng.normal(0, strength, picture.shape), 0, 255).astype(np.uint8)
        options = {"channel_axis": -1, "data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert ssim(picture, other) == pytest.approx(metrics.structural_similarity(picture, other, **options), abs=1e-6)
        assert psnr(picture, other) == pytest.approx(metrics.peak_signal_noise_ratio(picture, other), abs=1e-9)
    assert ssim(picture, picture) == pytest.approx(1) and psnr(picture, picture) == np.inf
    upper = np.arange(len(picture))[:, None] < np.full(picture.shape[1], 40)
    assert psnr(picture, other, upper) == pytest.approx(metrics.peak_signal_noise_ratio(picture[:40], other[:40]), abs=1e-9)
    assert psnr(picture, other, np.zeros_like(upper)) == np.inf
