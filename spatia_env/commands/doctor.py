"""`spatia doctor`: what this machine can run and what is missing."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
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
OPTIONAL = {"open3d": "RGB-D odometry", "scikit-image": "SSIM in evaluation", "stable-baselines3": "training policies"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of text")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when the embedded tier runs here."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in (*NEEDED, *OPTIONAL)},
        "gpus": _gpus(),
        "weights": _weights(),
    }
    missing = [f"package {name}: pip install {name}" for name in NEEDED if found["packages"][name] is None]
    if found["weights"] is None:
        missing.append("the embedded weights of spatia-mini: reinstall spatia")
    hints = [f"{name} ({use}): pip install {name}" for name, use in OPTIONAL.items() if found["packages"][name] is None]
    if found["packages"]["open3d"] is not None and platform.system() == "Linux" and (libraries := _missing_libraries()):
        hints.append(f"system libraries that open3d loads: sudo apt-get install {' '.join(libraries)}")
    found |= {"missing": missing, "optional": hints, "tiers": {"spatia-mini": not missing}}
    if args.json:
        print(json.dumps(found))
    else:
        _print(found)
    return 1 if missing else 0


def _print(found: dict[str, Any]) -> None:
    print(f"Python {found['python']} on {found['system']}, {found['cpus']} CPUs")
    print("GPUs: " + (", ".join(found["gpus"]) or "none; the embedded tier runs on the CPU"))
    for name, version in found["packages"].items():
        print(f"  {name:18} {version or 'not installed'}")
    print(f"weights of spatia-mini: {found['weights'] or 'not found'}")
    for line in found["missing"]:
        print(f"missing: {line}")
    for line in found["optional"]:
        print(f"optional: {line}")
    print("the embedded tier (spatia-mini) runs here" if not found["missing"] else "the embedded tier does not run here yet")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    try:
        import torch

        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception:  # a broken torch is told of by its version, or not at all
        return []


def _weights() -> str | None:
    spec = importlib.util.find_spec("spatia_model")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(list(spec.submodule_search_locations)[0]) / "pretrained" / "spatia-mini"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    return f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB in {folder}"


def _missing_libraries() -> list[str]:
    """Debian packages whose libraries open3d would not find. (Importing open3d would tell too, in ten seconds.)"""
    missing = []
    for library, package in {"libusb-1.0.so.0": "libusb-1.0-0", "libGL.so.1": "libgl1", "libEGL.so.1": "libegl1"}.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    return missing
