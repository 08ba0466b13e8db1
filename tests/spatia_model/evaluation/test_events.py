"""Events: the detector sees true movers and nothing else, and the trials tell asked from unasked."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.evaluation import events
from spatia_model.evaluation.blobs import Look, blobs, chroma, found_near, look, passes
from spatia_model.evaluation.events import DETAILS, UNITS, evaluate_events, find_scene, leaning, motion_figures, place_figures, rate
from spatia_model.worlds import World
from spatia_model.worlds.palette import COLORS, MOVER_COLORS
from tests.spatia_model.evaluation.models import fake_model, tiny_model

SEEDS = range(2_000_500, 2_000_510)
CAMERA = mini_camera(MiniConfig())


@pytest.fixture(scope="module")
def scene() -> events.Scene:
    """The first scene with a mover whose two directions can be told apart."""
    for seed in SEEDS:
        found = find_scene(seed, CAMERA, 8)
        if found is not None and found.opposite is not None:
            return found
    raise AssertionError("no scene in ten worlds")


def player(*choices: World):
    """Draws the truth of worlds, one per clip, as if a model had made it."""
    count = 0

    def draw(conditioning, first):
        nonlocal count
        world = choices[min(count, len(choices) - 1)]
        count += 1
        path = conditioning.T_world_camera[len(conditioning.history) :]
        return world.render(path, CAMERA, (first + torch.arange(len(path), dtype=torch.float64)) / 8).rgb

    return draw


def picture(
    color: tuple[int, int, int], centre: tuple[int, int] = (32, 32), radius: int = 5, ground: tuple[int, int, int] = (150, 148, 140)
):
    frame = torch.tensor(ground, dtype=torch.uint8).expand(64, 64, 3).clone()
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    mask = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    frame[mask] = torch.tensor(color, dtype=torch.uint8)
    return frame, mask


def test_a_movers_colour_is_no_other_movers_and_no_furnitures() -> None:
    for name, color in MOVER_COLORS.items():
        sought = look(*picture(color))
        assert sought is not None
        for other, foreign in MOVER_COLORS.items():
            assert found_near(picture(foreign)[0], sought) == (other == name), (name, other)
        shaded = tuple(int(0.75 * c) for c in color)
        assert found_near(picture(shaded)[0], sought), name  # type: ignore[arg-type]
        for tones in COLORS.values():
            for tone in tones:
                assert not found_near(picture(tuple(int(255 * c) for c in tone))[0], sought), (name, tone)  # type: ignore[arg-type]
        pale = tuple(int(0.45 * c + 0.55 * g) for c, g in zip(color, (150, 148, 140), strict=True))
        assert not found_near(picture(pale)[0], sought), name  # type: ignore[arg-type]


def test_place_and_size_count() -> None:
    sought = look(*picture((222, 38, 32)))
    assert sought is not None and sought.area == pytest.approx(81, abs=2)
    assert np.allclose(sought.place, (32.5, 32.5))
    assert found_near(picture((222, 38, 32), (40, 36))[0], sought)
    assert not found_near(picture((222, 38, 32), (44, 32))[0], sought)
    assert not found_near(picture((222, 38, 32), radius=2)[0], sought)
    assert not found_near(picture((222, 38, 32), radius=10)[0], sought)
    assert look(picture((222, 38, 32))[0], torch.zeros(64, 64, dtype=torch.bool)) is None


def test_blobs_are_apart_and_largest_first() -> None:
    frame, _ = picture((36, 74, 224), (16, 20), 4)
    frame[picture((36, 74, 224), (48, 40), 6)[1]] = torch.tensor((36, 74, 224), dtype=torch.uint8)
    sought = Look(np.median(chroma(frame)[20:21, 16:17], axis=(0, 1)), 80, np.array([0.0, 0.0]))
    found = blobs(frame, sought)
    assert [np.round(centre).astype(int).tolist() for _, centre in found] == [[48, 40], [16, 20]]
    assert passes(chroma(frame), sought.chroma).sum() == sum(area for area, _ in found)


def test_controls_on_several_worlds() -> None:
    """The detector on true frames and on true frames without the mover."""
    truths, erased = [], []
    for seed in SEEDS[:5]:
        found = find_scene(seed, CAMERA, 8)
        if found is None:
            continue
        path, times = found.path[::4], events.frame_times(len(found.path))[::4]
        truth = found.world.render(path, CAMERA, times)
        looks = events.true_looks(found, truth, CAMERA, times, path)
        truths.append(rate(truth.rgb, looks))
        erased.append(rate(found.erased.render(path, CAMERA, times).rgb, looks))
    known = [t for t in truths if t is not None]
    assert len(known) >= 3
    assert sum(known) / len(known) > 0.95
    assert sum(e for e in erased if e is not None) / len(known) < 0.05


def test_truth_is_found_and_an_erased_mover_is_not(scene: events.Scene) -> None:
    good = place_figures(fake_model(player(scene.world)), scene, 0)
    # the warm trial goes back to the second clip, the unasked one to the first: the fake counts clips, so give each its own
    assert good["place_rate"] == good["place_rate_truth"] and good["place_rate_truth"] is not None and good["place_rate_truth"] > 0.9
    assert good["place_rate_frozen"] is not None and good["place_rate_frozen"] < good["place_rate_truth"]
    bad = place_figures(fake_model(player(scene.erased)), scene, 0)
    assert bad["place_rate"] == 0 and bad["place_rate_erased"] == 0 and bad["place_rate_truth"] == good["place_rate_truth"]


def test_asked_motion_is_told_from_the_opposite(scene: events.Scene) -> None:
    assert scene.opposite is not None

    def rates(first: World, second: World) -> dict:
        return motion_figures(_restarting(first, second), scene, 0)

    assert rates(scene.world, scene.opposite)["motion_rate"] == 1
    assert rates(scene.opposite, scene.world)["motion_rate"] == 0
    assert rates(scene.world, scene.world)["motion_rate"] == 0.5  # deaf to the text: chance
    lost = rates(scene.erased, scene.erased)
    assert rates(scene.world, scene.opposite)["motion_clear"] == 1 and rates(scene.world, scene.world)["motion_clear"] == 0.5
    still = scene.world.with_motion(scene.index, "still")
    assert rates(still, still)["motion_clear"] == 0
    assert lost["motion_rate"] == 0 and lost["motion_found"] == 0 and lost["motion_rate_truth"] == 1


def _restarting(*choices: World):
    """A fake whose clips each start at the first frame: trials are independent."""
    count = 0

    def draw(conditioning, first):
        nonlocal count
        world = choices[count]
        count += 1
        path = conditioning.T_world_camera[len(conditioning.history) :]
        return world.render(path, CAMERA, events.frame_times(len(path), 1)).rgb

    return fake_model(draw)


def test_a_mover_at_rest_counts_for_neither_side() -> None:
    asked = [Look(np.ones(3), 20, np.array([30.0 + 2 * t, 30.0])) for t in range(9)]
    opposite = [Look(np.ones(3), 20, np.array([30.0 - 2 * t, 30.0])) for t in range(9)]
    empty = torch.full((8, 64, 64, 3), 128, dtype=torch.uint8)
    assert leaning(empty, asked, opposite) is None


def test_leaning_is_a_share_of_the_way_between_the_two_motions() -> None:
    _, mask = picture((222, 38, 32))
    red = look(picture((222, 38, 32))[0], mask)
    assert red is not None

    def way(step: float) -> list[Look]:
        return [replace(red, place=np.array([32.5 + step * t, 32.5])) for t in range(9)]

    def shown(step: float) -> torch.Tensor:
        return torch.stack([picture((222, 38, 32), (32 + round(step * t), 32))[0] for t in range(1, 9)])

    for step, lead in ((2, 1.0), (-2, -1.0), (0, 0.0), (1, 0.5)):
        assert leaning(shown(step), way(2), way(-2)) == pytest.approx(lead, abs=1e-6)
    assert leaning(shown(2), way(2), way(2)) is None  # nothing to tell apart


def test_report_has_the_keys_and_repeats_itself() -> None:
    results = [evaluate_events(tiny_model(), worlds=1, seed=SEEDS[0]) for _ in range(2)]
    assert results[0] == results[1]
    assert {k for k in results[0] if not k.endswith("_ci95")} == {*UNITS, "config", "details"}
    assert set(results[0]["details"]) == {*DETAILS, *(f"{k}_ci95" for k in DETAILS)}
    json.dumps(results[0], allow_nan=False)
    with pytest.raises(ValueError, match="worlds"):
        evaluate_events(tiny_model(), worlds=0)


def test_command(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(events, "load_model", lambda args: tiny_model())
    parser = argparse.ArgumentParser()
    events.add_arguments(parser)
    assert events.run(parser.parse_args(["--worlds", "1", "--seed", str(SEEDS[0]), "--json", "--strips", str(tmp_path)])) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["config"]["worlds"] == 1 and "events: 1/1" in out.err
    assert (tmp_path / f"place_{SEEDS[0]}.png").is_file()
