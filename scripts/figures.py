"""Measures the embedded weights and writes the figures into README.md and the model card.

    python scripts/figures.py measure [--out outputs/figures] [--worlds 6] [--event-worlds 16] [--photos PHOTO ...]
    python scripts/figures.py write [--out outputs/figures]

`measure` runs the commands that docs/evaluation.md explains and keeps what they print, one JSON file each; a file that is there already is
not measured again. `write` replaces the last cells of every table row whose first cell names a key, such as (`psnr_c`).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "model" / "spatia_model" / "pretrained" / "spatia-mini"
PARTS = {
    "vae": "autoencoder",
    "transformer": "denoiser",
    "text": "text",
    "perception": "perception",
    "refiner": "refiner",
    "motion": "planner",
}
# key: (unit, digits, factor)
FORMATS = {
    "psnr_c": (" dB", 1, 1),
    "ssim_c": ("", 3, 1),
    "psnr_revisit": (" dB", 1, 1),
    "psnr_covered": (" dB", 1, 1),
    "psnr_uncovered": (" dB", 1, 1),
    "psnr_moving": (" dB", 1, 1),
    "gradient_energy_covered": ("", 2, 1),
    "gradient_energy_uncovered": ("", 2, 1),
    "coverage": (" %", 0, 100),
    "ghost_rate": (" %", 1, 100),
    "rotation_error_deg": ("°", 2, 1),
    "translation_error_pct": (" %", 0, 1),
    "place_rate": (" %", 0, 100),
    "place_rate_warm": (" %", 0, 100),
    "psnr_moving_warm": (" dB", 1, 1),
    "motion_rate": (" %", 0, 100),
}

EVENTS = ("place_rate", "place_rate_warm", "psnr_moving_warm", "motion_rate")


def measure(args: argparse.Namespace) -> None:
    spatia = [sys.executable, "-m", "spatia_env.cli"]
    closed = [*spatia, "eval", "closed-loop", "--worlds", str(args.worlds), "--clips", "6", "--revisit", "--json", "--memory"]
    commands = {
        "on": [*closed, "on"],
        "off": [*closed, "off"],
        "events": [*spatia, "eval", "events", "--worlds", str(args.event_worlds), "--json"],
        "autoencoder": [sys.executable, "benchmarks/autoencoder.py", *map(str, args.photos), "--json"],
        "speed": [sys.executable, "benchmarks/env_step.py", "--json"],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, command in commands.items():
        path = args.out / f"{name}.json"
        if path.exists():
            continue
        print(" ".join(command[1:]), file=sys.stderr, flush=True)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(json.loads(done.stdout.strip().splitlines()[-1]), indent=1))
        partial.replace(path)


def cell(figures: dict, key: str) -> str:
    unit, digits, factor = FORMATS[key]
    value, around = figures.get(key), figures.get(f"{key}_ci95")
    if value is None:
        return "–"
    spread = "" if around is None else f" ± {around * factor:.{digits}f}"
    return f"{value * factor:.{digits}f}{spread}{unit}"


def collect(out: Path) -> dict[str, list[str]]:
    """Cells of every row: with memory, and where it was measured, without."""
    found = {}
    for name in ("on", "off", "events", "autoencoder", "speed"):
        path = out / f"{name}.json"
        if not path.exists():
            raise SystemExit(f"{path} is missing: run `python scripts/figures.py measure --out {out}` first")
        found[name] = json.loads(path.read_text())
    rows = {key: [cell(found["events" if key in EVENTS else "on"], key)] for key in FORMATS}
    middle = found["on"].get("details", {}).get("gradient_energy_uncovered_median")
    if middle is not None:  # one world with a bare wall carries the mean
        rows["gradient_energy_uncovered"][0] += f" (median {middle:.2f})"
    for key in ("psnr_c", "ssim_c", "psnr_revisit"):
        rows[key].append(cell(found["off"], key))
    alone = found["autoencoder"]
    photos = [value for name, value in alone.items() if name.startswith("psnr ")]
    moving = [value for name, value in alone.items() if name.startswith("dynamic ")]
    rows["psnr_vae"] = [f"{alone['psnr']:.1f} dB"]
    rows["gradient_energy_vae"] = [f"{alone['gradient_energy']:.2f}"]
    if photos:
        rows["psnr_vae_photo"] = [f"{min(photos):.1f} dB"]
        rows["dynamic_photo"] = [f"{max(moving) * 100:.1f} %"]
    rows["frames_per_second"] = [f"{found['speed']['frames_per_second']:.0f}"]
    counts, sizes = weights()
    rows["weights_mb"] = [f"{sum(sizes.values()) / 1e6:.1f} MB, {sum(counts.values()) / 1e6:.1f} M"]
    for part in PARTS:
        rows[f"{part}.safetensors"] = [f"{counts[part] / 1e6:.2f} M", f"`{part}.safetensors`, {sizes[part] / 1e6:.2f} MB"]
    return rows


def weights() -> tuple[dict[str, int], dict[str, int]]:
    """Parameters and bytes of each file of weights."""
    from safetensors import safe_open

    from spatia_model.generator.checkpoint import ROW_SCALE

    counts, sizes = {}, {}
    for part in PARTS:
        path = CARD / f"{part}.safetensors"
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith(ROW_SCALE)]  # noqa: SIM118  not a dict
            counts[part] = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        sizes[part] = path.stat().st_size
    return counts, sizes


def fill(text: str, rows: dict[str, list[str]]) -> str:
    """`text` with the last cells of every table row that names a key in its first or last cell replaced."""
    lines = []
    for line in text.splitlines():
        cells = [part.strip() for part in line.strip().strip("|").split("|")] if line.startswith("|") else []
        keys = [key for key in re.findall(r"`([\w.]+)`", f"{cells[0]} {cells[-1]}") if key in rows] if len(cells) > 1 else []
        if keys:
            if len(keys) > 1:
                values = [" / ".join(rows[key][i] for key in keys) for i in range(min(len(rows[key]) for key in keys))]
            else:
                values = rows[keys[0]]
            start = len(cells) - 2 if len(cells) > 2 else 1
            cells[start : start + len(values)] = values
            line = "| " + " | ".join(cells) + " |"
            line = line.replace("|  |", "| |")
        lines.append(line)
    return "\n".join(lines) + "\n"


def write(args: argparse.Namespace) -> None:
    rows = collect(args.out)
    for path in (ROOT / "README.md", CARD / "README.md"):
        path.write_text(fill(path.read_text(), rows))
        print(f"{path.relative_to(ROOT)}: figures of {args.out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "write"])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "figures")
    parser.add_argument("--worlds", type=int, default=6)
    parser.add_argument("--event-worlds", type=int, default=16)
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    {"measure": measure, "write": write}[args.what](args)


if __name__ == "__main__":
    main()
