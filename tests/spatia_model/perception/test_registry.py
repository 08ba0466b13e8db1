"""Perceivers by name."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from spatia_model import perception
from spatia_model.perception import registry
from spatia_model.perception.catalog import PACKAGES, WEIGHTS
from spatia_model.perception.mapanything import MODEL, MapAnythingPerceiver
from spatia_model.perception.naming import KEYE, QWEN
from spatia_model.perception.optional import MissingPackageError, at_work, require
from spatia_model.perception.protocols import DynamicMasker, EntityNamer, GeometryPerceiver, Perceiver
from spatia_model.perception.registry import PRESETS, PerceptionConfig, build_namer, build_perceiver, perception_config
from spatia_model.perception.segmentation import REFERDINO, SAM3
from spatia_model.perception.user_masks import UserMaskPerceiver, UserMasks

ROOT = Path(__file__).resolve().parents[3]


class Geometry:
    def estimate(self, frames, T_world_camera=None, camera=None, prior=None, moving=None):
        raise NotImplementedError


def test_a_config_is_a_preset_its_fields_or_itself():
    assert perception_config("paper") is PRESETS["paper"] and PRESETS["paper"].masks == "referdino"
    assert PRESETS["release"].every == 6 and PRESETS["release"].masks == "none"
    stored = json.loads(json.dumps(dataclasses.asdict(PRESETS["today"])))
    assert perception_config(stored) == PRESETS["today"]
    assert perception_config({"preset": "paper", "namer": "qwen3-vl"}) == dataclasses.replace(PRESETS["paper"], namer="qwen3-vl")
    assert perception_config({"namer": "fixed", "entities": "dog"}).entities == ("dog",)
    assert PerceptionConfig(frame_rate=8, reconstruction_rate=100).every == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("yesterday", "no perception preset 'yesterday'; known are release, paper, today"),
        ({"mask": "sam3"}, r"holds \['mask'\]; known are"),
        ({"geometry": "dust3r"}, "geometry = 'dust3r'; known are 'mapanything'"),
        ({"masks": "sam2"}, "masks = 'sam2'; known are 'none', 'sam3', 'referdino'"),
        ({"namer": "gpt"}, "namer = 'gpt'; known are"),
        ({"namer": "fixed"}, "none are given: entities="),
        ({"reconstruction_rate": 0}, "reconstruction_rate = 0"),
        ({"namer_frames": 0}, "namer_frames = 0"),
    ],
)
def test_bad_configs(given, message):
    with pytest.raises(ValueError, match=message):
        perception_config(given)


def test_parts_are_loaded_by_name_with_the_configs_models(monkeypatch):
    """Which class is asked for which weights; the classes' own loading is tested beside them."""
    from spatia_model.perception import mapanything, naming, segmentation

    asked = []

    def note(kind):
        return classmethod(lambda cls, *given, **named: asked.append((kind, given)) or kind)

    for module, name in ((mapanything, "MapAnythingPerceiver"), (naming, "QwenNamer"), (naming, "KeyeNamer")):
        monkeypatch.setattr(getattr(module, name), "from_pretrained", note(name))
    for name in ("Sam3Masker", "ReferDinoMasker"):
        monkeypatch.setattr(getattr(segmentation, name), "from_pretrained", note(name))
    built = build_perceiver("today", "cuda")
    assert (built.geometry, built.masker, built.every) == ("MapAnythingPerceiver", "Sam3Masker", 6)
    assert asked == [
        ("MapAnythingPerceiver", (MODEL, "cuda", False)),
        ("QwenNamer", (QWEN, "cuda", False, 4)),
        ("Sam3Masker", ("QwenNamer", SAM3, "cuda", False)),
    ]
    asked.clear()
    build_perceiver({"preset": "paper", "offload": True, "namer_model": "here", "referdino_repo": "there"}, "cuda")
    assert asked[1:] == [("KeyeNamer", ("here", "cuda", True, 4)), ("ReferDinoMasker", ("KeyeNamer", REFERDINO, "cuda", True, "there"))]
    asked.clear()
    assert build_perceiver("release").masker is None
    assert asked == [("MapAnythingPerceiver", (MODEL, "cpu", False))]
    assert build_perceiver("today", geometry=Geometry(), masker=built.masker).masker == "Sam3Masker"


def test_usual_weights_are_those_of_the_catalog():
    assert {MODEL, QWEN, KEYE, SAM3, REFERDINO} <= {weights.hub_id for weights in WEIGHTS.values()}
    assert all(package.install for package in PACKAGES.values()) and all(
        weights.size > 0 and weights.licence for weights in WEIGHTS.values()
    )


def test_fixed_names_need_no_model():
    namer = build_namer(PerceptionConfig(namer="fixed", entities=("Cow",)))
    assert namer.names(torch.zeros(1, 4, 4, 3, dtype=torch.uint8)) == ("cow",)
    assert isinstance(namer, EntityNamer)


def test_the_protocols_hold():
    stand_in = types.SimpleNamespace(infer=None)
    assert isinstance(MapAnythingPerceiver(stand_in), GeometryPerceiver)
    composed = perception.ComposedPerceiver(Geometry())
    assert isinstance(composed, Perceiver) and not isinstance(composed, DynamicMasker)
    assert isinstance(UserMaskPerceiver(composed, UserMasks(torch.zeros(1, 4, 4, dtype=torch.bool))), Perceiver)
    for name in perception.__all__:
        assert getattr(perception, name) is not None and name in dir(perception)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        perception.Nothing  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used():
    """The registry knows all adapters and loads none; the catalog not even torch."""
    code = (
        "import sys\nimport spatia_model.perception.catalog\nassert 'torch' not in sys.modules\n"
        "import spatia_model.perception.registry\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'transformers', 'mapanything', 'keye_vl_utils', 'huggingface_hub'}, loaded\n"
        "assert 'spatia_model.perception.segmentation' not in sys.modules"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'model'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_package_that_lacks_one_of_its_own_is_told_apart(monkeypatch, tmp_path):
    (tmp_path / "halfpackage.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match="halfpackage, which cannot be loaded without a_module_that_is_not_there"):
        require("halfpackage", "mapanything", "the geometry 'mapanything'")
    assert issubclass(MissingPackageError, ValueError)  # the command line shows it as one line


def test_offloaded_models_rest_where_they_are_told():
    places = []
    module = types.SimpleNamespace(to=lambda device: places.append(str(device)))
    with pytest.raises(RuntimeError), at_work(module, "cpu", "meta"):
        assert places == ["cpu"]
        raise RuntimeError
    assert places == ["cpu", "meta"]  # also when the work fails
    with at_work(module, "cpu", None):
        pass
    assert len(places) == 2
    assert registry.PRESETS["today"].offload is False
