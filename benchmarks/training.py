"""What training costs: data loading against the step, tokens a second, and the 5B's memory and work, counted.

    python benchmarks/training.py [--what loader,count] [--batch 16] [--steps 12] [--rounds 3] [--workers 2]
                                  [--size 480x832] [--frames 81] [--json]

`loader` trains the embedded architecture on clips of its true size (random numbers, on disk): `--steps` steps with the real loader
and as many with batches of the same sizes kept in memory take turns, so that both see the same machine. MFU is the steps' counted
work over their time and the pace of a large matrix product on the same device.

`count` runs one control step of the 5B with fake tensors (shapes without memory) and adds up what is alive at once; FlopCounterMode
counts the work, recomputation included. Nothing is measured, so it needs no GPU; what kernels and the allocator take beside is not
in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from spatia_model.data.schema import Clip, write_shard
from spatia_model.training import models
from spatia_model.training.flow_module import FlowModule
from spatia_model.training.recipe import Recipe
from spatia_model.training.stage_control import ControlStage

GB = 1e9


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, q, k, v)


# PyTorch's counter does not know the attention of CPUs
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def clip(number: int) -> Clip:
    """A clip of the embedded tier's size: 13 frames of 128 pixels."""
    g = torch.Generator().manual_seed(number)
    poses = torch.eye(4, dtype=torch.float64).repeat(13, 1, 1)

    def latents(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).half()

    return Clip(
        key=f"v{number // 8}-{number}",
        video=f"v{number // 8}",
        number=number,
        caption="a red ball rolls to the left",
        prompt="",
        preceding=5,
        fps=8.0,
        height=128,
        width=128,
        frame_numbers=tuple(range(13)),
        candidate_frames=(0,),
        cloud_frame=0,
        T_world_camera=poses,
        intrinsics=torch.full((13, 4), 0.5, dtype=torch.float64),
        reference_frames=(1, 2, 3),
        reference_poses=poses[:3],
        reference_iou=torch.ones(3),
        latents=latents(32, 4, 16, 16),
        projection=latents(32, 4, 16, 16),
        holes=latents(8, 4, 16, 16),
        references=latents(3, 32, 16, 16),
        moving=torch.zeros(4, 16, 16, dtype=torch.uint8),
        uncovered=torch.zeros(4, 16, 16, dtype=torch.uint8),
    )


