"""`spatia doctor`: per tier, whether it runs here, and what is missing: packages, weights, memory, disk. Uses no network.

With a folder that `spatia convert` wrote, the same of the model in it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

NEEDED = (
    "torch",
    "numpy",
    "gymnasium",
    "pillow",
    "safetensors",
    "diffusers",
    "peft",
    "warp-lang",
    "scipy",
    "plyfile",
    "imageio",
    "imageio-ffmpeg",
)
DESCRIPTION = "spatia.json"  # in a converted folder: its files and what perceives
RUNS, SLOWLY, NOT = "runs", "runs slowly", "does not run"
GIB = 1 << 30


@dataclass(frozen=True)
class Tier:
    """Something that runs or does not: its packages and weights (keys of the catalog), and the GPU memory it wants.

    weights: each entry is one or more alternatives, any of which will do. gpu: (bytes, how it runs with at least that much), most first;
    empty: a CPU will do.
    """

    use: str
    packages: tuple[str, ...] = ()
    weights: tuple[tuple[str, ...], ...] = ()
    gpu: tuple[tuple[float, str, str], ...] = ()


_PERCEPTION_GPU = ((12 * GIB, RUNS, "on the GPU"), (8 * GIB, RUNS, "with offload=True: one model on the GPU at a time"))
TIERS: dict[str, Tier] = {
    "spatia-mini": Tier("the embedded world model"),
    "spatia-5b": Tier(
        "the released world model",
        ("transformers", "accelerate", "ftfy"),
        (("wan22-ti2v-5b", "wan22-ti2v-5b-original"), ("spatia",)),
        (
            (36 * GIB, RUNS, "all on the GPU"),
            (22 * GIB, SLOWLY, "one network at a time on the GPU (offload='model')"),
            (15 * GIB, SLOWLY, "the same, and the denoiser in 8 bits (quantise='float8')"),
            (11 * GIB, SLOWLY, "block by block on the GPU (offload='group')"),
        ),
    ),
    "perception release": Tier("MapAnything, a person's own masks", ("mapanything",), (("mapanything",),), _PERCEPTION_GPU),
    "perception paper": Tier(
        "MapAnything, Keye-VL-1.5, ReferDINO",
        ("mapanything", "transformers", "keye-vl-utils", "referdino"),
        (("mapanything",), ("keye-vl",), ("referdino",)),
        ((26 * GIB, RUNS, "on the GPU"), (20 * GIB, RUNS, "with offload=True: one model on the GPU at a time")),
    ),
    "perception today": Tier(
        "MapAnything, Qwen3-VL, SAM 3",
        ("mapanything", "transformers"),
        (("mapanything",), ("qwen3-vl",), ("sam3",)),
        ((20 * GIB, RUNS, "on the GPU"), (12 * GIB, RUNS, "with offload=True: one model on the GPU at a time")),
    ),
}


@dataclass
class Machine:
    """What there is to run on."""

    cpus: int
    ram: int  # bytes
    gpus: list[dict[str, Any]] = field(default_factory=list)  # name, bytes

    @property
    def gpu(self) -> int:
        return max((gpu["bytes"] for gpu in self.gpus), default=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FOLDER", help="look at the model in this folder, which `spatia convert` wrote, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when the embedded tier runs here; with --model, when nothing that the model needs is missing."""
    machine = Machine(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _ram(), _gpus())
    model = getattr(args, "model", None)
    if model is not None and not Path(model).expanduser().is_dir():
        raise ValueError(f"--model {model!r} is no folder; give one that `spatia convert` wrote")
    found = examine(machine, None if model is None else Path(model).expanduser())
    if args.json:
        print(json.dumps(found))
    else:
        _print(found)
    return 1 if found["missing"] or (found["model"] and found["model"]["missing"]) else 0


def examine(machine: Machine, model: Path | None = None) -> dict[str, Any]:
    """Everything `--json` prints. `model`: a converted folder to look at too."""
    from spatia_env.commands import extras
    from spatia_model.perception.catalog import PACKAGES, WEIGHTS

    core = {name: _version(name) for name in NEEDED}
    optional = {name: _package(package) for name, package in PACKAGES.items()}
    missing = [f"package {name}: pip install {name}" for name, version in core.items() if version is None]
    embedded = _embedded()
    if not embedded["files"]:
        missing.append("the embedded weights of spatia-mini: reinstall spatia")
    libraries = _missing_libraries() if optional["open3d"]["version"] and platform.system() == "Linux" else []
    hub = {name: cached(weights) for name, weights in WEIGHTS.items()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": machine.cpus,
        "ram_gb": round(machine.ram / 1e9, 1),
        "gpus": [{"name": gpu["name"], "memory_gb": round(gpu["bytes"] / 1e9, 1)} for gpu in machine.gpus],
        "disk_free_gb": round(_free_disk() / 1e9, 1),
        "hub_cache": str(_cache_folder()),
        "packages": core,
        "optional": optional,
        "extras": extras.examine(_version),
        "system_libraries": f"sudo apt-get install {' '.join(libraries)}" if libraries else None,
        "weights": {"spatia-mini": embedded, **hub},
        "missing": missing,
        "tiers": {name: judge(tier, machine, missing, optional, hub) for name, tier in TIERS.items()},
        "model": None if model is None else judge_folder(model, machine, missing, optional, hub),
    }


