"""Our control and LoRA weights under the release's names, for tools that read the released files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spatia_model.generator import names
from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.generator.conversion import sources
from spatia_model.generator.conversion.convert import describe
from spatia_model.generator.conversion.spans import partial
from spatia_model.generator.mapped import mapped_file


def export_release(folder: str | Path, out: str | Path) -> list[Path]:
    """Write `step-8500.safetensors` (control) and `lora_weights_10000.safetensors` from a converted folder into `out`.

    Values keep the types they are stored in. For a model in memory there are `export_control` and `lora.save_lora`.

    Raises:
        CheckpointError: no converted folder, or a file of it is damaged.
    """
    folder, out = Path(folder), Path(out)
    described = describe(folder)
    shards = [folder / name for name in described["files"] if name.startswith("transformer/") and name.endswith(".safetensors")]
    stored = {name: tensor for shard in shards for name, tensor in mapped_file(shard).items()}
    control = {names.to_official(name): tensor for name, tensor in stored.items() if name.startswith("vace_")}
    adapter = folder / "lora" / "adapter_model.safetensors"
    return [_save(control, out / sources.CONTROL_FILE), _save(_released_keys(adapter), out / sources.LORA_FILE)]


def export_control(model: Any, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write the control blocks of a `SpatiaTransformer` under the released names."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("vace_")}
    if not state:
        raise ValueError("the model has no control blocks to export")
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    tensors = {names.to_official(name): tensor.detach().cpu().to(dtype or tensor.dtype).contiguous() for name, tensor in plain.items()}
    return _save(tensors, Path(path))


def _released_keys(adapter: Path) -> dict[str, torch.Tensor]:
    """peft's keys back to `pipe.dit.<module>.lora_A.default.weight`."""
    tensors = {}
    for key, tensor in mapped_file(adapter).items():
        module, _, rest = key.removeprefix("base_model.model.").rpartition(".lora_")
        if not key.startswith("base_model.model.") or rest not in ("A.weight", "B.weight"):
            raise CheckpointError(f"{adapter}: {key} is no adapter weight; convert anew")
        tensors[f"pipe.dit.{names.to_official(module)}.lora_{rest[0]}.default.weight"] = tensor
    return tensors


def released_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The adapters of a converted folder under their released keys, as `lora.load_lora` takes them."""
    return _released_keys(folder / "lora" / "adapter_model.safetensors")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = partial(path)
    try:
        save_file(tensors, str(unfinished), metadata={"format": "pt"})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
