"""What a clip of the 5B costs, counted: floating-point operations and bytes, without a GPU and without weights.

    python benchmarks/release_cost.py            # a table in Markdown
    python benchmarks/release_cost.py --json

Nothing is timed. The real classes run at full size on PyTorch's meta device; its FLOP counter counts matrix products and convolutions
(a multiply and an add are two), attention is counted as 4 x queries x keys x width. Bytes are those of tensors alive at once in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from spatia_model.config import RELEASE
from spatia_model.generator import blocks
from spatia_model.generator.conversion.architecture import UMT5_XXL
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.wan_vae import WanVAE

META = torch.device("meta")
KIND = torch.bfloat16
SHAPES = ((1248, 704), (832, 480))


class Alive(TorchDispatchMode):
    """Bytes of storages that are alive at once, beyond those that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._uses: dict[int, tuple[int, int]] = {}  # storage: (bytes, tensors)

    def watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known, uses = self._uses.get(key, (size, 0))
        if not uses:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._uses[key] = (known, uses + 1)
        weakref.finalize(tensor, self._gone, key)

    def _gone(self, key: int) -> None:
        size, uses = self._uses[key]
        if uses == 1:
            self.now -= size
            del self._uses[key]
        else:
            self._uses[key] = (size, uses - 1)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.watch(tensor)
        return made


