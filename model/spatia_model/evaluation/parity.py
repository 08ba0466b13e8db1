"""Golden fixtures: does our generator compute what the released modules compute?

Each `.safetensors` file holds weights, inputs and expected outputs of one case (`spatia parity DIR`); which case it is follows
from what it holds. Checked through the same public calls that generation uses.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from spatia_model.generator.blocks import rotary_positions
from spatia_model.generator.checkpoint import CheckpointError, load_official, read_tensors
from spatia_model.generator.lora import load_lora, lora_layers, merged_weight
from spatia_model.generator.names import to_diffusers
from spatia_model.generator.sampler import denoise, model_fn, unipc_schedule
from spatia_model.generator.transformer import SpatiaTransformer

FORWARD_TOLERANCE = 1e-5
LOOP_TOLERANCE = 2e-5
NOT_WEIGHTS = ("input.", "expected.", "debug.")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ParityResult:
    """One case: the largest absolute error of each thing compared, against its tolerance."""

    case: str
    errors: dict[str, float]
    tolerance: float
    message: str = ""  # why the file could not be checked; empty when it was

    @property
    def passed(self) -> bool:
        return not self.message and bool(self.errors) and all(error <= self.tolerance for error in self.errors.values())

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=float("nan"))


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; infinite when shapes differ or anything isn't finite."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.double() - expected.double()).abs().max().item() if found.numel() else 0.0
    return difference if difference == difference else float("inf")


def _need(tensors: Tensors, name: str) -> torch.Tensor:
    if name not in tensors:
        raise CheckpointError(f"tensor {name} is missing; the file isn't a parity fixture of a known form")
    return tensors[name]


def _is_weight(name: str) -> bool:
    try:
        return bool(to_diffusers(name))
    except ValueError:
        return False


def _number(metadata: dict[str, str], name: str, kind: Callable[[str], Any], default: Any = None) -> Any:
    if name not in metadata:
        if default is None:
            raise CheckpointError(f"metadata {name!r} is missing; the file isn't a parity fixture of a known form")
        return default
    return kind(metadata[name])


def _build(tensors: Tensors, metadata: dict[str, str]) -> SpatiaTransformer:
    config = json.loads(_number(metadata, "config", str))
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_WEIGHTS)}
    if any(name.startswith("pipe.dit.") for name in tensors):  # beside adapters there may be names to ignore
        weights = {name: tensor for name, tensor in weights.items() if _is_weight(name)}
    control = any(name.startswith("vace_") for name in weights)
    try:
        with torch.device("meta"):
            model = SpatiaTransformer(
                patch_size=tuple(config["patch_size"]),
                num_attention_heads=config["num_heads"],
                attention_head_dim=config["dim"] // config["num_heads"],
                in_channels=config["in_dim"],
                out_channels=config["out_dim"],
                text_dim=config["text_dim"],
                freq_dim=config["freq_dim"],
                ffn_dim=config["ffn_dim"],
                num_layers=config["num_layers"],
                eps=config["eps"],
                vace_layers=tuple(config["vace_layers"]) if control else (),
                vace_in_channels=config["vace_in_dim"],
            )
    except KeyError as error:
        raise CheckpointError(f"the metadata's config lacks {error}; it isn't a parity fixture of a known form") from error
    load_official(model, [weights])
    return model.eval()


def _watch_hints(model: SpatiaTransformer) -> tuple[dict[int, torch.Tensor], list[Any]]:
    """The next forward's unscaled hints, by control block, and the hooks to remove."""
    hints: dict[int, torch.Tensor] = {}
    hooks = []
    for i, block in enumerate(getattr(model, "vace_blocks", ())):

        def keep(module: Any, args: Any, output: torch.Tensor, i: int = i) -> None:
            hints[i] = output.flatten(1, 2)  # (B, F - R, S, D) -> (B, tokens, D)

        hooks.append(block.proj_out.register_forward_hook(keep))
    return hints, hooks


