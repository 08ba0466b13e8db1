"""Stages for autoencoder and perception on tiny folders: what they draw, what they reward, that they reach every weight."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.data.procedural import ClipFolder
from spatia_model.generator.conditioning import to_model
from spatia_model.generator.vae import CompactVideoVAE
from spatia_model.model_folder import EMBEDDED
from spatia_model.perception.compact import CompactPerceptionConfig
from spatia_model.training.mini_run import kept_vae, load_vae
from spatia_model.training.pictures import PicturePool
from spatia_model.training.stage_perception import PerceptionStage, degrade, relative_cost, seen_from, zoom
from spatia_model.training.stage_vae import VAEStage, expose, measure_latents, reconstruction_loss
from spatia_model.worlds.trajectories import pose_from
from tests.spatia_model.data.fake_walks import write
from tests.spatia_model.generator.test_vae import TINY, build
from tests.spatia_model.tiny import SEED, picture
from tests.spatia_model.training.stage_checks import CONFIG, assert_learns, draw, pool, windows

# -- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_are_made_once(tmp_path):
    made = PicturePool(tmp_path / "deep" / "pool.npy", size=2, side=48)
    assert made.pictures.shape == (2, 48, 48, 3) and made.pictures.dtype == np.uint8
    assert made.pictures[0].std() > 2 and not np.array_equal(made.pictures[0], made.pictures[1])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["pool.npy"]
    again = PicturePool(tmp_path / "deep" / "pool.npy", size=99)
    np.testing.assert_array_equal(again.pictures, made.pictures)


def test_stills_are_crops(run):
    held, rng = pool(run), np.random.default_rng(SEED)
    for _ in range(5):
        crop = held.still(rng, 70)
        assert any(np.array_equal(crop, whole[y : y + 70, x : x + 70]) for whole in held.pictures for y in range(3) for x in range(3))


def test_pans_move_a_little_and_stay_in_the_picture(run):
    rng = np.random.default_rng(SEED)
    pans = [pool(run).pan(rng, 5, 32) for _ in range(6)]
    for pan in pans:
        assert pan.shape == (5, 32, 32, 3) and pan.dtype == np.uint8
        first, last = (np.abs(pan[0].astype(int) - pan[i]).mean() for i in (1, 4))
        assert first <= last + 1 and last < 80
    assert max(np.abs(pan[0].astype(int) - pan[4]).mean() for pan in pans) > 1


# -- VAE -------------------------------------------------------------------------------------------------------------


def vae_stage(run: Path, **options) -> VAEStage:
    clips = ClipFolder(run / "walks")
    return VAEStage(clips, clips, pool(run), TINY, crop=16, batch=(2, 1, 2), **options)


def test_the_vae_learns_from_clips_pans_and_stills(run):
    stage = vae_stage(run)
    assert_learns(stage)
    assert set(stage.loss(*draw())[1]) == {"clip", "still", "off"}


def plain_loss(decoded: torch.Tensor, frames: torch.Tensor, gradient: float, square: float, between: float) -> float:
    """Frame by frame."""
    count, total, weights = frames.shape[2], 0.0, 0.0
    for t in range(count):
        off = decoded[:, :, t] - frames[:, :, t]
        right, down = off[..., :, 1:] - off[..., :, :-1], off[..., 1:, :] - off[..., :-1, :]
        loss = (off**2 + 0.02**2).sqrt().mean() + square * (off**2).mean() + gradient * (right.abs().mean() + down.abs().mean())
        weight = 1.0 if t in (0, 4, 8) else between
        total, weights = total + weight * float(loss), weights + weight
    jumps = [decoded[:, :, t] - decoded[:, :, t - 1] - frames[:, :, t] + frames[:, :, t - 1] for t in range(1, count)]
    return total / weights + (gradient / 2 * float(torch.stack(jumps).abs().mean()) if jumps else 0.0)


@pytest.mark.parametrize("count", [1, 5, 9])
@pytest.mark.parametrize("weights", [(1.0, 4.0, 2.0), (0.5, 0.0, 1.0), (0.0, 1.0, 3.0)])
def test_what_drawing_badly_costs_equals_its_plain_statement(count, weights):
    generator = torch.Generator().manual_seed(SEED)
    decoded, frames = (torch.rand(2, 3, count, 4, 6, generator=generator) * 2 - 1 for _ in range(2))
    assert float(reconstruction_loss(decoded, frames, *weights)) == pytest.approx(plain_loss(decoded, frames, *weights), rel=1e-5)


def test_to_redraw_goes_on_from_what_is_kept(run):
    kept = build(TINY)
    stage = vae_stage(run, keeps=kept)
    assert stage.name == "redraw" and vae_stage(run).name == "vae"
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(stage.model.state_dict()[name], value)
    assert_learns(stage)
    assert not any(p.requires_grad for p in kept.parameters())


def test_to_redraw_pays_for_latents_that_leave(run):
    kept = build(TINY)
    stage = vae_stage(run, keeps=kept, near=3.0)
    assert stage.loss(*draw())[1]["left_clip"] < 1e-6  # nothing has changed yet
    with torch.no_grad():
        stage.model.enc_out.bias[: TINY.latent_channels] += 0.5 * kept.latent_std  # half a standard deviation, everywhere
    loss, figures = stage.loss(*draw())
    assert figures["left_clip"] == pytest.approx(0.5, abs=1e-4) and figures["left_still"] == pytest.approx(0.5, abs=1e-4)
    stage.near = 0.0
    assert float((loss - stage.loss(*draw())[0]).detach()) == pytest.approx(3.0 * 0.25, abs=1e-3)


def test_what_is_trained_after_the_vae_goes_part_of_the_way_to_sharp_pictures(tmp_path):
    first, again, sharp = (CompactVideoVAE().state_dict() for _ in range(3))
    torch.save(first, tmp_path / "vae-final.pt")
    assert_equal(load_vae(tmp_path).state_dict(), first)
    torch.save({"average": again}, tmp_path / "redraw.pt")
    assert_equal(load_vae(tmp_path).state_dict(), again)
    torch.save({"average": {f"vae.{name}": value for name, value in sharp.items()} | {"critic.x": torch.ones(1)}}, tmp_path / "decoder.pt")
    assert_equal(load_vae(tmp_path).state_dict(), {name: 0.8 * value + 0.2 * sharp[name] for name, value in again.items()})


def test_to_redraw_keeps_the_latents_of_the_model_it_starts_from(tmp_path):
    """Where stage vae never ran. What has run is not touched."""
    kept = kept_vae(tmp_path / "run", Path("spatia-mini"))
    expected = {name: value.float() for name, value in load_file(EMBEDDED / "spatia-mini" / "vae.safetensors").items()}
    assert_equal(kept.state_dict(), expected)
    assert_equal(load_vae(tmp_path / "run").state_dict(), expected)
    own = {name: value + 1 for name, value in expected.items()}
    torch.save(own, tmp_path / "run" / "vae-final.pt")
    assert_equal(kept_vae(tmp_path / "run", Path("spatia-mini")).state_dict(), own)
    with pytest.raises(ValueError, match="run the stage before it first .*--stage vae"):
        kept_vae(tmp_path / "none", None)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_some_clips_stand_still(run):
    stage, rng = vae_stage(run), np.random.default_rng(SEED)
    frames = torch.cat([next(stage.groups(rng)).frames for _ in range(12)])  # (N, 3, T, h, w)
    still = [bool((clip == clip[:, :1]).all()) for clip in frames]
    assert 0 < sum(still) < len(still) / 2


def test_latents_are_measured_to_unit_variance(tmp_path):
    write(tmp_path, SEED, clips=2, size=128)
    vae = build(dataclasses.replace(TINY, latent_channels=3))
    clips = ClipFolder(tmp_path / "walks")
    measure_latents(vae, clips, samples=6)
    rng = np.random.default_rng([0, 17])  # the very clips it measured
    latents = torch.cat([vae.encode(to_model(torch.from_numpy(clips.random_frames(rng, 9, 128))[None])) for _ in range(6)])
    flat = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones(3), atol=1e-3, rtol=0)


def test_a_clip_is_exposed_as_one(run):
    rng, still = np.random.default_rng(SEED), np.broadcast_to(picture().numpy(), (4, 32, 32, 3)).copy()
    out = [expose(rng, still) for _ in range(12)]
    assert all(clip.shape == still.shape and clip.dtype == np.uint8 for clip in out)
    assert all(np.array_equal(clip[0], frame) for clip in out for frame in clip)
    assert len({clip.tobytes() for clip in out}) > 3


def test_the_latents_motion_is_taught(run):
    """By itself: what is told comes nearer to the truth, and pans, whose motion nobody knows, teach nothing of it."""
    stage = vae_stage(run, gradient=0.0, motion=1.0)
    stage.batch = (4, 0, 1)
    groups = [next(stage.groups(np.random.default_rng(k))) for k in range(6)]
    assert any(bool(group.motion.known.any()) and group.motion.way.abs().max() > 0.5 for group in groups)  # things do move there
    stage.batch = (0, 2, 1)
    pans = next(stage.groups(np.random.default_rng(0)))
    assert not bool(pans.motion.known.any()) and float(pans.motion.off(torch.ones_like(pans.motion.way), torch.ones(()))) == 0


# -- perception ------------------------------------------------------------------------------------------------------


def perception_stage(run: Path) -> PerceptionStage:
    return PerceptionStage(windows(run), windows(run), pool(run), CompactPerceptionConfig((8, 8)), CONFIG, batch=3, stills=2)


def test_the_perceiver_learns_from_worlds_and_stills(run):
    stage = perception_stage(run)
    assert_learns(stage)
    with torch.no_grad():
        figures = stage.validate()
    assert {"abs_rel_prior", "abs_rel_empty", "dynamic_iou_prior", "dynamic_iou_empty", "called_still"} <= set(figures)


def test_without_evidence_what_may_move_is_to_be_told_by_its_looks(run):
    stage, rng = perception_stage(run), np.random.default_rng(SEED)
    x, depth, dynamic, _ = stage._world_sample(rng, plain=True, prior=False, evidence=False)
    assert dynamic.max() == 1 and x[:, 3:8].abs().max() == 0 and torch.equal(x[:, 8:11], x[:, :3])
    assert depth.min() > 0
    x, _, dynamic, _ = stage._world_sample(rng, plain=True)
    assert dynamic.max() == 1 and not torch.equal(x[:, 8:11], x[:, :3]) and x[:, 7].max() == 1


@pytest.mark.parametrize("only", ["", "first", "again"])
def test_a_stage_may_show_first_pictures_only_or_all_but_these(run, only):
    stage = PerceptionStage(
        windows(run), windows(run), pool(run), CompactPerceptionConfig((8, 8)), CONFIG, ClipFolder(run / "walks"), only=only
    )
    rng = np.random.default_rng(SEED)
    told = []
    for draw_one in (stage._world_sample, stage._view_sample, stage._still_sample):
        for _ in range(16):
            x = draw_one(rng)[0]
            told.append(bool((x[:, 7] > 0).any() or (x[:, :3] != x[:, 8:11]).any()))
    # a few have a map that shows nothing of them
    assert {"": 0.2 < np.mean(told) < 0.9, "first": not any(told), "again": np.mean(told) > 0.9}[only]
    with torch.no_grad():
        figures = stage.validate()
    assert ("abs_rel_empty" in figures) == (only != "again") and ("abs_rel_prior" in figures) == (only != "first")
    assert stage.name == (only or "perception")
    assert_learns(stage)


def test_what_a_wrong_depth_costs():
    """The relative error of depth, so between near and far near costs less; far beyond, no jump and no more than a steady slope."""
    over = torch.tensor([-3.0, -1.0, -0.01, 0.0, 0.01, 1.0, 1.7], requires_grad=True)
    cost = relative_cost(over)
    torch.testing.assert_close(cost, (over.exp() - 1).abs())
    assert float(relative_cost(torch.tensor(3.0))) > 10 * float(relative_cost(torch.tensor(-3.0)))
    far = torch.linspace(1.5, 4, 251, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(relative_cost(far).sum(), far)
    torch.testing.assert_close(slope, far.detach().exp().clamp(max=6.0))
    assert float(relative_cost(far.detach()).diff().max()) < 0.061


def test_each_sample_goes_to_the_network_that_it_is_for(run):
    stage = PerceptionStage(
        windows(run), windows(run), pool(run), CompactPerceptionConfig((8, 8), first=CompactPerceptionConfig((8, 8))), CONFIG
    )
    with torch.no_grad():
        for p in stage.model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    rng = np.random.default_rng(SEED)
    kinds = [(True, True), (False, False), (True, False), (False, False), (False, True)]
    x = torch.cat([stage._world_sample(rng, plain=True, prior=prior, evidence=evidence)[0] for prior, evidence in kinds])
    with torch.no_grad():
        found = stage._see(x)
        for i, told in enumerate(any(kind) for kind in kinds):
            for part, expected in zip(found, (stage.model if told else stage.model.first)(x[i : i + 1]), strict=True):
                torch.testing.assert_close(part[i : i + 1], expected, atol=1e-5, rtol=1e-5)
    stage.batch, stage.stills, stage.only = 2, 0, "first"
    stage.loss(*draw())[0].backward()  # no sample for one of the two
    assert all(p.grad is not None for p in stage.model.parameters())
    assert not any(p.grad.any() for name, p in stage.model.named_parameters() if not name.startswith("first."))
    assert any(p.grad.any() for p in stage.model.first.parameters())


def test_views_are_seen_alone(run):
    """First pictures of more worlds: the network's input has no memory and no earlier frame, and its rays fit the picture's pose."""
    stage, rng = perception_stage(run), np.random.default_rng(SEED)
    stage.views, stage.first, stage.remembered = ClipFolder(run / "walks"), 1.0, 0.0
    for _ in range(6):
        x, depth, dynamic, known = stage._view_sample(rng)
        assert x.shape == (1, 14, 32, 32) and depth.shape == dynamic.shape == known.shape == (1, 32, 32)
        assert x[:, 3:8].abs().max() == 0 and torch.equal(x[:, 8:11], x[:, :3]) and known.min() == 1 and depth.min() > 0
        assert set(dynamic.unique().tolist()) <= {0.0, 1.0} and x[:, 13].min() > 0  # every ray goes ahead
    stage.windows = None  # type: ignore[assignment]
    loss, _ = stage.loss(*draw())  # nothing but views and stills
    assert torch.isfinite(loss)


def test_of_some_views_a_part_is_remembered(run):
    """As a map would show it: the same surfaces at about the same depth, where a place close by saw them, nothing elsewhere."""
    stage, rng = perception_stage(run), np.random.default_rng(SEED)
    stage.views, stage.remembered = ClipFolder(run / "walks"), 1.0
    covered = []
    for _ in range(12):
        x, depth, _, known = stage._view_sample(rng)
        mask = x[:, 7] > 0.5
        covered.append(float(mask.float().mean()))
        assert set(x[:, 7].unique().tolist()) <= {0.0, 1.0} and known.min() == 1
        assert x[:, 3:7].abs().amax(1)[~mask].sum() == 0
        if mask.any():
            assert float((3.0 * x[:, 6].exp() / depth - 1).abs()[mask].median()) < 0.05
    assert 0.2 < sum(covered) / 12 < 0.98 and min(covered) < 0.9


def test_what_another_place_does_not_see():
    """A post before a wall: from its right the wall to its left is hidden; turned away, the picture's edge is out of view."""
    camera = mini_camera(MiniConfig(image_size=64))
    depth = torch.full((1, 64, 64), 4.0)
    depth[:, :, 28:36] = 1.5
    here = torch.eye(4, dtype=torch.float64)[None]
    assert bool(seen_from(depth, here, here, camera).all())
    aside = seen_from(depth, here, here @ pose_from(0.5, 0.0, 0.0, 0.0, 0.0, 0.0), camera)[0]
    focal = float(camera.K[0, 0])
    shift = round(focal * 0.5 * (1 / 1.5 - 1 / 4.0))  # columns by which the post moves against the wall
    hidden = torch.zeros(64, dtype=torch.bool)
    hidden[28 - shift : 36 - shift] = True
    out = torch.arange(64) < focal * 0.5 / 4.0 - 1  # the wall's left end is out of the picture
    wrong = aside != ~(hidden | out)
    assert float(wrong.float().mean()) < 0.06, "but for a column or two at the edges"
    turned = seen_from(depth, here, here @ pose_from(0.0, 0.0, 0.0, 0.35, 0.0, 0.0), camera)[0]
    assert not bool(turned[:, :8].any()) and bool(turned[16:48, 30:].all())


