"""What a clip of the 5B costs, counted: floating-point operations and bytes, without a GPU and without weights.

    python benchmarks/release_cost.py            # tables in Markdown
    python benchmarks/release_cost.py --json

Nothing is timed. The real classes run at full size on PyTorch's meta device; its FLOP counter counts matrix products and convolutions
(a multiply and an add are two), attention is counted as 4 x queries x keys x width. Bytes are those of tensors alive at once in bfloat16.
The memory of points is drawn and matched for real, few points in few views, and its costs are scaled to a million points and a clip: an
operation is one element that PyTorch makes.

The denoiser's forward is compared with a plain statement of the release's (`plain_forward`), which takes the memory that its form asks for
and no more: a modulation row per token, all hints before the main blocks, everything in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from spatia_model.config import RELEASE, release_camera
from spatia_model.generator import blocks
from spatia_model.generator.conversion.architecture import UMT5_XXL, Architecture
from spatia_model.generator.fitting import GIB, Fit, choose_fit, quantise
from spatia_model.generator.names import to_official
from spatia_model.generator.transformer import SpatiaTransformer
from spatia_model.generator.wan_vae import WanVAE
from spatia_model.geometry.point_compositing import composite_points
from spatia_model.geometry.visibility import frontmost_points

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


# -- a plain statement of the release's forward ---------------------------------------------------------------------


def _linear(w: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _attend(w: Any, name: str, heads: int, x: torch.Tensor, other: torch.Tensor, turn: torch.Tensor | None, attention: Any) -> torch.Tensor:
    def normed(part: str, tokens: torch.Tensor) -> torch.Tensor:
        made = F.rms_norm(_linear(w, f"{name}.{part}", tokens), tokens.shape[-1:], w[f"{name}.norm_{part}.weight"], 1e-6)
        return made.unflatten(2, (heads, -1))

    query, key = normed("q", x), normed("k", other)
    value = _linear(w, f"{name}.v", other).unflatten(2, (heads, -1))
    if turn is not None:
        query, key = blocks.rotate(query, turn), blocks.rotate(key, turn)
    return _linear(w, f"{name}.o", attention(query, key, value).flatten(2))


def _plain_block(w: Any, name: str, heads: int, x: torch.Tensor, text: torch.Tensor, times: torch.Tensor, turn: Any, attention: Any) -> Any:
    """x (1, N, D), times (1, N, 6, D): every token has its own modulation."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (w[f"{name}.modulation"] + times).unbind(2)
    size = x.shape[-1:]
    hidden = F.layer_norm(x, size, None, None, 1e-6) * (1 + scale1) + shift1
    x = x + gate1 * _attend(w, f"{name}.self_attn", heads, hidden, hidden, turn, attention)
    hidden = F.layer_norm(x, size, w[f"{name}.norm3.weight"], w[f"{name}.norm3.bias"], 1e-6)
    x = x + _attend(w, f"{name}.cross_attn", heads, hidden, text, None, attention)
    hidden = F.layer_norm(x, size, None, None, 1e-6) * (1 + scale2) + shift2
    return x + gate2 * _linear(w, f"{name}.ffn.2", F.gelu(_linear(w, f"{name}.ffn.0", hidden), approximate="tanh"))


