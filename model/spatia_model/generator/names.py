"""Names of the official checkpoints, next to the names of our (diffusers-layout) modules.

One table, read in both directions. Names are those inside the released files, without a prefix: the base model
(`blocks.N`, `patch_embedding`, `text_embedding`, ...) and the control branch (`vace_blocks.N`, `vace_patch_embedding`).
"""

from __future__ import annotations

import re

# Module or parameter inside one block: official -> diffusers.
BLOCK_NAMES: dict[str, str] = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "norm3": "norm2",  # the only affine norm of a block; the official norm1 and norm2 have no parameters
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}

# Everything outside the blocks: official -> diffusers.
TOP_NAMES: dict[str, str] = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}

_TO_OURS = (BLOCK_NAMES, TOP_NAMES)
_TO_OFFICIAL = tuple({ours: official for official, ours in table.items()} for table in _TO_OURS)
_BLOCK = re.compile(r"((?:vace_)?blocks\.\d+)\.(.+)")
_PARAMETER = re.compile(r"(.+)\.(weight|bias)")


def _translate(name: str, tables: tuple[dict[str, str], ...], side: str) -> str:
    block = _BLOCK.fullmatch(name)
    prefix, rest = (f"{block[1]}.", block[2]) if block else ("", name)
    parameter = _PARAMETER.fullmatch(rest)
    module, suffix = (parameter[1], f".{parameter[2]}") if parameter else (rest, "")
    table = tables[0] if block else tables[1]
    if module not in table:
        place = "in a block" if block else "outside blocks"
        raise ValueError(f"unknown {side} tensor or module name {name!r}: the names known {place} are {sorted(table)}")
    return prefix + table[module] + suffix


def to_diffusers(name: str) -> str:
    """Our name of an official tensor or module. ValueError when the name is in neither table."""
    return _translate(name, _TO_OURS, "official")


def to_official(name: str) -> str:
    """The official name of one of our tensors or modules. ValueError when it has none (the embedded tier's extras)."""
    return _translate(name, _TO_OFFICIAL, "diffusers")
