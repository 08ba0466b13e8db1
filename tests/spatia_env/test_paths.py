"""Motion sentences and the release's path files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spatia_env.actions import pitch_of, twist_path
from spatia_env.paths import motion_path, parse_motion, read_intrinsics, read_prompts, read_w2c, whole_clips

EYE = torch.eye(4, dtype=torch.float64)
CASES = Path(__file__).parents[2] / "../shared/cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the sample cases of ../shared/cases are not here")


def test_the_sentence_of_the_manual():
    path = motion_path("forward 2, left 90, right 90", EYE, 8)
    assert path.shape == ((4 + 3 + 3) * 8, 4, 4)
    np.testing.assert_allclose(path[4 * 8 - 1, :3, 3], [0, 0, 2], atol=1e-12)
    np.testing.assert_allclose(path[7 * 8 - 1, :3, 2], [-1, 0, 0], atol=1e-12)  # looks left
    np.testing.assert_allclose(path[-1, :3, :3], np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("sentence", "where", "looks"),
    [
        ("back 1", (0, 0, -1), (0, 0, 1)),
        ("strafe left 0.6", (-0.6, 0, 0), (0, 0, 1)),
        ("strafe right 60 cm", (0.6, 0, 0), (0, 0, 1)),
        ("up 0.3m", (0, -0.3, 0), (0, 0, 1)),
        ("down .3", (0, 0.3, 0), (0, 0, 1)),
        ("turn right 45 degrees", (0, 0, 0), (math.sqrt(0.5), 0, math.sqrt(0.5))),
        ("Right 45, FORWARD 1 m", (math.sqrt(0.5), 0, math.sqrt(0.5)), (math.sqrt(0.5), 0, math.sqrt(0.5))),
        ("look up 30°; forward 1", (0, 0, 1), (0, -0.5, math.sqrt(0.75))),  # level ground
        ("look down 30 then right 90", (0, 0, 0), (math.sqrt(0.75), 0.5, 0)),  # about the vertical
        ("wait 2, forward 0.1\nwait 1", (0, 0, 0.1), (0, 0, 1)),
    ],
)
def test_motions(sentence, where, looks):
    last = motion_path(sentence, EYE, 8)[-1]
    np.testing.assert_allclose(last[:3, 3], where, atol=1e-12)
    np.testing.assert_allclose(last[:3, 2], looks, atol=1e-12)


def test_limits_per_clip_hold_and_clips_are_fewest():
    path = torch.cat([EYE[None], motion_path("forward 1.2, right 100, wait 1", EYE, 4)])
    assert len(path) == 1 + (3 + 4 + 1) * 4
    steps = torch.linalg.inv(path[:-1]) @ path[1:]
    assert float(steps[:, :3, 3].norm(dim=1).max()) <= 0.5 / 4 + 1e-12
    turns = torch.acos(((steps[:, :3, :3].diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert float(turns.max()) <= math.radians(30) / 4 + 1e-6
    assert pitch_of(path[-1]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "empty"),
        ("fly 3", "'fly 3' is not understood"),
        ("forward", "'forward' is not understood"),
        ("forward two", "not understood"),
        ("forward -1", "not understood"),
        ("forward nan", "not understood"),
        ("left 1 m", "'strafe left 1'"),
        ("forward 90 degrees", "counted in metres"),
        ("wait 1.5", "whole number"),
        ("forward 0", "goes nowhere"),
        ("forward 1000000", "5000 clips"),
        ("forward 1 left 90", "not understood"),
    ],
)
def test_sentences_that_make_no_sense(sentence, message):
    with pytest.raises(ValueError, match=message):
        motion_path(sentence, EYE, 8)


def test_amounts_are_metres_radians_and_clips():
    assert parse_motion("back 50 cm, look up 90, stay 3 clips") == [("back", 0.5), ("look up", math.pi / 2), ("wait", 3.0)]


@pytest.mark.parametrize("rows", [3, 4])
def test_w2c_round_trip(tmp_path, rows):
    rng = np.random.default_rng(0)
    poses = torch.stack([twist_path(EYE, rng.normal(size=6), 1)[-1] for _ in range(5)])
    lines = [json.dumps(np.linalg.inv(pose)[:rows].tolist()) for pose in poses.numpy()]
    file = tmp_path / "w2c.txt"
    file.write_text("\n".join(lines) + "\n\n")
    torch.testing.assert_close(read_w2c(file), poses, atol=1e-12, rtol=0)


def good_line() -> str:
    return json.dumps(np.eye(4).tolist())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("not json", "line 2 is not a JSON list"),
        ("[1, 2, 3]", r"line 2 has shape \(3,\)"),
        ("[[1, 0], [0]]", "line 2"),
        (json.dumps((np.eye(4) * 2).tolist()), "line 2 ends in the row"),
        (json.dumps((np.diag([2.0, 2, 2, 1])).tolist()), "line 2 is not a rotation"),
        (json.dumps((np.diag([1.0, 1, -1, 1])).tolist()), "line 2 is not a rotation"),
        (good_line().replace("0.0", "NaN", 1), "line 2 holds NaN"),
    ],
)
def test_w2c_files_that_are_none(tmp_path, bad, message):
    file = tmp_path / "w2c.txt"
    file.write_text(good_line() + "\n" + bad + "\n")
    with pytest.raises(ValueError, match=message):
        read_w2c(file)


def test_files_that_are_missing_or_empty(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    one = tmp_path / "one.txt"
    one.write_text(good_line())
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="at least 2"):
        read_w2c(one)
    for reader in (read_w2c, read_intrinsics):
        with pytest.raises(ValueError, match="is empty"):
            reader(empty)
        with pytest.raises(ValueError, match="cannot be read.*check the path"):
            reader(tmp_path / "none.txt")
        with pytest.raises(ValueError, match="cannot be read"):
            reader(binary)


def test_intrinsics(tmp_path):
    file = tmp_path / "intrinsics.txt"
    file.write_text("[0.82 1.46e0 0.499 0.5008]")
    assert read_intrinsics(file) == (0.82, 1.46, 0.499, 0.5008)
    for content, message in (("1029 1028 624 352", "divide pixels"), ("1 1 0.5", "3 numbers"), ("focal", "0 numbers")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_intrinsics(file)


def test_prompts(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("A cow grazes\u2014calmly.\n\nIt \u201cmoos\u201d.\n")
    assert read_prompts(str(file)) == ["A cow grazes-calmly.", 'It "moos".']
    assert read_prompts("a sunny kitchen") == ["a sunny kitchen"]
    assert read_prompts("") == [""]
    with pytest.raises(ValueError, match="does not exist"):
        read_prompts(str(tmp_path / "other.txt"))


@pytest.mark.parametrize(("frames", "clips"), [(8, 1), (9, 2), (16, 2), (1, 1)])
def test_the_last_clip_is_filled_by_standing_still(frames, clips):
    path = torch.stack([EYE * (k + 1) for k in range(frames)])
    cut = whole_clips(path, 8)
    assert [len(clip) for clip in cut] == [8] * clips
    joined = torch.cat(cut)
    torch.testing.assert_close(joined[:frames], path)
    torch.testing.assert_close(joined[frames:], path[-1:].expand(8 * clips - frames, 4, 4))


@needs_cases
def test_the_releases_cases():
    for folder in sorted(CASES.glob("case_*")):
        poses = read_w2c(folder / "w2c.txt")
        assert len(poses) == len((folder / "w2c.txt").read_text().splitlines())
        first = np.array(json.loads((folder / "w2c.txt").read_text().splitlines()[0]))
        np.testing.assert_allclose(poses[0].numpy() @ first, np.eye(4), atol=1e-6)
        fx, fy, cx, cy = read_intrinsics(folder / "intrinsics.txt")
        assert fx * 1248 == pytest.approx(fy * 704, rel=0.02)  # square pixels
        assert read_prompts(str(folder / "prompt.txt"))[0].startswith("A ")