def judge(tier: Tier, machine: Machine, core: list[str], packages: dict[str, Any], hub: dict[str, Any]) -> dict[str, Any]:
    """Whether a tier runs: {"state", "how", "missing", "use"}. `state` speaks of the machine as it is, missing things included."""
    missing = list(core)
    for name in tier.packages:
        if packages[name]["version"] is None:
            missing.append(f"package {name}: {packages[name]['install']}")
    download = 0.0
    for alternatives in tier.weights:
        if not any(hub[name]["cached"] for name in alternatives):
            first = hub[alternatives[0]]
            download += first["size_gb"]
            others = "".join(f" (or {hub[name]['hub_id']})" for name in alternatives[1:])
            missing.append(f"weights {first['hub_id']}{others}, {first['size_gb']:g} GB: hf download {first['hub_id']}")
    if download and download * 1e9 > _free_disk():
        missing.append(
            f"disk: {download:.0f} GB to download, {_free_disk() / 1e9:.0f} GB free at {_cache_folder()}; set HF_HOME to a larger one"
        )
    state, how = _fits(tier, machine)
    if missing:
        state = NOT
    return {"use": tier.use, "state": state, "how": how, "missing": missing, "download_gb": round(download, 1)}


def judge_folder(folder: Path, machine: Machine, core: list[str], packages: dict[str, Any], hub: dict[str, Any]) -> dict[str, Any]:
    """As `judge`, of the model in a converted folder, whose files are looked at by their sizes; `convert --check` reads them."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        sizes = {str(name): int(note["size"]) for name, note in described["files"].items()}
        perception = described["perception"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION} is missing or can't be read ({error}); give a folder that `spatia convert` wrote, or convert anew"
        ) from error
    absent = [name for name, size in sizes.items() if not (folder / name).is_file() or (folder / name).stat().st_size != size]
    total = sum(sizes.values())
    # What is far smaller than the 5B (a rehearsal's random weights) runs wherever the embedded tier does.
    tier = replace(TIERS["spatia-5b"], weights=(), gpu=TIERS["spatia-5b"].gpu if total > GIB else ())
    found = judge(tier, machine, core, packages, hub)
    found["missing"] += [f"file {name}: absent, or not of the {sizes[name]} bytes that were written; convert anew" for name in absent]
    perceiver = TIERS.get(f"perception {perception}")
    if perceiver is not None:
        seen = judge(perceiver, machine, [], packages, hub)
        found["missing"] += [f"for perception {perception!r}: {line}" for line in seen["missing"]]
        found["download_gb"] = seen["download_gb"]
    if found["missing"]:
        found["state"] = NOT
    return found | {"folder": str(folder), "perception": perception, "size_gb": round(total / 1e9, 3), "absent": absent}


def _fits(tier: Tier, machine: Machine) -> tuple[str, str]:
    if not tier.gpu:
        if machine.gpu:
            return RUNS, "on the GPU, or on the CPU"
        return (RUNS, f"on {machine.cpus} CPU cores") if machine.cpus >= 2 else (SLOWLY, "on one CPU core")
    for least, state, how in tier.gpu:
        if machine.gpu >= least:
            return state, how
    least = tier.gpu[-1][0]
    has = f"the largest here has {machine.gpu / GIB:.0f} GiB" if machine.gpu else "there is none"
    return NOT, f"needs a GPU with {least / GIB:.0f} GiB of memory or more; {has}"


def cached(weights: Any) -> dict[str, Any]:
    """A repository's copy in the hub cache, by looking at the disk: whole ("cached" True), in part, or not there."""
    found = {
        "hub_id": weights.hub_id,
        "use": weights.use,
        "size_gb": weights.size,
        "licence": weights.licence,
        "note": weights.note,
        "cached": False,
        "path": None,
        "files": [],
        "absent": list(weights.files),
    }
    snapshots = _cache_folder() / f"models--{weights.hub_id.replace('/', '--')}" / "snapshots"
    for snapshot in sorted(snapshots.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True):
        files = {pattern: [path for path in snapshot.glob(pattern) if path.is_file()] for pattern in weights.files}
        absent = [pattern for pattern, paths in files.items() if not paths] + list(_absent_shards(snapshot))
        if found["path"] is None or not absent:
            found |= {"path": str(snapshot), "cached": not absent, "absent": absent}
            found["files"] = [
                {"name": str(path.relative_to(snapshot)), "bytes": path.stat().st_size, "licence": weights.licence}
                for path in sorted({path for paths in files.values() for path in paths})
            ]
        if not absent:
            break
    return found


