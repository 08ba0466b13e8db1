"""A run of the tiny model under `accelerate launch --config_file configs/accelerate/{fsdp,deepspeed_zero2}.yaml`, on CPUs.

Accelerate turns FSDP and DeepSpeed on for accelerators only, while torch's FSDP 2 and DeepSpeed's ZeRO run on CPUs with gloo. So here its
state is told, and nothing else: the plugins are those that Accelerate makes of the launcher's environment. All that follows is real:
wrapping by the config's class names, sharded weights, gradients and optimiser, sharded checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import accelerate
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from tests.spatia_model.training.tiny_run import train

DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


class OnCpu(accelerate.Accelerator):
    def __init__(self, *args, **kwargs):
        if DEEPSPEED:  # asked for the CPU, Accelerate would leave DeepSpeed out
            import deepspeed  # type: ignore[import-not-found]

            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: nothing is compiled
            PartialState._prepare_backend = lambda self, *rest: ("gloo", DistributedType.MULTI_CPU)  # type: ignore[method-assign]
            super().__init__(*args, **{**kwargs, "cpu": False})
            return
        super().__init__(*args, **kwargs)
        assert os.environ["ACCELERATE_USE_FSDP"] == "true" and self.num_processes > 1
        self.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.state.fsdp_plugin = plugin = FullyShardedDataParallelPlugin()  # from the environment
        if self.state.mixed_precision != "no":
            plugin.set_mixed_precision(self.state.mixed_precision)


def shards(module: Any) -> dict[str, Any]:
    """What FSDP made of a module: classes it wrapped, how many weights are sharded, the share that this process holds."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    parameters = list(module.parameters())
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return {
        "wrapped": sorted({type(m).__mro__[2].__name__ for m in module.modules() if isinstance(m, FSDPModule)}),
        "sharded": sum(isinstance(p, DTensor) for p in parameters),
        "parameters": len(parameters),
        "share": held / sum(p.numel() for p in parameters),
    }


def main(clips: str, out: str, steps: str, options: str) -> None:
    accelerate.Accelerator = OnCpu  # type: ignore[misc]
    stage = train(Path(clips), Path(out), steps=int(steps), **json.loads(options))
    told = {} if DEEPSPEED else shards(stage.module)
    (Path(out) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
