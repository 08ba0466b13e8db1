"""What converting and opening the 5B takes: memory, bytes, time; killed in the middle and gone on with. No weights are needed.

    python benchmarks/release_conversion.py                                 # a small checkpoint of the same layout, seconds
    python benchmarks/release_conversion.py --full --folder runs/conversion # the released sizes: says first what disk it needs

The source files have the released names, shapes and layout (three shards, two `.pth`, control, LoRA) but are mostly holes: they take next
to no disk. Their tensors are zeros except at their ends and where the converter cuts them, so that what arrives can be compared. Steps:

    sources      the files, written sparse
    strict       a missing, an extra, a misshapen tensor and a missing shard are refused by name
    interrupted  `spatia convert`, killed (SIGKILL) when half of the bytes are there
    converted    the same command again, to its end
    compared     every tensor of the folder against what was put into the sources
    opened       a new process opens the folder with nothing of it in the page cache, computes, and computes again
    again        another process opens it, the files being in the page cache as far as they fit
    checked      `spatia convert --check`: every byte read, SHA-256 compared

`spatia convert` runs under a limit of 6 GiB of private memory (RLIMIT_DATA). What each step found is kept in FOLDER/measured.json:
stopped and started again, what is there is not measured anew. At the end the model is deleted (`--keep` leaves it).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from spatia_model.generator.checkpoint import CheckpointError
from spatia_model.generator.conversion.architecture import Architecture, Shapes
from spatia_model.generator.conversion.plan import Plan, plan
from spatia_model.generator.conversion.sources import CONTROL_FILE, LORA_FILE, WAN_FILES
from spatia_model.generator.conversion.spans import PIECE, Span, read_spans, safetensors_header

GIB = 1 << 30
LIMIT = 6 * GIB
EDGE = 512  # elements of a tensor that are not zero, at each of the places compared
SMALL: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 40,
        "num_layers": 6,
        "vace_layers": [0, 4],
    },
    "vae": {"base_dim": 4, "decoder_base_dim": 4},
    "text": {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 300},
}


# -- sources --------------------------------------------------------------------------------------------------------


def pattern(name: str, start: int, count: int) -> torch.Tensor:
    """Values (count,) float32 of a tensor from element `start` on: exact in every type, different for every name."""
    return ((torch.arange(start, start + count) * 7919 + zlib.crc32(name.encode())) % 251 - 125) / 64


def windows(count: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the places of a tensor that hold the pattern: both ends, and at the converter's first and last cut."""
    yield 0, min(EDGE, count)
    if count > EDGE:
        yield count - EDGE, EDGE
    if count > PIECE + EDGE:
        yield PIECE - EDGE // 2, EDGE
        last = (count - 1) // PIECE * PIECE  # where the last piece begins
        yield max(0, last - EDGE // 2), EDGE // 2


def fill(path: Path) -> None:
    """Write the pattern into a file that is all holes behind its header."""
    with path.open("r+b") as file:
        for name, span in read_spans(path).items():
            for start, count in windows(span.count):
                file.seek(span.offset + start * span.dtype.itemsize)
                file.write(pattern(name, start, count).to(span.dtype).view(torch.uint8).numpy().data)


def sparse_safetensors(path: Path, shapes: Shapes, dtype: torch.dtype) -> None:
    entries = [(name, Span(path, 0, dtype, shape), dtype) for name, shape in shapes.items()]
    head = safetensors_header(entries)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(span.size_as(dtype) for _, span, _ in entries))
    fill(path)


