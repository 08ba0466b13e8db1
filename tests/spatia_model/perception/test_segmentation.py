"""Segmenters: SAM 3 video with its real classes, ReferDINO's call contract."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="transformers is not installed")

from spatia_model.perception.naming import FixedNames
from spatia_model.perception.optional import MissingPackageError
from spatia_model.perception.segmentation import ReferDinoMasker, Sam3Masker
from tests.spatia_model.perception.tiny_models import tiny_sam3

NAMES = FixedNames(("dog", "red car"))


class NoNames:
    def names(self, frames):
        return ()


def frames(count: int = 3, height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


@pytest.fixture(scope="module")
def sam3() -> tuple[Any, Any]:
    return tiny_sam3()


def processor_reference(model: Any, tokenizer: Any, shown: torch.Tensor, names: tuple[str, ...], monkeypatch) -> torch.Tensor:
    """(T, H, W) bool by transformers' own processor: its prompts, the model's iterator, its post-processing.

    It insists on torchvision, for boxes that no one here reads and for scaling pictures; both are done without.
    """
    module = importlib.import_module("transformers.models.sam3_video.processing_sam3_video")
    monkeypatch.setattr(module, "masks_to_boxes", lambda masks: torch.zeros(len(masks), 4), raising=False)
    processor: Any = module.Sam3VideoProcessor.__new__(module.Sam3VideoProcessor)
    processor.tokenizer = tokenizer
    size = model.config.image_size
    pictures = F.interpolate(shown.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=True)
    pictures = (pictures / 255 - 0.5) / 0.5  # Sam3ImageProcessor: mean and deviation of a half
    session = processor.init_video_session(dtype=torch.float32)
    session.video_height, session.video_width = shown.shape[1:3]
    for picture in pictures:
        session.add_new_frame(picture)
    processor.add_text_prompt(session, list(names))
    outputs = list(model.propagate_in_video_iterator(session))
    return torch.stack([processor.postprocess_outputs(session, output)["masks"].any(0) for output in outputs])


def test_sam3_finds_what_its_own_processor_finds(sam3, monkeypatch):
    shown = frames()
    found = Sam3Masker(*sam3, NAMES).masks(shown)
    expected = processor_reference(*sam3, shown, NAMES.fixed, monkeypatch)
    assert found.shape == (3, 40, 60) and found.dtype == torch.float32
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert 0.02 < float(expected.float().mean()) < 0.98  # else anything would do
    assert torch.equal(found > 0.5, expected)


def test_sam3_is_not_run_when_there_is_nothing_to_look_for(sam3, monkeypatch):
    monkeypatch.setattr(type(sam3[0]), "propagate_in_video_iterator", lambda *a, **k: pytest.fail("it was run"))
    assert not Sam3Masker(*sam3, NoNames()).masks(frames()).any()


def test_sam3_loads_from_a_folder(sam3, tmp_path):
    for part in sam3:
        part.save_pretrained(tmp_path)
    one = frames(1)
    loaded = Sam3Masker.from_pretrained(NAMES, tmp_path)
    torch.testing.assert_close(loaded.masks(one), Sam3Masker(*sam3, NAMES).masks(one))


def test_sam3_leaves_out_what_the_tracker_withdrew(sam3):
    """Objects that are suppressed in a frame, or that turn out after some frames to have been none."""
    shown = frames(2)
    full, none = torch.full((1, 8, 8), 5.0), torch.full((1, 8, 8), -5.0)
    left = none.clone()
    left[:, :, :4] = 5.0

    class Scripted:
        config, dtype = sam3[0].config, torch.float32

        def to(self, device):
            return self

        def propagate_in_video_iterator(self, inference_session):
            output = types.SimpleNamespace
            yield output(frame_idx=0, obj_id_to_mask={0: left, 1: full}, suppressed_obj_ids={1})
            yield output(frame_idx=1, obj_id_to_mask={0: left, 2: full}, suppressed_obj_ids=None)
            inference_session.hotstart_removed_obj_ids.add(2)

    found = Sam3Masker(Scripted(), sam3[1], NAMES).masks(shown) > 0.5
    assert found[:, :, :28].all() and not found[:, :, 32:].any()


def test_missing_packages_say_what_to_type(monkeypatch, tmp_path):
    with pytest.raises(
        MissingPackageError, match="needs a checkout of ReferDINO, and no checkout was given.*git clone https://github.com/iSEE"
    ):
        ReferDinoMasker.from_pretrained(NAMES)
    with pytest.raises(MissingPackageError, match="is none. Install it: git clone"):
        ReferDinoMasker.from_pretrained(NAMES, repo=tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match="the masks 'sam3' needs the package transformers.*pip install"):
        Sam3Masker.from_pretrained(NAMES)


# -- ReferDINO: a checkout, whose contract is what its demo and its MeViS evaluation call

MODELS = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lora = torch.nn.Parameter(torch.zeros(2))
        self.base = torch.nn.Parameter(torch.zeros(2))
        self.calls = []

    def infer(self, all_samples, captions, targets, crop_len=36):
        self.calls.append((all_samples, captions, targets))
        tensors, pad = all_samples
        b, t, c, h, w = tensors.shape
        assert b == 1 and c == 3 and pad.shape == (1, t, h, w) and pad.dtype == torch.bool and not pad.any()
        assert len(captions) == len(targets) == 1 and captions[0] == captions[0].lower()
        assert targets[0]["size"].tolist() == [h, w]
        logits = torch.full((1, t, 3, 1), -4.0)
        masks = torch.full((1, t, 3, h // 4, w // 4), -6.0)
        if captions[0] == "dog":
            logits[:, :, 0] = 1.0                     # found
            masks[:, :, 0, :, : w // 8] = 6.0
            logits[:, 0, 1] = 0.5                     # in the first frame alone: its mean is too low
            masks[:, :, 1] = 6.0
        return {"pred_logits": logits, "pred_boxes": torch.zeros(1, t, 3, 4), "pred_masks": masks}

def build_model(args):
    assert args.GroundingDINO.pretrained_path.startswith("/") and args.device == "cpu" and args.binary is True
    return Model(), None, None
"""
MISC = """
import torch

def nested_tensor_from_videos_list(videos_list, size_divisibility=1):
    assert len(videos_list) == 1 and size_divisibility == 1
    video = videos_list[0]
    return videos_list, torch.zeros(1, video.shape[0], *video.shape[-2:], dtype=torch.bool)
"""
CONFIG = "binary:\n  desc: x\n  value: true\nGroundingDINO:\n  value:\n    pretrained_path: pretrained/base.pth\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder laid out as ReferDINO's repository."""
    repo = tmp_path / "ReferDINO"
    (repo / "models" / "GroundingDINO").mkdir(parents=True)
    (repo / "models" / "__init__.py").write_text(MODELS)
    (repo / "misc.py").write_text(MISC)
    (repo / "configs").mkdir()
    (repo / "configs" / "mevis_swinb.yaml").write_text(CONFIG)

    class EasyDict(dict):
        def __init__(self, given):
            super().__init__({k: EasyDict(v) if isinstance(v, dict) else v for k, v in given.items()})

        __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__  # type: ignore[assignment]

    class YAML:
        def __init__(self, typ, pure):
            assert typ == "safe" and pure

        def load(self, file):
            import yaml

            return yaml.safe_load(file)

    monkeypatch.setitem(sys.modules, "easydict", types.SimpleNamespace(EasyDict=EasyDict))
    monkeypatch.setitem(sys.modules, "ruamel", types.ModuleType("ruamel"))
    monkeypatch.setitem(sys.modules, "ruamel.yaml", types.SimpleNamespace(YAML=YAML))
    yield repo
    for name in ("models", "misc"):
        sys.modules.pop(name, None)


