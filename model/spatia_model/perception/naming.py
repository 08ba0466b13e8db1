"""Names of the things that move, asked of a vision-language model: Qwen3-VL, or the paper's Keye-VL-1.5.

A text-prompted segmenter needs to be told what to look for. Each namer is shown a few frames of a clip and asked for a JSON list of nouns.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spatia_model.perception.optional import at_work, check_frames, pretrained, require, transformers_with

QWEN = "Qwen/Qwen3-VL-4B-Instruct"
KEYE = "Kwai-Keye/Keye-VL-1_5-8B"
MAX_NAMES = 8  # a segmenter runs once per name
MAX_WORDS = 5  # of a name; longer is a sentence
MAX_NEW_TOKENS = 128
QUESTION = (
    "These are frames of one video, in order. Which things in it move by themselves or could start to move, such as people, animals, "
    "vehicles or machines in motion? Leave out everything that is part of the place: walls, floors, furniture, plants, buildings, sky. "
    'Answer with a JSON list of short English nouns and nothing else, for example ["person", "dog"]. Answer [] if there are none.'
)


class FixedNames:
    """An `EntityNamer` for those who know: always the same names."""

    def __init__(self, names: tuple[str, ...]):
        self.fixed = clean_names(names)
        if not self.fixed:
            raise ValueError(f"no usable names in {names!r}; give short nouns such as 'person', 'dog'")

    def names(self, frames: torch.Tensor) -> tuple[str, ...]:
        """The names given."""
        check_frames(frames)
        return self.fixed


class _Namer:
    """What both models have in common: choose frames, ask, read the answer."""

    def __init__(self, model: Any, device: str | torch.device, offload: bool, frames: int):
        if frames < 1:
            raise ValueError(f"frames = {frames}; expected at least 1 to be shown")
        self.model, self.device, self.shown = model, torch.device(device), frames
        self.rest = "cpu" if offload and self.device.type != "cpu" else None
        if self.rest is None:
            model.to(self.device)

    def names(self, frames: torch.Tensor) -> tuple[str, ...]:
        """See `EntityNamer.names`."""
        return read_names(self.answer(frames))

    def answer(self, frames: torch.Tensor) -> str:
        """What the model says, word for word."""
        check_frames(frames)
        chosen = sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(self.shown, len(frames)))})
        pictures = [Image.fromarray(frames[i].cpu().numpy()) for i in chosen]
        with at_work(self.model, self.device, self.rest), torch.inference_mode():
            return self._ask(pictures)

    def _ask(self, pictures: list[Image.Image]) -> str:
        raise NotImplementedError

    def _generate(self, inputs: Any, decode: Any) -> str:
        """Greedy, so that the same frames have the same names."""
        inputs = inputs.to(self.device)
        told = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return decode(told[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


class QwenNamer(_Namer):
    """Qwen3-VL, from transformers. Pictures go in as several images: that needs no video decoder and no torchvision.

    Args:
        model: `Qwen3VLForConditionalGeneration`.
        tokenizer: its tokenizer, with its chat template.
        image_processor: `Qwen2VLImageProcessorPil` or its like; patches of `model.config.vision_config`'s size.
        frames: how many frames of a clip it is shown.
    """

    IMAGE = "<|image_pad|>"

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, device: str | torch.device = "cpu", offload: bool = False, frames: int = 4
    ):
        super().__init__(model, device, offload, frames)
        self.tokenizer, self.image_processor = tokenizer, image_processor
        if tokenizer.convert_tokens_to_ids(self.IMAGE) != model.config.image_token_id:
            raise ValueError(
                f"the tokenizer's {self.IMAGE} is token {tokenizer.convert_tokens_to_ids(self.IMAGE)}, the model expects "
                f"{model.config.image_token_id}: tokenizer and weights are not of one model"
            )

    @classmethod
    def from_pretrained(
        cls, name: str | Path = QWEN, device: str | torch.device = "cpu", offload: bool = False, frames: int = 4
    ) -> QwenNamer:
        """Load by hub id or from a folder."""
        wanted = "the namer 'qwen3-vl'"
        transformers = transformers_with("Qwen3VLForConditionalGeneration", wanted)
        processing = require("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", "transformers", wanted)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        model = pretrained(transformers.Qwen3VLForConditionalGeneration.from_pretrained, name, wanted, dtype=dtype)
        tokenizer = pretrained(transformers.AutoTokenizer.from_pretrained, name, wanted)
        if cls.IMAGE not in str(tokenizer.chat_template or ""):  # some copies keep the template with images beside the tokenizer
            file = pretrained(lambda where: transformers.utils.cached_file(where, "chat_template.json"), name, wanted)
            tokenizer.chat_template = json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]
        images = pretrained(processing.Qwen2VLImageProcessorPil.from_pretrained, name, wanted)
        return cls(model.eval(), tokenizer, images, device, offload, frames)

    def _ask(self, pictures: list[Image.Image]) -> str:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": QUESTION}]
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        if text.count(self.IMAGE) != len(pictures):
            raise ValueError(
                f"the chat template made room for {text.count(self.IMAGE)} of {len(pictures)} images; take the model's own template"
            )
        images = self.image_processor(pictures, return_tensors="pt")
        merged = self.image_processor.merge_size**2
        pieces = text.split(self.IMAGE)
        for i, grid in enumerate(images["image_grid_thw"]):  # one placeholder per picture becomes one per merged patch
            pieces[i] += self.IMAGE * (int(grid.prod()) // merged)
        inputs = self.tokenizer("".join(pieces), return_tensors="pt", add_special_tokens=False)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.config.image_token_id).long()
        inputs["pixel_values"] = images["pixel_values"].to(self.model.dtype)
        inputs["image_grid_thw"] = images["image_grid_thw"]
        return self._generate(inputs, self.tokenizer.batch_decode)


class KeyeNamer(_Namer):
    """Keye-VL-1.5, whose model and processor are code in its hub repository, with `keye_vl_utils` for the pictures.

    As the repository's README calls it: chat template, `process_vision_info(messages)`, processor, `generate`; "/no_think" after the
    question asks for an answer without a train of thought.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        process_vision_info: Any,
        device: str | torch.device = "cpu",
        offload: bool = False,
        frames: int = 4,
    ):
        super().__init__(model, device, offload, frames)
        self.processor, self.process_vision_info = processor, process_vision_info

    @classmethod
    def from_pretrained(
        cls, name: str | Path = KEYE, device: str | torch.device = "cpu", offload: bool = False, frames: int = 4
    ) -> KeyeNamer:
        """Load by hub id or from a folder. This runs code that comes with the weights (`trust_remote_code`)."""
        wanted = "the namer 'keye-vl'"
        transformers = require("transformers", "transformers", wanted)
        utils = require("keye_vl_utils", "keye-vl-utils", wanted)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        model = pretrained(transformers.AutoModel.from_pretrained, name, wanted, torch_dtype=dtype, trust_remote_code=True)
        processor = pretrained(transformers.AutoProcessor.from_pretrained, name, wanted, trust_remote_code=True)
        return cls(model.eval(), processor, utils.process_vision_info, device, offload, frames)

    def _ask(self, pictures: list[Image.Image]) -> str:
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": QUESTION + "/no_think"})
        messages = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images, videos, options = self.process_vision_info(messages)
        inputs = self.processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt", **options)
        return self._generate(inputs, self.processor.batch_decode)