def sparse_pickle(path: Path, shapes: Shapes, dtype: torch.dtype) -> None:
    """What `torch.save` writes, without the tensors' bytes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)
    fill(path)


def shards(shapes: Shapes, limit: int, itemsize: int) -> list[Shapes]:
    groups: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * itemsize
        if groups[-1] and filled + size > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += size
    return groups


def write_tokenizer(folder: Path) -> None:
    """A small one; the released is 17 MB of text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def write_sources(folder: Path, made: Architecture) -> dict[str, Any]:
    """base/ and spatia/. The base's denoiser and VAE are float32 and its text encoder bfloat16, as published; the rest is assumed."""
    base, spatia = folder / "base", folder / "spatia"
    for place in (base, spatia):
        place.mkdir(parents=True, exist_ok=True)
    denoiser = made.base()
    groups = shards(denoiser, -(-sum(torch.Size(s).numel() for s in denoiser.values()) * 4 * 499 // 1000), 4)
    for i, group in enumerate(groups):
        sparse_safetensors(base / f"diffusion_pytorch_model-{i + 1:05d}-of-{len(groups):05d}.safetensors", group, torch.float32)
    sparse_pickle(base / WAN_FILES["vae"], made.vae_file(), torch.float32)
    sparse_pickle(base / WAN_FILES["text"], made.text_file(), torch.bfloat16)
    sparse_safetensors(spatia / CONTROL_FILE, made.control(), torch.bfloat16)
    sparse_safetensors(spatia / LORA_FILE, made.lora(64), torch.float32)
    write_tokenizer(base / WAN_FILES["tokenizer"])
    files = [path for place in (base, spatia) for path in sorted(place.rglob("*")) if path.is_file()]
    stats = [path.stat() for path in files]
    return {"bytes": sum(s.st_size for s in stats), "disk_bytes": sum(s.st_blocks * 512 for s in stats), "files": len(files)}


# -- steps ----------------------------------------------------------------------------------------------------------


def strict(folder: Path, made: Architecture) -> dict[str, str]:
    """What the converter says of sources with one thing wrong; it must name it. Only headers are changed, of linked copies."""
    control = read_spans(folder / "spatia" / CONTROL_FILE)
    shapes = {name: span.shape for name, span in control.items()}
    name = "vace_blocks.1.modulation"
    changes = {
        "missing": {key: shape for key, shape in shapes.items() if key != name},
        "extra": shapes | {"vace_blocks.1.stray.weight": (2, 2)},
        "misshapen": shapes | {name: (1, 5, shapes[name][2])},
    }
    said = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / LORA_FILE).symlink_to((folder / "spatia" / LORA_FILE).resolve())
        for kind, changed in changes.items():
            sparse_safetensors(Path(place) / CONTROL_FILE, changed, torch.bfloat16)
            said[kind] = refusal(folder / "base", place, made)
            if ("stray" if kind == "extra" else name) not in said[kind] or CONTROL_FILE not in said[kind]:
                raise SystemExit(f"{kind}: neither tensor nor file is named: {said[kind]}")
        base = Path(place) / "base"
        base.mkdir()
        for path in (folder / "base").iterdir():
            (base / path.name).symlink_to(path.resolve())
        gone = sorted(base.glob("*.safetensors"))[1]
        gone.unlink()
        said["no shard"] = refusal(base, folder / "spatia", made)
        if gone.name not in said["no shard"]:
            raise SystemExit(f"the missing shard is not named: {said['no shard']}")
    return said


def refusal(base: Path, spatia: str | Path, made: Architecture) -> str:
    try:
        plan(base, spatia, made)
    except CheckpointError as error:
        return str(error).replace(str(base.parent) + "/", "").replace(f"{spatia}/", "")
    raise SystemExit("a damaged checkpoint was accepted")


def run(words: list[str], until: Callable[[], bool] = lambda: False, pause: float = 0.02) -> dict[str, Any]:
    """A process's memory, bytes and time; killed when `until` says so."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))

    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(words, stdout=out, preexec_fn=limit)
        killed = False
        while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            if not killed and until():
                process.send_signal(signal.SIGKILL)
                killed = True
            time.sleep(pause)
        io = counters(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read()
    if process.returncode and not killed:
        raise SystemExit(f"{' '.join(words)}: exit status {process.returncode}")
    return {
        "killed": killed,
        "peak_rss_bytes": used.ru_maxrss * 1024,
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "read_bytes": io["rchar"],
        "written_bytes": io["wchar"],
        "said": said,
    }


def counters(pid: int | str = "self") -> dict[str, int]:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0


def compare(planned: Plan, out: Path) -> dict[str, int]:
    """Every place of every tensor that the sources hold something at. SystemExit names what differs."""
    if parts := [path.name for path in out.rglob("*.part")]:
        raise SystemExit(f"{out}: half-written files were left: {parts}")
    names: dict[Path, dict[int, str]] = {}
    tensors = values = 0
    for output in planned.outputs:
        found = read_spans(out / output.name) if output.tensors else {}
        for name, source, dtype in output.tensors:
            if source.path not in names:
                names[source.path] = {span.offset: key for key, span in read_spans(source.path).items()}
            official, span = names[source.path][source.offset], found[name]
            with span.path.open("rb") as file:
                for start, count in windows(span.count):
                    file.seek(span.offset + start * dtype.itemsize)
                    held = torch.frombuffer(bytearray(file.read(count * dtype.itemsize)), dtype=dtype)
                    if span.dtype != dtype or span.shape != source.shape or not torch.equal(held.float(), pattern(official, start, count)):
                        raise SystemExit(f"{span.path}: {name} is not {official}")
                    values += count
            tensors += 1
    return {"tensors": tensors, "values": values}


# -- opening --------------------------------------------------------------------------------------------------------


def usage() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    io, used = counters(), resource.getrusage(resource.RUSAGE_SELF)
    kib = {name: int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}
    return {
        "called_for_bytes": io["rchar"],  # by read(); what is mapped is not among them
        "disk_bytes": io["read_bytes"],
        "private_bytes": kib["RssAnon"],
        "mapped_bytes": kib["RssFile"],
        "page_faults": used.ru_minflt + used.ru_majflt,
    }


def drop(folder: Path) -> None:
    """Put the files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_model(folder: Path, cold: bool) -> dict[str, Any]:
    """Open the folder as anyone would, then use its networks on very little input: two latent frames, eight rows of text."""
    import diffusers.models.autoencoders.autoencoder_kl_wan
    import peft  # noqa: F401 (their code's bytes are not the model's)
    import transformers.models.umt5.modeling_umt5  # noqa: F401

    from spatia_model.world_model import WorldModel

    assert diffusers
    if cold:
        drop(folder)
    found: dict[str, Any] = {"files": {part: size_of(folder / part) for part in ("transformer", "lora", "vae", "text_encoder")}}
    world: Any = None
    before, begun = usage(), time.monotonic()

    def step(name: str, work: Callable[[], Any]) -> Any:
        nonlocal before, begun
        before, begun = usage(), time.monotonic()
        made = work()
        after = usage()
        found[name] = {key: after[key] - before[key] for key in after} | {"seconds": round(time.monotonic() - begun, 2)}
        return made

    world = step("open", lambda: WorldModel.from_pretrained(folder, perceiver="embedded"))
    network, vae, text = world.generator.transformer, world.generator.vae, world.generator.text
    config = network.config
    latents, times = torch.zeros(1, config.in_channels, 2, 4, 4), torch.tensor([[0.0, 500.0]])
    context, control = torch.zeros(1, 8, config.text_dim), torch.zeros(1, config.vace_in_channels, 2, 4, 4)
    text.rows = 8
    if cold:
        with torch.inference_mode():
            step("forward", lambda: network(latents, times, context, control))
            step("forward again", lambda: network(latents, times, context, control))
            step("autoencoder", lambda: vae.decode(vae.encode(torch.zeros(1, 3, 5, 32, 32))))
            step("text", lambda: text.encode(["a red ball"]))
    found["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


# -- the whole ------------------------------------------------------------------------------------------------------


def measure(folder: Path, full: bool, kill_at: float = 0.5) -> dict[str, Any]:
    notes = folder / "measured.json"
    found: dict[str, Any] = json.loads(notes.read_text()) if notes.is_file() else {"full": full}
    if found["full"] != full:
        raise SystemExit(f"{folder} holds the other size; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    default = Architecture()
    made = default if full else Architecture(*({**getattr(default, p), **SMALL[p]} for p in ("transformer", "vae", "text")))
    sizes = folder / "architecture.json"
    sizes.write_text(json.dumps({part: dict(getattr(made, part)) for part in ("transformer", "vae", "text")}))
    model = folder / "model"
    words = [sys.executable, "-m", "spatia_env.cli", "convert", "--json"]
    convert = [*words, "--base", folder / "base", "--spatia", folder / "spatia", "--out", model, "--perception", "embedded"]
    convert = [str(word) for word in (*convert, *([] if full else ["--architecture", sizes]))]

    def step(name: str, work: Callable[[], Any]) -> Any:
        if name not in found:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found[name] = work()
            notes.write_text(json.dumps(found, indent=1) + "\n")
        return found[name]

    def opened(cold: bool) -> Any:
        command = [sys.executable, __file__, "--folder", str(model), "--open", "cold" if cold else "warm"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    step("sources", lambda: write_sources(folder, made))
    planned = plan(folder / "base", folder / "spatia", made, perception="embedded")
    free, need = shutil.disk_usage(folder).free + size_of(model), planned.size + GIB
    print(f"{need / 1e9:.1f} GB of disk are needed at {folder}, {free / 1e9:.1f} GB are there", file=sys.stderr, flush=True)
    if free < need:
        raise SystemExit("make room, or give another --folder")
    found["planned_bytes"] = planned.size
    step("strict", lambda: strict(folder, made))
    step("interrupted", lambda: run(convert, lambda: size_of(model) > kill_at * planned.size, 0.25 if full else 0.02))
    step("converted", lambda: run(convert))
    step("compared", lambda: compare(planned, model))
    step("opened", lambda: opened(True))
    step("again", lambda: opened(False))
    step("checked", lambda: run([*words, "--check", str(model)]))
    return found


def table(found: dict[str, Any]) -> str:
    def size(count: float) -> str:
        return f"{count / 1e9:.2f} GB" if count > 5e7 else f"{count / 1e6:.2f} MB"

    lines = [
        f"Sources: {size(found['sources']['bytes'])} in {found['sources']['files']} files, {size(found['sources']['disk_bytes'])} on disk. "
        f"Folder: {size(found['planned_bytes'])}; {found['compared']['tensors']} tensors compared.",
        "",
        "| | peak RSS | read | written | time | CPU time |",
        "|---|---|---|---|---|---|",
    ]
    labels = {"interrupted": "`spatia convert`, killed halfway", "converted": "the same again", "checked": "`spatia convert --check`"}
    for name, label in labels.items():
        s = found[name]
        moved = " | ".join(size(s[key]) for key in ("peak_rss_bytes", "read_bytes", "written_bytes"))
        lines.append(f"| {label} | {moved} | {s['seconds']:.0f} s | {s['cpu_seconds']:.0f} s |")
    lines += ["", "| | from the disk | private memory | mapped memory | page faults | time |", "|---|---|---|---|---|---|"]
    rows = {"open": "`from_pretrained`", "forward": "denoiser, one forward", "forward again": "the same again"}
    rows |= {"autoencoder": "autoencoder, encode and decode", "text": "text encoder, one prompt"}
    for name, label in rows.items():
        lines.append(_opened(label, found["opened"][name], size))
    lines.append(_opened("`from_pretrained` in another process", found["again"]["open"], size))
    lines += ["", "Files: " + ", ".join(f"{part} {size(count)}" for part, count in found["opened"]["files"].items()) + "."]
    return "\n".join(lines)


def _opened(label: str, s: dict[str, Any], size: Callable[[float], str]) -> str:
    moved = f"{size(s['disk_bytes'])} | {s['private_bytes'] / 1e6:+,.0f} MB | {s['mapped_bytes'] / 1e6:+,.0f} MB"
    return f"| {label} | {moved} | {s['page_faults']:,} | {s['seconds']:.1f} s |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the released sizes")
    parser.add_argument("--folder", type=Path, help="where to work, kept until the end is reached (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the sources and the converted model")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--open", choices=("cold", "warm"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.open:
        print(json.dumps(open_model(args.folder, args.open == "cold")))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        found = measure(folder, args.full)
        if not args.keep:
            for part in ("base", "spatia", "model"):
                shutil.rmtree(folder / part, ignore_errors=True)
    print(json.dumps(found) if args.json else table(found))


if __name__ == "__main__":
    main()
