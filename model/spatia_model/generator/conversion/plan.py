"""What a conversion writes: every output file with the tensors it is made of, checked against the architecture. Reads only headers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spatia_model.config import RELEASE, ReleaseConfig
from spatia_model.generator import names
from spatia_model.generator.checkpoint import CheckpointError, check_tensors
from spatia_model.generator.conversion import sources
from spatia_model.generator.conversion.architecture import Architecture, Shapes
from spatia_model.generator.conversion.part_names import text_to_official, text_to_transformers, vae_to_diffusers, vae_to_official
from spatia_model.generator.conversion.spans import Span, read_spans, written_size
from spatia_model.generator.lora import read_pairs

SHARD = 2 << 30  # bytes; a shard is the least that an interrupted conversion does again
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Entry = tuple[str, Span, torch.dtype]


@dataclass(frozen=True)
class Output:
    """One file to be written: from tensors, from a text, or as a copy."""

    name: str  # relative, with forward slashes
    size: int
    tensors: tuple[Entry, ...] = ()
    text: str = ""
    source: Path | None = None

    def stamp(self) -> str:
        """Changes when what the file is made of changes."""
        files = sorted({span.path for _, span, _ in self.tensors} | ({self.source} if self.source else set()))
        parts = [f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
        listed = [f"{name}{tuple(span.shape)}{dtype}" for name, span, dtype in self.tensors]
        return str(zlib.crc32("|".join([self.text, *parts, *listed]).encode()))


@dataclass(frozen=True)
class Plan:
    """Everything a conversion will write. `outputs` come in order, without `spatia.json`."""

    outputs: tuple[Output, ...]
    world: ReleaseConfig
    perception: Mapping[str, Any] | str

    @property
    def size(self) -> int:
        return sum(output.size for output in self.outputs)


def plan(
    base: str | Path,
    spatia: str | Path,
    architecture: Architecture | None = None,
    dtype: str = "bfloat16",
    world: ReleaseConfig = RELEASE,
    perception: Mapping[str, Any] | str = "today",
    control_file: str = sources.CONTROL_FILE,
    lora_file: str = sources.LORA_FILE,
    shard: int = SHARD,
) -> Plan:
    """Find the files, check every name and shape, and list what will be written. Reads only headers.

    Args:
        base: Wan2.2-TI2V-5B as published by Wan (three shards, two `.pth`) or in diffusers' layout; a folder or a hub id.
        spatia: folder or hub id with the control and LoRA files.
        architecture: the networks' sizes; None: the released.
        dtype: of the stored weights. Norms and modulation of the denoiser stay float32 where the source has that.
        world: the loop's numbers, kept in `spatia.json`.
        perception: what perceives, kept in `spatia.json`: a preset's name or a config of `perception.registry`, or "embedded".

    Raises:
        CheckpointError: a file is missing or damaged, a tensor missing, extra or misshapen; it is named.
        ValueError: a folder or hub id that isn't there, an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; give one of {', '.join(DTYPES)}")
    architecture = architecture or Architecture()
    found = sources.find_base(sources.base_folder(base))
    control, lora = sources.find_spatia(sources.spatia_folder(spatia, control_file, lora_file), control_file, lora_file)
    kind = DTYPES[dtype]
    outputs = [
        *_transformer(architecture, found, read_spans(control), control, kind, shard),
        *_vae(architecture, found, kind, shard),
        *_text(architecture, found, kind, shard),
        *_copies(found.tokenizer, "tokenizer"),
        _json_output("scheduler/scheduler_config.json", _scheduler(world)),
        *_lora(architecture, lora),
    ]
    return Plan(tuple(outputs), world, perception if isinstance(perception, str) else dict(perception))


# -- the parts ------------------------------------------------------------------------------------------------------


def _check(wanted: Shapes, found: Mapping[str, Span], where: str) -> None:
    try:
        check_tensors({name: _Shape(shape) for name, shape in wanted.items()}, found, where)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (expected: the released architecture; for another size give --architecture)") from error


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]


_DIT_CONFIG = {
    "dim": lambda c: c["num_attention_heads"] * c["attention_head_dim"],
    "ffn_dim": lambda c: c["ffn_dim"],
    "freq_dim": lambda c: c["freq_dim"],
    "in_dim": lambda c: c["in_channels"],
    "out_dim": lambda c: c["out_channels"],
    "num_heads": lambda c: c["num_attention_heads"],
    "num_layers": lambda c: c["num_layers"],
}


