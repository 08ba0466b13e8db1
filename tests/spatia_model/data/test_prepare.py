"""From one video to clips: what a clip holds is true, and a video that is no use says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spatia_model.data.prepare.build import build, resample
from spatia_model.data.prepare.footage import BadFootage
from spatia_model.geometry import se3
from tests.spatia_model.data import footage_files as files
from tests.spatia_model.data.wall_videos import SETTINGS, tools, wall_footage


def test_a_clip_shows_what_the_cloud_knows_where_it_is():
    """The projection agrees with the true frames, the latents are those frames', the references see the same wall."""
    held = tools(vae=True)
    built = build(wall_footage(), replace(SETTINGS, pictures="png"), held)
    assert len(built.clips) == 2 and not built.dropped and len(built.panels) == 2
    rgb, depth = files.wall(files.path(33), 32, 32)
    for clip in built.clips:
        rows = list(clip.frame_numbers)
        assert len(rows) == 13 and rows == list(range(rows[0], rows[0] + 13))
        assert torch.equal(clip.frames, rgb[rows]) and torch.equal(clip.T_world_camera, files.path(33)[rows])
        assert clip.projection_depth is not None
        seen = clip.projection_depth > 0
        assert seen.float().mean() > 0.5
        off = (clip.projection_depth.float() / depth[rows] - 1).abs()[seen]
        assert float(off.median()) < 0.02
        picture = (clip.projection_frames.float() - rgb[rows].float()).abs().mean(-1)
        shuffled = (clip.projection_frames.float() - rgb[rows].float().roll(7, 2)).abs().mean(-1)
        assert float(picture[seen].mean()) < 0.6 * float(shuffled[seen].mean())
        assert clip.cloud_frame in clip.candidate_frames and not set(clip.candidate_frames) & set(rows[5:])
        assert clip.reference_frames and set(clip.reference_frames) <= set(clip.candidate_frames)
        assert torch.equal(clip.reference_poses, files.path(33)[list(clip.reference_frames)])
        assert (clip.reference_iou >= SETTINGS.threshold).all()
        assert torch.equal(clip.latents, held.latents(rgb[rows]))
        assert torch.equal(clip.references, held.references(rgb[list(clip.reference_frames)]))
        assert clip.holes.shape[0] == 8 and torch.equal(clip.uncovered, held.shares(~seen))
        assert clip.preceding == 5 and clip.fps == pytest.approx(8.0) and clip.provenance["scale_from"] == "given"


def test_windows_follow_on_each_other():
    a, b = build(wall_footage(), SETTINGS, tools()).clips
    assert b.frame_numbers[:5] == a.frame_numbers[-5:] and b.number == a.number + 1


def test_what_moves_is_in_no_cloud_and_in_the_marks():
    mask = torch.zeros(33, 32, 32)
    mask[:, 8:24, 8:24] = 1
    moving = build(wall_footage(dynamic=lambda n: mask[list(n)]), replace(SETTINGS, pictures="png"), tools(vae=True)).clips[0]
    still = build(wall_footage(), replace(SETTINGS, pictures="png"), tools(vae=True)).clips[0]
    assert moving.provenance["points"] < 0.8 * still.provenance["points"]
    assert moving.dynamic is not None and moving.moving is not None and moving.holes is not None
    assert moving.dynamic[:, 8:24, 8:24].all() and not moving.dynamic[:, :8].any()
    assert (moving.moving[:, 1:3, 1:3] == 255).all() and not still.moving.any()
    assert moving.holes[4:, :2].any() and not moving.holes[4:, 2:].any()  # motion is known of the history only


def test_poses_of_unknown_unit_are_brought_to_metres():
    poses = files.path(33)
    poses[:, :3, 3] /= 5.0
    clip = build(
        wall_footage(T_world_camera=poses, depth=None, dynamic=None, metric=False), replace(SETTINGS, pictures="png"), tools()
    ).clips[0]
    assert clip.provenance["scale_from"] == "matched" and clip.provenance["scale"] == pytest.approx(5.0, rel=0.15)
    assert clip.projection_depth is not None
    seen = clip.projection_depth > 0
    assert (
        float((clip.projection_depth.float() / files.wall(files.path(33), 32, 32)[1][list(clip.frame_numbers)] - 1).abs()[seen].median())
        < 0.05
    )


def test_poses_are_estimated_where_there_are_none():
    clip = build(wall_footage(T_world_camera=None, intrinsics=None, depth=None, dynamic=None, metric=False), SETTINGS, tools()).clips[0]
    true = files.path(33)[list(clip.frame_numbers)]
    assert torch.allclose(se3.inverse(clip.T_world_camera[:1]) @ clip.T_world_camera, se3.inverse(true[:1]) @ true, atol=1e-3)
    assert clip.provenance["poses"] == "estimated"


def test_the_choice_depends_on_the_video_and_the_seed_alone():
    a, b, c = (build(wall_footage(45), replace(SETTINGS, seed=seed), tools()) for seed in (0, 0, 1))
    assert [x.cloud_frame for x in a.clips] == [x.cloud_frame for x in b.clips]
    assert [(x.number, x.cloud_frame) for x in a.clips] != [(x.number, x.cloud_frame) for x in c.clips]
    assert len(a.clips) == 2  # of five


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        (
            {"times": torch.arange(9).double() / 8, "T_world_camera": None, "intrinsics": None},
            {},
            "no shot of 13 frames at 8 a second: the longest has 9",
        ),
        ({"depth": None, "dynamic": None}, {"perceiver": False}, "no depth, and there is no perceiver.*--perceiver"),
        ({"T_world_camera": None}, {"perceiver": False}, "no poses, and there is no perceiver"),
    ],
)
def test_videos_that_cannot_be_used_say_why(changes, given, message):
    with pytest.raises(BadFootage, match=message):
        build(wall_footage(**changes), SETTINGS, tools(**given))


def test_windows_that_are_no_use_are_counted():
    built = build(wall_footage(T_world_camera=torch.eye(4, dtype=torch.float64).repeat(33, 1, 1)), SETTINGS, tools())
    assert not built.clips and dict(built.dropped) == {"camera stands still": 2}
    far = torch.full((33, 32, 32), 90.0)
    built = build(wall_footage(depth=lambda n: far[list(n)]), SETTINGS, tools())
    assert not built.clips and set(built.dropped) <= {"empty cloud", "camera stands still"}


def test_a_video_is_taken_at_the_rate_asked_for():
    times = torch.arange(97).double() / 24
    assert resample(times, 8.0) == list(range(0, 97, 3))
    assert resample(times, 30.0) == list(range(97))
    uneven = torch.tensor([0.0, 0.1, 0.11, 0.25, 0.37, 0.38, 0.5], dtype=torch.float64)
    assert resample(uneven, 8.0) == [0, 1, 3, 4, 6] or resample(uneven, 8.0)[0] == 0
