"""The trainer for prepared clips: one process or many nodes, through Hugging Face Accelerate.

A stage is a module whose forward takes a batch and returns a loss, and a source of batches that is a function of the step. All chance is
drawn on the CPU from (seed, step, micro batch), so a run that was killed and resumed ends, on one machine, with the very bits of a run that
was not; and with the same `batch` and `micro_batch`, one process sees what several together see.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from spatia_model.devices import computes_bfloat16
from spatia_model.training import models
from spatia_model.training import recipe as recipes
from spatia_model.training.checkpoints import Checkpoints, Ema
from spatia_model.training.recipe import Recipe

Batch = dict[str, Any]
Averaged = Callable[[], AbstractContextManager[None]]


class Stage(Protocol):
    """One thing that is trained."""

    @property
    def module(self) -> nn.Module:
        """forward(batch) -> (loss, {name: 0-d tensor, NaN where a batch says nothing}); what requires gradients is trained."""
        ...

    def batches(self, rank: int, world: int, start: int) -> Iterator[Batch]:
        """This process's micro batches from its number `start` on, as CPU tensors. Endless, and the same whenever asked again."""
        ...

    def prepare_step(self, step: int, folder: Path, main: bool, averaged: Averaged) -> bool:
        """Called before every step; True when `batches` has changed. Inside `with averaged():` the module has its averaged weights."""
        ...

    def validate(self) -> tuple[dict[str, float], np.ndarray | None]:
        """Figures and a strip to look at, with the averaged weights in `module`. Runs on every process alike."""
        ...

    def export(self, folder: Path) -> None:
        """Write the weights in `module` for use."""
        ...


