"""Many videos to a data set of clips: in parallel, resumable after a kill, bad ones set aside with their reason, a summary at the end.

Each finished video is a file in `parts/`, which appears whole; parts are gathered into `shards/`. A video is done when a part, a shard or
`aside.jsonl` names it, so the same command run again does what is left, and gives the clips that an uninterrupted run gives.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from spatia_model.data.clips import describe_shard, write_index
from spatia_model.data.prepare import build as building
from spatia_model.data.prepare.footage import BadFootage, Footage
from spatia_model.data.prepare.tools import Tools, load_tools
from spatia_model.data.schema import DamagedShard, write_rows, write_shard

PANELS = 24  # in the summary's picture


@runtime_checkable
class Source(Protocol):
    """Where videos come from. Picklable."""

    def names(self) -> list[str]: ...

    def open(self, name: str) -> Footage: ...


class Builds(Protocol):
    """Where clips come from that need no building from footage. Picklable."""

    def names(self) -> list[str]: ...

    def build(self, name: str, settings: building.Settings, tools: Tools) -> building.Built: ...


@dataclass(frozen=True)
class ToolNames:
    """What `tools.load_tools` takes; loaded once in every process."""

    perceiver: str = "compact"
    vae: str = "spatia-mini"
    text: str = ""
    device: str = "cpu"


def prepare(
    source: Source | Builds,
    out: Path,
    settings: building.Settings,
    names: ToolNames,
    processes: int = 1,
    shard_mb: float = 256,
    limit: int = 0,
) -> dict[str, Any]:
    """Make the data set `out` and return its summary (also in out/summary.json, with a picture beside it).

    Raises:
        ValueError: `out` holds clips made with other settings.
        OSError: the disk is full; what was finished stays, the same command goes on from there.
    """
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings, names)
    (out / "parts").mkdir(exist_ok=True)
    for leftover in [*(out / "parts").glob(".*"), *(out / "parts").glob("*.damaged")]:
        leftover.unlink()
    for leftover in (out / "shards").glob(".*") if (out / "shards").exists() else ():
        leftover.unlink()
    everything = source.names()[: limit or None]
    done = finished(out)
    todo = [name for name in everything if name not in done]
    _say(f"{len(everything)} videos, {len(everything) - len(todo)} done before")
    started = time.monotonic()
    failure: OSError | None = None
    with (out / "aside.jsonl").open("a") as aside, (out / "dropped.jsonl").open("a") as dropped:
        for i, (name, told) in enumerate(_results(source, out, settings, names, todo, processes), 1):
            if told.get("aside"):
                print(json.dumps({"video": name, "reason": told["aside"]}), file=aside, flush=True)
                _say(f"set aside: {name}: {told['aside']}")
            elif told.get("full"):
                failure = OSError(
                    errno.ENOSPC, f"the disk of {out} is full ({told['full']}); free some space and run the same command again"
                )
                break
            elif told["dropped"]:
                print(json.dumps({"video": name, "windows": told["dropped"]}), file=dropped, flush=True)
            if i % 10 == 0 or i == len(todo):
                pace = (time.monotonic() - started) / i
                _say(f"prepare: {i}/{len(todo)} videos, {pace * (len(todo) - i) / 60:.1f} min left")
    if failure is not None:
        raise failure
    gather(out, shard_mb)
    return summarise(out, len(everything))


def finished(out: Path) -> set[str]:
    """Videos that need no more work. A part or shard that is not whole counts for nothing: it is put out of the way and its videos are
    made again. One that is whole but foreign, or of a newer version, is an error."""
    names = set()
    for path in [*(out / "parts").glob("*.parquet"), *(out / "shards").glob("*.parquet")]:
        try:
            names |= {row[1] for row in describe_shard(path)["rows"]}
        except DamagedShard as error:
            _say(f"{error}; making its videos again")
            path.replace(path.with_suffix(".damaged"))
    return names | {line["video"] for line in _lines(out / "aside.jsonl")}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a JSON-lines file; a last one that was cut short by a kill is passed over."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _claim(out: Path, settings: building.Settings, names: ToolNames) -> None:
    """Write down how this data set is made; ValueError when it was begun in another way."""
    path = out / "prepare.json"
    told = {"settings": building.describe(settings), "perceiver": names.perceiver, "vae": names.vae, "text": names.text}
    if path.exists():
        before = json.loads(path.read_text())
        changed = [k for k in told if before.get(k) != told[k]] + [
            k for k in told["settings"] if before["settings"].get(k) != told["settings"][k]
        ]
        if changed:
            raise ValueError(
                f"{out} was begun with other {', '.join(sorted(set(changed) - {'settings'}))}: take another --out, or the same settings"
            )
        return
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(told, indent=1) + "\n")
    os.replace(temporary, path)


def _results(
    source: Source | Builds, out: Path, settings: building.Settings, names: ToolNames, todo: list[str], processes: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    if processes <= 1:
        tools = load_tools(names.perceiver, names.vae, names.text, names.device)
        for name in todo:
            yield name, one_video(source, name, out, settings, tools)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_initialise, initargs=(source, out, settings, names)) as pool:
        jobs = {pool.submit(_job, name): name for name in todo}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool as error:
            raise OSError("a worker process was killed (out of memory?): run the same command again, with fewer --processes") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Source | Builds, Path, building.Settings, Tools] | None = None


def _initialise(source: Source | Builds, out: Path, settings: building.Settings, names: ToolNames) -> None:
    import torch

    global _worker
    torch.set_num_threads(1)
    _worker = source, out, settings, load_tools(names.perceiver, names.vae, names.text, names.device)


def _job(name: str) -> dict[str, Any]:
    assert _worker is not None
    source, out, settings, tools = _worker
    return one_video(source, name, out, settings, tools)


def one_video(source: Source | Builds, name: str, out: Path, settings: building.Settings, tools: Tools) -> dict[str, Any]:
    """Make one video's part. Whatever is wrong with the video is told, not raised; a full disk is told apart."""
    try:
        built = building.build(source.open(name), settings, tools) if isinstance(source, Source) else source.build(name, settings, tools)
    except (BadFootage, ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and not isinstance(error, BadFootage) and "--perceiver" in str(error):
            raise  # nothing to do with this video
        return {"aside": " ".join(str(error).split())}
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return {"full": str(error)}
        return {"aside": " ".join(str(error).split())}
    try:
        if not built.clips:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in built.dropped.items())
            return {"aside": f"no window is of use: {reasons}"}
        metadata = {**tools.described, "sources": sorted({str(clip.provenance.get("source")) for clip in built.clips})}
        _panels(out, name, built.panels)
        _empty(out, built.clips[0], tools)
        kind = settings.pictures if settings.pictures != "none" else "png"
        write_shard(out / "parts" / f"{name}.parquet", built.clips, metadata, kind)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return {"full": str(error)}
        raise
    return {"clips": len(built.clips), "dropped": dict(built.dropped)}