def _check_config(where: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    wrong = [
        f"{key} is {given[key]}, expected {plain(value)}" for key, value in wanted.items() if key in given and given[key] != plain(value)
    ]
    if wrong:
        raise CheckpointError(f"{where}: another architecture ({'; '.join(wrong)}); give Wan2.2-TI2V-5B, or the sizes with --architecture")


def _transformer(
    architecture: Architecture, base: sources.Base, control: dict[str, Span], control_file: Path, dtype: torch.dtype, shard: int
) -> list[Output]:
    model = architecture.transformer_model
    # Options of the embedded tier stay out: they are off, and diffusers' own class would warn of them.
    config = {"eps": model.config.eps} | dict(architecture.transformer)
    if "transformer" in base.configs:
        wanted = (
            {key: rule(config) for key, rule in _DIT_CONFIG.items()}
            if base.original
            else {k: v for k, v in config.items() if not k.startswith("vace_")}
        )
        _check_config("the base's config.json", base.configs["transformer"], wanted)
    spans = base.spans("transformer")
    if not base.original:
        spans = {_official(name): span for name, span in spans.items()}
    _check(architecture.base(), spans, "the base's denoiser")
    _check(architecture.control(), control, str(control_file))
    found = {names.to_diffusers(name): span for name, span in (spans | control).items()}
    keep = set(model._keep_in_fp32_modules or ())
    entries = []
    for name in model.state_dict():  # the model's own order: shards then hold whole blocks
        span = found[name]
        exact = keep & set(name.split(".")) and span.dtype == torch.float32
        entries.append((name, span, torch.float32 if exact else dtype))
    described = {"_class_name": "SpatiaTransformer", "_diffusers_version": version("diffusers"), **config}
    return [
        *_sharded("transformer", "diffusion_pytorch_model", entries, shard),
        _json_output("transformer/config.json", described),
    ]


def _official(name: str) -> str:
    try:
        return names.to_official(name)
    except ValueError as error:
        raise CheckpointError(f"the base's denoiser: {error}") from error


def _renamed(spans: Mapping[str, Span], rename: Callable[[str], str], where: str) -> dict[str, Span]:
    try:
        return {rename(name): span for name, span in spans.items()}
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _vae(architecture: Architecture, base: sources.Base, dtype: torch.dtype, shard: int) -> list[Output]:
    model = architecture.vae_model
    resnets = int(architecture.vae.get("num_res_blocks", 2))
    spans = (
        base.spans("vae") if base.original else _renamed(base.spans("vae"), lambda name: vae_to_official(name, resnets), "the base's VAE")
    )
    _check(architecture.vae_file(), spans, "the base's VAE")
    if "vae" in base.configs:
        _check_config("the base's vae/config.json", base.configs["vae"], architecture.vae)
    found = _renamed(spans, vae_to_diffusers, "the base's VAE")
    entries = [(name, found[name], dtype) for name in model.state_dict()]
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    described = {"_class_name": "AutoencoderKLWan", "_diffusers_version": version("diffusers"), **config}
    return [*_sharded("vae", "diffusion_pytorch_model", entries, shard), _json_output("vae/config.json", described)]


def _text(architecture: Architecture, base: sources.Base, dtype: torch.dtype, shard: int) -> list[Output]:
    spans = base.spans("text") if base.original else _renamed(base.spans("text"), text_to_official, "the base's text encoder")
    _check(architecture.text_file(), spans, "the base's text encoder")
    if "text" in base.configs:
        known = {
            k: v
            for k, v in architecture.text.items()
            if k not in ("dropout_rate", "use_cache", "is_encoder_decoder", "tie_word_embeddings")
        }
        _check_config("the base's text_encoder/config.json", base.configs["text"], known)
    found = _renamed(spans, text_to_transformers, "the base's text encoder")
    entries = [(name, found[name], dtype) for name in architecture.text_model.state_dict() if name in found]
    described = architecture.text_config().to_dict() | {"architectures": ["UMT5EncoderModel"], "dtype": str(dtype).removeprefix("torch.")}
    return [*_sharded("text_encoder", "model", entries, shard), _json_output("text_encoder/config.json", described)]


def _lora(architecture: Architecture, path: Path) -> list[Output]:
    """peft's two files. Keys, ranks and targets are read from the released file; its meaning is W + B A."""
    spans = read_spans(path)
    pairs, _ = read_pairs(spans, str(path))
    shapes = {name: tuple(tensor.shape) for name, tensor in architecture.transformer_model.state_dict().items()}
    entries, ranks = [], {}
    for module, pair in pairs.items():
        if missing := {"A", "B"} - pair.keys():
            raise CheckpointError(f"{path}: pipe.dit.{names.to_official(module)}.lora_{missing.pop()} is missing")
        a, b = pair["A"].shape, pair["B"].shape
        weight = shapes.get(f"{module}.weight")
        if weight is None or len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != weight:
            raise CheckpointError(f"{path}: {names.to_official(module)} has A {a} and B {b}, which don't fit W {weight}")
        ranks[module] = a[0]
        entries += [(f"base_model.model.{module}.lora_{side}.weight", pair[side], pair[side].dtype) for side in "AB"]
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {module: r for module, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": "../transformer",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # so that the factor alpha / r is 1
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
    tensors = tuple(entries)
    return [
        Output("lora/adapter_model.safetensors", written_size(tensors), tensors),
        _json_output("lora/adapter_config.json", config),
    ]


def _scheduler(world: ReleaseConfig) -> dict[str, Any]:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=world.shift)
    return {"_class_name": "UniPCMultistepScheduler", "_diffusers_version": version("diffusers")} | {
        k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")
    }


def _sharded(folder: str, stem: str, entries: Sequence[Entry], limit: int) -> list[Output]:
    """Shards of at most `limit` bytes (one tensor at least) and the index that diffusers and transformers read."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        size = entry[1].size_as(entry[2])
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += size
    total = len(groups)
    files = [f"{stem}.safetensors"] if total == 1 else [f"{stem}-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    outputs = [Output(f"{folder}/{file}", written_size(group), tuple(group)) for file, group in zip(files, groups, strict=True)]
    if total > 1:
        weights = {name: file for file, group in zip(files, groups, strict=True) for name, _, _ in group}
        size = sum(span.size_as(dtype) for _, span, dtype in entries)
        outputs.append(_json_output(f"{folder}/{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weights}))
    return outputs


def _json_output(name: str, content: Mapping[str, Any]) -> Output:
    text = json.dumps(content, indent=1, default=list) + "\n"
    return Output(name, len(text.encode()), text=text)


def _copies(folder: Path, name: str) -> list[Output]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [Output(f"{name}/{path.name}", path.stat().st_size, source=path) for path in files]
