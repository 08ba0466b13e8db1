"""`spatia prepare`: videos, data sets, rollouts and procedural worlds to training clips."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

KINDS = ("realestate10k", "spatialvid", "videos", "rollouts", "worlds", "walks")
# What a tier is trained on. The embedded one's windows: 5 known frames, 8 new ones; the release's: 9 and 72.
TIERS: dict[str, dict[str, Any]] = {
    "mini": {"size": "128x128", "fps": 8.0, "frames": 13, "preceding": 5, "references": 3, "voxel": 0.03, "vae": "spatia-mini"},
    "release": {"size": "704x1248", "fps": 24.0, "frames": 81, "preceding": 9, "references": 7, "voxel": 0.01, "vae": ""},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="what the clips are made of")
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        help="camera files, data set, folder of videos, of rollouts, or of `spatia train mini`; nothing for worlds",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the clips; an interrupted run goes on from what is there")
    parser.add_argument(
        "--tier", choices=sorted(TIERS), default="mini", help="sizes, rates and autoencoder of this tier (default: %(default)s)"
    )
    parser.add_argument("--frames-from", type=Path, help="realestate10k: folder with <id>/<timestamp>.png, <id>.mp4 or <YouTube id>.mp4")
    parser.add_argument("--captions", type=Path, help="videos: JSON of file name to caption")
    parser.add_argument(
        "--perceiver", help="compact, none, a preset (today, paper, release) or JSON of its fields (default: compact; worlds, walks: none)"
    )
    parser.add_argument("--vae", help='model whose autoencoder encodes; "none": pictures only (default: the tier\'s)')
    parser.add_argument("--text", default="", help="folder that `spatia convert` wrote: captions are stored as its text encoder's rows")
    parser.add_argument(
        "--pictures",
        choices=("none", "png", "jpeg"),
        default="none",
        help="keep pictures beside the latents (vae and perception need them)",
    )
    parser.add_argument("--size", help="height x width, such as 480x832 (default: the tier's)")
    parser.add_argument("--fps", type=float, help="frames a second of the clips (default: the tier's)")
    parser.add_argument("--frames", type=int, help="frames of a window, 1 + 4k (default: the tier's)")
    parser.add_argument("--preceding", type=int, help="of these, history, 1 + 4k (default: the tier's)")
    parser.add_argument("--clips-per-video", type=int, default=4)
    parser.add_argument("--references", type=int, help="most references kept per clip (default: the tier's)")
    parser.add_argument("--voxel", type=float, help="metres, finest cell of the cloud (default: the tier's)")
    parser.add_argument("--worlds", type=int, default=100, help="worlds: how many")
    parser.add_argument(
        "--world-seed", type=int, default=0, help="worlds: the first one's seed, below 1,000,000 (with --validation: from there on)"
    )
    parser.add_argument("--validation", action="store_true", help="worlds: seeds from 1,000,000 on, kept apart from training")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of windows and clouds (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N videos")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shard-mb", type=float, default=256, help="size of a shard, megabytes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def run(args: argparse.Namespace) -> int:
    settings, names = _settings(args)
    source = _source(args, settings)
    from spatia_model.data.prepare.run import prepare

    summary = prepare(source, args.out, settings, names, args.processes, args.shard_mb, args.limit)
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{summary['clips']} clips of {summary['videos_with_clips']} videos, {summary['megabytes']} MB, in {args.out}", file=sys.stderr
        )
        if summary["videos_set_aside"]:
            print(f"{summary['videos_set_aside']} videos set aside: {args.out / 'aside.jsonl'}", file=sys.stderr)
    if not summary["clips"]:
        raise ValueError(f"no clip could be made: {args.out / 'aside.jsonl'} says why")
    return 0


def _settings(args: argparse.Namespace) -> tuple[Any, Any]:
    from spatia_model.data.prepare.build import Settings
    from spatia_model.data.prepare.run import ToolNames

    tier = dict(TIERS[args.tier])
    chosen = {k: v if getattr(args, k, None) is None else getattr(args, k) for k, v in tier.items()}
    try:
        height, width = (int(part) for part in chosen.pop("size").lower().split("x"))
    except ValueError as error:
        raise ValueError(f"--size {args.size!r}: give height x width, such as 480x832") from error
    if height % 16 or width % 16:
        raise ValueError(f"--size {height}x{width}: both must be multiples of 16 for the autoencoder")
    for name in ("processes", "worlds", "clips_per_video"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    vae = chosen.pop("vae")
    if args.tier == "release" and not vae:
        raise ValueError(
            "--vae is missing: give the folder that `spatia convert` wrote (its vae/ encodes), or --vae none for pictures only"
        )
    vae = "" if vae == "none" else vae
    settings = Settings(
        height=height,
        width=width,
        clips_per_video=args.clips_per_video,
        pictures=args.pictures if vae else args.pictures.replace("none", "png"),
        seed=args.seed,
        **chosen,
    )
    perceiver = args.perceiver or ("none" if args.kind in ("worlds", "walks") else "compact")
    return settings, ToolNames(perceiver, vae, args.text, args.device)


def _source(args: argparse.Namespace, settings: Any) -> Any:
    if args.kind != "worlds" and args.path is None:
        raise ValueError(f"spatia prepare {args.kind} needs a path: `spatia prepare --help` has examples")
    if args.kind == "worlds":
        from spatia_model.data.prepare.recorded import Worlds

        first = args.world_seed + (1_000_000 if args.validation and args.world_seed < 1_000_000 else 0)
        frames = settings.frames + (args.clips_per_video - 1) * (settings.frames - settings.preceding) + 8
        return Worlds(range(first, first + args.worlds), frames, settings.height, settings.width, validation=args.validation)
    if args.kind == "rollouts":
        from spatia_model.data.prepare.recorded import Rollouts

        return Rollouts(args.path)
    if args.kind == "walks":
        from spatia_model.data.prepare.walks import Walks

        return Walks(args.path)
    from spatia_model.data.prepare import datasets

    if args.kind == "realestate10k":
        if args.frames_from is None:
            raise ValueError("RealEstate10K has no frames of its own: give yours with --frames-from (docs/data.md shows the layouts)")
        return datasets.RealEstate10K(args.path, args.frames_from)
    if args.kind == "spatialvid":
        return datasets.SpatialVID(args.path)
    return datasets.Videos(args.path, args.captions)
