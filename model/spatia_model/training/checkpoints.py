"""Checkpoints that are whole or absent, and the averaged weights they hold.

A checkpoint is a folder `step-N` that appears by renaming, after every process has written its part. Frozen weights are not in it: they
come from the recipe's model. A disk that is full costs a warning, never an earlier checkpoint; only the last one of a run must succeed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

FAILURES = (OSError, RuntimeError, SafetensorError)  # how torch and safetensors tell of a full disk


class Ema:
    """Averaged weights (diffusers' `EMAModel`, decay warmed up as (1 + n) / (10 + n)); decay 0 is no average."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        from diffusers.training_utils import EMAModel

        self.model = EMAModel(parameters, decay=decay) if decay else None

    def update(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.model is not None:
            self.model.step(parameters)

    @contextlib.contextmanager
    def applied(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """The averaged weights in place of the trained ones."""
        if self.model is None:
            yield
            return
        # by local parts, so that it does for sharded weights too
        stored = [_local(p.data).detach().clone() for p in parameters]
        for p, average in zip(parameters, self.model.shadow_params, strict=True):
            _local(p.data).copy_(_local(average))
        try:
            yield
        finally:
            for p, value in zip(parameters, stored, strict=True):
                _local(p.data).copy_(value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """This process's part: all of every weight, or its shard of each."""
        assert self.model is not None
        return {f"{i:06d}": _local(p).detach().cpu().contiguous() for i, p in enumerate(self.model.shadow_params)}

    def load(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        assert self.model is not None
        for i, p in enumerate(self.model.shadow_params):
            _local(p).copy_(tensors[f"{i:06d}"])
        self.model.optimization_step = steps


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


class Checkpoints:
    """The checkpoints of a run, in `folder`; the newest `keep` stay."""

    def __init__(self, accelerator: Any, module: nn.Module, names: list[str], ema: Ema, folder: Path, keep: int):
        self.accelerator, self.module, self.ema, self.folder, self.keep = accelerator, module, ema, folder, keep
        kind = str(accelerator.distributed_type)
        self.sharded = kind.endswith(("FSDP", "DEEPSPEED"))
        trained = set(names)

        def only_trained(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], place: str) -> None:
            for state in weights:
                plain = {name.removeprefix("module."): value for name, value in state.items()}
                state.clear()
                state.update({name: value for name, value in plain.items() if name in trained})

        def load_trained(models: list[nn.Module], place: str) -> None:
            while models:
                model = accelerator.unwrap_model(models.pop())
                found = load_file(Path(place) / "model.safetensors")
                if found.keys() != trained:
                    raise ValueError(f"{place} holds other weights than this recipe trains; take another --out")
                model.load_state_dict(found, strict=False)

        if not self.sharded:
            accelerator.register_save_state_pre_hook(only_trained)
            accelerator.register_load_state_pre_hook(load_trained)

    def whole(self) -> list[tuple[int, Path]]:
        """(step, folder) of each checkpoint, oldest first."""
        found = [(int(m[1]), path) for path in self.folder.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", path.name))]
        return sorted(found)

    def resume(self) -> int:
        """Load the newest checkpoint; the step it stood at, 0 for none. One that cannot be loaded is an error that names it."""
        if self.accelerator.is_main_process and self.folder.exists():
            for path in self.folder.glob(".step-*.partial"):
                shutil.rmtree(path, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        found = self.whole()
        if not found:
            return 0
        step, path = found[-1]
        try:
            progress = json.loads((path / "progress.json").read_text())
            if self.sharded and progress["processes"] != self.accelerator.num_processes:
                raise ValueError(f"it was made by {progress['processes']} processes, each with its shard; run with as many")
            self.accelerator.load_state(str(path))
            if self.ema.model is not None:
                self.ema.load(load_file(path / self._ema_file()), progress["ema_steps"])
        except (*FAILURES, KeyError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be resumed ({error}): remove it to go on from the one before, or --out to begin anew"
            ) from error
        return step

    def _ema_file(self) -> str:
        return f"ema-{self.accelerator.process_index:05d}.safetensors" if self.sharded else "ema.safetensors"

    def save(self, step: int, required: bool = False) -> bool:
        """Write a checkpoint, then drop old ones. False, and a warning, when the disk refuses; OSError then if it is `required`."""
        accelerator, partial = self.accelerator, self.folder / f".step-{step:07d}.partial"
        error: BaseException | None = None
        try:
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        except OSError as problem:
            error = problem
        if self._agreed(error is None):
            try:
                accelerator.save_state(str(partial))
                if self.ema.model is not None and (self.sharded or accelerator.is_main_process):
                    save_file(self.ema.tensors(), partial / self._ema_file())
                if accelerator.is_main_process:
                    steps = self.ema.model.optimization_step if self.ema.model is not None else 0
                    progress = {"step": step, "ema_steps": steps, "processes": accelerator.num_processes}
                    (partial / "progress.json").write_text(json.dumps(progress) + "\n")
            except FAILURES as problem:
                error = problem
        whole = self._agreed(error is None)
        if accelerator.is_main_process:
            final = self.folder / f"step-{step:07d}"
            if whole:
                try:
                    shutil.rmtree(final, ignore_errors=True)
                    os.replace(partial, final)
                    for _, old in self.whole()[: -self.keep]:
                        shutil.rmtree(old, ignore_errors=True)
                except OSError as problem:
                    error, whole = problem, False
            if not whole:
                shutil.rmtree(partial, ignore_errors=True)
                print(
                    f"checkpoint of step {step} could not be written ({error}); earlier ones stay, free some space",
                    file=sys.stderr,
                    flush=True,
                )
        whole = self._agreed(whole)
        if required and not whole:
            raise OSError(
                f"the last checkpoint, of step {step}, could not be written to {self.folder}: {error}; free some space and run again"
            )
        return whole

    def _agreed(self, fine: bool) -> bool:
        """True when every process is fine."""
        if self.accelerator.num_processes == 1:
            return fine
        flag = torch.tensor(float(not fine), device=self.accelerator.device)
        return float(self.accelerator.reduce(flag, "sum")) == 0