def _forward_inputs(tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    latents = _need(tensors, "input.latents")
    frames = latents.shape[2]
    timestep = _need(tensors, "input.timestep")
    if timestep.numel() == 1:  # one value: frame 0 is clean, all others have it
        timestep = torch.cat([timestep.new_zeros(1), timestep.expand(frames - 1)])
    arguments = {
        "context": _need(tensors, "input.context"),
        "control": tensors.get("input.vace_context"),
        "num_references": int(tensors["input.num_ref_frames"]) if "input.num_ref_frames" in tensors else 0,
        "control_scale": float(tensors["input.vace_scale"]) if "input.vace_scale" in tensors else 1.0,
    }
    return latents, timestep[None], arguments


def _check_forward(tensors: Tensors, metadata: dict[str, str]) -> tuple[dict[str, float], float]:
    model = _build(tensors, metadata)
    latents, timestep, arguments = _forward_inputs(tensors)
    errors = {}
    if any(name.startswith("pipe.dit.") for name in tensors):
        adapters = {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_WEIGHTS) and not _is_weight(name)}
        base = _need(tensors, "expected.output_without_lora")
        errors["output_before_lora"] = _error(model(latents, timestep, **arguments), base)
        load_lora(model, adapters)
        errors["output_without_lora"] = _error(model(latents, timestep, **arguments, lora=0.0), base)
        layers = dict(lora_layers(model))
        for name in [name for name in tensors if name.startswith("expected.merged.")]:
            module = to_diffusers(name.removeprefix("expected.merged.")).removesuffix(".weight")
            errors[name.removeprefix("expected.")] = _error(merged_weight(layers[module]), tensors[name])
    hints, hooks = _watch_hints(model)
    expected = _need(tensors, "expected.output")
    errors["output"] = _error(model(latents, timestep, **arguments), expected)
    for hook in hooks:
        hook.remove()
    errors["output_prepared"] = _error(model(latents, timestep, conditions=model.prepare(**arguments)), expected)
    for name in [name for name in tensors if name.startswith("debug.hint.")]:
        i = int(name.rsplit(".", 1)[1])
        errors[name.removeprefix("debug.")] = _error(hints[i], tensors[name]) if i in hints else float("inf")
    if "debug.rope_positions" in tensors:
        _, ph, pw = model.config.patch_size
        _, _, frames, height, width = latents.shape
        positions = rotary_positions(frames, arguments["num_references"], height // ph, width // pw)
        errors["rope_positions"] = _error(positions, tensors["debug.rope_positions"])
    return errors, FORWARD_TOLERANCE


def _check_loop(tensors: Tensors, metadata: dict[str, str]) -> tuple[dict[str, float], float]:
    model = _build(tensors, metadata)
    steps, shift = _number(metadata, "steps", int), _number(metadata, "shift", float)
    guidance = _number(metadata, "cfg_scale", float)
    references = tensors.get("input.ref_latents")
    known = tensors.get("input.known_latents")
    count = 0 if references is None else references.shape[2]
    for name, found in (("num_ref_frames", count), ("known_frames", 0 if known is None else known.shape[2])):
        if _number(metadata, name, int, found) != found:
            raise CheckpointError(f"metadata {name} is {metadata[name]}, but the file holds {found} such latent frames")
    states: Tensors = {}

    def keep(step: int, latents: torch.Tensor) -> None:
        states[f"after_step_{step - 1}"] = latents

    def prepare(name: str) -> Any:
        scale = _number(metadata, "vace_scale", float, 1.0)
        return model.prepare(_need(tensors, f"input.context_{name}"), tensors.get("input.vace_context"), count, scale)

    conditions = prepare("pos")
    negative = prepare("neg") if guidance != 1.0 else None
    errors = {}
    for batched in (False, True):
        run = model_fn(model, conditions, negative, guidance, batched)
        final = denoise(run, _need(tensors, "input.noise"), known, references, steps, shift, observe=keep)
        suffix = "_batched" if batched else ""
        errors[f"final_latents{suffix}"] = _error(final, _need(tensors, "expected.final_latents"))
        for name in [name for name in tensors if name.startswith("expected.after_step_")]:
            errors[name.removeprefix("expected.") + suffix] = _error(states[name.removeprefix("expected.")], tensors[name])
    errors.update(_schedule_errors(tensors, steps, shift))
    return errors, LOOP_TOLERANCE


def _schedule_errors(tensors: Tensors, steps: int, shift: float) -> dict[str, float]:
    scheduler = unipc_schedule(steps, shift)
    pairs = {"timesteps": scheduler.timesteps, "sigmas": scheduler.sigmas}
    return {name: _error(value, tensors[f"expected.{name}"]) for name, value in pairs.items() if f"expected.{name}" in tensors}


def _check_sampler(tensors: Tensors, metadata: dict[str, str]) -> tuple[dict[str, float], float]:
    steps, shift = _number(metadata, "steps", int), _number(metadata, "shift", float)
    velocities, expected = _need(tensors, "input.velocities"), _need(tensors, "expected.states")
    calls = iter(velocities)
    states: list[torch.Tensor] = []
    denoise(lambda latents, times: next(calls), _need(tensors, "input.x0"), steps=steps, shift=shift, observe=lambda i, x: states.append(x))
    return {"states": _error(torch.stack(states), expected), **_schedule_errors(tensors, steps, shift)}, LOOP_TOLERANCE


def check_file(path: str | Path) -> ParityResult:
    """Run one fixture. A file that can't be checked gives a failed result whose message says why."""
    path = Path(path)
    try:
        tensors = read_tensors(path)
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        if "input.velocities" in tensors:
            check = _check_sampler
        elif "input.noise" in tensors:
            check = _check_loop
        elif "input.latents" in tensors:
            check = _check_forward
        else:
            raise CheckpointError("none of input.latents, input.noise, input.velocities is in it; not a parity fixture")
        with torch.no_grad():
            errors, tolerance = check(tensors, metadata)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, StopIteration) as error:
        return ParityResult(path.stem, {}, FORWARD_TOLERANCE, f"{type(error).__name__}: {error}")
    return ParityResult(path.stem, errors, tolerance)


