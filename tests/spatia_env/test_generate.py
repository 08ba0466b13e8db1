"""`spatia generate` on the release's inputs: case folders, paths, intrinsics, prompts, masks; and what is wrong with them."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from spatia_env import cli
from spatia_env.commands import common, generate
from spatia_env.inputs import find_case
from spatia_env.paths import read_intrinsics, read_w2c, resample, split_clips
from spatia_model.config import ReleaseConfig
from spatia_model.generator.fitting import Fit
from spatia_model.types import Perception
from tests.fakes import FakeWorld, reading
from tests.spatia_env.test_cli import frames_of

EYE = torch.eye(4, dtype=torch.float64)
CASES = Path(__file__).parents[2] / "../shared/cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the sample cases of ../shared/cases are not here")


class Watcher:
    """A perceiver that says what it was asked to perceive, and calls nothing moving."""

    def __init__(self):
        self.dynamic = []

    def perceive(self, frames, T_world_camera, camera, prior=None, previous=None):
        shape = frames.shape[:3]
        return Perception(torch.ones(shape), torch.ones(shape), torch.zeros(shape))


class World(FakeWorld):
    """The fake, with a perceiver that it asks as the real one does; `seen` holds what moved, frame by frame."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config or self.config
        self.perceiver, self.seen, self.calls = Watcher(), [], []

    def begin(self, image, prompt="", seed=0, camera=None):
        self.calls.append({"image": image, "prompt": prompt, "camera": camera})
        height, width = image.shape[:2]
        whole = (
            FakeWorld.begin(self, torch.zeros(24, 24, 3, dtype=torch.uint8), prompt, seed, camera) if (height, width) != (24, 24) else None
        )
        self.seen.append(self.perceiver.perceive(image[None], EYE[None], camera).dynamic)
        return whole or super().begin(image, prompt, seed, camera)

    def advance(self, state, path, text="", memory=True):
        self.calls.append({"text": text, "path": path})
        after, clip = super().advance(state, path, text, memory)
        height, width = self.calls[0]["image"].shape[:2]
        self.seen.append(self.perceiver.perceive(torch.zeros(len(path), height, width, 3, dtype=torch.uint8), path, None).dynamic)
        return after, clip


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(common, "load_world", lambda model, device: made)
    return made


