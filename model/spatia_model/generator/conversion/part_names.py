"""Names of Wan's own VAE and text encoder files, next to the names of the diffusers and transformers classes.

The denoiser's names are in `generator.names`. Wan's own names follow from its published modules (`vae2_2.py`: nested sequences of
residual blocks; `t5.py`); ours are those of `AutoencoderKLWan` and `UMT5EncoderModel`.
"""

from __future__ import annotations

import re

# A residual block is a sequence: norm, SiLU, convolution, norm, SiLU, dropout, convolution.
_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2", "shortcut": "conv_shortcut"}
_RESIDUAL_BACK = {ours: official for official, ours in _RESIDUAL.items()}
_TOP = {
    "encoder.conv1": "encoder.conv_in",
    "encoder.head.0": "encoder.norm_out",
    "encoder.head.2": "encoder.conv_out",
    "decoder.conv1": "decoder.conv_in",
    "decoder.head.0": "decoder.norm_out",
    "decoder.head.2": "decoder.conv_out",
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
}
_TOP_BACK = {ours: official for official, ours in _TOP.items()}
# The middle is residual block, attention, residual block.
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_MIDDLE_BACK = {ours: official for official, ours in _MIDDLE.items()}
_STAGE = re.compile(r"(en|de)coder\.(?:down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")
_STAGE_BACK = re.compile(r"(en|de)coder\.(?:down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)sampler)\.(.+)")
_LEAF = re.compile(r"(.+)\.(weight|bias|gamma)")


def _split(name: str, kind: str) -> tuple[str, str]:
    leaf = _LEAF.fullmatch(name)
    if not leaf:
        raise ValueError(f"unknown {kind} tensor name {name!r}: it ends in none of weight, bias, gamma")
    return leaf[1], leaf[2]


def vae_to_diffusers(name: str) -> str:
    """Our name of a tensor of Wan2.2's VAE file. ValueError when it has none."""
    module, leaf = _split(name, "VAE")
    if module in _TOP:
        return f"{_TOP[module]}.{leaf}"
    if stage := _STAGE.fullmatch(module):
        side, block, index, rest = stage.groups()
        way = "down" if side == "en" else "up"
        prefix = f"{side}coder.{way}_blocks.{block}"
        if rest in _RESIDUAL:
            return f"{prefix}.resnets.{index}.{_RESIDUAL[rest]}.{leaf}"
        if rest in ("resample.1", "time_conv"):
            return f"{prefix}.{way}sampler.{rest}.{leaf}"
    if middle := re.fullmatch(r"((?:en|de)coder)\.middle\.([012])\.(.+)", module):
        side, index, rest = middle.groups()
        known = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"} if index == "1" else _RESIDUAL
        if rest in known:
            return f"{side}.mid_block.{_MIDDLE[index]}.{known[rest]}.{leaf}"
    raise ValueError(f"unknown VAE tensor name {name!r}: it is none of Wan2.2's")


def vae_to_official(name: str, resnets: int = 2) -> str:
    """The name in Wan2.2's VAE file of one of our tensors. `resnets`: residual blocks per encoder stage (a decoder stage has one more)."""
    module, leaf = _split(name, "VAE")
    if module in _TOP_BACK:
        return f"{_TOP_BACK[module]}.{leaf}"
    if stage := _STAGE_BACK.fullmatch(module):
        side, block, index, rest = stage.groups()
        way = "down" if side == "en" else "up"
        index = index if index is not None else str(resnets + (side == "de"))  # the resampler comes after the residual blocks
        return f"{side}coder.{way}samples.{block}.{way}samples.{index}.{_RESIDUAL_BACK.get(rest, rest)}.{leaf}"
    if middle := re.fullmatch(r"((?:en|de)coder)\.mid_block\.(\w+\.\d)\.(.+)", module):
        side, part, rest = middle.groups()
        return f"{side}.middle.{_MIDDLE_BACK[part]}.{_RESIDUAL_BACK.get(rest, rest)}.{leaf}"
    raise ValueError(f"unknown VAE tensor name {name!r}: it is none of AutoencoderKLWan's")


_TEXT_BLOCK = {
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",  # the gated half: it goes through the GELU
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    "norm2": "layer.1.layer_norm",
}
_TEXT_BLOCK_BACK = {ours: official for official, ours in _TEXT_BLOCK.items()}
_TEXT_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_TEXT_TOP_BACK = {ours: official for official, ours in _TEXT_TOP.items()}


def text_to_transformers(name: str) -> str:
    """Our name of a tensor of Wan's text encoder file (UMT5). ValueError when it has none."""
    return _text_name(name, _TEXT_TOP, "blocks", "encoder.block", _TEXT_BLOCK, "Wan's UMT5")


def text_to_official(name: str) -> str:
    """The name in Wan's text encoder file of one of our tensors. ValueError when it has none."""
    return _text_name(name, _TEXT_TOP_BACK, "encoder.block", "blocks", _TEXT_BLOCK_BACK, "UMT5EncoderModel's")


def _text_name(name: str, top: dict[str, str], given: str, wanted: str, block: dict[str, str], whose: str) -> str:
    """A name by two tables: of the tensors outside the blocks, and of those in the blocks, which are called `given` and `wanted`."""
    if name in top:
        return top[name]
    found = re.fullmatch(rf"{re.escape(given)}\.(\d+)\.(.+)\.weight", name)
    if found and found[2] in block:
        return f"{wanted}.{found[1]}.{block[found[2]]}.weight"
    raise ValueError(f"unknown text encoder tensor name {name!r}: it is none of {whose}")