def run_parity(directory: str | Path) -> list[ParityResult]:
    """Every `.safetensors` file of a folder (or one file), by name. ValueError when there is none."""
    path = Path(directory)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else None
    if files is None:
        raise ValueError(f"{path}: no such folder; give a folder of parity fixtures (.safetensors)")
    if not files:
        raise ValueError(f"{path}: no .safetensors file in it; give a folder of parity fixtures")
    return [check_file(file) for file in files]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia parity DIR [--json]`."""
    parser.add_argument("directory", metavar="DIR", help="folder of golden fixtures (.safetensors), or one such file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """0 when every case passes, 1 otherwise."""
    results = run_parity(args.directory)
    passed = all(result.passed for result in results)
    if args.json:
        cases = [{**asdict(result), "passed": result.passed} for result in results]
        for case in cases:  # JSON has no infinity
            case["errors"] = {name: error if math.isfinite(error) else None for name, error in case["errors"].items()}
        print(json.dumps({"passed": passed, "cases": cases}))
        return 0 if passed else 1
    width = max(len(result.case) for result in results)
    for result in results:
        verdict = "PASS" if result.passed else "FAIL"
        if result.message:
            print(f"{result.case:{width}}  {verdict}  {result.message}")
            continue
        bad = ", ".join(f"{name} {error:.2e}" for name, error in result.errors.items() if not error <= result.tolerance)
        detail = f"  ({bad})" if bad else ""
        figures = f"max error {result.worst:.2e}, tolerance {result.tolerance:.0e}, {len(result.errors)} checks"
        print(f"{result.case:{width}}  {verdict}  {figures}{detail}")
    print(f"{sum(result.passed for result in results)} of {len(results)} cases pass")
    return 0 if passed else 1
