"""What `prepare` looks with: depth, motion, poses, and the autoencoder and text encoder of the model to be trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from spatia_model.generator.conditioning import encode_references, encoded_control, pool_mask, pooled_control, to_model
from spatia_model.types import Camera, Perception

PERCEIVERS = ("compact", "none")  # beside the presets of perception.registry


class Perceives(Protocol):
    """Depth and its confidence of one frame; motion of consecutive ones."""

    def depth(self, frame: torch.Tensor, pose: torch.Tensor, camera: Camera) -> Perception: ...

    def motion(self, frames: torch.Tensor, poses: torch.Tensor, camera: Camera) -> torch.Tensor: ...

    def poses(self, frames: torch.Tensor, camera: Camera | None) -> tuple[torch.Tensor, Camera]: ...


class Compact:
    """The embedded perceiver. It estimates no poses."""

    def __init__(self, perceiver: Any, gap: int = 2):
        self.perceiver, self.gap = perceiver, gap

    def depth(self, frame: torch.Tensor, pose: torch.Tensor, camera: Camera) -> Perception:
        return self.perceiver.perceive(frame[None], pose[None], camera)

    def motion(self, frames: torch.Tensor, poses: torch.Tensor, camera: Camera) -> torch.Tensor:
        rows = (torch.arange(len(frames)) - self.gap).clamp(min=0)
        dynamic = [
            self.perceiver.perceive(f, p, camera, None, e).dynamic
            for f, p, e in zip(frames.split(16), poses.split(16), frames[rows].split(16), strict=True)
        ]
        out = torch.cat(dynamic)
        out[: self.gap] = out[self.gap]  # nothing came before the first frames
        return out

    def poses(self, frames: torch.Tensor, camera: Camera | None) -> tuple[torch.Tensor, Camera]:
        raise ValueError(
            "this video has no poses, and the embedded perceiver estimates none: prepare with --perceiver today (MapAnything; "
            "`spatia doctor` says what it needs), or bring poses"
        )


class Composed:
    """A `ComposedPerceiver` of perception.registry: MapAnything for geometry, a namer and a segmenter for what moves."""

    def __init__(self, perceiver: Any):
        self.perceiver = perceiver

    def depth(self, frame: torch.Tensor, pose: torch.Tensor, camera: Camera) -> Perception:
        geometry = self.perceiver.geometry.estimate(frame[None], pose[None], camera)
        return Perception(geometry.depth.float().cpu(), geometry.confidence.float().cpu(), self.motion(frame[None], pose[None], camera))

    def motion(self, frames: torch.Tensor, poses: torch.Tensor, camera: Camera) -> torch.Tensor:
        if self.perceiver.masker is None:
            return torch.zeros(frames.shape[:3])
        return self.perceiver.masker.masks(frames).float().cpu()

    def poses(self, frames: torch.Tensor, camera: Camera | None) -> tuple[torch.Tensor, Camera]:
        geometry = self.perceiver.geometry.estimate(frames, None, camera)
        return geometry.T_world_camera.double().cpu(), geometry.camera


@dataclass
class Tools:
    """Loaded once per process.

    `encodes`: "pooled" or "encoded", how the holes are given to the model (embedded tier and release).
    """

    perceiver: Perceives | None = None
    vae: Any = None
    text: Any = None
    encodes: str = "encoded"
    described: dict[str, Any] = field(default_factory=dict)  # goes into the shards' metadata

    @torch.inference_mode()
    def latents(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, H, W, 3) uint8 to (C, F, h, w) float16."""
        return self._half(self.vae.encode(self._in(frames[None]))[0])

    @torch.inference_mode()
    def references(self, frames: torch.Tensor) -> torch.Tensor:
        """(R, H, W, 3) uint8 to (R, C, h, w) float16."""
        if not len(frames):
            s = self.vae.spatial_factor
            return torch.zeros(0, self.vae.latent_channels, frames.shape[1] // s, frames.shape[2] // s, dtype=torch.float16)
        return self._half(encode_references(self.vae, frames.to(self._device())).transpose(0, 1))

    @torch.inference_mode()
    def control(self, projection: torch.Tensor, mask: torch.Tensor, moving: torch.Tensor, known: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Projection latents (C, F, h, w) and holes. `moving` (T, H, W) is shown of the first `known` frames only, as at inference."""
        device = self._device()
        shown, mask = projection[None].to(device), mask[None].to(device)
        if self.encodes == "encoded":
            both = encoded_control(self.vae, shown, mask)[0]
        else:
            seen = moving.clone()
            seen[known:] = 0
            both = pooled_control(self.vae, shown, mask, seen[None].to(device))[0]
        channels = self.vae.latent_channels
        return self._half(both[:channels]), self._half(both[channels:])

    def shares(self, mask: torch.Tensor) -> torch.Tensor:
        """(T, H, W) to (F, h, w) uint8: shares of a latent cell in 255ths."""
        s, t = self.vae.spatial_factor, self.vae.temporal_factor
        return (pool_mask(mask[None].float(), s, t)[0].mean(0) * 255).round().to(torch.uint8)

    @torch.inference_mode()
    def rows(self, caption: str) -> torch.Tensor | None:
        """Text rows (L, D) float16 of a caption, without padding; None without a text encoder."""
        if self.text is None:
            return None
        rows = self.text.encode([caption])[0]
        used = (rows != 0).any(1).nonzero()
        return self._half(rows[: int(used[-1]) + 1 if len(used) else 1])

    def empty(self, frames: int, height: int, width: int) -> dict[str, torch.Tensor]:
        """What stands for no projection (all holes) and no text."""
        black = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
        none = torch.zeros(frames, height, width)
        projection, holes = self.control(black, none.bool(), none, 0)
        found = {"projection": projection, "holes": holes}
        rows = self.rows("")
        return found if rows is None else {**found, "context": rows}

    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def _in(self, frames: torch.Tensor) -> torch.Tensor:
        return to_model(frames.to(self._device()))

    @staticmethod
    def _half(x: torch.Tensor) -> torch.Tensor:
        return x.float().cpu().to(torch.float16).contiguous()


def load_tools(perceiver: str, vae: str, text: str, device: str = "cpu") -> Tools:
    """Tools by name. `perceiver`: "compact", "none", a preset of perception.registry ("today", "paper", "release") or JSON of its fields;
    `vae`: an embedded model ("spatia-mini" or a folder), a converted or diffusers-layout folder with vae/, or "" for no latents; `text`: ""
    or a converted folder with the release's text encoder.

    Raises:
        ValueError: something is unknown or missing; says what to install or give.
    """
    tools = Tools(described={"perceiver": perceiver, "vae": "", "control": None, "latent_channels": 0})
    if perceiver == "compact":
        from spatia_model.model_folder import load_mini, resolve

        tools.perceiver = Compact(load_mini(resolve("spatia-mini"), device)[1])
    elif perceiver != "none":
        from spatia_model.perception.registry import build_perceiver

        given = json.loads(perceiver) if perceiver.lstrip().startswith("{") else perceiver
        tools.perceiver = Composed(build_perceiver(given, device))
    if vae:
        tools.vae, tools.encodes = load_vae(vae)
        tools.vae.to(device).eval()
        tools.described |= {"vae": fingerprint(tools.vae), "control": tools.encodes, "latent_channels": tools.vae.latent_channels}
    if text:
        tools.text = load_text(text, device)
    return tools


def load_vae(name: str) -> tuple[Any, str]:
    """An autoencoder, and how its model takes holes."""
    folder = Path(name).expanduser()
    if (folder / "spatia.json").is_file():
        from spatia_model.release_folder import load_vae as load

        return load(folder), "encoded"
    if (folder / "vae" / "config.json").is_file():
        from spatia_model.generator.wan_vae import WanVAE

        return WanVAE.from_pretrained(str(folder), subfolder="vae").requires_grad_(False), "encoded"
    from spatia_model.model_folder import load_mini, resolve

    vae: Any = load_mini(resolve(name))[0].vae
    return vae.float(), "pooled"


def load_text(name: str, device: str) -> Any:
    """The release's text encoder from a folder with text_encoder/ and tokenizer/."""
    folder = Path(name).expanduser()
    if not (folder / "text_encoder" / "config.json").is_file():
        raise ValueError(f"--text {name}: no text_encoder/ there; give the folder that `spatia convert` wrote")
    from spatia_model.release_folder import load_text as load

    return load(folder, device)


def fingerprint(module: torch.nn.Module) -> str:
    """A short name of an autoencoder's weights: latents of another do not mix with its own."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes()[:4096])
    return digest.hexdigest()[:16]
