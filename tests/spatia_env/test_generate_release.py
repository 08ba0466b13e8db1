"""`spatia generate` with a converted folder, from the command line: files in the released layout, small and random, on the sample cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spatia_env import cli, paths, video
from spatia_env.commands import generate
from spatia_model.generator.release_pipeline import to_whole
from spatia_model.world_model import WorldModel
from tests.spatia_env.test_cli import frames_of
from tests.spatia_model.generator.tiny_release import LOOP, write_release

CASES = Path(__file__).parents[2] / "../shared/cases"
SEED = 2_000_810


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A converted folder whose loop is small too; the embedded perceiver looks at its frames."""
    place = tmp_path_factory.mktemp("release")
    base, spatia, sizes = write_release(place)
    command = ["convert", "--base", base, "--spatia", spatia, "--out", place / "model", "--dtype", "float32", "--architecture", sizes]
    assert cli.main([str(word) for word in (*command, "--perception", "embedded", "--json")]) == 0
    described = json.loads((place / "model" / "spatia.json").read_text())
    (place / "model" / "spatia.json").write_text(json.dumps(described | {"world": vars(LOOP)}))
    return place / "model"


@pytest.fixture
def written(monkeypatch) -> list[np.ndarray]:
    """The frames as they go into the video file, before it compresses them."""
    frames: list[np.ndarray] = []
    add = video.VideoWriter.add
    monkeypatch.setattr(video.VideoWriter, "add", lambda self, frame: frames.append(frame.copy()) or add(self, frame))
    return frames


@pytest.fixture(params=["case_1", "case_3", "drawn"])
def case(request, tmp_path, picture) -> Path:
    """The sample cases, and one that is always here, with a mask per pose."""
    if request.param != "drawn":
        if not CASES.exists():
            pytest.skip("the sample cases of ../shared/cases are not here")
        return CASES / request.param
    folder = tmp_path / "case"
    folder.mkdir()
    Image.fromarray(picture).save(folder / "img.png")
    poses = np.tile(np.eye(4), (30, 1, 1))
    poses[:, 0, 3] = -0.01 * np.arange(30)
    (folder / "w2c.txt").write_text("\n".join(json.dumps(pose[:3].tolist()) for pose in poses))
    (folder / "intrinsics.txt").write_text("[0.5 0.66666 0.5 0.5]")
    (folder / "prompt.txt").write_text("a sunny kitchen, 画面\na red ball rolls")
    masks = np.zeros((30, *picture.shape[:2]), bool)
    masks[:, :20, :20] = True
    np.save(folder / "masks.npy", masks)
    return folder


def test_the_video_is_one_decode_of_all_clips(folder, case, written, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["generate", case, "--model", folder, "--max-frames", 23, "--seed", SEED, "--out", out, "--device", "cpu", "--json"]
    assert cli.main([str(word) for word in arguments]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["decoded"] == "once" and figures["frames"] == 23 and figures["clips"] == 3 and figures["fps"] == 8
    assert figures["memory_points"] > 100 and figures["coverage"][0] > 0.2
    assert len(frames_of(out / "video.mp4")) == len(written) == 23 and written[0].shape == (32, 64, 3)
    assert np.allclose(paths.read_w2c(out / "w2c.txt"), new_path(case, 22, with_first=True), atol=1e-6)

    # the same walk by hand, all its latents in one decode of the autoencoder
    world = WorldModel.from_pretrained(folder)
    clips, frame = walk(world, case)
    latents = torch.cat([clip.latents for clip in clips], 1)[None]
    whole = to_whole(world.generator.vae.decode(latents))[0, :23].numpy()
    assert np.array_equal(np.stack(written), whole)
    row = np.concatenate([frame[None], *(clip.frames.numpy() for clip in clips)])
    assert not np.array_equal(whole[13:], row[13:])  # clips in a row are another video: each begins anew


def test_doctor_finds_the_folder_whole_and_the_machine_fit(folder, capsys):
    assert cli.main(["doctor", "--model", str(folder), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["state"] in ("runs", "runs slowly") and model["missing"] == [] and model["perception"] == "embedded"
    assert cli.main(["doctor", "--model", str(folder)]) == 0
    assert f"{folder}\n  runs" in capsys.readouterr().out


def new_path(case: Path, count: int, with_first: bool = False) -> torch.Tensor:
    poses = paths.read_w2c(case / "w2c.txt")[: count + 1]
    relative = torch.linalg.inv(poses[0]) @ poses
    return relative if with_first else relative[1:]


def walk(world, case):
    from spatia_env.inputs import find_case
    from spatia_model.geometry import se3
    from spatia_model.perception.user_masks import MaskedWorld, UserMasks, fit_masks, read_masks

    given = find_case(case)
    picture = Image.open(given.image).convert("RGB")
    frame = generate.cropped_picture(picture, LOOP.image_shape)
    camera = generate.cropped_camera(paths.read_intrinsics(given.intrinsics), picture.size, LOOP.image_shape)
    if given.masks:
        size = picture.size[::-1]
        world = MaskedWorld(world, UserMasks(fit_masks(read_masks(given.masks)[:23], size, LOOP.image_shape)))
    lines = paths.read_prompts(str(given.prompt))
    prompt, texts = (lines[0], [""] * 3) if len(lines) == 1 else ("", [*lines, lines[-1]])
    state = world.begin(torch.from_numpy(frame), prompt=prompt, seed=SEED, camera=camera)
    whole = paths.read_w2c(given.path)[:23]
    clips = []
    for path, text in zip((se3.inverse(whole[:1]) @ whole[1:]).split([12, 8, 2]), texts, strict=True):
        state, clip = world.advance(state, path, text)
        clips.append(clip)
    return clips, frame


def test_a_motion_and_an_interruption(folder, written, tmp_path, monkeypatch, picture):
    """Stopped in the second clip, the video holds the first; stopped in the first, the picture."""
    from spatia_model.release_world import ReleaseWorldModel

    Image.fromarray(picture).save(tmp_path / "picture.png")
    advance = ReleaseWorldModel.advance_batch
    for stop, frames in ((1, 13), (0, 1)):

        def stopping(self, states, *given, at=stop, **options):
            if states[0].clip_count == at:
                raise KeyboardInterrupt
            return advance(self, states, *given, **options)

        monkeypatch.setattr(ReleaseWorldModel, "advance_batch", stopping)
        written.clear()
        command = ["generate", tmp_path / "picture.png", "--motion", "forward 1, left 30", "--model", folder, "--out", tmp_path / "out"]
        assert cli.main([str(word) for word in command]) == 130
        assert len(written) == frames == json.loads((tmp_path / "out" / "figures.json").read_text())["frames"]
