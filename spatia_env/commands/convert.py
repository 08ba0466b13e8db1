"""`spatia convert`: the released checkpoint becomes a local folder that `model=` takes; and back."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from spatia_env.commands.common import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", help="Wan2.2-TI2V-5B: a folder with Wan's files or its diffusers folder, or a hub id")
    parser.add_argument("--spatia", help="folder or hub id with Spatia's control and LoRA files")
    parser.add_argument("--out", help="folder to write, or the folder for --export's two files")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the weights (default: %(default)s)"
    )
    parser.add_argument("--preset", choices=("release", "paper"), default="release", help="the loop's numbers (default: %(default)s)")
    parser.add_argument(
        "--perception",
        choices=("today", "release", "paper", "embedded"),
        default="today",
        help="what perceives: MapAnything with Qwen3-VL and SAM 3, alone, or with Keye-VL-1.5 and ReferDINO; or the small network of "
        "spatia-mini, which needs no download (default: %(default)s)",
    )
    parser.add_argument("--architecture", metavar="JSON", help="sizes of a checkpoint of this family that isn't the released one")
    parser.add_argument("--control-file", metavar="NAME", default=None, help="name of the control file (default: step-8500.safetensors)")
    parser.add_argument("--lora-file", metavar="NAME", default=None, help="name of the LoRA file (default: lora_weights_10000.safetensors)")
    parser.add_argument("--dry-run", action="store_true", help="check names, shapes and disk space, write nothing")
    parser.add_argument("--check", metavar="DIR", help="compare a converted folder with its checksums")
    parser.add_argument("--export", metavar="DIR", help="write a converted folder's control and LoRA under the release's names into --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")


def run(args: argparse.Namespace) -> int:
    modes = [bool(args.check), bool(args.export), bool(args.base or args.spatia)]
    if sum(modes) != 1:
        raise ValueError("give --base, --spatia and --out to convert; or --check DIR; or --export DIR with --out")
    if args.check:
        return _check(args)
    if not args.out and not args.dry_run:
        raise ValueError("--out is missing: the folder to write")
    return _export(args) if args.export else _convert(args)


def _check(args: argparse.Namespace) -> int:
    from spatia_model.generator.conversion.convert import check_folder

    described = check_folder(args.check, _Bytes("checking"))
    files = described["files"]
    _print(
        args,
        {"folder": str(args.check), "files": len(files), "bytes": sum(note["size"] for note in files.values()), "whole": True},
        f"{args.check}: {len(files)} files, all as they were converted",
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    from spatia_model.generator.conversion.export import export_release

    written = [str(path) for path in export_release(args.export, args.out)]
    _print(args, {"files": written}, "\n".join(written))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from spatia_model.config import preset
    from spatia_model.generator.conversion import sources
    from spatia_model.generator.conversion.architecture import Architecture
    from spatia_model.generator.conversion.convert import convert
    from spatia_model.generator.conversion.plan import plan

    for name in ("base", "spatia"):
        if not getattr(args, name):
            raise ValueError(f"--{name} is missing: a folder or a hub id")
    planned = plan(
        args.base,
        args.spatia,
        Architecture.read(args.architecture),
        args.dtype,
        preset(args.preset),
        args.perception,
        control_file=args.control_file or sources.CONTROL_FILE,
        lora_file=args.lora_file or sources.LORA_FILE,
    )
    result: dict[str, Any] = {"out": args.out, "files": len(planned.outputs) + 1, "bytes": planned.size, "written": not args.dry_run}
    if args.dry_run:
        _print(args, result, f"names and shapes fit; {planned.size / 1e9:.2f} GB in {result['files']} files would be written")
        return 0
    say(f"names and shapes fit; writing {planned.size / 1e9:.2f} GB to {args.out}")
    convert(planned, args.out, _Bytes("converting"))
    _print(args, result, f"{args.out}: {planned.size / 1e9:.2f} GB in {result['files']} files; use it with model={str(Path(args.out))!r}")
    return 0


def _print(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    print(json.dumps(result) if args.json else text)


class _Bytes:
    """Progress in bytes, a line every few seconds (on a terminal: one line that counts)."""

    def __init__(self, label: str) -> None:
        self.label, self.start, self.shown, self.first = label, time.monotonic(), 0.0, -1

    def __call__(self, done: int, total: int, name: str) -> None:
        now = time.monotonic()
        self.first = done if self.first < 0 else self.first
        terminal = sys.stderr.isatty()
        if done < total and now - self.shown < (0.2 if terminal else 10):
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.start, 1e-3)
        left = f", about {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        line = f"{self.label}: {done / 1e9:.2f} of {total / 1e9:.2f} GB{left} ({name})"
        print("\r" + line.ljust(100) if terminal else line, end="\n" if not terminal or done == total else "", file=sys.stderr, flush=True)