@pytest.fixture
def case(tmp_path, picture) -> Path:
    """A case as the release lays it out: picture, 17 poses, intrinsics, prompt, mask."""
    folder = tmp_path / "case"
    folder.mkdir()
    Image.fromarray(picture).save(folder / "img.png")
    poses = [np.eye(4) for _ in range(17)]
    for k, pose in enumerate(poses):
        pose[0, 3] = -0.01 * k  # world to camera: the camera moves right
    (folder / "w2c.txt").write_text("\n".join(json.dumps(pose[:3].tolist()) for pose in poses))
    (folder / "intrinsics.txt").write_text("[0.5 0.66666 0.5 0.5]")
    (folder / "prompt.txt").write_text("a red ball rolls to the left")
    mask = np.zeros((90, 120), np.uint8)
    mask[:, 60:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def error_of(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "error:" in line]
    assert out == "" and "Traceback" not in err
    return line


def test_a_case_folder_is_enough(world, case, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("generate", case, "--out", out, "--json") == 0
    told = capsys.readouterr()
    assert "what the masks call moving" in told.err and "degrees" not in told.err  # its middle shows 74
    figures = json.loads(told.out)
    assert figures["frames"] == 17 and figures["clips"] == 2 and figures["masks"] == 1 and figures["fps"] == 8
    assert world.calls[0]["prompt"] == "a red ball rolls to the left" and [call["text"] for call in world.calls[1:]] == ["", ""]
    np.testing.assert_allclose(world.calls[1]["path"][:, 0, 3], 0.01 * np.arange(1, 9), atol=1e-9)
    np.testing.assert_allclose(world.calls[0]["camera"].K[0, 0], 60 / 90 * 24, rtol=1e-4)
    assert len(frames_of(out / "video.mp4")) == 17 and read_w2c(out / "w2c.txt").shape == (17, 4, 4)
    assert sorted(path.name for path in out.iterdir()) == ["figures.json", "memory.ply", "video.mp4", "w2c.txt"]
    # the mask is the picture's, cropped as it is: right half; later frames are the model's own business
    assert world.seen[0][0, :, 12:].all() and not world.seen[0][0, :, :12].any() and not torch.cat(world.seen[1:]).any()


def test_arguments_win_over_the_folders_files(world, case, tmp_path):
    assert run("generate", case, "--motion", "forward 0.5", "--prompt", "a sunny kitchen", "--out", tmp_path / "out") == 0
    assert len(world.calls) == 2 and world.calls[0]["prompt"] == "a sunny kitchen"
    assert float(world.calls[1]["path"][-1, 2, 3]) == pytest.approx(0.5)


def test_masks_frame_by_frame_follow_the_clips(world, case, tmp_path, capsys):
    masks = np.zeros((17, 90, 120), bool)
    masks[:, :, 60:] = (np.arange(17) % 2 == 1)[:, None, None]  # every other frame
    np.save(tmp_path / "masks.npy", masks)
    assert run("generate", case, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "out") == 0
    assert torch.cat(world.seen).flatten(1).any(1).tolist() == [False, True] * 8 + [False]
    world.seen.clear()
    assert run("generate", case, "--masks", tmp_path / "masks.npy", "--shared-masks", "--out", tmp_path / "out") == 0
    assert torch.cat(world.seen)[:, :, 12:].all()
    np.save(tmp_path / "masks.npy", masks[:5])
    assert "5 masks for 17 poses; give one (of the picture), one per pose" in error_of(
        capsys, "generate", case, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "out"
    )


def test_masks_follow_a_path_that_is_walked_at_its_own_rate(world, case, tmp_path):
    masks = np.zeros((17, 90, 120), bool)
    masks[8, :, 60:] = True  # pose 8 at 16 a second is half a second in: frame 4 at 8 a second
    np.save(tmp_path / "masks.npy", masks)
    assert run("generate", case, "--path-rate", 16, "--masks", tmp_path / "masks.npy", "--out", tmp_path / "out") == 0
    assert torch.cat(world.seen).flatten(1).any(1).nonzero().flatten().tolist() == [4]
    np.testing.assert_allclose(world.calls[1]["path"][:, 0, 3], 0.02 * np.arange(1, 9), atol=1e-9)


@pytest.mark.parametrize(("lines", "told", "texts"), [(1, "", [""] * 2), (3, "the last 1 are not used", ["line 0", "line 1"])])
def test_prompts_of_another_number_than_the_clips(world, case, tmp_path, capsys, lines, told, texts):
    (case / "prompt.txt").write_text("\n".join(f"line {k}" for k in range(lines)) + "\n\n")
    assert run("generate", case, "--out", tmp_path / "out") == 0
    assert told in capsys.readouterr().err
    assert [call["text"] for call in world.calls[1:]] == texts
    assert world.calls[0]["prompt"] == ("line 0" if lines == 1 else "")


def test_too_few_prompts_go_on_with_the_last(world, case, tmp_path, capsys):
    (case / "prompt.txt").write_text("a red ball\nthe ball rolls")
    assert run("generate", case, "--motion", "forward 2", "--out", tmp_path / "out") == 0
    assert [call["text"] for call in world.calls[1:]] == ["a red ball", "the ball rolls", "the ball rolls", "the ball rolls"]
    assert "2 lines for 4 clips; the last line holds for the other 2" in capsys.readouterr().err


def test_words_that_mean_nothing_to_the_model_are_told(world, case, tmp_path, capsys):
    assert run("generate", case, "--prompt", "a red zeppelin", "--out", tmp_path / "out") == 0
    assert "note: words that this model does not know: zeppelin" in capsys.readouterr().err


def test_a_prompt_beyond_what_the_model_reads_is_refused_before_any_work(world, case, tmp_path, capsys):
    reading(world, 6)
    told = error_of(capsys, "generate", case, "--out", tmp_path / "out")  # the case's prompt has seven words
    assert "the prompt: 7 known words" in told and "reads the first 6; shorten it" in told and world.calls == []
    texts = ("--prompt", "a red ball", "--event", "rolls to the left a")
    assert "--prompt and --event: 8 known words" in error_of(capsys, "demo", *texts, "--out", tmp_path / "out")


def test_max_frames_cuts_the_path(world, case, tmp_path, capsys):
    assert run("generate", case, "--max-frames", 9, "--out", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 9 and len(world.calls) == 2


@dataclass(frozen=True)
class Wide:
    """As the 5B's config: frames wider than high, a longer first clip, a shorter last one."""

    image_size: int = 24  # the fake asks for it
    image_shape: tuple[int, int] = (24, 48)
    frame_rate: float = 24.0
    frames_per_clip: int = 8

    def clip_lengths(self, frames: int) -> list[int]:
        return ReleaseConfig(first_frames=13, window_frames=13, history_frames=5).clip_lengths(frames)


def test_a_world_of_another_format_gets_the_pictures_middle_and_its_own_clips(monkeypatch, case, tmp_path):
    made = World(Wide())
    monkeypatch.setattr(common, "load_world", lambda model, device: made)
    monkeypatch.setattr(made, "advance", lambda state, path, text="", memory=True: wide_clip(made, state, path, text))
    assert run("generate", case, "--out", tmp_path / "out") == 0
    assert made.calls[0]["image"].shape == (24, 48, 3)
    camera = made.calls[0]["camera"]  # 120 x 60 of the 120 x 90 picture; 60 pixels of focal length
    np.testing.assert_allclose(camera.K[[0, 1], [0, 1]], [60 / 120 * 48, 60 / 60 * 24], rtol=1e-4)
    assert [len(call["path"]) for call in made.calls[1:]] == [12, 4]
    assert frames_of(tmp_path / "out" / "video.mp4")[0].shape == (24, 48, 3)
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["fps"] == 24
    assert made.seen[0][0, :, 24:].all() and not made.seen[0][0, :, :24].any()


def wide_clip(world: World, state, path, text):
    world.calls.append({"path": path, "text": text})
    after, clip = FakeWorld.advance(world, state, path, text)
    return after, replace(clip, frames=torch.zeros(len(path), 24, 48, 3, dtype=torch.uint8))


def test_the_5b_reads_prompts_in_any_script(monkeypatch):
    assert generate.reads_any_text(ReleaseConfig()) and not generate.reads_any_text(FakeWorld().config)


def test_a_large_perceiver_takes_the_models_place(monkeypatch):
    from spatia_model.perception import registry

    monkeypatch.setattr(registry, "build_perceiver", lambda config, device: (config, device))
    from tests.spatia_model.tiny import tiny_model

    world = tiny_model()
    changed = generate.with_perception(world, "today", "cpu")
    config, device = changed.perceiver
    assert config.frame_rate == 8 and config.every == 2 and device == "cpu" and changed.mapping.fuse_stride == 2
    assert world.perceiver is not changed.perceiver and changed.generator is world.generator

    large = SimpleNamespace(config=ReleaseConfig(), generator=SimpleNamespace(fit=Fit(offload="model")))
    config, device = generate.with_perception(large, "today", "cuda").perceiver
    assert config.every == 1 and config.offload and device == "cuda"  # every frame that it is handed; no room beside the 5B


def test_an_interrupted_walk_leaves_what_was_walked(world, case, tmp_path, monkeypatch, capsys):
    advance = world.advance

    def stop_in_the_second(state, path, text="", memory=True):
        if state.clip_count == 1:
            raise KeyboardInterrupt
        return advance(state, path, text, memory)

    monkeypatch.setattr(world, "advance", stop_in_the_second)
    (case / "mask.png").unlink()
    out = tmp_path / "out"
    assert run("generate", case, "--out", out) == 130
    assert "stopped after 9 of 17 frames" in capsys.readouterr().err
    figures = json.loads((out / "figures.json").read_text())
    assert figures["interrupted"] and figures["frames"] == 9 and len(frames_of(out / "video.mp4")) == 9
    assert len(read_w2c(out / "w2c.txt")) == 9 and not (out / "video.partial.mp4").exists()


def test_a_walk_that_fails_leaves_no_video(world, case, tmp_path, capsys):
    world.fail_next = True
    (case / "mask.png").unlink()
    assert run("generate", case, "--out", tmp_path / "out") == 1
    assert not list((tmp_path / "out").iterdir())


def broken(case: Path, name: str, content: str) -> Path:
    (case / name).write_text(content)
    return case


def test_inputs_that_are_wrong_are_named_before_any_work(world, case, tmp_path, capsys, picture):
    out = ("--out", tmp_path / "out")
    good = (case / "w2c.txt").read_text()
    rows = good.splitlines()
    sheared = json.dumps([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    for content, message in (
        ("\n".join([*rows[:3], "[1, 2"]), "line 4 is not a JSON list"),
        ("\n".join([*rows[:3], sheared]), "line 4 is not a rotation"),
        ("\n".join([*rows[:2], json.dumps([[1, 0], [0, 1]])]), r"line 3 has shape (2, 2)"),
        (rows[0], "holds 1 poses; a path needs at least 2"),
        (json.dumps([json.loads(row) for row in rows]), "line 1 has shape (17, 3, 4)"),
    ):
        assert message in error_of(capsys, "generate", broken(case, "w2c.txt", content), *out)
    broken(case, "w2c.txt", good)
    for content, message in (
        ("1029 1028 624 352", "divide pixels"),
        ("0.8 1.4 0.5", "3 numbers"),
        ("0.8 1 0.5 0.5\n0.9 1 0.5 0.5", "different camera"),
    ):
        assert message in error_of(capsys, "generate", broken(case, "intrinsics.txt", content), *out)
    broken(case, "intrinsics.txt", "0.5\n0.6666\n0.5\n0.5\n")  # four lines are one camera too
    for arguments, message in (
        (["--masks", tmp_path / "no.png"], "does not exist"),
        (["--masks", save_mask(tmp_path / "tall.png", 120, 90)], "expected the shape of the picture (120x90) or of the frames (24x24)"),
        (["--max-frames", 1], "--max-frames is 1"),
        (["--path-rate", 0], "--path-rate is 0"),
        (["--path-rate", 500], "shorter than one frame"),
        (["--motion", "forward 1", "--path-rate", 8], "a motion has its own pace"),
        (["--perception", "tomorrow"], "no perception preset 'tomorrow'"),
        (["--prompt", case / "none.txt"], "does not exist"),
    ):
        assert message in error_of(capsys, "generate", case, *arguments, *out)
    assert "there are none: give --masks" in error_of(capsys, "generate", case / "img.png", "--motion", "up 1", "--shared-masks", *out)
    assert "say where the camera goes" in error_of(capsys, "generate", case / "img.png", *out)
    assert world.advanced == 0 and not list((tmp_path / "out").iterdir())


def save_mask(path: Path, height: int, width: int) -> Path:
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = 255
    Image.fromarray(mask).save(path)
    return path


def test_odd_inputs_get_a_note(world, case, tmp_path, capsys):
    (case / "mask.png").unlink()
    (case / "intrinsics.txt").write_text("1.0 1.0 0.5 0.5")  # a square picture's
    leap = np.eye(4)
    leap[:3, 3] = [0, 0, -3]
    (case / "w2c.txt").write_text("\n".join(json.dumps(pose.tolist()) for pose in (np.eye(4), leap)))
    assert run("generate", case, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert "shows 41 degrees" in told and "what the masks" not in told
    assert "pixels of this 120x90 picture would be 0.75 times as wide as high" in told
    assert "the path jumps (up to 3.00 m at frame 1" in told


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "found none"), (("img.jpg", "img.png"), "found img.jpg, img.png"), (("img.jpg", "mask.png", "masks.npy"), "several masks")],
)
def test_folders_that_are_no_case(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        find_case(tmp_path)


def test_resampling_keeps_the_motion():
    path = torch.stack([EYE.clone() for _ in range(10)])
    for k in range(10):
        angle = 0.05 * k
        path[k, 0, 0] = path[k, 2, 2] = math.cos(angle)
        path[k, 0, 2], path[k, 2, 0] = math.sin(angle), -math.sin(angle)
        path[k, 0, 3] = 0.1 * k * k  # faster and faster
    same, rows = resample(path, 24, 24)
    torch.testing.assert_close(same, path, atol=1e-9, rtol=0)
    assert rows == list(range(10))
    third, rows = resample(path, 24, 8)
    torch.testing.assert_close(third, path[::3], atol=1e-9, rtol=0)
    assert rows == [0, 3, 6, 9]
    finer, rows = resample(path, 8, 24)
    assert len(finer) == 28 and rows[:4] == [0, 0, 1, 1]
    torch.testing.assert_close(finer[::3], path, atol=1e-9, rtol=0)
    between = torch.linalg.inv(finer[:-1]) @ finer[1:]
    torch.testing.assert_close(between[0], between[2], atol=1e-9, rtol=0)  # constant velocity between two poses


def test_clips_as_the_config_wants_them():
    path = EYE.repeat(200, 1, 1)
    assert [len(clip) for clip in split_clips(path[:193], ReleaseConfig())] == [120, 72, 1]
    assert [len(clip) for clip in split_clips(path[:12], FakeWorld().config)] == [8, 8]


def test_intrinsics_of_every_frame_are_one_camera_if_equal(tmp_path):
    file = tmp_path / "intrinsics.txt"
    file.write_text("[0.8 1.4 0.5 0.5]\n" * 5)
    assert read_intrinsics(file) == (0.8, 1.4, 0.5, 0.5)


@needs_cases
def test_the_releases_cases_are_understood():
    for folder in sorted(CASES.glob("case_*")):
        arguments = cli._parser("generate").parse_args(["generate", str(folder)])
        asked = generate.read_inputs(arguments)
        assert asked.whole is not None and asked.intrinsics is not None and len(asked.prompts) == 1 and asked.picture.size == (1248, 704)
        assert (asked.masks is not None) == (folder / "mask.png").exists()
        if asked.masks is not None:
            masks = generate.frame_masks(asked, False, len(asked.whole), None, (128, 128))
            assert 0.01 < float(masks.masks.float().mean()) < 0.2


def test_the_world_is_as_it_was(world, case, tmp_path):
    before = copy.copy(world.__dict__)
    assert run("generate", case, "--out", tmp_path / "out") == 0
    assert world.perceiver is before["perceiver"] and world.config is before["config"]