def test_stills_never_move_and_keep_the_memory_s_depth(run):
    stage, rng = perception_stage(run), np.random.default_rng(SEED)
    seen = [stage._still_sample(rng) for _ in range(12)]
    for x, depth, dynamic, known in seen:
        assert dynamic.abs().max() == 0 and set(known.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(known, x[:, 7])  # judged where there is a memory to keep to
        shown = 3.0 * x[:, 6].exp()
        assert known.sum() == 0 or ((shown - depth).abs() / depth)[known > 0].mean() < 0.05
    assert any(known.sum() for *_, known in seen)


def test_where_depth_is_not_known_none_is_taught(run):
    """A picture of nothing in particular without a memory says nothing of depth, of its edges neither."""
    stage = perception_stage(run)
    stage.batch, stage.stills = 0, 1
    learned = []

    def says(x):
        outputs = [torch.zeros(1, 32, 32, requires_grad=True) for _ in range(3)]
        learned.append((x[:, 7] > 0.5, outputs))
        return tuple(outputs)

    stage.model.forward = says
    for step in range(10):
        stage.loss(*draw(step))[0].backward()
    assert {bool(mask.any()) for mask, _ in learned} == {True, False}
    for mask, (log_depth, log_scale, logit) in learned:
        unknown = ~F.max_pool2d(mask.float()[None], 3, 1, 1)[0].bool()  # a known pixel's neighbours have an edge with it
        assert log_depth.grad[unknown].abs().sum() == 0 and log_scale.grad[~mask].abs().sum() == 0
        assert not mask.any() or log_depth.grad[mask].abs().sum() > 0
        assert logit.grad.abs().min() > 0  # that nothing moves is taught everywhere


def test_a_zoomed_sample_is_what_a_narrower_camera_would_see():
    """A floor's plane depth, rays and pictures are functions of the ray alone, so after zooming they must still agree."""
    from spatia_model.perception.compact import stack_inputs

    camera = mini_camera(CONFIG)
    pose = torch.eye(4, dtype=torch.float64)[None]
    x = stack_inputs(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), pose, camera, None, None)
    x[:, :3] = x[:, 11:14]  # the picture shows its own rays
    depth = 1.5 / (x[:, 12] + 1)
    x[:, 6] = depth.log()
    zoomed = 0
    for step in range(6):
        y, near, moving = zoom(draw(step)[0], x, depth, (x[:, 11] > 0).float())
        assert y.shape == x.shape and near.shape == depth.shape
        torch.testing.assert_close(y[:, :3], y[:, 11:14])
        torch.testing.assert_close(near, 1.5 / (y[:, 12] + 1), rtol=0.1, atol=0)  # nearest pixel
        torch.testing.assert_close(y[:, 6], near.log())  # the memory's depth keeps its edges, as the truth does
        assert torch.equal(moving[y[:, 11].abs() > 0.1] > 0, y[:, 11][y[:, 11].abs() > 0.1] > 0)
        span, whole = (float(z[:, 11].max() - z[:, 11].min()) for z in (y, x))
        assert 0.25 * whole < span <= whole + 1e-6
        zoomed += span < 0.9 * whole
    assert zoomed >= 2


def test_degraded_frames_look_like_the_frames():
    rng, frames = np.random.default_rng(SEED), picture()[None]
    out = [degrade(rng, frames, 1.0) for _ in range(4)]
    for x in out:
        assert x.shape == frames.shape and x.dtype == torch.uint8 and not torch.equal(x, frames)
        assert (x.float() - frames.float()).abs().mean() < 12
    assert torch.equal(degrade(rng, frames, 0.0), frames)
