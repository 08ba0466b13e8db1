"""What a recipe starts from: the transformer, its text encoder and autoencoder, and which weights are trained."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from spatia_model.generator.checkpoint import check_tensors, read_tensors
from spatia_model.generator.lora import add_lora
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.training.recipe import Recipe


@dataclass
class Parts:
    """A model to train. `text` is None where clips bring their text rows; `mini` holds the rest of an embedded model, for export."""

    transformer: SpatiaTransformer
    text: nn.Module | None
    vae: Any | None
    sampler: dict[str, Any]  # steps, shift, solver
    mini: tuple[Any, ...] | None = None  # (perception, refiner, MiniConfig, SamplerOptions, planner or None)


MINI_SAMPLER = {"steps": 4, "shift": 1.0, "solver": "euler"}
RELEASE_SAMPLER = {"steps": 40, "shift": 5.0, "solver": "unipc"}


def load_parts(name: str, vae: str = "") -> Parts:
    """A model by name or folder: embedded ("spatia-mini" or a folder like it), "mini" (embedded, from nothing), a folder that
    `spatia convert` wrote, or Wan2.2's own in diffusers' layout, whose control branch begins as a copy of its main blocks.

    Raises:
        ValueError: there is no such model, or its weights do not fit (the tensor is named).
    """
    folder = Path(name).expanduser()
    if name == "mini":
        parts = _fresh_mini()
    elif (folder / "transformer" / "config.json").is_file():
        parts = Parts(
            _release_transformer(folder), None, _wan_vae(folder) if (folder / "vae" / "config.json").is_file() else None, RELEASE_SAMPLER
        )
    else:
        parts = _embedded(name)
    if vae:
        place = Path(vae).expanduser()
        parts.vae = _wan_vae(place) if (place / "vae" / "config.json").is_file() else _embedded(vae).vae
    return parts


def _release_transformer(folder: Path) -> SpatiaTransformer:
    """A denoiser in diffusers' layout, in the number type of its files. CheckpointError names what is missing, extra or misshapen."""
    place = folder / "transformer"
    known = inspect.signature(SpatiaTransformer.__init__).parameters
    described = json.loads((place / "config.json").read_text())
    settings: dict[str, Any] = {k: v for k, v in described.items() if k in known}
    bare = not settings.get("vace_layers")
    if bare:  # as the release has it beside Wan2.2: a control block at every fourth main block
        settings |= {"vace_layers": tuple(range(0, settings["num_layers"], 4)), "vace_in_channels": 2 * settings["in_channels"]}
    with torch.device("meta"):
        transformer = SpatiaTransformer.from_settings(settings)
    found: dict[str, torch.Tensor] = {}
    for path in sorted(place.glob("*.safetensors")):
        found |= read_tensors(path)
    wanted = {name: tensor for name, tensor in transformer.state_dict().items() if not (bare and is_control(name))}
    check_tensors(wanted, found, str(place))
    transformer.load_state_dict(found, strict=False, assign=True)
    if bare:
        for module in (transformer.vace_blocks, transformer.vace_patch_embedding):
            module.to_empty(device="cpu")
        control_from_main(transformer)
    return transformer


def _embedded(name: str) -> Parts:
    from spatia_model.model_folder import load_mini, load_planner, resolve

    folder = resolve(name)
    generator, perception, config = load_mini(folder)
    options = generator.options
    sampler = {"steps": options.steps, "shift": options.shift, "solver": options.solver}
    rest = (perception, generator.refiner, config, options, load_planner(folder))
    return Parts(generator.transformer, generator.text, generator.vae, sampler, rest)  # type: ignore[arg-type]


def _fresh_mini() -> Parts:
    from spatia_model.generator.text import CompactTextConfig, CompactTextEncoder
    from spatia_model.training.stage_denoiser import MINI_TRANSFORMER
    from spatia_model.worlds import VOCABULARY

    text = CompactTextEncoder(CompactTextConfig(VOCABULARY))
    return Parts(SpatiaTransformer(**MINI_TRANSFORMER).initialise(), text, None, MINI_SAMPLER)


def _wan_vae(folder: Path) -> Any:
    from spatia_model.generator.wan_vae import WanVAE

    return WanVAE.from_pretrained(str(folder), subfolder="vae").requires_grad_(False)


CONTROL = ("vace_patch_embedding", "vace_blocks", "control_in", "control_gate")


def is_control(name: str) -> bool:
    """Whether a transformer's weight belongs to the control branch."""
    return name.split(".")[0] in CONTROL


def choose(parts: Parts, recipe: Recipe) -> None:
    """Let gradients into what the recipe trains and nothing else; adds the adapters of a LoRA stage."""
    transformer = parts.transformer
    transformer.requires_grad_(False)
    if parts.text is not None:
        parts.text.requires_grad_(recipe.trainable == "all")
    if recipe.trainable == "lora":
        add_lora(transformer, recipe.lora_rank)
        for name, p in transformer.named_parameters():
            p.requires_grad_(".lora_A." in name or ".lora_B." in name)
    else:
        for name, p in transformer.named_parameters():
            p.requires_grad_(recipe.trainable == "all" or is_control(name))
    for p in transformer.parameters():
        if p.requires_grad:
            p.data = p.data.float()  # what is trained is trained in float32, however it was stored
    if recipe.checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()


@torch.no_grad()
def control_from_main(transformer: SpatiaTransformer) -> None:
    """Begin a control branch from the main blocks beside it (as VACE does): equal weights, and projections that start at zero, so that the
    untrained branch changes nothing. Its patch embedding reads the projection's latents like the main one reads the video's."""
    for block, layer in zip(transformer.vace_blocks, transformer.config.vace_layers, strict=True):
        own = block.state_dict()
        block.load_state_dict({**own, **{k: v for k, v in transformer.blocks[layer].state_dict().items() if k in own}})
        for linear in (getattr(block, "proj_in", None), block.proj_out):
            if linear is not None:
                nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    embedding, main = transformer.vace_patch_embedding, transformer.patch_embedding
    nn.init.zeros_(embedding.weight)
    embedding.weight[:, : main.weight.shape[1]].copy_(main.weight)
    embedding.bias.copy_(main.bias)  # type: ignore[union-attr]


def has_adapters(path: str) -> bool:
    """Whether a file of weights holds LoRA adapters. ValueError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return any(".lora_" in name for name in file.keys())  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--start-from {path}: no whole safetensors file ({error})") from error


def start_from(module: nn.Module, path: str) -> None:
    """Fill the weights that a file of an earlier stage has; the file must hold nothing else. Official names are read too."""
    from spatia_model.generator import names

    found = load_file(path)
    own = module.state_dict()
    translated: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        if name not in own:
            try:
                name = "transformer." + names.to_diffusers(name)
            except ValueError as error:
                raise ValueError(f"{path} holds {name}, which this model has not: use weights of the same model") from error
        if name not in own or own[name].shape != tensor.shape:
            shape = tuple(own[name].shape) if name in own else "nothing"
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, the model has {shape}: use weights of the same model")
        translated[name] = tensor
    module.load_state_dict(translated, strict=False)


def trained_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that are trained, on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in module.named_parameters() if p.requires_grad}


def released_lora(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained adapters, by the names that a stage's module has for them, under the released file's keys (as `lora.save_lora`)."""
    from spatia_model.generator import names

    found = {}
    for name, tensor in tensors.items():
        module, _, side = name.removeprefix("transformer.").partition(".lora_")
        found[f"pipe.dit.{names.to_official(module)}.lora_{side}"] = tensor
    return found


def count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