def test_referdino_is_called_as_its_own_code_calls_it(checkout, tmp_path):
    torch.save({"model_state_dict": {"lora": torch.ones(2)}}, tmp_path / "ryb_mevis_swinb.pth")
    before = list(sys.path)
    masker = ReferDinoMasker.from_pretrained(NAMES, tmp_path, repo=checkout)
    assert sys.path == before
    assert masker.model.lora.tolist() == [1, 1] and not masker.model.training
    found = masker.masks(frames(4, 60, 100))
    assert found.shape == (4, 60, 100) and found.dtype == torch.float32
    assert (found[:, :, :46] > 0.5).all() and (found[:, :, 54:] < 0.5).all()
    assert [caption for _, (caption,), _ in masker.model.calls] == ["dog", "red car"]
    (pictures, _), _, _ = masker.model.calls[0]
    assert pictures.shape == (1, 4, 3, 360, 600)  # the shorter side is 360
    assert abs(float(pictures.mean())) < 0.6 and 0.6 < float(pictures.std()) < 1.4  # ImageNet statistics, of noise around a half
    assert not ReferDinoMasker.from_pretrained(NoNames(), tmp_path, repo=checkout).masks(frames(1)).any()


@pytest.mark.parametrize(
    ("state", "message"),
    [({"base": torch.ones(2)}, "missing .'lora'"), ({"lora": torch.ones(2), "what": torch.ones(1)}, "unknown .'what'")],
)
def test_referdino_checkpoints_that_do_not_fit(checkout, tmp_path, state, message):
    torch.save({"model_state_dict": state}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        ReferDinoMasker.from_pretrained(NAMES, tmp_path / "weights.pth", repo=checkout)
    with pytest.raises(ValueError, match="holds no ryb_mevis_swinb.pth"):
        ReferDinoMasker.from_pretrained(NAMES, tmp_path, repo=checkout)


def test_referdino_does_not_take_another_module_of_its_names(checkout, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    with pytest.raises(ValueError, match="another module called 'models' is loaded"):
        ReferDinoMasker.from_pretrained(NAMES, tmp_path, repo=checkout)
