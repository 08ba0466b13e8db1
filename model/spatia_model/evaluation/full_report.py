"""Every evaluation of one model in one folder, `spatia eval report`: a JSON per part, and report.md with the paper's figures beside ours.

`spatia eval report --model spatia-mini --worlds 4 --out outputs/report`

Parts that are done stay done: run the same command again to go on where it stopped. A part whose arguments differ is done anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spatia_model.evaluation.ablation import FIGURES, evaluate_ablation
from spatia_model.evaluation.camera_control import evaluate_camera
from spatia_model.evaluation.closed_loop import evaluate_closed_loop
from spatia_model.evaluation.events import evaluate_events
from spatia_model.evaluation.long_horizon import evaluate_long_horizon
from spatia_model.evaluation.perceptual import find_tools
from spatia_model.evaluation.quality import evaluate_quality
from spatia_model.evaluation.setting import SEED, add_common_arguments, load_model
from spatia_model.world_model import WorldModel

PARTS = ("quality", "camera", "closed-loop", "closed-loop-off", "events", "ablation", "long-horizon")
# As published for the 5B: other scenes, another resolution, other tools. They say what to expect of each figure's size and order.
PAPER: dict[str, list[tuple[str, str]]] = {
    "quality": [("Spatia, RealEstate10K", "PSNR 18.58, SSIM .646, LPIPS .254")],
    "camera": [("Spatia, WorldScore's camera control", "84.47")],
    "closed-loop": [("Spatia, closed loop", "PSNR_C 19.38, SSIM_C .579, LPIPS_C .213, Match Acc .698")],
    "ablation": [
        ("neither", "camera 58.81, PSNR_C 15.55"),
        ("projection only", "camera 80.13, PSNR_C 17.18"),
        ("references only", "camera 61.38, PSNR_C 15.64"),
        ("both", "camera 84.47, PSNR_C 19.38"),
        ("K = 1 / 3 / 5 / 7", "PSNR_C 17.50 / 17.85 / 18.48 / 19.38"),
    ],
    "long-horizon": [("2 / 4 / 6 clips", "PSNR_C 19.38 / 18.23 / 18.04; without memory 13.00 / 11.32 / 10.74")],
}


def run_parts(
    model: WorldModel,
    out: Path,
    worlds: int,
    seed: int = SEED,
    parts: tuple[str, ...] = PARTS,
    lengths: tuple[int, ...] = (2, 6, 20),
    name: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Do the parts that are not done, write each when it is, and report.md at the end; returns all."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"no parts called {unknown}; known are {list(PARTS)}")
    tools = find_tools()
    common: dict[str, Any] = {"worlds": worlds, "seed": seed, "name": name}
    do: dict[str, Callable[[], dict[str, Any]]] = {
        "quality": lambda: evaluate_quality(model, tools=tools, **common),
        "camera": lambda: evaluate_camera(model, **common),
        "closed-loop": lambda: evaluate_closed_loop(model, revisit=True, **common),
        "closed-loop-off": lambda: evaluate_closed_loop(model, revisit=True, memory=False, **common),
        "events": lambda: evaluate_events(model, **common),
        "ablation": lambda: evaluate_ablation(model, tools=tools, **common),
        "long-horizon": lambda: evaluate_long_horizon(model, clips=lengths, tools=tools, **common),
    }
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for part in parts:
        asked = {"worlds": worlds, "seed": seed, "model": name, "lengths": list(lengths) if part == "long-horizon" else None}
        file = out / f"{part}.json"
        done = _read(file)
        if done is None or done.get("asked") != asked:
            say(f"{part} ...")
            done = {"asked": asked, "result": do[part]()}
            _write(file, json.dumps(done, indent=1, allow_nan=False) + "\n")
        else:
            say(f"{part}: done before, kept")
        results[part] = done["result"]
    _write(out / "report.md", markdown(results, name, worlds, seed))
    return results


def markdown(results: Mapping[str, Any], name: str, worlds: int, seed: int) -> str:
    """The report: a table per part, means with the half width of their 95 % intervals."""
    lines = [
        f"# {name or 'Model'}: {worlds} test worlds from seed {seed}",
        "",
        "Mean +- half width of the 95 % interval over worlds (Student's t).",
    ]
    for part, result in results.items():
        lines += ["", f"## {part}", ""]
        if "tables" in result:
            for table, rows in result["tables"].items():
                keys = [key for key in FIGURES if any(figures.get(key) is not None for figures in rows.values())]
                lines += [f"| {table} | " + " | ".join(keys) + " |", "|---" * (1 + len(keys)) + "|"]
                lines += [f"| {row} | " + " | ".join(_figure(figures, key) for key in keys) + " |" for row, figures in rows.items()]
                lines.append("")
        else:
            flat = {**result, **result.get("details", {})}
            keys = [key for key, value in flat.items() if isinstance(value, (int, float)) and not key.endswith("_ci95")]
            lines += ["| figure | value |", "|---|---|", *(f"| {key} | {_figure(flat, key)} |" for key in keys)]
        for package, line in result.get("absent", {}).items():
            lines += ["", f"Without {package} ({line}) its figure is left out."]
        if part in PAPER:
            lines += [
                "",
                "Published for the 5B, on other data:",
                "",
                "| | |",
                "|---|---|",
                *(f"| {row} | {text} |" for row, text in PAPER[part]),
            ]
    return "\n".join(lines) + "\n"


def _figure(figures: Mapping[str, Any], key: str) -> str:
    value, width = figures.get(key), figures.get(f"{key}_ci95")
    return "-" if value is None else f"{value:.3f}" + ("" if width is None else f" +- {width:.3f}")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "result" in found else None


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`spatia eval report`."""
    add_common_arguments(parser, worlds=4)
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder of the report (default: %(default)s)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 6, 20], metavar="N", help="loops of long-horizon (default: 2 6 20)")


def run(args: argparse.Namespace) -> int:
    """Write the report; 0 when done."""
    model = load_model(args)
    results = run_parts(
        model,
        args.out,
        args.worlds,
        args.seed,
        tuple(args.parts),
        tuple(args.lengths),
        str(args.model),
        lambda line: print(f"report: {line}", file=sys.stderr, flush=True),
    )
    print(json.dumps({"out": str(args.out), "results": results}, allow_nan=False) if args.json else f"{args.out / 'report.md'}")
    return 0
