"""Fitting the 5B to a machine: where weights wait, how they are stored, which attention runs.

All of it is diffusers' own machinery; this says which parts of it to use, and in which order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

OFFLOADS = ("none", "model", "group")
STORED = ("float8", "int8", "int4")
GIB = 1 << 30


@dataclass(frozen=True)
class Fit:
    """How the 5B is fitted to a device.

    Args:
        offload: "none": all weights stay on the device; "model": text encoder, autoencoder and denoiser wait on the CPU and visit one
            after another, as diffusers' model offload has it; "group": of denoiser and text encoder one or two blocks at a time are on the
            device, the next copied while one computes (diffusers' group offload).
        quantise: None; "float8": linear weights stored in 8 bits, computed in the model's type (needs no package); "int8", "int4":
            weights quantised by torchao, on the device. "int4" is laid out for the GPU and stays there, whatever `offload` says.
        attention: a backend of diffusers ("native", "flash", "sage", ...); None: PyTorch's choice.
        compile: compile the blocks (`torch.compile`); the first clip of each length is slow.
        batched_guidance: prompt and negative prompt in one pass of twice the size: faster where they fit.
    """

    offload: str = "none"
    quantise: str | None = None
    attention: str | None = None
    compile: bool = False
    batched_guidance: bool = False

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise ValueError(f"offload = {self.offload!r}; expected one of {OFFLOADS}")
        if self.quantise is not None and self.quantise not in STORED:
            raise ValueError(f"quantise = {self.quantise!r}; expected None or one of {STORED}")
        if self.offload == "group" and self.quantise in ("int8", "int4"):
            raise ValueError(f"offload='group' moves plain weights; with it take quantise='float8' or none, not {self.quantise!r}")


def choose_fit(device_bytes: int) -> Fit:
    """The fastest setting whose counted peak (`benchmarks/release_cost.py`, 121 frames of 1248x704) leaves room on such a device."""
    if device_bytes >= 36 * GIB:
        return Fit()
    if device_bytes >= 22 * GIB:
        return Fit(offload="model")
    if device_bytes >= 15 * GIB:
        return Fit(offload="model", quantise="float8")
    return Fit(offload="group")


def device_fit(device: str | torch.device) -> Fit:
    """`choose_fit` of the device's memory; nothing special on a CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return Fit()
    return choose_fit(torch.cuda.get_device_properties(device).total_memory)


def perceivers_wait(device: str | torch.device, fit: Fit) -> bool:
    """Whether large perceivers (17 GB in all) must wait on the CPU while they are not at work: there is no room beside the 5B."""
    device = torch.device(device)
    if device.type != "cuda":
        return False
    return fit.offload != "none" or torch.cuda.get_device_properties(device).total_memory < 60 * GIB


def quantised_config(kind: str) -> Any:
    """torchao's config for diffusers. Raises ModuleNotFoundError with the install line where torchao is missing."""
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"quantise={kind!r} needs torchao, which is not installed: pip install torchao") from error
    return Int8WeightOnlyConfig() if kind == "int8" else Int4WeightOnlyConfig()


def quantise(transformer: Any, kind: str, device: torch.device | None = None) -> None:
    """Store the blocks' linear weights smaller, in place. Adapters beside them stay as they are.

    device: where torchao quantises, a layer at a time; all of the transformer is there afterwards.
    """
    if kind == "float8":
        transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=transformer.patch_embedding.weight.dtype,
            skip_modules_pattern=(*transformer._skip_layerwise_casting_patterns, "lora_", "proj_out$"),
        )
        return
    config = quantised_config(kind)
    from torchao.quantization import quantize_  # type: ignore[import-not-found]

    def in_block(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and "blocks." in name and "lora_" not in name

    quantize_(transformer, config, filter_fn=in_block, device=device)


@contextmanager
def visiting(module: nn.Module, device: str | torch.device, fit: Fit) -> Iterator[None]:
    """The module on `device` inside the block, where `fit` has it wait on the CPU.

    Weights do not change, so nothing is copied back: afterwards the module has its own again, memory-mapped ones included.
    """
    if fit.offload == "none":
        yield
        return
    tensors = list(chain(module.parameters(), module.buffers()))
    if any(is_traceable_wrapper_subclass(tensor) for tensor in tensors):  # torchao's weights are more than their data
        home = tensors[0].device
        moved = home.type != torch.device(device).type
        if moved:
            module.to(device)
        try:
            yield
        finally:
            if moved:
                module.to(home)
        return
    data = [(parameter, parameter.data) for parameter in module.parameters()]
    parts = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
    try:
        with torch.inference_mode(False), torch.no_grad():  # else their weights could not be put back
            module.to(device)
        yield
    finally:
        with torch.inference_mode(False):
            for parameter, kept in data:
                if parameter.data_ptr() != kept.data_ptr():
                    parameter.data = kept
            for part, parameters, buffers in parts:
                part._parameters.update(parameters)
                part._buffers.update(buffers)


def group_offload(module: nn.Module, device: torch.device) -> None:
    """Of the module's lists of blocks one or two blocks are on the device at a time; its other weights while it computes."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
        low_cpu_mem_usage=True,  # pins memory block by block: the weights stay memory-mapped until they are used
    )


def fit_transformer(transformer: Any, device: str | torch.device, fit: Fit) -> None:
    """Put the denoiser (adapters included) where `fit` says; with offload="model" it waits for `visiting`."""
    device = torch.device(device)
    if fit.quantise is not None:
        quantise(transformer, fit.quantise, device)
        if fit.offload == "model" and fit.quantise == "int8":
            transformer.to("cpu")
    if fit.attention is not None:
        transformer.set_attention_backend(fit.attention)
    if fit.offload == "group":
        group_offload(transformer, device)
    elif fit.offload == "none":
        transformer.to(device)
    if fit.compile:
        transformer.compile_repeated_blocks(fullgraph=False, dynamic=False)
