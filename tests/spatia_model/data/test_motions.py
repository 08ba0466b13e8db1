"""What the planner learns from: the truth, in the axes it will be asked in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.data.motions import MotionFolder, clip_rows, make_motions, world_rows
from spatia_model.memory.entities import PAST
from spatia_model.training.stage_motion import MotionStage, said_otherwise
from spatia_model.worlds import VOCABULARY
from spatia_model.worlds.watching import inhabited, stands
from spatia_model.worlds.world import MOVING

SEED = 2_000_300
CONFIG = MiniConfig(image_size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("motions")
    make_motions(place, range(SEED, SEED + 2), CONFIG)
    return place


def test_rows_are_the_movers_in_view_and_a_thing_that_never_moves():
    world, camera = inhabited(SEED), mini_camera(CONFIG)
    times = 3.0 + torch.arange(9, dtype=torch.float64) / 8
    index, pose = next(stands(world, np.random.default_rng(0), times, 60, 1.0, 3.0, 0.3))
    rows = clip_rows(world, pose, camera, times, np.random.default_rng(1))
    seen = world.identities(pose[None], camera, times[:1])[0]
    movers = [int(k) - MOVING for k in seen.unique() if k >= MOVING and int((seen == k).sum()) >= 24]
    assert index in movers and len(rows) == len(movers) + 1
    expected = world.describe(pose.expand(9, 4, 4), camera, times)
    for (row, text), number in zip(rows, movers, strict=False):
        mover = world.movers[number]
        assert text == expected
        T_camera_world = torch.linalg.inv(pose)
        flat = torch.linalg.inv(pose[:3, :3]) @ (mover.position(times[1:]).double() - mover.position(times[:1]).double()).T
        assert bool((flat[0] * row["way"][:, 0] >= -1e-3).all())  # to the right of the camera is to the right of the level one
        torch.testing.assert_close(row["way"].norm(dim=1), flat.norm(dim=0).float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(row["past"][-1].norm(), (mover.position(times[:1] - PAST[-1] / 8) - mover.position(times[:1])).norm())
        centre = T_camera_world[:3, :3] @ mover.position(times[:1])[0].double() + T_camera_world[:3, 3]
        assert abs(float(row["place"].norm()) - float(centre.norm())) < 2.5 * mover.radius  # its near side is what is seen
        assert float(row["spread"]) < 2 * mover.radius
    still = rows[-1][0]
    assert not still["way"].any() and not still["past"].any()


def test_worlds_have_rows_both_ways():
    rows = world_rows(SEED + 1, CONFIG)
    moving = torch.stack([row["way"][-1] for row, _ in rows])
    assert len(rows) > 4 and len({text for _, text in rows}) > 1
    assert (moving.norm(dim=1) > 0.1).any() and (moving.norm(dim=1) == 0).any()


def test_an_interrupted_run_goes_on(folder, monkeypatch):
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{SEED}.safetensors"]
    before = files[0].read_bytes()
    make_motions(folder, range(SEED, SEED + 2), CONFIG)
    assert files[0].read_bytes() == before
    rows = MotionFolder(folder)
    with safe_open(files[0], framework="pt") as opened:
        assert rows.texts == json.loads(opened.metadata()["texts"])
    assert len(rows) == len(rows.rows["way"]) and rows.rows["way"].shape[1:] == (8, 3)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="make them first"):
        MotionFolder(tmp_path)


def test_captions_are_said_otherwise_but_still_say_the_same():
    text = "a room with red brick walls and a wooden floor . a blue ball rolls to the left . a tall lamp comes into view from the right"
    rng = np.random.default_rng(0)
    told = [said_otherwise(text, rng) for _ in range(400)]
    assert {known for _, known in told} == {True, False}
    for said, known in told:
        assert ("ball rolls" in said) == known  # what moves is named, or nothing is
        assert not known or "ball rolls to the left" in said or "ball rolls left" in said
    assert len({said for said, _ in told}) > 20
    two = "a room with red brick walls and a wooden floor . a blue ball rolls to the left . a red box slides away"
    for said, known in (said_otherwise(two, rng) for _ in range(200)):
        assert not known or ("blue ball" in said and "red box" in said)  # with two of them colours tell which


def test_the_stage_learns_and_validates(folder):
    torch.manual_seed(SEED)
    stage = MotionStage(MotionFolder(folder), MotionFolder(folder), VOCABULARY, batch=32)
    optimizer = torch.optim.AdamW(stage.model.parameters(), 5e-3)
    losses = []
    for step in range(60):
        loss, figures = stage.loss(np.random.default_rng(step), torch.Generator().manual_seed(step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert figures["error"] == pytest.approx(losses[-1])
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    assert all(p.grad is not None and bool(p.grad.any()) for p in stage.model.parameters())
    figures = stage.validate()
    assert set(figures) == {f"{name}_{kind}" for name in ("off", "right_way", "still") for kind in ("text", "past")}
    assert all(np.isfinite(value) for value in figures.values())
    picture = stage.sample()
    assert picture.dtype == np.uint8 and picture.shape == (256, 384, 3) and picture.any()
