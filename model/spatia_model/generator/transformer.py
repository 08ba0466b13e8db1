"""The denoiser: Wan2.2's video transformer with parallel control blocks, references and per-frame times.

One class for both tiers. With the preset `wan22_ti2v_5b` it is the released architecture to the last tensor; the
embedded tier is the same class at a small size with a few options on. Module names and layout are diffusers'
(`WanVACETransformer3DModel`), so its adapters, attention backends, offloading and checkpointing apply.

Differences to the stock class, which can't express the released model: time is one value per latent frame, control is
optional and sees no reference frames, references have positions of their own, the time sinusoid is double precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.loaders.single_file_model import FromOriginalModelMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from torch import nn

from spatia_model.generator.blocks import (
    PatchEmbedding,
    SpatiaAttnProcessor,
    SpatiaBlock,
    SpatiaControlBlock,
    apply_linear,
    modulate,
    rotary_split,
    rotary_table,
    time_sinusoid,
    unpatch,
)
from spatia_model.generator.detail import DetailHead
from spatia_model.generator.prepared import Conditions

PREDICTIONS = ("velocity", "sample")
DETAIL_FEATURES = 16  # channels per latent pixel that the trunk hands to the detail head

# FACTS: Wan2.2-TI2V-5B with Spatia's control branch (825 + 236 tensors).
WAN22_TI2V_5B: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 14336,
    "num_layers": 30,
    "vace_layers": tuple(range(0, 30, 4)),
    "vace_in_channels": 96,
}


class SpatiaTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin, AttentionMixin):
    """Predicts the flow velocity (noise - data) or the clean sample of video latents.

    Arguments of the config, beyond diffusers' own names:
        vace_layers: main block of each control block, increasing; empty: no control blocks.
        vace_in_channels: channels of the control latents.
        control_in_main: the control tokens are also added to the input of the main trunk, through a linear map that starts at zero.
        control_to_output: the first out_channels control channels are also added to the prediction of the non-reference
            frames, times a learned gate per channel that starts at 1 for prediction "sample" (the untrained model copies the
            projection) and at 0 for "velocity".
        output_gates: the head also predicts, for every latent pixel, what share of the noised latents and of the carried control
            goes into the prediction. A token holds fewer numbers than its patch, so without such a way past the trunk
            the detail of nearly clean latents is lost in it. Starts at no latents and all of the control.
        detail_width: of the convolutions that correct the prediction of noisy frames at latent resolution (`DetailHead`); 0: none.
        prediction: "velocity" or "sample": what the output means. The sampler reads it; the network doesn't.
    """

    config: Any  # a read-only mapping with attributes; diffusers types it as a plain dict
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["patch_embedding", "vace_patch_embedding", "condition_embedder", "norm"]
    _no_split_modules = ["SpatiaBlock", "SpatiaControlBlock"]
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]
    _repeated_blocks = ["SpatiaBlock", "SpatiaControlBlock"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        in_channels: int = 48,
        out_channels: int = 48,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 14336,
        num_layers: int = 30,
        eps: float = 1e-6,
        vace_layers: Sequence[int] = (),
        vace_in_channels: int = 96,
        control_in_main: bool = False,
        control_to_output: bool = False,
        output_gates: bool = False,
        detail_width: int = 0,
        prediction: str = "velocity",
    ) -> None:
        super().__init__()
        patch = tuple(patch_size)
        layers = list(vace_layers)
        dim = num_attention_heads * attention_head_dim
        rotary_split(attention_head_dim)
        if len(patch) != 3 or patch[0] != 1:
            raise ValueError(f"patch_size {patch}: give (1, height, width); frames have their own times, so patches don't span them")
        if layers != sorted(set(layers)) or any(not 0 <= layer < num_layers for layer in layers):
            raise ValueError(f"vace_layers {layers}: give increasing main-block numbers below num_layers {num_layers}")
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction {prediction!r}: give one of {PREDICTIONS}")
        if freq_dim % 2:
            raise ValueError(f"freq_dim {freq_dim}: give an even number, half cosines and half sines")
        if control_to_output and vace_in_channels < out_channels:
            raise ValueError(f"control_to_output needs vace_in_channels >= out_channels, got {vace_in_channels} < {out_channels}")

        self.patch_embedding = PatchEmbedding(in_channels, dim, patch)  # type: ignore[arg-type]
        if output_gates and in_channels != out_channels:
            raise ValueError(f"output_gates carries latents over, so in_channels {in_channels} must equal out_channels {out_channels}")
        self.has_control = bool(layers or control_in_main or control_to_output or detail_width)
        if layers or control_in_main:
            self.vace_patch_embedding = PatchEmbedding(vace_in_channels, dim, patch)  # type: ignore[arg-type]
        self.condition_embedder = WanTimeTextImageEmbedding(dim, freq_dim, 6 * dim, text_dim)
        self.blocks = nn.ModuleList([SpatiaBlock(dim, ffn_dim, num_attention_heads, eps) for _ in range(num_layers)])
        if layers:
            self.vace_blocks = nn.ModuleList(
                [SpatiaControlBlock(dim, ffn_dim, num_attention_heads, eps, first=i == 0) for i in range(len(layers))]
            )
        if control_in_main:
            self.control_in = nn.Linear(dim, dim)
            nn.init.zeros_(self.control_in.weight)
            nn.init.zeros_(self.control_in.bias)
        if control_to_output:
            self.control_gate = nn.Parameter(torch.full((out_channels,), 1.0 if prediction == "sample" else 0.0))
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, out_channels * math.prod(patch))
        if output_gates:
            self.gate_out = nn.Linear(dim, 2 * math.prod(patch))
            nn.init.zeros_(self.gate_out.weight)
            nn.init.zeros_(self.gate_out.bias)
        if detail_width:
            if in_channels != out_channels:
                raise ValueError(f"detail_width corrects latents, so in_channels {in_channels} must equal out_channels {out_channels}")
            self.detail_out = nn.Linear(dim, DETAIL_FEATURES * math.prod(patch))
            self.detail = DetailHead(out_channels, vace_in_channels, DETAIL_FEATURES, detail_width)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.gradient_checkpointing = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SpatiaTransformer:
        """From the constructor's arguments as JSON holds them, with lists for tuples. TypeError for a setting that it does not know."""
        arguments: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        return cls(**arguments)

    @classmethod
    def wan22_ti2v_5b(cls, **changes: Any) -> SpatiaTransformer:
        """The released architecture. Build it under `torch.device("meta")` unless 25 GB of float32 are at hand."""
        return cls(**{**WAN22_TI2V_5B, **changes})

    @torch.no_grad()
    def initialise(self) -> SpatiaTransformer:
        """Weights to start training from scratch: Xavier linears, zero biases, zero head, zero control hints (as Wan and VACE do)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | PatchEmbedding):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        embedder = self.condition_embedder
        for linear in (embedder.time_embedder.linear_1, embedder.time_embedder.linear_2):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (embedder.text_embedder.linear_1, embedder.text_embedder.linear_2):
            # Wan's 0.02 at its width of 4096. At a small width that would make words a hundredth of what the trunk holds: too faint.
            nn.init.normal_(linear.weight, std=1.28 * linear.in_features**-0.5)
        zeros = [self.proj_out, *(block.proj_out for block in getattr(self, "vace_blocks", ()))]
        if self.config.control_in_main:
            zeros.append(self.control_in)
        if self.config.output_gates:
            zeros.append(self.gate_out)
        if self.config.detail_width:
            self.detail.initialise()
        for linear in zeros:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        return self

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _check(self, name: str, value: torch.Tensor, channels: int) -> None:
        _, ph, pw = self.config.patch_size
        if value.ndim != 5 or value.shape[1] != channels:
            raise ValueError(f"{name} {tuple(value.shape)}: give (B, {channels}, F, H, W)")
        if value.shape[3] % ph or value.shape[4] % pw:
            raise ValueError(f"{name} {tuple(value.shape)}: height and width must be multiples of the patch ({ph}, {pw})")

    def _scales(self, control_scale: float | torch.Tensor, device: torch.device) -> torch.Tensor:
        count = max(1, len(self.config.vace_layers))
        scales = torch.as_tensor(control_scale, dtype=torch.float32, device=device)
        if scales.ndim < 2:
            scales = scales.reshape(1, -1)
        if scales.ndim != 2 or scales.shape[1] not in (1, count):
            raise ValueError(
                f"control_scale of shape {tuple(scales.shape)}: give one number, one per control block ({count},), "
                f"one per sample (B, 1), or both (B, {count})"
            )
        return scales.expand(-1, count)

    def _embed_text(self, context: torch.Tensor, lora: float) -> torch.Tensor:
        if context.ndim != 3 or context.shape[2] != self.config.text_dim:
            raise ValueError(f"context {tuple(context.shape)}: give (B, rows, {self.config.text_dim})")
        text = self.condition_embedder.text_embedder
        hidden = text.act_1(apply_linear(text.linear_1, context.to(self._dtype), lora))
        return apply_linear(text.linear_2, hidden, lora)

    @property
    def _dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def _encode_control(self, control: torch.Tensor | None, control_scale: float | torch.Tensor, lora: float) -> dict[str, Any]:
        """Control latents -> tokens, and the parts for the trunk and the output, both scaled."""
        parts: dict[str, Any] = {"control": None, "main": None, "output": None, "scales": None, "latents": None}
        if control is None:
            return parts
        if not self.has_control:
            raise ValueError("this model has no control branch (vace_layers is empty): pass control=None")
        self._check("control", control, self.config.vace_in_channels)
        control = control.to(self._dtype)
        scales = parts["scales"] = self._scales(control_scale, control.device)
        overall = scales[:, 0, None, None, None]  # (B or 1, 1, 1, 1): the trunk and the output follow the first block's strength
        if self.config.detail_width:
            parts["latents"] = control * overall[..., None]
        if hasattr(self, "vace_patch_embedding"):
            parts["control"] = self.vace_patch_embedding(control)
        if self.config.control_in_main:
            parts["main"] = apply_linear(self.control_in, parts["control"], lora) * overall
        if self.config.control_to_output:
            parts["output"] = control[:, : self.config.out_channels] * self.control_gate[:, None, None, None] * overall[..., None]
        return parts

    def prepare(
        self,
        context: torch.Tensor,
        control: torch.Tensor | None = None,
        num_references: int = 0,
        control_scale: float | torch.Tensor = 1.0,
        lora: float = 1.0,
    ) -> Conditions:
        """Text keys and values and control tokens, once for all sampler steps. Arguments as in `forward`.

        Calls parts of the blocks outside their forward, so with block-level offloading leave it out.
        """
        text = self._embed_text(context, lora)
        parts = self._encode_control(control, control_scale, lora)
        control_blocks = [] if control is None else list(getattr(self, "vace_blocks", ()))
        if control_blocks:
            parts["control"] = apply_linear(control_blocks[0].proj_in, parts["control"], lora)
        keys_values = SpatiaAttnProcessor.keys_values
        return Conditions(
            text=tuple(keys_values(block.attn2, text, lora) for block in self.blocks),
            control_text=tuple(keys_values(block.attn2, text, lora) for block in control_blocks),
            num_references=num_references,
            lora=lora,
            **parts,
        )

    def _embed_times(self, timestep: torch.Tensor, batch: int, frames: int, references: int) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (temb (n, D) of the n distinct times, index (B, F) into it); float32 whatever autocast says."""
        if timestep.shape == (batch,) or timestep.ndim == 0 or (timestep.shape == (1,) and batch > 1):
            if references:
                raise ValueError(f"one time per sample is ambiguous with {references} reference frames: give (B, F) times, references 0")
            times = torch.cat([timestep.new_zeros(1), timestep.reshape(-1)])
            index = torch.arange(1, len(times), device=times.device)[:, None].expand(-1, frames).clone()
            index[:, 0] = 0
            index = index.expand(batch, -1)
        elif timestep.shape in ((batch, frames), (1, frames)):
            times, index = torch.unique(timestep, return_inverse=True)
            index = index.expand(batch, -1)
        else:
            raise ValueError(f"timestep {tuple(timestep.shape)}: give ({batch},) or one time per latent frame ({batch}, {frames})")
        embedder = self.condition_embedder.time_embedder
        sinusoid = time_sinusoid(times, self.config.freq_dim)
        return embedder(sinusoid.to(embedder.linear_2.weight.dtype)).float(), index

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None = None,
        control: torch.Tensor | None = None,
        num_references: int = 0,
        control_scale: float | torch.Tensor = 1.0,
        lora: float = 1.0,
        conditions: Conditions | None = None,
    ) -> torch.Tensor:
        """One prediction for all frames, references and history included.

        Args:
            latents: (B, C, F, H, W); F counts reference frames first, then history, then frames to generate.
            timestep: (B, F), 0..1000, one time per latent frame (references and history are 0); or (B,) without
                references: frame 0 is clean, all others have this time.
            context: (B, L, text_dim) text rows; padding rows take part in attention.
            control: (B, vace_in_channels, F - R, H, W) control latents of the non-reference frames, or None.
            num_references: R.
            control_scale: strength of the control: a number, (control blocks,), (B, 1) or (B, control blocks). 0 is the same as no control.
            lora: share of loaded LoRA adapters: 1 on, 0 off. The weights aren't touched.
            conditions: what `prepare` returned, in place of the five arguments before it; same result, less work.

        Returns:
            (B, out_channels, F, H, W) in the type of `latents`; `config.prediction` says what it means.
        """
        self._check("latents", latents, self.config.in_channels)
        if conditions is None:
            if context is None:
                raise ValueError("give `context`, or `conditions` from prepare()")
            text = self._embed_text(context, lora)
            parts = self._encode_control(control, control_scale, lora)
            tokens, main, output, scales = parts["control"], parts["main"], parts["output"], parts["scales"]
            control_latents = parts["latents"]
            texts: Sequence[Any] = [text] * len(self.blocks)
            control_texts: Sequence[Any] = [text] * len(self.config.vace_layers)
        else:
            if context is not None or control is not None:
                raise ValueError("`conditions` already holds context and control: give either, not both")
            num_references, lora = conditions.num_references, conditions.lora
            tokens, main, output, scales = conditions.control, conditions.main, conditions.output, conditions.scales
            texts, control_texts, control_latents = conditions.text, conditions.control_text, conditions.latents

        batch, _, frames, height, width = latents.shape
        first = num_references  # the first frame that isn't a reference
        if not 0 <= first < frames:
            raise ValueError(f"num_references {first}: give 0 to {frames - 1}, fewer than the {frames} latent frames")
        x = self.patch_embedding(latents.to(self._dtype)).to(self._dtype)  # (B, F, S, D)
        volume = (frames - first, height, width)
        if (tokens is not None and tokens.shape[:3] != (batch, volume[0], x.shape[2])) or (
            output is not None and (output.shape[0], *output.shape[2:]) != (batch, *volume)
        ):
            raise ValueError(f"control doesn't fit latents {tuple(latents.shape)} with {first} references: give batch {batch} of {volume}")
        rows = len(texts[0] if isinstance(texts[0], torch.Tensor) else texts[0][0])
        if rows != batch or (scales is not None and len(scales) not in (1, batch)):
            raise ValueError(f"{rows} contexts and {'no' if scales is None else len(scales)} control scales for a batch of {batch} latents")

        device = latents.device.type
        with torch.autocast(device, enabled=False):
            temb, time_index = self._embed_times(timestep.to(latents.device), batch, frames, num_references)
            project = self.condition_embedder.time_proj
            modulation = apply_linear(project, F.silu(temb).to(project.weight.dtype), lora).float().unflatten(1, (6, -1))
        _, ph, pw = self.config.patch_size
        rotary = rotary_table(self.config.attention_head_dim, frames, first, height // ph, width // pw, latents.device)
        control_rotary = rotary[:, first * x.shape[2] :]
        control_index = time_index[:, first:]

        latent_tokens = x[:, first:]
        state = tokens
        if main is not None:
            x = self._add(x, main, first)
        order = {layer: i for i, layer in enumerate(self.config.vace_layers)} if tokens is not None else {}
        for layer, block in enumerate(self.blocks):
            x = self._run(block, x, texts[layer], modulation, rotary, time_index, lora)
            if (i := order.get(layer)) is not None:
                # The control branch depends only on itself, so each block runs when its hint is due: one hint alive at a time.
                extra = (latent_tokens, conditions is not None) if i == 0 else ()
                hint, state = self._run(
                    self.vace_blocks[i], state, control_texts[i], modulation, control_rotary, control_index, lora, *extra
                )
                assert scales is not None
                x = self._add(x, hint * scales[:, i, None, None, None].to(hint.dtype), first)

        with torch.autocast(device, enabled=False):
            shift, scale = (self.scale_shift_table.float() + temb[:, None])[time_index].unsqueeze(3).unbind(2)
            head = modulate(x, shift, scale, self.config.eps)
            prediction = unpatch(apply_linear(self.proj_out, head, lora), height, width, self.config.patch_size)
            if self.config.output_gates:
                gates = unpatch(apply_linear(self.gate_out, head, lora), height, width, self.config.patch_size)  # (B, 2, F, H, W)
                prediction = prediction + gates[:, :1] * latents
                output = None if output is None else output * (1 + gates[:, 1:, first:])
        if output is not None:
            prediction = torch.cat([prediction[:, :, :first], prediction[:, :, first:] + output], dim=2) if first else prediction + output
        if self.config.detail_width:
            features = unpatch(apply_linear(self.detail_out, head, lora), height, width, self.config.patch_size)[:, :, first:]
            if control_latents is None:
                control_latents = features.new_zeros(batch, self.config.vace_in_channels, *volume)
            if timestep.ndim < 2:  # one per sample: the first frame is clean
                timestep = torch.cat([timestep.new_zeros(batch, 1), timestep.reshape(-1, 1).expand(batch, frames - 1)], 1)
            noise = (timestep.to(latents.device).float() / 1000).expand(batch, frames)
            noisy = (noise.amax(0) > 0).nonzero()
            start = max(first, int(noisy[0])) if len(noisy) else frames  # clean frames are given, nobody reads their prediction
            if start < frames:
                before = prediction[:, :, max(start - 1, first) : max(start, first + 1)]
                target = self.detail(
                    latents[:, :, start:], prediction[:, :, start:], before, control_latents[:, :, start - first :],
                    features[:, :, start - first :], noise[:, start:],
                )  # fmt: skip
                prediction = torch.cat([prediction[:, :, :start], target], dim=2)
        return prediction.to(latents.dtype)

    @staticmethod
    def _add(x: torch.Tensor, update: torch.Tensor, first: int) -> torch.Tensor:
        """Add to the non-reference frames only."""
        update = update.to(x.dtype)
        return torch.cat([x[:, :first], x[:, first:] + update], dim=1) if first else x + update

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled() and self._gradient_checkpointing_func is not None:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
