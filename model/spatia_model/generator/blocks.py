"""Parts of the transformer: positions, attention and the two kinds of block, on the layout of diffusers' Wan.

Hidden states are (B, F, S, D): latent frames, tokens of a frame, channels. The time modulation is one row per frame and
is broadcast over the tokens of that frame, so nothing of size tokens x 6 x dim is ever made.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import nn

KeyValue = tuple[torch.Tensor, torch.Tensor]


def apply_linear(module: nn.Module, x: torch.Tensor, lora: float = 1.0) -> torch.Tensor:
    """`module(x)`, with the share `lora` of its adapters: 1 all, 0 none. Nothing on the module is changed."""
    if lora == 1.0 or not hasattr(module, "base_layer"):
        return module(x)
    if module.merged:
        raise ValueError("LoRA adapters were merged into the weights, so they can't be switched off: unmerge them (unfuse_lora) first")
    base = module.base_layer(x)  # type: ignore[operator]
    return base if lora == 0.0 else base + lora * (module(x) - base)


def time_sinusoid(time: torch.Tensor, dim: int) -> torch.Tensor:
    """Times (n,) in 0..1000 -> (n, dim) float32: cosines, then sines; computed in double precision."""
    half = dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=time.device) / half)
    angle = time.double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


def rotary_positions(frames: int, references: int, height: int, width: int) -> torch.Tensor:
    """Time, row and column of each token, (frames * height * width, 3) int64, in frame, row, column order.

    Reference i of R is at time i - R, its rows are h..2h-1; the other frames are at times 0, 1, ..., rows 0..h-1.
    `height` and `width` count patches, `frames` counts the references too.
    """
    time = torch.arange(frames) - references
    row = torch.arange(height) + height * (time < 0).long()[:, None]  # (F, h)
    shape = (frames, height, width)
    parts = time[:, None, None], row[:, :, None], torch.arange(width)[None, None]
    return torch.stack([part.expand(shape) for part in parts], dim=-1).reshape(-1, 3)


def rotary_split(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head for time, row and column. Rows and columns get head_dim // 3 each, rounded down to even.

    Wan's own rule; head_dim 128 gives (44, 42, 42), 56 gives (20, 18, 18), 20 gives (8, 6, 6).
    """
    if head_dim < 6 or head_dim % 2:
        raise ValueError(f"head_dim {head_dim}: rotary positions pair channels in three parts, so give an even number, 6 or more")
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