def _panels(out: Path, name: str, panels: list[np.ndarray]) -> None:
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    for i, panel in enumerate(panels):
        temporary = folder / f".{name}-{i}.{os.getpid()}.png"
        Image.fromarray(panel).save(temporary)
        os.replace(temporary, folder / f"{name}-{i}.png")


def _empty(out: Path, clip: Any, tools: Tools) -> None:
    """What stands for 'no projection' in these latents, once per data set."""
    path = out / "empty.safetensors"
    if tools.vae is None or path.exists():
        return
    from spatia_model.data.procedural import write_atomic

    write_atomic(path, tools.empty(len(clip.frame_numbers), clip.height, clip.width), {})


def gather(out: Path, shard_mb: float) -> None:
    """Move parts into shards of about `shard_mb` megabytes. Killed at any point, no clip is lost and none is there twice."""
    import pyarrow.parquet as pq

    shards = out / "shards"
    shards.mkdir(exist_ok=True)
    held = {row[1] for path in shards.glob("*.parquet") for row in describe_shard(path)["rows"]}
    parts = []
    for path in sorted((out / "parts").glob("*.parquet")):
        if path.stem in held:  # gathered, but the kill came before it was removed
            path.unlink()
        else:
            parts.append(path)
    number = max((int(path.stem) for path in shards.glob("*.parquet")), default=-1) + 1
    group: list[Path] = []
    size = 0
    for i, path in enumerate(parts):
        group.append(path)
        size += path.stat().st_size
        if size < shard_mb * 2**20 and i + 1 < len(parts):
            continue
        files = [pq.ParquetFile(p) for p in group]
        metadata = describe_shard(group[0])["metadata"]
        sources = sorted({s for p in group for s in describe_shard(p)["metadata"].get("sources", ())})
        rows = (file.read_row_group(r).to_pylist()[0] for file in files for r in range(file.metadata.num_row_groups))
        write_rows(shards / f"{number:05d}.parquet", rows, {**metadata, "sources": sources})
        for p in group:
            p.unlink()
        group, size, number = [], 0, number + 1
    write_index(out)


def summarise(out: Path, videos: int) -> dict[str, Any]:
    """Counts, what was set aside and why, and a picture of some clips; written to summary.json and summary.png."""
    index = json.loads((out / "index.json").read_text())
    rows = [row for shard in index["shards"].values() for row in shard["rows"]]
    aside = list({line["video"]: line["reason"] for line in _lines(out / "aside.jsonl")}.items())
    dropped: Counter = Counter()
    for line in {line["video"]: line for line in _lines(out / "dropped.jsonl")}.values():
        dropped.update(line["windows"])
    references = [row[5] for row in rows]
    summary = {
        "videos": videos,
        "videos_with_clips": len({row[1] for row in rows}),
        "videos_set_aside": len(aside),
        "clips": len(rows),
        "frames": sum(row[3][0] for row in rows),
        "mean_references": sum(references) / len(references) if references else 0.0,
        "shards": len(index["shards"]),
        "megabytes": round(sum(shard["bytes"] for shard in index["shards"].values()) / 2**20, 1),
        "windows_dropped": dict(dropped),
        "set_aside": dict(aside[:50]),
    }
    temporary = out / ".summary.partial"
    temporary.write_text(json.dumps(summary, indent=1) + "\n")
    os.replace(temporary, out / "summary.json")
    panels = (
        [np.asarray(Image.open(path)) for path in sorted((out / "pictures").glob("*.png"))[:PANELS]] if (out / "pictures").exists() else []
    )
    if panels:
        width = max(p.shape[1] for p in panels)
        Image.fromarray(np.concatenate([np.pad(p, ((0, 2), (0, width - p.shape[1]), (0, 0))) for p in panels])).save(out / "summary.png")
    if not any((out / "parts").iterdir()):
        shutil.rmtree(out / "parts", ignore_errors=True)
    return summary


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