def read_names(answer: str) -> tuple[str, ...]:
    """The names in a model's answer: a JSON list wherever it stands in it, or else short lines or a list with commas.

    An answer that is a sentence names nothing: better no mask than one of whatever the sentence mentions.
    """
    answer = re.sub(r"<(think|analysis)>.*?</\1>", " ", answer, flags=re.DOTALL)
    for match in reversed(list(re.finditer(r"\[[^\[\]]*\]", answer))):
        try:
            found = json.loads(match[0])
        except json.JSONDecodeError:
            continue
        return clean_names(tuple(item for item in found if isinstance(item, str)))
    plain = re.sub(r"</?\w+>|```\w*", " ", answer)
    lines = [line for line in re.split(r"[\n,;]", plain) if line.strip()]
    return clean_names(tuple(re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s*", "", line) for line in lines))


def clean_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Lower case, without articles and punctuation, each once, at most `MAX_NAMES`; what is empty, "none" or a sentence is left out."""
    kept: list[str] = []
    for name in names:
        name = " ".join(re.sub(r"[^\w\s'-]", " ", name.lower()).split())
        name = re.sub(r"^(?:a|an|the|some)\s+", "", name)
        usable = name and len(name.split()) <= MAX_WORDS and name not in ("none", "nothing", "no", "n/a") and not name.isdigit()
        if usable and name not in kept:
            kept.append(name)
    return tuple(kept[:MAX_NAMES])