def plain_forward(
    w: Mapping[str, torch.Tensor],
    heads: int,
    layers: tuple[int, ...],
    latents: torch.Tensor,
    times: torch.Tensor,
    context: torch.Tensor,
    control: torch.Tensor,
    references: int,
    turn: torch.Tensor,
    attention: Any,
) -> torch.Tensor:
    """The denoiser as the release states it, weights by official name; arguments as `SpatiaTransformer.forward`.

    `times` (1, F). `layers`: the main block of each control block. `turn`: rotations of all tokens (`blocks.rotary_table`).
    """
    _, channels, frames, height, width = latents.shape
    size = height * width // 4
    skip = references * size
    kind = w["patch_embedding.weight"].dtype

    def patched(name: str, volume: torch.Tensor) -> torch.Tensor:
        return F.conv3d(volume.to(kind), w[f"{name}.weight"], w[f"{name}.bias"], stride=(1, 2, 2)).flatten(2).transpose(1, 2)

    x = patched("patch_embedding", latents)
    frequencies = blocks.time_sinusoid(times[0].repeat_interleave(size), w["time_embedding.0.weight"].shape[1])[None].to(kind)
    embedded = _linear(w, "time_embedding.2", F.silu(_linear(w, "time_embedding.0", frequencies)))  # (1, N, D)
    modulation = _linear(w, "time_projection.1", F.silu(embedded)).unflatten(2, (6, -1))
    text = _linear(w, "text_embedding.2", F.gelu(_linear(w, "text_embedding.0", context.to(kind)), approximate="tanh"))
    state = _linear(w, "vace_blocks.0.before_proj", patched("vace_patch_embedding", control)) + x[:, skip:]
    hints = []
    for i in range(len(layers)):
        state = _plain_block(w, f"vace_blocks.{i}", heads, state, text, modulation[:, skip:], turn[:, skip:], attention)
        hints.append(_linear(w, f"vace_blocks.{i}.after_proj", state))
    number = 0
    while f"blocks.{number}.modulation" in w:
        x = _plain_block(w, f"blocks.{number}", heads, x, text, modulation, turn, attention)
        if number in layers:
            x = torch.cat([x[:, :skip], x[:, skip:] + hints[layers.index(number)]], 1)
        number += 1
    shift, scale = (w["head.modulation"] + embedded[:, :, None]).unbind(2)
    out = _linear(w, "head.head", F.layer_norm(x, x.shape[-1:], None, None, 1e-6) * (1 + scale) + shift)
    out = out.view(1, frames, height // 2, width // 2, 2, 2, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(1, -1, frames, height, width)


def forward_cost(model: Any, attention: Attention, width: int, height: int, frames: int, references: int) -> dict[str, float]:
    """One forward without guidance: ours, with the conditions that stay the same prepared; ours without; and the plain statement."""
    h, w, f = height // 16, width // 16, latent_frames(frames)
    latents, times = torch.empty(1, 48, f + references, h, w, device=META), torch.zeros(1, f + references, device=META)
    context, control = torch.empty(1, 512, 4096, dtype=KIND, device=META), torch.empty(1, 96, f, h, w, device=META)
    with torch.no_grad():
        conditions = model.prepare(context, control, references)
    prepared = sum(t.untyped_storage().nbytes() for pair in (*conditions.text, *conditions.control_text) for t in pair)
    prepared += conditions.control.untyped_storage().nbytes()
    flops, peak = counted(lambda: model(latents, times, conditions=conditions), attention)
    _, whole = counted(lambda: model(latents, times, context, control, references), attention)
    weights = {to_official(name): tensor for name, tensor in model.state_dict().items()}
    turn = torch.empty(1, (f + references) * h * w // 4, 1, 64, dtype=torch.complex64, device=META)
    layers = tuple(model.config.vace_layers)
    plain = counted(lambda: plain_forward(weights, 24, layers, latents, times, context, control, references, turn, attention), attention)
    tokens = (f + references) * h * w // 4
    self_attention = 4 * 3072 * (30 * tokens**2 + 8 * (f * h * w // 4) ** 2)
    return {
        "tokens": tokens,
        "flops": flops,
        "self_attention": self_attention,
        "bytes": peak,
        "prepared_bytes": prepared,
        "unprepared_bytes": whole,
        "plain_flops": plain[0],
        "plain_bytes": plain[1],
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
    """UMT5 over the 512 rows of one prompt."""
    model = Architecture().text_model.to(KIND)
    rows = torch.empty(1, 512, UMT5_XXL["d_model"], dtype=KIND, device=META)
    flops, peak = counted(lambda: model.encoder(inputs_embeds=rows))
    return {"flops": flops, "bytes": peak, "parameters": sum(p.numel() for p in model.parameters())}


class Traffic(TorchDispatchMode):
    """Elements that PyTorch makes, and bytes that its operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns):  # a view moves nothing
            outputs = [t for t in (made if isinstance(made, tuple | list) else (made,)) if isinstance(t, torch.Tensor)]
            self.elements += sum(t.numel() for t in outputs)
            self.bytes += sum(t.numel() * t.element_size() for t in (*outputs, *args) if isinstance(t, torch.Tensor))
        return made


def memory_cost(width: int, height: int, frames: int, references: int, points: int = 1_000_000) -> dict[str, float]:
    """Drawing the window and matching its targets with 100 past frames; what the memory holds."""
    camera = release_camera(replace(RELEASE, width=width, height=height))
    pose = torch.eye(4, dtype=torch.float64)[None]

    def per_view(work: Callable[[torch.Tensor, torch.Tensor], Any]) -> tuple[float, float]:
        costs = []
        for count in (2_000, 12_000):  # what a view costs by itself, and what a point adds
            generator = torch.Generator().manual_seed(0)
            place = torch.rand(count, 3, generator=generator) * torch.tensor([2.0, 1.0, 2.0]) + torch.tensor([-1.0, -0.5, 2.0])
            with Traffic() as traffic:
                work(place, torch.zeros(count, 3, dtype=torch.uint8))
            costs.append((traffic.elements, traffic.bytes))
        (a, c), (b, d) = costs
        return a + (b - a) / 10_000 * (points - 2_000), c + (d - c) / 10_000 * (points - 2_000)

    drawn = per_view(lambda place, colors: composite_points(place, colors, pose, camera, RELEASE.point_radius, RELEASE.points_per_pixel))
    seen = per_view(lambda place, colors: frontmost_points(place, pose, camera))
    past, targets = (100, -(-frames // RELEASE.stride(RELEASE.target_rate))) if references else (0, 0)
    views = past + targets
    return {
        "points": points,
        "operations": frames * drawn[0] + views * seen[0] + 2 * past * targets * points,  # the last: `overlap_counts`
        "traffic_bytes": frames * drawn[1] + views * seen[1],
        "held_bytes": points * (8 + 12 + 3 + 4 + 4),
    }


def held(kind: str | None) -> tuple[int, int, int]:
    """Bytes of the denoiser's weights: all of them, those outside the blocks, and of the largest block."""
    with META:
        model = SpatiaTransformer.wan22_ti2v_5b().to(KIND)
    if kind is not None:
        quantise(model, kind)
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    per_block: dict[str, int] = {}
    for name, size in sizes.items():
        block = ".".join(name.split(".")[:2]) if "blocks." in name else ""
        per_block[block] = per_block.get(block, 0) + size
    outside = per_block.pop("")
    return sum(sizes.values()), outside, max(per_block.values())


def settings(clips: list[dict[str, Any]], weights: Mapping[str, float], text: Mapping[str, float]) -> list[dict[str, Any]]:
    """The most that is on the GPU at once, for every way to fit it and size of picture."""
    adapters = 2 * sum(torch.Size(shape).numel() for shape in Architecture().lora(64).values())
    found = []
    for least in (36, 22, 15, 11):
        fit = choose_fit(least * GIB)
        everything, outside, block = held(fit.quantise)
        for width, height in SHAPES:
            mine = [clip for clip in clips if (clip["width"], clip["height"]) == (width, height)]
            forward = max(clip["forward"]["bytes"] + 2 * clip["forward"]["prepared_bytes"] for clip in mine)
            unprepared = max(clip["forward"]["unprepared_bytes"] for clip in mine)
            coder = weights["autoencoder"] + max(clip["autoencoder"][way]["bytes"] for clip in mine for way in ("encode", "decode"))
            stages = {"text": weights["text encoder"] + text["bytes"], "autoencoder": coder, "denoiser": everything + adapters + forward}
            if fit.offload == "none":
                total = sum(weights.values()) + adapters
                stages = {"all": total + max(forward, coder - weights["autoencoder"], text["bytes"])}
            elif fit.offload == "group":
                table = 2 * UMT5_XXL["vocab_size"] * UMT5_XXL["d_model"]
                stages["text"] = table + 2 * (weights["text encoder"] - table) / UMT5_XXL["num_layers"] + text["bytes"]
                stages["denoiser"] = outside + 2 * block + adapters + unprepared
            stage = max(stages, key=lambda name: stages[name])
            found.append({"least": least * GIB, "fit": fit, "width": width, "height": height, "stage": stage, "bytes": stages[stage]})
    return found


def report() -> dict[str, Any]:
    attention = Attention()
    model = denoiser(attention)
    with META:
        vae = WanVAE.wan22()
    text = text_cost()
    weights = {
        "denoiser": sum(p.numel() for p in model.parameters()) * 2,
        "autoencoder": sum(p.numel() for p in vae.parameters()) * 2,
        "text encoder": text["parameters"] * 2,
    }
    clips = []
    for width, height in SHAPES:
        for frames, history, references in ((121, 1, 0), (81, 9, 7)):
            forward = forward_cost(model, attention, width, height, frames, references)
            coder = vae_cost(width, height, frames, history, references)
            memory = memory_cost(width, height, frames, references)
            passes = 2 * RELEASE.steps
            clip = {"text": 2 * text["flops"], "denoise": passes * forward["flops"]} | {k: v["flops"] for k, v in coder.items()}
            shape = {"width": width, "height": height, "frames": frames, "references": references}
            clips.append(shape | {"forward": forward, "autoencoder": coder, "memory": memory, "clip_flops": clip})
            print(f"counted {width}x{height}, {frames} frames", file=sys.stderr, flush=True)
    return {"counted": True, "weights": weights, "text": text, "clips": clips, "settings": settings(clips, weights, text)}


def table(found: dict[str, Any]) -> str:
    columns = "tokens|text, 2 prompts|encode|one forward|of it self-attention|40 steps, guidance|decode|memory, per million points"
    work = _head("clip (counted, not measured)|" + columns)
    columns = "forward, ours|kept between steps, per prompt|ours, nothing kept|the release's, stated plainly|text|encode|decode"
    held = _head("clip (counted, not measured)|" + columns + "|memory, per million points")
    for clip in found["clips"]:
        forward, coder, memory = clip["forward"], clip["autoencoder"], clip["memory"]
        text, encode, decode, one = (
            f"{flops / 1e12:.0f} TFLOP"
            for flops in (*(clip["clip_flops"][part] for part in ("text", "encode", "decode")), forward["flops"])
        )
        name = f"{clip['width']}x{clip['height']}, {clip['frames']} frames"
        name += f", {clip['references']} references" if clip["references"] else ""
        share = f"{forward['self_attention'] / forward['flops']:.0%}"
        denoise = f"{clip['clip_flops']['denoise'] / 1e15:.1f} PFLOP"
        points = f"{memory['operations'] / 1e12:.2f} T operations"
        work.append(_row(name, f"{forward['tokens']:,}", text, encode, one, share, denoise, decode, points))
        sizes = [forward[f"{kind}bytes"] for kind in ("", "prepared_", "unprepared_", "plain_")]
        sizes += [found["text"]["bytes"], coder["encode"]["bytes"], coder["decode"]["bytes"]]
        points = f"{memory['held_bytes'] / 1e9:.2f} GB held, {memory['traffic_bytes'] / 1e12:.1f} TB moved"
        held.append(_row(name, *(f"{size / 1e9:.2f} GB" for size in sizes), points))
    fits = _head("GPU memory|setting|most on the GPU at once: 1248x704|832x480")
    for first, second in zip(found["settings"][::2], found["settings"][1::2], strict=True):
        peaks = (f"{s['bytes'] / GIB:.1f} GiB ({s['stage']})" for s in (first, second))
        fits.append(_row(f"{first['least'] // GIB} GiB and more", describe(first["fit"]), *peaks))
    sizes = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in found["weights"].items())
    return "\n".join([*work, "", *held, "", f"Weights in bfloat16: {sizes}.", "", *fits])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(columns: str) -> list[str]:
    names = columns.split("|")
    return [_row(*names), "|" + "---|" * len(names)]


def describe(fit: Fit) -> str:
    given = [f'{name}="{getattr(fit, name)}"' for name in ("offload", "quantise") if getattr(fit, name) not in (None, "none")]
    return f"`Fit({', '.join(given)})`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    args = parser.parse_args()
    found = report()
    print(json.dumps(found, default=vars) if args.json else table(found))


if __name__ == "__main__":
    main()
