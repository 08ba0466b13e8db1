"""`convert`: the released checkpoint becomes a folder in diffusers' layout that `WorldModel.from_pretrained` opens.

    transformer/    SpatiaTransformer: Wan's denoiser and Spatia's control blocks, in shards
    vae/            AutoencoderKLWan
    text_encoder/   UMT5EncoderModel        tokenizer/  as it came
    scheduler/      UniPCMultistepScheduler
    lora/           peft's adapter files
    spatia.json     what the loop needs, checksums of all files; written last, so a folder with one is whole

Every file is written whole or not at all and noted in `.convert.json` with its checksum, so an interrupted conversion goes on where it
stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spatia_model.generator.checkpoint import CheckpointError, sha256
from spatia_model.generator.conversion.plan import Output, Plan
from spatia_model.generator.conversion.spans import partial, write_spans

FORMAT = 1
DESCRIPTION, NOTES = "spatia.json", ".convert.json"
Progress = Callable[[int, int, str], Any]  # (bytes done, bytes in all, file)


def convert(plan: Plan, out: str | Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write what `plan` lists into `out`; files that an earlier run finished are kept. Returns what `spatia.json` holds.

    Raises:
        ValueError: not enough disk space, or `out` holds something else; nothing has been written then.
        CheckpointError: a source is damaged; it is named.
    """
    folder = Path(out).expanduser()
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not ({NOTES, DESCRIPTION} & {p.name for p in folder.iterdir()}))
    ):
        raise ValueError(f"{folder} exists and is no converted model: give a new folder")
    done = _finished(plan, folder)
    need = sum(output.size for output in plan.outputs if output.name not in done)
    folder.mkdir(parents=True, exist_ok=True)
    for output in plan.outputs:  # what a killed run left half-written would count as taken
        partial(folder / output.name).unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(f"{folder} needs {need / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free: make room, or give another folder")
    _write_json(folder / NOTES, done)  # from now on the folder is known as ours
    (folder / DESCRIPTION).unlink(missing_ok=True)  # not whole while it changes
    written, total = plan.size - need, plan.size
    for output in plan.outputs:
        if output.name in done:
            continue
        start = written

        def report(count: int, name: str = output.name) -> None:
            nonlocal written
            written += count
            if progress is not None:
                progress(written, total, name)

        size, digest = _write(output, folder / output.name, report)
        written = start + output.size
        done[output.name] = {"size": size, "sha256": digest, "stamp": output.stamp()}
        _write_json(folder / NOTES, done)
    described = {
        "format": FORMAT,
        "tier": "release",
        "world": asdict(plan.world),
        "perception": plan.perception,
        "files": {name: {k: v for k, v in note.items() if k != "stamp"} for name, note in done.items()},
    }
    _write_json(folder / DESCRIPTION, described)
    return described


def _finished(plan: Plan, folder: Path) -> dict[str, dict[str, Any]]:
    """Notes of the files that are there, whole, and made of what they would be made of now."""
    try:
        notes = json.loads((folder / NOTES).read_text())
    except (OSError, ValueError):
        return {}
    done = {}
    for output in plan.outputs:
        note, path = notes.get(output.name), folder / output.name
        if note and note["stamp"] == output.stamp() and path.is_file() and path.stat().st_size == note["size"]:
            done[output.name] = note
    return done


def _write(output: Output, path: Path, report: Callable[[int], None]) -> tuple[int, str]:
    if output.tensors:
        return write_spans(path, output.tensors, report)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = partial(path)
    if output.source is not None:
        shutil.copyfile(output.source, unfinished)
    else:
        unfinished.write_text(output.text)
    os.replace(unfinished, path)
    report(output.size)
    return path.stat().st_size, sha256(path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = partial(path)
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def describe(folder: str | Path) -> dict[str, Any]:
    """What `spatia.json` says. CheckpointError when it is missing, damaged or of another version."""
    path = Path(folder) / DESCRIPTION
    try:
        described = json.loads(path.read_text())
        if described["format"] != FORMAT or described["tier"] != "release":
            raise ValueError(f"format {described['format']!r}, tier {described['tier']!r}; this version reads {FORMAT}, 'release'")
        for part in ("files", "world"):
            dict(described[part])
    except FileNotFoundError as error:
        half = (Path(folder) / NOTES).is_file()
        mend = "run the same `spatia convert` again, it goes on where it stopped" if half else "give a folder that `spatia convert` wrote"
        raise CheckpointError(f"{path}: no such file; {mend}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r}); convert anew") from error
    return described


def check_folder(folder: str | Path, progress: Progress | None = None) -> dict[str, Any]:
    """Read every file of a converted folder and compare with the checksums. CheckpointError names the first that differs."""
    folder = Path(folder)
    described = describe(folder)
    total, done = sum(note["size"] for note in described["files"].values()), 0
    for name, note in described["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; convert anew, or copy the folder again")
        if path.stat().st_size != note["size"] or sha256(path) != note["sha256"]:
            raise CheckpointError(f"{path}: not the file that was converted (size or SHA-256 differ); convert anew, or copy it again")
        done += note["size"]
        if progress is not None:
            progress(done, total, name)
    return described