def _absent_shards(snapshot: Path) -> Iterable[str]:
    """Files that an index of shards names and that are not there."""
    for index in snapshot.glob("**/*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError):
            yield str(index.relative_to(snapshot))
            continue
        yield from (str((index.parent / name).relative_to(snapshot)) for name in sorted(names) if not (index.parent / name).is_file())


def _print(found: dict[str, Any]) -> None:
    from spatia_env.commands import extras

    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gb']:g} GB)" for gpu in found["gpus"]) or "none"
    print(f"Python {found['python']} on {found['system']}")
    print(f"{found['cpus']} CPUs, {found['ram_gb']:g} GB of memory, {found['disk_free_gb']:g} GB free on the disk of {found['hub_cache']}")
    print(f"GPUs: {gpus}\n")
    for name, tier in found["tiers"].items():
        print(f"{name:20} {tier['state']}: {tier['how']}  [{tier['use']}]")
        for line in tier["missing"]:
            print(f"{'':20}   missing: {line}")
    if model := found["model"]:
        how = f"{model['state']}: {model['how']}  [{model['size_gb']:g} GB; perceives with {model['perception']}]"
        print(f"\n{model['folder']}\n  {how}")
        for line in model["missing"]:
            print(f"    missing: {line}")
    print("\nweights")
    for name, weights in found["weights"].items():
        whole = "here" if weights["cached"] else ("in part" if weights["path"] else "not here")
        print(f"  {weights.get('hub_id') or name:36} {weights['size_gb']:6.2f} GB  {whole:9} {weights['licence']:14} {weights['use']}")
        if weights["note"]:
            print(f"{'':41}{weights['note']}")
        if weights["path"] and weights["absent"]:
            print(f"{'':41}absent: {', '.join(weights['absent'][:3])}")
    print("\npackages")
    for name, version in found["packages"].items():
        print(f"  {name:20} {version or 'not installed: pip install ' + name}")
    for name, package in found["optional"].items():
        print(f"  {name:20} {package['version'] or 'not installed'}  ({package['use']}; {package['install']})")
    print("\nextras")
    print("\n".join(extras.lines(found["extras"])))
    if found["system_libraries"]:
        print(f"  system libraries that open3d loads: {found['system_libraries']}")


def _package(package: Any) -> dict[str, Any]:
    version = _version(package.distribution) if package.distribution else None
    return {"version": version, "use": package.use, "install": package.install}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ram() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _gpus() -> list[dict[str, Any]]:
    try:
        import torch

        count = torch.cuda.device_count()
        return [{"name": torch.cuda.get_device_name(i), "bytes": torch.cuda.get_device_properties(i).total_memory} for i in range(count)]
    except Exception:  # a broken torch is told of by its version, or not at all
        return []


def _cache_folder() -> Path:
    """Where huggingface_hub keeps downloads; asked of itself where it is installed."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)
    except ImportError:
        home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
        return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def _free_disk() -> int:
    folder = _cache_folder()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _embedded() -> dict[str, Any]:
    spec = importlib.util.find_spec("spatia_model")
    places = list(spec.submodule_search_locations or []) if spec else []
    folder = Path(places[0]) / "pretrained" / "spatia-mini" if places else Path()
    files = sorted(folder.glob("*.safetensors")) if places else []
    sizes = [{"name": file.name, "bytes": file.stat().st_size, "licence": "Apache-2.0"} for file in files]
    return {
        "use": "the embedded world model",
        "size_gb": round(sum(file["bytes"] for file in sizes) / 1e9, 3),
        "licence": "Apache-2.0",
        "note": "",
        "cached": bool(files),
        "path": str(folder) if files else None,
        "files": sizes,
        "absent": [],
    }


def _missing_libraries() -> list[str]:
    """Debian packages whose libraries open3d would not find. (Importing open3d would tell too, in ten seconds.)"""
    missing = []
    for library, package in {"libusb-1.0.so.0": "libusb-1.0-0", "libGL.so.1": "libgl1", "libEGL.so.1": "libegl1"}.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    return missing