@functools.lru_cache(maxsize=16)
def rotary_table(head_dim: int, frames: int, references: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """Unit complex rotations (1, tokens, 1, head_dim / 2) complex64; computed in double precision, kept for reuse."""
    with torch.inference_mode(False), torch.no_grad():
        positions = rotary_positions(frames, references, height, width).double()
        angles = []
        for axis, channels in enumerate(rotary_split(head_dim)):
            frequency = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
            angles.append(positions[:, axis, None] * frequency)
        angle = torch.cat(angles, dim=1)
        return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[None, :, None].to(device)


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Turn adjacent channel pairs of x (B, N, heads, head_dim) by the table; float32 inside."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)


def _heads(attn: Any, x: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
    """(B, N, D) -> (B, N, heads, head_dim), normed over the full width first; the norm runs in its weight's type."""
    return (x if norm is None else norm(x.to(norm.weight.dtype))).unflatten(2, (attn.heads, -1))  # type: ignore[arg-type]


class SpatiaAttnProcessor:
    """Self-attention with rotary positions, or cross-attention to text given as tokens or as ready keys and values."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | KeyValue | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
        lora: float = 1.0,
    ) -> torch.Tensor:
        if encoder_hidden_states is None and attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query = apply_linear(attn.to_q, hidden_states, lora)
            if encoder_hidden_states is None:
                key, value = apply_linear(attn.to_k, hidden_states, lora), apply_linear(attn.to_v, hidden_states, lora)
        query = _heads(attn, query, attn.norm_q)
        if encoder_hidden_states is None:
            key, value = _heads(attn, key, attn.norm_k), _heads(attn, value)
        elif isinstance(encoder_hidden_states, tuple):
            key, value = encoder_hidden_states
        else:
            key, value = self.keys_values(attn, encoder_hidden_states, lora)
        if rotary_emb is not None:
            query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        dtype = value.dtype  # under autocast the linears' lower type; the norms and rotations ran in float32
        out = dispatch_attention_fn(
            query.to(dtype),
            key.to(dtype),
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config if encoder_hidden_states is None else None,
        )
        return apply_linear(attn.to_out[0], out.flatten(2, 3), lora)

    @staticmethod
    def keys_values(attn: Any, text: torch.Tensor, lora: float = 1.0) -> KeyValue:
        """Keys and values (B, L, heads, head_dim) of embedded text (B, L, dim). They don't depend on time or latents."""
        if attn.fused_projections:
            key, value = attn.to_kv(text).chunk(2, dim=-1)
        else:
            key, value = apply_linear(attn.to_k, text, lora), apply_linear(attn.to_v, text, lora)
        return _heads(attn, key, attn.norm_k), _heads(attn, value)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm without weights, then scale and shift, in float32; cast back to x's type."""
    return torch.addcmul(shift, F.layer_norm(x.float(), x.shape[-1:], None, None, eps), scale + 1).to(x.dtype)


def gated_add(x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + gate * update in float32; cast back to x's type."""
    return torch.addcmul(x.float(), update.float(), gate).to(x.dtype)


class SpatiaBlock(WanTransformerBlock):
    """One main block: self-attention, text cross-attention, feed-forward, each frame modulated by its own time."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float):
        super().__init__(dim, ffn_dim, num_heads, "rms_norm_across_heads", True, eps)
        self.eps = eps
        for attention in (self.attn1, self.attn2):
            attention.set_processor(SpatiaAttnProcessor())  # type: ignore[arg-type]

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | KeyValue,
        temb: torch.Tensor,
        rotary_emb: torch.Tensor,
        time_index: torch.Tensor,
        lora: float = 1.0,
    ) -> torch.Tensor:
        """(B, F, S, D) -> (B, F, S, D). `temb` (n, 6, D): rows of the n distinct times; `time_index` (B, F): which row."""
        x = hidden_states
        batch, frames, size, dim = x.shape
        table = (self.scale_shift_table.float() + temb)[time_index]  # (B, F, 6, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = table.unsqueeze(3).unbind(2)  # (B, F, 1, D) each

        def attend(attention: nn.Module, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
            out = attention(tokens.reshape(batch, frames * size, dim), *rest, lora=lora)
            return out.view(batch, frames, size, dim)

        x = gated_add(x, attend(self.attn1, modulate(x, shift1, scale1, self.eps), None, None, rotary_emb), gate1)
        x = x + attend(self.attn2, self.norm2(x), encoder_hidden_states, None, None)
        hidden = modulate(x, shift2, scale2, self.eps)
        hidden = F.gelu(apply_linear(self.ffn.net[0].proj, hidden, lora), approximate="tanh")  # type: ignore[union-attr]
        return gated_add(x, apply_linear(self.ffn.net[2], hidden, lora), gate2)


with contextlib.suppress(ImportError):  # a private place of diffusers: without it only its (approximate, optional) step caches are lost
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    # Tells the step caches where a block's output is.
    TransformerBlockRegistry.register(SpatiaBlock, TransformerBlockMetadata(return_hidden_states_index=0))


class SpatiaControlBlock(SpatiaBlock):
    """One control block. Its state travels along the control branch; its hint goes to one main block."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float, first: bool):
        super().__init__(dim, ffn_dim, num_heads, eps)
        self.proj_in = nn.Linear(dim, dim) if first else None
        self.proj_out = nn.Linear(dim, dim)

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | KeyValue,
        temb: torch.Tensor,
        rotary_emb: torch.Tensor,
        time_index: torch.Tensor,
        lora: float = 1.0,
        latents: torch.Tensor | None = None,
        projected: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (hint, next control state), both (B, F - R, S, D).

        The first block is given the control tokens and the patched `latents` they are added to; `projected` says that
        its input projection was already applied (it is the same in every sampler step).
        """
        if self.proj_in is not None:
            if latents is None:
                raise ValueError("the first control block needs the patched latents its tokens are added to: pass `latents`")
            hidden_states = hidden_states if projected else apply_linear(self.proj_in, hidden_states, lora)
            hidden_states = hidden_states + latents
        state = super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb, time_index, lora)
        return apply_linear(self.proj_out, state, lora), state


class PatchEmbedding(nn.Conv3d):
    """A convolution whose kernel is its stride, computed as a matrix product of patches: (B, C, F, H, W) -> (B, F, S, D)."""

    def __init__(self, in_channels: int, dim: int, patch: tuple[int, int, int]):
        super().__init__(in_channels, dim, kernel_size=patch, stride=patch)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = input.shape
        _, ph, pw = self.kernel_size
        x = input.view(batch, channels, frames, height // ph, ph, width // pw, pw).permute(0, 2, 3, 5, 1, 4, 6)
        return F.linear(x.reshape(batch, frames, (height // ph) * (width // pw), -1), self.weight.flatten(1), self.bias)


def unpatch(tokens: torch.Tensor, height: int, width: int, patch: tuple[int, int, int]) -> torch.Tensor:
    """Head output (B, F, S, ph * pw * C) -> (B, C, F, H, W); channels are the fastest axis of a patch."""
    batch, frames = tokens.shape[:2]
    _, ph, pw = patch
    x = tokens.view(batch, frames, height // ph, width // pw, ph, pw, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return x.reshape(batch, -1, frames, height, width)
