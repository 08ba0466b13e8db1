"""From per-world figures to a report: means with their uncertainty, a table for people, JSON for programs, strips of pictures."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def mean_ci95(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean over worlds and the half width of its 95 % interval (Student's t), None where there are no or too few values.

    None, NaN and infinite entries are left out: a world without movers says nothing of moving pixels.
    """
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None, None
    mean = sum(known) / len(known)
    if len(known) < 2:
        return mean, None
    from scipy.stats import t

    deviation = math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1))
    return mean, float(t.ppf(0.975, len(known) - 1)) * deviation / math.sqrt(len(known))


def summarise(worlds: Sequence[Mapping[str, float | None]], keys: Sequence[str]) -> dict[str, float | None]:
    """`key` and `key_ci95` for every key, from one mapping of figures per world."""
    result: dict[str, float | None] = {}
    for key in keys:
        mean, width = mean_ci95(world.get(key) for world in worlds)
        result[key] = None if mean is None else round(mean, 4)
        result[f"{key}_ci95"] = None if width is None else round(width, 4)
    return result


def median(worlds: Sequence[Mapping[str, float | None]], key: str) -> float | None:
    """Of the worlds that have the figure: what one odd world can't move."""
    known = [float(v) for world in worlds if (v := world.get(key)) is not None and math.isfinite(v)]
    return round(statistics.median(known), 4) if known else None


def print_report(result: Mapping[str, Any], as_json: bool, units: Mapping[str, str]) -> None:
    """One JSON object, or a table of the figures with `units`, on stdout."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    rows: list[tuple[str, Any, Any]] = [(k, result[k], result.get(f"{k}_ci95")) for k in units if k in result]
    rows += [(k, v, result["details"].get(f"{k}_ci95")) for k, v in result.get("details", {}).items() if not k.endswith("_ci95")]
    print(", ".join(f"{k} {v}" for k, v in result["config"].items() if v is not None))
    for key, mean, width in rows:
        figure = "-" if mean is None else f"{mean:9.3f}"
        spread = "" if width is None else f" +- {width:.3f}"
        print(f"{key:28} {figure:>9}{spread:14} {units.get(key, '')}".rstrip())


def print_tables(result: Mapping[str, Any], as_json: bool, figures: Sequence[str]) -> None:
    """One JSON object, or the tables of `result["tables"]` (table to row to figures) on stdout."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    print(", ".join(f"{k} {v}" for k, v in result["config"].items() if v is not None))
    for table, rows in result["tables"].items():
        known = [key for key in figures if any(row.get(key) is not None for row in rows.values())]
        print(f"\n{table:20}" + "".join(f"{key:>22}" for key in known))
        for name, row in rows.items():
            cells = []
            for key in known:
                mean, width = row.get(key), row.get(f"{key}_ci95")
                cells.append("-" if mean is None else f"{mean:.3f}" + ("" if width is None else f" +- {width:.3f}"))
            print(f"{name:20}" + "".join(f"{cell:>22}" for cell in cells))
    for package, line in result.get("absent", {}).items():
        print(f"without {package}: {line}")


class Progress:
    """Counts worlds on stderr."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done, self.started = label, total, 0, time.monotonic()

    def step(self, note: str = "") -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        print(f"{self.label}: {self.done}/{self.total}, about {left:.0f} s left  {note}".rstrip(), file=sys.stderr, flush=True)


def save_strip(file: Path, rows: Mapping[str, torch.Tensor], scale: int = 1) -> None:
    """Write labelled rows of frames (N, H, W, 3) uint8, one picture under the other, as a PNG."""
    from PIL import Image, ImageDraw

    lengths = {len(frames) for frames in rows.values()}
    if len(lengths) != 1:
        raise ValueError(f"rows of a strip must be equally long, got {sorted(lengths)} frames")
    height, width = (n * scale for n in next(iter(rows.values())).shape[1:3])
    margin, gap = 84, 2
    sheet = Image.new("RGB", (margin + lengths.pop() * (width + gap), len(rows) * (height + gap)), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for i, (label, frames) in enumerate(rows.items()):
        draw.text((6, i * (height + gap) + height // 2 - 6), label, fill=(230, 230, 230))
        for j, frame in enumerate(frames):
            picture = Image.fromarray(frame.cpu().numpy())
            if scale != 1:
                picture = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (margin + j * (width + gap), i * (height + gap)))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