def fit(stage: Stage, recipe: Recipe, out: Path, cpu: bool = False) -> dict[str, Any]:
    """Train to the end of the recipe, resuming from `out` when it holds a checkpoint. Returns the last figures.

    Writes out/recipe.json, out/checkpoints/step-N (the last `keep`), out/validation.jsonl, out/strips, out/logs (TensorBoard), and at the
    end out/model.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    trackers = _trackers(recipe)
    # the accumulation depends on the number of processes, which only the accelerator knows
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        cpu=cpu,
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(out), str(out / "logs")),
    )
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    accelerator.gradient_accumulation_steps = recipe.accumulation(world)
    if main:
        _begin(recipe, out)
    accelerator.wait_for_everyone()
    _freeze(stage.module, recipe, accelerator)
    names = [name for name, p in stage.module.named_parameters() if p.requires_grad]
    parameters = [p for p in stage.module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"nothing to train: stage {recipe.stage} with trainable={recipe.trainable} finds no such weights in {recipe.model}"
        )
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay)
    if accelerator.state.deepspeed_plugin is not None:
        _deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, recipe, world)
    elif accelerator.is_fsdp2:
        _fsdp(accelerator.state.fsdp_plugin)
    module, optimizer = accelerator.prepare(stage.module, optimizer)
    parameters = [p for p in module.parameters() if p.requires_grad]  # sharding may have replaced them
    ema = Ema(parameters, recipe.ema)
    checkpoints = Checkpoints(accelerator, module, names, ema, out / "checkpoints", recipe.keep)
    step = checkpoints.resume()
    if main:
        trained = sum(p.numel() for p in stage.module.parameters() if p.requires_grad)
        _say(
            f"{recipe.stage}: {trained / 1e6:.2f} M weights trained on {world} process(es)" + (f", resumed at step {step}" if step else "")
        )
        if recipe.precision == "bf16" and not computes_bfloat16(accelerator.device):
            _say("this CPU only imitates bfloat16: --precision no is many times faster")
    if trackers and main:
        accelerator.init_trackers("spatia-" + recipe.stage, config=_flat(recipe))
    log = _Log(accelerator, recipe, step)
    accumulation = recipe.accumulation(world)
    batches: Iterator[Batch] | None = None
    figures: dict[str, Any] = {}
    while step < recipe.steps:
        if stage.prepare_step(step, out, main, functools.partial(ema.applied, parameters)) or batches is None:
            accelerator.wait_for_everyone()
            batches = iter(stage.batches(rank, world, step * accumulation))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        for micro in range(accumulation):
            last = micro == accumulation - 1
            waited = time.perf_counter()
            batch = to_device(next(batches), accelerator.device)
            log.waited += time.perf_counter() - waited
            accelerator.sync_gradients = last  # DeepSpeed and the optimiser's wrapper ask for it
            with nullcontext() if last else accelerator.no_sync(module):
                with accelerator.autocast():
                    loss, parts = module(batch)
                accelerator.backward(loss)  # divides by the accumulation
            log.add(loss, parts)
        norm = accelerator.clip_grad_norm_(parameters, recipe.clip_norm)
        if norm is None or accelerator.distributed_type == "DEEPSPEED":  # it clips, and steps, by itself
            norm = math.nan
            optimizer.step()
        elif math.isfinite(norm := float(getattr(norm, "full_tensor", lambda whole=norm: whole)())):  # of sharded weights: gathered
            optimizer.step()
        else:
            log.skipped += 1  # one broken batch must not poison the weights
        optimizer.zero_grad(set_to_none=True)
        step += 1
        ema.update(parameters)
        log.step(step, norm)
        if step % recipe.validate_every == 0 or step == recipe.steps:
            figures = _validate(accelerator, stage, module, ema, parameters, out, step)
        if step % recipe.checkpoint_steps == 0 or step == recipe.steps:
            checkpoints.save(step, required=step == recipe.steps)
    with ema.applied(parameters):
        _export(accelerator, stage, module, names, recipe, out)
    accelerator.end_training()
    return {"step": step, **figures}


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _begin(recipe: Recipe, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror}): give a folder you may write to") from error
    path = out / "recipe.json"
    if path.exists():
        recipes.check_continuation(recipes.read(path), recipe, str(out))
    recipes.write(recipe, path)


def _freeze(module: nn.Module, recipe: Recipe, accelerator: Any) -> None:
    """Frozen weights in bfloat16, if asked; small ones that diffusers keeps in float32 stay. For FSDP all in one type."""
    sharded = str(accelerator.distributed_type).endswith("FSDP")
    if not recipe.frozen_bf16:
        if sharded:
            module.float()
        return
    if sharded:
        raise ValueError(
            "frozen_bf16 mixes number types in one shard, which FSDP refuses: leave it out, FSDP's own mixed precision does the same"
        )
    keep = tuple(getattr(getattr(module, "transformer", module), "_keep_in_fp32_modules", ()) or ())
    for name, p in module.named_parameters():
        if not p.requires_grad and p.is_floating_point() and not any(part in name for part in keep):
            p.data = p.data.to(torch.bfloat16)


def _deepspeed(config: dict[str, Any], recipe: Recipe, processes: int) -> None:
    """What DeepSpeed is told of the recipe. Weights stay in float32 and are computed with under its autocast: cast to bfloat16, as
    Accelerate asks of it, they would fit no input, and neither small steps nor the average would survive their rounding."""
    if recipe.precision == "fp16":
        raise ValueError("precision fp16 is not for DeepSpeed here: take bf16, or another of configs/accelerate")
    config["train_micro_batch_size_per_gpu"] = recipe.micro_batch  # Accelerate would ask the loader, which is ours
    config["gradient_accumulation_steps"] = recipe.accumulation(processes)
    config["gradient_clipping"] = recipe.clip_norm
    config["bf16"] = {"enabled": False}
    config["torch_autocast"] = {"enabled": recipe.precision == "bf16", "dtype": "bfloat16"}


def _fsdp(plugin: Any) -> None:
    """Float32 weights and gradients, computed with under autocast, as without sharding. Accelerate's own choice for bfloat16 would round
    times, noise and the loss as well, and add gradients up in bfloat16; the traffic it saves is little beside a step of long videos."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def _trackers(recipe: Recipe) -> list[Any]:
    from importlib.util import find_spec

    found = ["tensorboard"] if find_spec("tensorboard") else []
    if recipe.wandb:
        if not find_spec("wandb"):
            raise ValueError("--wandb needs the package wandb: pip install wandb")
        found.append("wandb")
    return found


