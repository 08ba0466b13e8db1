"""A converted folder as a `WorldModel` of the full tier."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spatia_model.config import ReleaseConfig, preset
from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.generator.conversion.convert import DESCRIPTION, describe
from spatia_model.generator.conversion.export import released_adapter
from spatia_model.generator.fitting import Fit, device_fit, fit_transformer, perceivers_wait
from spatia_model.generator.lora import load_lora
from spatia_model.generator.mapped import fill
from spatia_model.generator.release_pipeline import ReleaseGenerator
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.umt5 import UMT5TextEncoder
from spatia_model.generator.wan_vae import WanVAE
from spatia_model.perception.protocols import Perceiver
from spatia_model.release_world import ReleaseWorldModel
from spatia_model.types import Camera, Perception, Projection

EMBEDDED_PERCEPTION = "embedded"  # the small network of spatia-mini: needs nothing, sees less
Perceiving = Perceiver | Mapping[str, Any] | str


def load_release(
    folder: str | Path,
    device: str = "cpu",
    perceiver: Perceiving | None = None,
    fit: Fit | None = None,
    config: ReleaseConfig | str | None = None,
) -> ReleaseWorldModel:
    """The model in a folder that `spatia convert` wrote. Weights are memory-mapped: each byte is read once, when it is first used.

    Args:
        folder: the converted folder.
        device: where to compute.
        perceiver: a `Perceiver`; or what `perception.registry.build_perceiver` takes (a preset's name, a config); or "embedded", the small
            network of spatia-mini. None: what `spatia.json` says. Large perceivers are loaded when the first picture comes.
        fit: how the weights share the device; None: by its memory (`fitting.choose_fit`).
        config: the loop's numbers, or the name of a preset ("release", "paper"); None: what `spatia.json` says.

    Raises:
        CheckpointError: a file is missing, cut short or of another version, or a tensor missing, extra or misshapen; it is named.
        ValueError: an unknown preset.
    """
    folder = Path(folder)
    described = describe(folder)
    for name, note in described["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != note["size"]:
            raise CheckpointError(
                f"{path}: missing, or not of the {note['size']} bytes that were written; `spatia convert --check {folder}`"
            )
    if config is None:
        try:
            config = ReleaseConfig(**described["world"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / DESCRIPTION}: the world's settings can't be read ({error}); convert anew") from error
    elif isinstance(config, str):
        config = preset(config)
    fit = fit or device_fit(device)
    transformer = load_transformer(folder)
    fit_transformer(transformer, device, fit)
    text = load_text(folder, device, fit)
    generator = ReleaseGenerator(load_vae(folder), transformer, text, config, fit, device)
    wanted = described["perception"] if perceiver is None else perceiver
    seeing = wanted if _perceives(wanted) else LazyPerceiver(wanted, device, perceivers_wait(device, fit))  # type: ignore[arg-type]
    return ReleaseWorldModel(generator, seeing, config)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, device: str, written: int, options: tuple[tuple[str, Any], ...]) -> ReleaseWorldModel:
    """`written` is only part of the cache's key: a folder that was converted anew is read anew."""
    return load_release(folder, device, **dict(options))


def load_shared(folder: Path, device: str = "cpu", **options: Any) -> ReleaseWorldModel:
    """`load_release`, but calls with equal arguments share one copy of the weights."""
    try:
        written = (folder / DESCRIPTION).stat().st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"{folder}: no {DESCRIPTION} in it ({error}); give a folder that `spatia convert` wrote") from error
    try:
        return _loaded(folder, device, written, tuple(sorted(options.items())))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return load_release(folder, device, **options)


def load_transformer(folder: Path) -> SpatiaTransformer:
    """Denoiser and LoRA adapters, on the CPU."""
    place = folder / "transformer"
    with torch.device("meta"):
        transformer = SpatiaTransformer.from_settings(_config(place))
    fill(transformer, place, "diffusion_pytorch_model")
    load_lora(transformer, released_adapter(folder))
    return transformer.requires_grad_(False)


def load_vae(folder: Path) -> WanVAE:
    """The autoencoder, on the CPU."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    with torch.device("meta"):
        network = AutoencoderKLWan(**_config(folder / "vae"))
    return WanVAE(fill(network, folder / "vae", "diffusion_pytorch_model"))


def load_text(folder: Path, device: str = "cpu", fit: Fit | None = None) -> UMT5TextEncoder:
    """Text encoder and tokenizer."""
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        network = UMT5EncoderModel(UMT5Config(**_config(folder / "text_encoder")))
    fill(network, folder / "text_encoder", "model", tied=("encoder.embed_tokens.weight",))
    network.encoder.embed_tokens.weight = network.shared.weight
    return UMT5TextEncoder(network, AutoTokenizer.from_pretrained(folder / "tokenizer"), device=device, fit=fit)


def _config(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: can't be read ({error}); convert anew, or copy the folder again") from error
    return {k: v for k, v in described.items() if not k.startswith("_")}


def _perceives(value: Any) -> bool:
    return callable(getattr(value, "perceive", None))


class LazyPerceiver:
    """A perceiver that is loaded when the first picture comes, so that a model opens without the large perceivers' packages.

    `offload`: its models wait on the CPU while they are not at work, whatever their config says.
    """

    def __init__(self, wanted: Mapping[str, Any] | str, device: str, offload: bool = False):
        self._wanted, self._device, self._offload = wanted, device, offload
        self._loaded: Any = None

    def load(self) -> Any:
        """The perceiver itself.

        Raises:
            MissingPackageError: a package is not installed; gives the install line.
        """
        if self._loaded is None:
            self._loaded = _embedded() if self._wanted == EMBEDDED_PERCEPTION else _large(self._wanted, self._device, self._offload)
        return self._loaded

    @property
    def geometry(self) -> Any:
        """The half that says how far things are, where there are two."""
        return getattr(self.load(), "geometry", None)

    def perceive(
        self,
        frames: torch.Tensor,
        T_world_camera: torch.Tensor,
        camera: Camera,
        prior: Projection | None = None,
        previous: torch.Tensor | None = None,
    ) -> Perception:
        """See `Perceiver.perceive`."""
        return self.load().perceive(frames, T_world_camera, camera, prior, previous)


def _embedded() -> Perceiver:
    from spatia_model.model_folder import load_mini, resolve

    return load_mini(resolve("spatia-mini"))[1]


def _large(wanted: Mapping[str, Any] | str, device: str, offload: bool) -> Perceiver:
    from spatia_model.perception.registry import build_perceiver, perception_config

    config = perception_config(wanted)
    # The loop hands over just the frames that enter the map: all of them are looked at.
    return build_perceiver(replace(config, reconstruction_rate=config.frame_rate, offload=config.offload or offload), device)
