"""A folder of weights: what is saved is what is loaded, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatia_model import model_folder
from spatia_model.generator.checkpoint import ROW_SCALE, CheckpointError, from_eight_bits, sha256, to_eight_bits
from spatia_model.generator.vae import CompactVAEConfig, CompactVideoVAE
from spatia_model.model_folder import FILES, load_mini, load_planner, resolve, save_mini
from spatia_model.world_model import WorldModel
from tests.spatia_model.tiny import CONFIG, OPTIONS, SEED, picture, tiny_parts, walk


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_mini(folder, CONFIG, OPTIONS, *tiny_parts())
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def describe(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _parts(generator, perceiver):
    return generator.vae, generator.transformer, generator.text, perceiver, generator.refiner


def _settings(part) -> object:
    """A part's config; the transformer's, which diffusers keeps, as JSON would have it."""
    if isinstance(part.config, dict):
        return json.loads(json.dumps({name: value for name, value in part.config.items() if not name.startswith("_")}))
    return part.config


def test_weights_and_settings_come_back(original):
    generator, perceiver, config = load_mini(original)
    assert config == CONFIG and generator.options == OPTIONS
    for part, saved in zip(_parts(generator, perceiver), tiny_parts(), strict=True):
        assert not part.training and _settings(part) == _settings(saved)
        assert not any(p.requires_grad for p in part.parameters())
        expected = torch.float32 if part in (generator.transformer, generator.text) else model_folder.convolution_dtype("cpu")
        own, stored = part.state_dict(), saved.state_dict()
        if part in (generator.transformer, perceiver):
            stored = to_eight_bits(stored)
        stored = from_eight_bits({k: v.half() if v.is_floating_point() and not k.endswith(ROW_SCALE) else v for k, v in stored.items()})
        assert own.keys() == stored.keys()
        for name, tensor in stored.items():
            assert own[name].dtype == expected and torch.equal(own[name], tensor.to(expected)), name
    assert sorted(p.name for p in original.iterdir()) == sorted([*FILES, "config.json"])


def test_what_was_loaded_can_be_saved_again_bit_for_bit(original, tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "convolution_dtype", lambda device: torch.float32)
    generator, perceiver, config = load_mini(original)
    save_mini(tmp_path / "again", config, generator.options, *_parts(generator, perceiver))
    for name in (*FILES, "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (original / name).read_bytes()


def test_equal_calls_share_one_model_until_it_is_saved_anew(folder):
    model = WorldModel.from_pretrained(folder)
    assert WorldModel.from_pretrained(str(folder)) is model
    clip = model.advance(model.begin(picture(), seed=SEED), walk())[1]
    save_mini(folder, CONFIG, OPTIONS, *tiny_parts(SEED + 1))
    other = WorldModel.from_pretrained(folder)
    assert other is not model
    assert not torch.equal(other.advance(other.begin(picture(), seed=SEED), walk())[1].frames, clip.frames)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named(folder, name, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-7])
    with pytest.raises(CheckpointError, match=f"{name}.*fetch"):
        WorldModel.from_pretrained(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("change", "message"), [("drop", "missing: "), ("add", "extra: surplus"), ("reshape", "misshapen: ")])
def test_a_tensor_that_does_not_fit_is_named(folder, name, change, message):
    tensors = load_file(folder / name)
    victim = sorted(n for n, t in tensors.items() if t.ndim)[0]
    if change == "add":
        tensors["surplus"] = torch.zeros(2)
    elif change == "drop":
        del tensors[victim]
    else:
        tensors[victim] = torch.zeros(1, 2, 3)
    save_file(tensors, folder / name)
    sums = json.loads((folder / "config.json").read_text())["sha256"]
    describe(folder, sha256=sums | {name: sha256(folder / name)})  # as another version's folder would be
    with pytest.raises(CheckpointError, match=f"{name}.*{message}{'' if change == 'add' else victim}"):
        load_mini(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "format 3.*update spatia"),
        ({"tier": "release"}, "tier 'release'"),
        ({"world": {"image_size": 32, "legs": 4}}, "legs"),
        ({"world": {"frames_per_clip": 3}}, "frames_per_clip"),
        ({"vae": {"widths": [8]}}, "widths"),
        ({"text": None}, "config.json"),
        ({"sha256": {}}, "sha256"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, changes, message):
    describe(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_mini(folder)


def test_settings_are_not_made_up(folder):
    path = folder / "config.json"
    described = json.loads(path.read_text())
    del described["perception"]
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="perception.*original config.json"):
        load_mini(folder)


def test_a_folder_from_before_motion_was_put_right_opens(folder):
    """Its config does not say what its autoencoder lacks."""
    generator, perceiver, *_ = load_mini(folder)
    settings = generator.vae.config.to_dict() | {"between": 32, "align_blocks": 0, "sampling": "bilinear"}
    earlier = CompactVideoVAE(CompactVAEConfig(**settings))
    save_mini(folder, CONFIG, OPTIONS, earlier, *_parts(generator, perceiver)[1:], load_planner(folder))
    described = json.loads((folder / "config.json").read_text())
    for name in ("between", "align_blocks", "sampling"):
        del described["vae"][name]
    describe(folder, vae=described["vae"])
    assert load_mini(folder)[0].vae.config.to_dict() == settings


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01"])
def test_a_config_that_is_none_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json: not a model config"):
        load_mini(folder)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path, original, monkeypatch):
    with pytest.raises(
        ValueError, match="no model 'spatia-huge': give one of .*, a folder that holds a config.json or a spatia.json, or a hub id"
    ):
        WorldModel.from_pretrained("spatia-huge")
    with pytest.raises(ValueError, match="no model"):
        resolve(tmp_path)
    monkeypatch.setattr(model_folder, "EMBEDDED", original.parent)
    assert resolve("tiny") == original.resolve()
    with pytest.raises(ValueError, match=r"give one of \['tiny'\]"):
        resolve("large")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    vae, *others = tiny_parts()
    vae.enc_in.weight[0, 0, 0, 0] = 1e6  # float16 has no such number
    with pytest.raises(CheckpointError, match="enc_in.weight"):
        save_mini(tmp_path / "model", CONFIG, OPTIONS, vae, *others)
    assert not (tmp_path / "model" / "config.json").exists()