def _flat(recipe: Recipe) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(recipe)


class _Log:
    """Running figures; one line and one point in the trackers every `log_every` steps. NaN parts say nothing and are left out."""

    def __init__(self, accelerator: Any, recipe: Recipe, step: int):
        self.accelerator, self.recipe = accelerator, recipe
        self.waited, self.skipped = 0.0, 0
        self.started, self.first = time.perf_counter(), step
        self.sums: dict[str, list[torch.Tensor]] = {}

    def add(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        for name, value in {"loss": loss.detach(), **parts}.items():
            self.sums.setdefault(name, []).append(value.detach().float())

    def step(self, step: int, norm: float) -> None:
        if step % self.recipe.log_every and step != self.recipe.steps:
            return
        figures = {name: float(torch.stack(values).nanmean()) for name, values in self.sums.items()}
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        now = time.perf_counter()
        pace = (now - self.started) / max(1, step - self.first)
        figures |= {
            "lr": self.recipe.lr_at(step - 1),
            "seconds_per_step": pace,
            "data_wait_share": self.waited / max(now - self.started, 1e-9),
        }
        if math.isfinite(norm):
            figures["grad_norm"] = norm
        if self.skipped:
            figures["skipped_steps"] = self.skipped
        self.accelerator.log({f"train/{k}": v for k, v in figures.items()}, step=step)
        if self.accelerator.is_main_process:
            left = (self.recipe.steps - step) * pace / 60
            text = " ".join(f"{k} {v:.4g}" for k, v in figures.items() if not k.startswith("loss_t"))
            _say(f"{self.recipe.stage} {step}/{self.recipe.steps} {text} | {left:.0f} min left")
        self.sums, self.waited, self.started, self.first, self.skipped = {}, 0.0, now, step, 0


def _validate(
    accelerator: Any, stage: Stage, module: nn.Module, ema: Ema, parameters: list[nn.Parameter], out: Path, step: int
) -> dict[str, float]:
    module.eval()
    with ema.applied(parameters), torch.no_grad(), accelerator.autocast():
        figures, strip = stage.validate()
    module.train()
    accelerator.log({f"validation/{k}": v for k, v in figures.items() if math.isfinite(v)}, step=step)
    if accelerator.is_main_process:
        try:
            with (out / "validation.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
            if strip is not None:
                (out / "strips").mkdir(exist_ok=True)
                Image.fromarray(strip).save(out / "strips" / f"step-{step:07d}.png")
        except OSError as error:
            _say(f"validation of step {step} could not be written ({error}); training goes on")
        for tracker in accelerator.trackers:
            if strip is not None:
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation/strip": strip[None]}, step=step, **options)
        _say(f"step {step} validation: " + " ".join(f"{k} {v:.4g}" for k, v in figures.items()))
    return figures


def _export(accelerator: Any, stage: Stage, module: nn.Module, names: list[str], recipe: Recipe, out: Path) -> None:
    """The averaged weights for use. Sharded weights are gathered first."""
    kind = str(accelerator.distributed_type)
    if kind.endswith(("FSDP", "DEEPSPEED")):
        state = accelerator.get_state_dict(module)  # on the main process, whole
        if accelerator.is_main_process:
            from safetensors.torch import save_file

            (out / "model").mkdir(parents=True, exist_ok=True)
            found = {name.removeprefix("module."): value for name, value in state.items()}
            trained = {name: found[name].detach().cpu().contiguous() for name in names}
            save_file(trained, out / "model" / "weights.safetensors")
            if recipe.trainable == "lora":
                save_file(models.released_lora(trained), out / "model" / "lora.safetensors")
            recipes.write(recipe, out / "model" / "recipe.json")
        return
    if accelerator.is_main_process:
        stage.export(out / "model")
        recipes.write(recipe, out / "model" / "recipe.json")
    accelerator.wait_for_everyone()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
