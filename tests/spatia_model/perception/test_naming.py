"""Namers: Qwen3-VL with its real classes, Keye-VL's call contract, and the reading of answers."""

from __future__ import annotations

import collections
import json
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from PIL import Image

from spatia_model.perception import naming
from spatia_model.perception.naming import QUESTION, FixedNames, KeyeNamer, QwenNamer, clean_names, read_names
from spatia_model.perception.optional import MissingPackageError
from tests.spatia_model.perception.tiny_models import tiny_qwen


def frames(count: int = 6, height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def qwen() -> tuple[Any, Any, Any]:
    return tiny_qwen()


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(naming, "MAX_NEW_TOKENS", 6)


@pytest.fixture
def sent(qwen, monkeypatch) -> dict[str, Any]:
    """What the model's `generate` is given."""
    recorded: dict[str, Any] = {}
    generate = type(qwen[0]).generate

    def record(self, **given):
        recorded.update(given)
        return generate(self, **given)

    monkeypatch.setattr(type(qwen[0]), "generate", record)
    return recorded


def reference_inputs(qwen: tuple[Any, Any, Any], pictures: list[Image.Image]) -> Any:
    """The inputs that transformers' own processor makes of the same question. (Its video half, unused here, needs torchvision.)"""
    from transformers import Qwen3VLProcessor

    model, tokenizer, images = qwen
    processor: Any = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    processor.image_processor, processor.tokenizer, processor.video_processor, processor.chat_template = images, tokenizer, None, None
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = model.config.image_token_id, model.config.video_token_id
    content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    return processor(text=[text], images=pictures, return_tensors="pt")


def test_qwen_is_given_what_its_own_processor_would_give(qwen, sent):
    shown = frames()
    QwenNamer(*qwen, frames=3).answer(shown)
    pictures = [Image.fromarray(shown[i].numpy()) for i in (0, 2, 5)]  # spread over the clip, both ends included
    expected = reference_inputs(qwen, pictures)
    assert {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"} <= set(sent)
    for name, value in expected.items():
        torch.testing.assert_close(sent[name], torch.as_tensor(value), msg=name, check_dtype=False)
    assert sent["do_sample"] is False


def test_qwen_answers_with_the_new_tokens_only_and_always_the_same(qwen, sent):
    shown = frames(1)
    first = QwenNamer(*qwen).answer(shown)
    expected = reference_inputs(qwen, [Image.fromarray(shown[0].numpy())])
    with torch.inference_mode():
        told = qwen[0].generate(**expected, max_new_tokens=sent["max_new_tokens"], do_sample=False)
    assert first == qwen[1].batch_decode(told[:, expected["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert QUESTION not in first and first == QwenNamer(*qwen).answer(shown)


def test_qwen_loads_from_a_folder_with_the_template_where_it_lies(qwen, tmp_path):
    for part in qwen:
        part.save_pretrained(tmp_path)
    expected = QwenNamer(*qwen, frames=2).answer(frames())
    loaded = QwenNamer.from_pretrained(tmp_path, frames=2)
    assert loaded.answer(frames()) == expected and isinstance(loaded.names(frames()), tuple)
    beside = tmp_path / "chat_template.jinja"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": beside.read_text()}))
    beside.unlink()
    assert QwenNamer.from_pretrained(tmp_path, frames=2).answer(frames()) == expected


def test_a_tokenizer_of_another_model_is_refused(qwen):
    model, tokenizer, images = qwen
    model = types.SimpleNamespace(config=types.SimpleNamespace(image_token_id=7), to=lambda device: None)
    with pytest.raises(ValueError, match="the model expects 7: tokenizer and weights are not of one model"):
        QwenNamer(model, tokenizer, images)


def test_weights_that_are_not_here(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="the namer 'qwen3-vl': the folder .* cannot be loaded"):
        QwenNamer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="there is no folder '~/nowhere'"):
        QwenNamer.from_pretrained("~/nowhere")


def test_missing_packages_say_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "keye_vl_utils", None)
    with pytest.raises(MissingPackageError, match="the namer 'keye-vl' needs the package keye_vl_utils.*pip install keye-vl-utils==1.5.2"):
        KeyeNamer.from_pretrained()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match="the namer 'qwen3-vl' needs the package transformers.*pip install .transformers"):
        QwenNamer.from_pretrained()


# -- Keye-VL-1.5: code from its repository, so the contract is what its README calls


class KeyeModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.given: dict[str, Any] = {}

    def generate(self, **given):
        self.given = given
        return torch.cat([given["input_ids"], torch.tensor([[5, 6]])], 1)


class KeyeInputs(dict):
    def to(self, device):
        self["device"] = str(device)
        return self


class KeyeProcessor:
    def __init__(self):
        self.text_messages: Any = None
        self.given: dict[str, Any] = {}
        self.decoded: Any = None

    def apply_chat_template(self, messages, tokenize=True, add_generation_prompt=False):
        assert tokenize is False and add_generation_prompt is True
        self.text_messages = messages
        return "<prompt>"

    def __call__(self, text=None, images=None, videos=None, padding=False, return_tensors=None, **options):
        self.given = {"text": text, "images": images, "videos": videos, "padding": padding, "return_tensors": return_tensors, **options}
        return KeyeInputs(input_ids=torch.tensor([[1, 2, 3]]), pixel_values=torch.zeros(1))

    def batch_decode(self, ids, skip_special_tokens=False):
        assert skip_special_tokens
        self.decoded = ids
        return ['["dog"]']


def process_vision_info(conversations: Any = None, vision_infos=None, image_factor=28):
    """keye_vl_utils 1.5.2: (images or None, videos or None, processor arguments)."""
    found = [part["image"] for message in conversations for part in message["content"] if "image" in part]
    assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in found)
    return [picture.resize((56, 28)) for picture in found], None, collections.defaultdict(list)


def test_keye_is_called_as_its_readme_calls_it(monkeypatch):
    loads = []
    model, processor = KeyeModel(), KeyeProcessor()
    import transformers

    def load(result):
        return types.SimpleNamespace(from_pretrained=lambda name, **given: loads.append((name, given)) or result)

    monkeypatch.setattr(transformers, "AutoModel", load(model))
    monkeypatch.setattr(transformers, "AutoProcessor", load(processor))
    monkeypatch.setitem(sys.modules, "keye_vl_utils", types.SimpleNamespace(process_vision_info=process_vision_info))
    namer = KeyeNamer.from_pretrained(frames=2)
    assert [name for name, _ in loads] == ["Kwai-Keye/Keye-VL-1_5-8B"] * 2 and all(given["trust_remote_code"] for _, given in loads)

    shown = frames()
    assert namer.names(shown) == ("dog",)
    (message,) = processor.text_messages
    assert message["role"] == "user" and [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert message["content"][-1]["text"] == QUESTION + "/no_think"
    torch.testing.assert_close(torch.from_numpy(np.array(message["content"][1]["image"])), shown[-1])
    given = processor.given
    assert given["text"] == ["<prompt>"] and given["videos"] is None and given["padding"] is True and given["return_tensors"] == "pt"
    assert [picture.size for picture in given["images"]] == [(56, 28)] * 2  # what process_vision_info made of them
    assert model.given["device"] == "cpu" and model.given["do_sample"] is False and "pixel_values" in model.given
    assert processor.decoded.tolist() == [[5, 6]]  # the prompt is cut off


# -- answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('["person", "dog"]', ("person", "dog")),
        ('```json\n["A red car", "the dog."]\n```', ("red car", "dog")),
        ('<think>maybe ["tree"]?</think>["bird"]', ("bird",)),
        ('<analysis>simple</analysis>The list: ["cat", "Cat", "cat "] as asked', ("cat",)),
        ("[]", ()),
        ("- person\n- bicycle\n", ("person", "bicycle")),
        ("1. cow\n2) horse", ("cow", "horse")),
        ("cow, brown cow, sheep", ("cow", "brown cow", "sheep")),
        ("None", ()),
        ("", ()),
        ("In this video nothing seems to be moving at all.", ()),
        ('["' + '", "'.join(f"thing {letter}" for letter in "abcdefghijkl") + '"]', tuple(f"thing {letter}" for letter in "abcdefgh")),
        ('{"objects": ["dog", 3, null]}', ("dog",)),
    ],
)
def test_reading_answers(answer, expected):
    assert read_names(answer) == expected


def test_fixed_names():
    assert FixedNames(("The Dog", "dog", " cow ")).names(frames(1)) == ("dog", "cow")
    assert clean_names(("it is a very long sentence about dogs",)) == ()
    with pytest.raises(ValueError, match="no usable names"):
        FixedNames(("", "none"))
    with pytest.raises(ValueError, match="frames are"):
        FixedNames(("dog",)).names(torch.zeros(2, 2))