class Attention:
    """Stands for attention: no score matrix is made, as in fused kernels, and its work is counted."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        batch, queries, heads, width = query.shape
        self.flops += 4 * batch * queries * key.shape[1] * heads * width
        return torch.empty_like(query)


def counted(work: Callable[[], Any], attention: Attention | None = None) -> tuple[int, int]:
    """(floating-point operations, peak bytes) of `work` on the meta device."""
    before = attention.flops if attention else 0
    alive, flops = Alive(), FlopCounterMode(display=False)
    with torch.no_grad(), flops, alive:
        work()
    return flops.get_total_flops() + (attention.flops - before if attention else 0), alive.peak


def denoiser(attention: Attention) -> SpatiaTransformer:
    with META:
        model = SpatiaTransformer.wan22_ti2v_5b().to(KIND)
    blocks.dispatch_attention_fn = attention
    torch.autocast = lambda *_, **__: nullcontext()  # type: ignore[assignment, misc] (there is none for the meta device)
    model._embed_times = lambda timestep, batch, frames, references: (  # type: ignore[method-assign] (distinct times are data; two here)
        torch.empty(2, 3072, device=META),
        torch.zeros(batch, frames, dtype=torch.long, device=META),
    )
    return model


def latent_frames(frames: int) -> int:
    return 1 + (frames - 1) // 4


def forward_cost(model: Any, attention: Attention, width: int, height: int, frames: int, references: int) -> dict[str, float]:
    """One forward without guidance, with the conditions that stay the same prepared."""
    h, w, f = height // 16, width // 16, latent_frames(frames)
    latents, times = torch.empty(1, 48, f + references, h, w, device=META), torch.zeros(1, f + references, device=META)
    context, control = torch.empty(1, 512, 4096, dtype=KIND, device=META), torch.empty(1, 96, f, h, w, device=META)
    with torch.no_grad():
        conditions = model.prepare(context, control, references)
    prepared = sum(t.untyped_storage().nbytes() for pair in (*conditions.text, *conditions.control_text) for t in pair)
    flops, peak = counted(lambda: model(latents, times, conditions=conditions), attention)
    tokens = (f + references) * h * w // 4
    self_attention = 4 * 3072 * (30 * tokens**2 + 8 * (f * h * w // 4) ** 2)
    per_token = tokens * 6 * 3072 * 4  # one modulation row per token in float32, as a plain statement of the model has it
    return {
        "tokens": tokens,
        "flops": flops,
        "self_attention": self_attention,
        "bytes": peak,
        "prepared_bytes": prepared,
        "per_token_modulation_bytes": per_token,
    }


def vae_cost(width: int, height: int, frames: int, history: int, references: int) -> dict[str, dict[str, float]]:
    """What is encoded (known frames, projection, holes, references) and decoded for a clip."""
    with META:
        vae = WanVAE.wan22().to(KIND)
    short = []
    for count in (1, 5, 9):  # from the third latent frame on every step costs the same
        video = torch.empty(1, 3, count, height, width, dtype=KIND, device=META)
        short.append(counted(lambda video=video: vae.network.encode(video)))

    def encode(count: int) -> int:
        steps = latent_frames(count)
        return short[steps - 1][0] if steps < 3 else short[2][0] + (steps - 3) * (short[2][0] - short[1][0])

    stream = vae.stream()
    latents = torch.empty(1, 48, 1, height // 16, width // 16, device=META)
    work = [counted(lambda: stream.add(latents)) for _ in range(3)]  # from the third latent frame on nothing changes
    steps = latent_frames(frames)
    return {
        "encode": {"flops": 2 * encode(frames) + encode(history) + references * encode(1), "bytes": max(cost[1] for cost in short)},
        "decode": {"flops": sum(w[0] for w in work[:2]) + work[2][0] * (steps - 2), "bytes": max(w[1] for w in work)},
    }


def text_cost() -> dict[str, float]:
    """UMT5 over 512 rows: linear layers and attention."""
    t = UMT5_XXL
    inner = t["num_heads"] * t["d_kv"]
    linear = t["num_layers"] * (4 * t["d_model"] * inner + 3 * t["d_model"] * t["d_ff"])
    return {"flops": 2 * 512 * linear + 4 * 512 * 512 * inner * t["num_layers"], "parameters": linear + t["vocab_size"] * t["d_model"]}


def report() -> dict[str, Any]:
    attention = Attention()
    model = denoiser(attention)
    with META:
        vae = WanVAE.wan22()
    weights = {
        "denoiser": sum(p.numel() for p in model.parameters()) * 2,
        "autoencoder": sum(p.numel() for p in vae.parameters()) * 2,
        "text encoder": text_cost()["parameters"] * 2,
    }
    clips = []
    for width, height in SHAPES:
        for frames, history, references in ((121, 1, 0), (81, 9, 7)):
            forward = forward_cost(model, attention, width, height, frames, references)
            coder = vae_cost(width, height, frames, history, references)
            passes = 2 * RELEASE.steps
            clip = {"text": text_cost()["flops"], "denoise": passes * forward["flops"]} | {k: v["flops"] for k, v in coder.items()}
            shape = {"width": width, "height": height, "frames": frames, "references": references}
            clips.append(shape | {"forward": forward, "autoencoder": coder, "clip_flops": clip})
            print(f"counted {width}x{height}, {frames} frames", file=sys.stderr)
    return {"counted": True, "weights": weights, "clips": clips}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| clip (counted, not measured) | tokens | one forward | of it self-attention | extra memory of a forward "
        "| 40 steps, guidance | encode | decode | decode memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for clip in found["clips"]:
        forward, coder, flops = clip["forward"], clip["autoencoder"], clip["clip_flops"]
        share = forward["self_attention"] / forward["flops"]
        name = f"{clip['width']}x{clip['height']}, {clip['frames']} frames" + (
            f", {clip['references']} references" if clip["references"] else ""
        )
        lines.append(
            f"| {name} | {forward['tokens']:,} | {forward['flops'] / 1e12:.0f} TFLOP | {share:.0%} | "
            f"{forward['bytes'] / 1e9:.1f} GB | {flops['denoise'] / 1e15:.1f} PFLOP | {flops['encode'] / 1e12:.0f} TFLOP | "
            f"{flops['decode'] / 1e12:.0f} TFLOP | {coder['decode']['bytes'] / 1e9:.1f} GB |"
        )
    sizes = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in found["weights"].items())
    first = found["clips"][0]["forward"]
    notes = [
        f"Weights in bfloat16: {sizes}.",
        f"Text keys and values kept between steps: {first['prepared_bytes'] / 1e9:.2f} GB per prompt. A modulation row per token would "
        f"take {first['per_token_modulation_bytes'] / 1e9:.1f} GB in the first clip; a row per distinct time takes less than 1 MB.",
    ]
    return "\n".join([*lines, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    found = report()
    print(json.dumps(found) if args.json else table(found))


if __name__ == "__main__":
    main()
