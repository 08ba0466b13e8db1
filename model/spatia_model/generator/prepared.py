"""What the denoiser can compute once and use in every sampler step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spatia_model.generator.blocks import KeyValue


@dataclass(frozen=True)
class Conditions:
    """What does not change between sampler steps, computed once by `SpatiaTransformer.prepare`. Exact, not an approximation."""

    text: tuple[KeyValue, ...]  # per main block: keys, values (B, L, heads, head_dim)
    control_text: tuple[KeyValue, ...]  # per control block; empty without control
    control: torch.Tensor | None  # (B, F - R, S, D) what the first control block adds to the patched latents
    main: torch.Tensor | None  # (B, F - R, S, D) what is added to the main trunk's input
    output: torch.Tensor | None  # (B, C_out, F - R, H, W) what is added to the prediction
    scales: torch.Tensor | None  # (B or 1, control blocks)
    latents: torch.Tensor | None  # (B, C_control, F - R, H, W) what the detail head reads of the control
    num_references: int
    lora: float

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """Stack along the batch, for instance positive and negative prompts. All parts must be of one kind."""
        first = parts[0]
        kinds = {(part.num_references, part.lora, part.control is None, part.main is None, part.output is None) for part in parts}
        if len(kinds) != 1:
            raise ValueError("conditions with different reference counts, LoRA strengths or control can't share a batch: group them first")

        def joined(name: str) -> torch.Tensor | None:
            return None if getattr(first, name) is None else torch.cat([getattr(part, name) for part in parts])

        def texts(name: str) -> tuple[KeyValue, ...]:
            columns = zip(*(getattr(part, name) for part in parts), strict=True)
            return tuple((torch.cat([kv[0] for kv in column]), torch.cat([kv[1] for kv in column])) for column in columns)

        scales = None
        if first.scales is not None:
            scales = torch.cat([part.scales.expand(part.text[0][0].shape[0], -1) for part in parts])  # type: ignore[union-attr]
        return Conditions(
            texts("text"),
            texts("control_text"),
            joined("control"),
            joined("main"),
            joined("output"),
            scales,
            joined("latents"),
            first.num_references,
            first.lora,
        )
