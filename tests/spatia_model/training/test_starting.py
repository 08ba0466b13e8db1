"""Stages that begin with the weights of a model's folder; beginning with a checkpoint is tested with the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spatia_model.generator.motion import MotionConfig, MotionPlanner
from spatia_model.model_folder import EMBEDDED, save_mini
from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig
from spatia_model.training.cli import TRAINED, _earlier
from spatia_model.training.starting import PARTS, start_from
from spatia_model.worlds import VOCABULARY
from tests.spatia_model.tiny import CONFIG, OPTIONS, tiny_parts

SMALL = {"width": 8, "layers": 1, "heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, MotionPlanner]:
    torch.manual_seed(0)
    planner = MotionPlanner(MotionConfig(VOCABULARY, **SMALL))
    save_mini(tmp_path / "model", CONFIG, OPTIONS, *tiny_parts(), planner)
    return tmp_path / "model", planner


def test_rows_of_a_table_go_with_their_words(folder):
    path, planner = folder
    words = ("ball", "unheard", "red")
    later = MotionPlanner(MotionConfig(words, **SMALL))
    fresh = later.embedding.weight.detach().clone()
    start_from(path, later, "motion")
    for own, old in ((0, 0), (1, 1 + VOCABULARY.index("ball")), (3, 1 + VOCABULARY.index("red"))):
        torch.testing.assert_close(later.embedding.weight[own], planner.embedding.weight[old], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(later.embedding.weight[2], fresh[2])
    torch.testing.assert_close(later.way.weight, planner.way.weight, atol=1e-3, rtol=1e-2)


def test_what_does_not_fit_starts_from_nothing(folder, capsys):
    path, planner = folder
    later = MotionPlanner(MotionConfig(VOCABULARY, frames=4, **SMALL))
    fresh = later.way.weight.detach().clone()
    start_from(path, later, "motion")
    count = len(later.state_dict())
    assert f"motion: {count - 2} of {count} tensors start from" in capsys.readouterr().err
    torch.testing.assert_close(later.way.weight, fresh)
    torch.testing.assert_close(later.embedding.weight, planner.embedding.weight, atol=1e-3, rtol=1e-2)


def test_folders_without_such_weights_are_refused(folder):
    path, planner = folder
    with pytest.raises(ValueError, match="none has the name and shape"):
        start_from(path, torch.nn.Linear(2, 2), "vae")
    (path / "motion.safetensors").unlink()
    with pytest.raises(ValueError, match="no such file of weights"):
        start_from(path, planner, "motion")


def test_the_network_for_first_pictures_begins_with_the_folder_s_own_or_the_other_s(tmp_path):
    torch.manual_seed(0)
    first = CompactPerceptionConfig((8, 8), core=(32, 1))
    vae, transformer, text, plain, refiner = tiny_parts()
    both = CompactPerception(replace(plain.config, first=first))
    for perceiver, begins_with in ((plain, plain), (both, both.first)):
        save_mini(tmp_path / "model", CONFIG, OPTIONS, vae, transformer, text, perceiver, refiner)
        begun = CompactPerception(first)
        start_from(tmp_path / "model", begun, "first")
        for name, tensor in begins_with.state_dict().items():
            torch.testing.assert_close(begun.state_dict()[name], tensor, atol=0.02, rtol=0.02)  # of 8 bits
        assert perceiver is both or not torch.allclose(begun.stem.weight, both.first.stem.weight, atol=0.02)


def test_every_stage_has_its_part_of_a_folder():
    assert set(PARTS) == set(TRAINED)


def test_where_a_stage_begins(tmp_path):
    assert _earlier(None, "vae") == "" and _earlier(tmp_path, "vae") == ""  # a run that has not come to this stage
    (tmp_path / "perception.pt").touch()
    assert {_earlier(tmp_path, stage) for stage in ("first", "again")} == {str(tmp_path / "perception.pt")}  # which they branch off
    (tmp_path / "vae.pt").touch()
    assert _earlier(tmp_path, "vae") == str(tmp_path / "vae.pt")
    with pytest.raises(ValueError, match="no model"):
        _earlier(tmp_path / "nowhere", "vae")
    if (EMBEDDED / "spatia-mini" / "config.json").exists():
        assert _earlier(Path("spatia-mini"), "vae") == str(EMBEDDED / "spatia-mini")