def loader(args: argparse.Namespace) -> dict[str, float]:
    from torch.utils.flop_counter import FlopCounterMode

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(4):
            write_shard(
                Path(folder) / f"{shard:05d}.parquet",
                [clip(32 * shard + i) for i in range(32)],
                {"control": "pooled", "latent_channels": 32, "vae": "random"},
            )
        recipe = Recipe(
            clips=folder,
            model="mini",
            trainable="all",
            batch=args.batch,
            micro_batch=args.batch,
            workers=args.workers,
            drop_projection=0.0,
            held_out=0.0,
            max_references=3,
            precision="no",
        )
        stage = ControlStage(recipe)
        module = stage.module.to(device)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5)

        def step(batch: dict[str, Any]) -> None:
            batch = {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            loss, _ = module(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device == "cuda":
                torch.cuda.synchronize()

        batches = stage.batches(0, 1, 0)
        kept: dict[int, dict[str, Any]] = {}  # a batch in memory for every number of references: more references are more work
        while len(kept) <= recipe.max_references:
            batch = next(batches)
            kept.setdefault(batch["references"].shape[2], batch)
        step(kept[recipe.max_references])
        work, cached, real, tokens = 0, 0.0, 0.0, 0
        counted: dict[int, int] = {}
        for count, batch in kept.items():
            counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
            with counter:
                step(batch)
            counted[count] = counter.get_total_flops()
        for _ in range(args.rounds):  # in turns, as many steps in a row as the loader holds batches ready, and more
            seen = []
            start = time.perf_counter()
            for _ in range(args.steps):
                batch = next(batches)
                seen.append(batch["references"].shape[2])
                step(batch)
            real += time.perf_counter() - start
            start = time.perf_counter()
            for count in seen:
                step(kept[count])
            cached += time.perf_counter() - start
            work += sum(counted[count] for count in seen)
            tokens += sum(args.batch * (4 + count) * 16 for count in seen)
    steps = args.rounds * args.steps
    return {
        "cached_seconds": cached / steps,
        "real_seconds": real / steps,
        "ratio": real / cached,
        "tokens_per_second": tokens / real,
        "step_tflop": work / steps / 1e12,
        "mfu": work / real / matmul_pace(device),
    }


def matmul_pace(device: str, side: int = 1024) -> float:
    """FLOP a second of a large matrix product."""
    a = torch.randn(side, side, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def count(args: argparse.Namespace, **sizes: Any) -> dict[str, float]:
    """One step of the 5B with fake tensors. `sizes` override the architecture (tests)."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from spatia_model.generator.transformer import SpatiaTransformer

    height, width = (int(side) for side in args.size.split("x"))
    h, w, frames, references = height // 16, width // 16, 1 + (args.frames - 1) // 4, args.references
    with FakeTensorMode():
        transformer = SpatiaTransformer.wan22_ti2v_5b(**sizes)
        recipe = Recipe(clips="none", checkpointing=True)
        parts = models.Parts(transformer, None, None, {})
        models.choose(parts, recipe)
        keep = transformer._keep_in_fp32_modules or []
        for name, p in transformer.named_parameters():
            if not p.requires_grad and not any(part in name for part in keep):
                p.data = p.data.to(torch.bfloat16)
        module = FlowModule(transformer, None, recipe)
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=True)
        average = [p.detach().clone() for p in trained]
        c, text = transformer.config.in_channels, transformer.config.text_dim
        batch = {
            "latents": torch.zeros(1, c, frames, h, w, dtype=torch.float16),
            "projection": torch.zeros(1, c, frames, h, w, dtype=torch.float16),
            "holes": torch.zeros(1, transformer.config.vace_in_channels - c, frames, h, w, dtype=torch.float16),
            "references": torch.zeros(1, c, references, h, w, dtype=torch.float16),
            "moving": torch.zeros(1, frames, h, w, dtype=torch.uint8),
            "uncovered": torch.zeros(1, frames, h, w, dtype=torch.uint8),
            "known": torch.full((1,), 3),
            "context": torch.zeros(1, 512, text, dtype=torch.float16),
            "t": torch.full((1,), 0.5),
            "noise": torch.zeros(1, c, frames, h, w),
            "history_level": torch.zeros(1),
        }
        # which times there are shows in data only: on shapes alone, their number (references and history 0, targets t) is given
        distinct = torch.zeros(2), torch.zeros(1, frames + references, dtype=torch.long)
        transformer._embed_times = fake_times(transformer, distinct)  # type: ignore[method-assign]
        live, flops = Live(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        for tensor in (*module.parameters(), *average):
            live.track(tensor)
        with flops, live:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(module, batch)
            forward = live.peak
            loss.backward()
            gc.collect()
            backward, live.peak = live.peak, live.now
            optimizer.step()
    own = sum(p.numel() * p.element_size() for p in module.parameters()) / GB
    tokens = (frames + references) * (h // 2) * (w // 2)
    return {
        "peak_gb": max(backward, live.peak) / GB,
        "forward_peak_gb": forward / GB,
        "backward_peak_gb": backward / GB,
        "optimiser_peak_gb": live.peak / GB,
        "weights_gb": own,
        "trained_weights": models.count(trained),
        "all_weights": models.count(module.parameters()),
        "average_gb": sum(p.numel() * 4 for p in trained) / GB,
        "tokens": tokens,
        "step_tflop": flops.get_total_flops() / 1e12,
    }


class Live(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.track, out)
        return out

    def track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known[storage] = size = storage.nbytes()
            self.now += size
            weakref.finalize(storage, self.release, size)
            if self.now > self.peak + 1e8:  # what only cycles of Python's objects keep alive does not count
                gc.collect()
            self.peak = max(self.peak, self.now)

    def release(self, size: int) -> None:
        self.now -= size


def loss_of(module: FlowModule, batch: dict[str, Any]) -> torch.Tensor:
    """The loss without the figures beside it, whose masks depend on data."""
    error, _ = module.errors(batch)
    return error.mean()


def fake_times(transformer: Any, distinct: tuple[torch.Tensor, torch.Tensor]):
    def embed(timestep: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        embedder = transformer.condition_embedder.time_embedder
        sinusoid = torch.zeros(len(distinct[0]), transformer.config.freq_dim)
        return embedder(sinusoid.to(embedder.linear_2.weight.dtype)).float(), distinct[1]

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="loader,count")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", default="480x832")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--references", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    if "loader" in args.what:
        figures["loader"] = loader(args)
    if "count" in args.what:
        figures["control"] = count(args)
    if args.json:
        print(json.dumps(figures))
        return
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:24} {value:,.4g}")


if __name__ == "__main__":
    main()
