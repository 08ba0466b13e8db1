"""Masks of what moves, from text-prompted video segmenters: SAM 3 video, or the paper's ReferDINO. A namer says what to look for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from spatia_model.perception.optional import MissingPackageError, at_work, check_frames, pretrained, require, transformers_with
from spatia_model.perception.protocols import EntityNamer

SAM3 = "facebook/sam3"
SAM3_TEXT_LENGTH = 32  # tokens, to which its processor pads every prompt
REFERDINO = "liangtm/referdino"
REFERDINO_FILE, REFERDINO_CONFIG = "ryb_mevis_swinb.pth", "configs/mevis_swinb.yaml"
REFERDINO_SIDE = 360  # pixels of the shorter side, as its demo scales pictures
REFERDINO_MEAN, REFERDINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Sam3Masker:
    """A `DynamicMasker`: SAM 3 finds and tracks every instance of the names, the masks are united.

    Follows transformers' Sam3VideoProcessor and Sam3VideoModel (5.x). The processor itself needs torchvision; what it does for text prompts
    is little and is done here: scale to the model's square, normalise to [-1, 1], tokenise to 32 tokens.

    Args:
        model: `Sam3VideoModel`.
        tokenizer: its CLIP tokenizer.
        namer: says what to look for in these frames.
        device: where it computes.
        offload: keep it on the CPU between calls.
    """

    def __init__(self, model: Any, tokenizer: Any, namer: EntityNamer, device: str | torch.device = "cpu", offload: bool = False):
        self.model, self.tokenizer, self.namer, self.device = model, tokenizer, namer, torch.device(device)
        self.rest = "cpu" if offload and self.device.type != "cpu" else None
        if self.rest is None:
            model.to(self.device)

    @classmethod
    def from_pretrained(
        cls, namer: EntityNamer, name: str | Path = SAM3, device: str | torch.device = "cpu", offload: bool = False
    ) -> Sam3Masker:
        """Load by hub id or from a folder."""
        wanted = "the masks 'sam3'"
        transformers = transformers_with("Sam3VideoModel", wanted)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        model = pretrained(transformers.Sam3VideoModel.from_pretrained, name, wanted, dtype=dtype)
        return cls(model.eval(), pretrained(transformers.AutoTokenizer.from_pretrained, name, wanted), namer, device, offload)

    def masks(self, frames: torch.Tensor) -> torch.Tensor:
        """See `DynamicMasker.masks`."""
        check_frames(frames)
        names = self.namer.names(frames)
        nothing = torch.zeros(frames.shape[:3])
        if not names:
            return nothing
        session = self._session(frames, names)
        with at_work(self.model, self.device, self.rest) as model, torch.inference_mode():
            outputs = list(model.propagate_in_video_iterator(inference_session=session))
        height, width = frames.shape[1:3]
        found = nothing
        for output in outputs:
            hidden = set(output.suppressed_obj_ids or ()) | set(session.hotstart_removed_obj_ids)
            seen = [mask for number, mask in (output.obj_id_to_mask or {}).items() if number not in hidden]
            if seen:
                logits = torch.cat([mask.reshape(1, 1, *mask.shape[-2:]) for mask in seen]).float()  # (N, 1, low, low)
                logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[:, 0]
                found[output.frame_idx] = logits.amax(0).sigmoid().cpu()
        return found

    def _session(self, frames: torch.Tensor, names: tuple[str, ...]) -> Any:
        session_class = require("transformers.models.sam3_video.modeling_sam3_video", "transformers", "the masks 'sam3'")
        size = self.model.config.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        pictures = frames.permute(0, 3, 1, 2).float() / 255
        pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=True) * 2 - 1
        session = session_class.Sam3VideoInferenceSession(
            video=pictures,
            video_height=frames.shape[1],
            video_width=frames.shape[2],
            inference_device=self.device,
            inference_state_device=self.device,
            video_storage_device="cpu",
            dtype=self.model.dtype,
        )
        for name in names:
            number = session.add_prompt(name)
            tokens = self.tokenizer(name, return_tensors="pt", padding="max_length", max_length=SAM3_TEXT_LENGTH, truncation=True)
            session.prompt_input_ids[number] = tokens["input_ids"].to(self.device)
            session.prompt_attention_masks[number] = tokens["attention_mask"].to(self.device)
        return session


class ReferDinoMasker:
    """A `DynamicMasker` around ReferDINO (iSEE-Laboratory/ReferDINO, ICCV 2025), a checkout and not a package.

    As its demo_video.py and eval/inference_mevis.py call it: pictures (1, T, 3, h, w), shorter side 360, ImageNet-normalised, as a
    NestedTensor; `model.infer(samples, [expression], [{"size": (h, w)}])` gives `pred_logits` (1, T, q, k) and `pred_masks`
    (1, T, q, h', w'). A query counts when its score, averaged over the frames, passes `threshold`.

    Args:
        model: its GroundingDINO model, or anything with its `infer`.
        nested: its `misc.nested_tensor_from_videos_list`.
        namer: says what to look for.
        threshold: of a query's mean score.
    """

    def __init__(
        self,
        model: Any,
        nested: Any,
        namer: EntityNamer,
        device: str | torch.device = "cpu",
        offload: bool = False,
        threshold: float = 0.2,
    ):
        if not 0 < threshold < 1:
            raise ValueError(f"threshold = {threshold}; expected a score between 0 and 1")
        self.model, self.nested, self.namer, self.threshold, self.device = model, nested, namer, threshold, torch.device(device)
        self.rest = "cpu" if offload and self.device.type != "cpu" else None
        if self.rest is None and hasattr(model, "to"):
            model.to(self.device)

    @classmethod
    def from_pretrained(
        cls,
        namer: EntityNamer,
        name: str | Path = REFERDINO,
        device: str | torch.device = "cpu",
        offload: bool = False,
        repo: str | Path | None = None,
    ) -> ReferDinoMasker:
        """Load a checkpoint (a `.pth` file, a folder that holds one, or a hub id) with the code of the checkout `repo`."""
        modules = _referdino_modules(repo)
        config = _referdino_config(Path(repo or ""), torch.device(device))
        model = modules["models"].build_model(config)[0]
        state = torch.load(_referdino_file(name), map_location="cpu", weights_only=True)
        state = state.get("model_state_dict", state)
        missing, unknown = model.load_state_dict(state, strict=False)
        # its checkpoints may leave out what GroundingDINO's file, loaded before, has; what ReferDINO added they must hold
        added = [key for key in missing if any(part in key for part in ("lora", "pixel_decoder", "mask_decoder", "temporal"))]
        if added or unknown:
            raise ValueError(
                f"the checkpoint of {str(name)!r} does not fit {REFERDINO_CONFIG}: missing {added[:3]}, unknown {list(unknown)[:3]}; "
                f"take {REFERDINO_FILE} of {REFERDINO}"
            )
        return cls(model.eval(), modules["misc"].nested_tensor_from_videos_list, namer, device, offload)

    def masks(self, frames: torch.Tensor) -> torch.Tensor:
        """See `DynamicMasker.masks`."""
        check_frames(frames)
        names = self.namer.names(frames)
        found = torch.zeros(frames.shape[:3])
        if not names:
            return found
        height, width = frames.shape[1:3]
        shorter = min(height, width)
        h, w = (int(REFERDINO_SIDE * n / shorter) for n in (height, width))
        pictures = F.interpolate(frames.permute(0, 3, 1, 2).float() / 255, (h, w), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (REFERDINO_MEAN, REFERDINO_STD))
        pictures = ((pictures - mean) / std).to(self.device)
        target = {"size": torch.tensor([h, w], device=self.device)}
        with at_work(self.model, self.device, self.rest) as model, torch.inference_mode():
            for name in names:
                answer = model.infer(self.nested(pictures[None], size_divisibility=1), [name.lower()], [target])
                scores = answer["pred_logits"][0].float().sigmoid().mean(0).amax(-1)  # (q,)
                chosen = answer["pred_masks"][0][:, scores > self.threshold, :h, :w].float()  # (T, n, h', w') logits
                if chosen.shape[1]:
                    chosen = F.interpolate(chosen, (height, width), mode="bilinear", align_corners=False)
                    found = torch.maximum(found, chosen.amax(1).sigmoid().cpu())
        return found


def _referdino_modules(repo: str | Path | None) -> dict[str, Any]:
    """The checkout's top-level modules `models` and `misc`, imported from there and nowhere else."""
    wanted = "the masks 'referdino'"
    folder = Path(repo).expanduser().resolve() if repo else None
    if folder is None or not (folder / "models" / "GroundingDINO").is_dir():
        from spatia_model.perception.catalog import PACKAGES

        seen = "no checkout was given" if folder is None else f"{str(folder)!r} is none"
        raise MissingPackageError(f"{wanted} needs a checkout of ReferDINO, and {seen}. Install it: {PACKAGES['referdino'].install}")
    for name in ("models", "misc", "util"):
        loaded = sys.modules.get(name)
        place = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", ())), None)
        if loaded is not None and (place is None or folder not in Path(place).resolve().parents):
            raise ValueError(f"{wanted}: another module called {name!r} is loaded, and ReferDINO has one of that name; use another process")
    sys.path.insert(0, str(folder))
    try:
        return {name: require(name, "referdino", wanted) for name in ("models", "misc")}
    finally:
        sys.path.remove(str(folder))


def _referdino_config(folder: Path, device: torch.device) -> Any:
    """Its YAML, each entry of which is {desc, value}, as attributes."""
    yaml = require("ruamel.yaml", "referdino", "the masks 'referdino'").YAML(typ="safe", pure=True)
    with open(folder.expanduser() / REFERDINO_CONFIG, encoding="utf-8") as file:
        entries = {key: entry["value"] for key, entry in yaml.load(file).items()}
    config = require("easydict", "referdino", "the masks 'referdino'").EasyDict(entries | {"device": str(device)})
    base = Path(config.GroundingDINO.pretrained_path)
    config.GroundingDINO.pretrained_path = str(base if base.is_absolute() else folder.expanduser() / base)
    return config


def _referdino_file(name: str | Path) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / REFERDINO_FILE).is_file():
            return path / REFERDINO_FILE
        raise ValueError(f"the masks 'referdino': the folder {str(path)!r} holds no {REFERDINO_FILE}")
    from huggingface_hub import hf_hub_download

    return Path(pretrained(lambda hub_id: hf_hub_download(hub_id, REFERDINO_FILE), name, "the masks 'referdino'"))
