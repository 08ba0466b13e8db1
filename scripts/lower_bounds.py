"""Install the lowest versions that pyproject.toml states, of all extras, into a scratch venv and try them.

    python scripts/lower_bounds.py                       # .cache/lower-bounds, about twenty minutes with downloads
    python scripts/lower_bounds.py --place /tmp/lowest   # elsewhere; the folder is emptied first
    python scripts/lower_bounds.py --list                # only say what would be installed

A bound that no longer holds (no wheel for this Python, two bounds that exclude each other, or a test that fails) makes the exit status 1:
raise it. torch is the CPU build; SPATIA_TORCH asks for another, as in `make setup`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".cache" / "lower-bounds"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What leans on the packages' own interfaces; tests of pure arithmetic are the same at any version.
TESTS = (
    "tests/test_imports.py",
    "tests/spatia_env/test_env.py",
    "tests/spatia_env/test_vector_env.py",
    "tests/spatia_env/test_generate_release.py",
    "tests/spatia_env/test_recording.py",
    "tests/spatia_env/test_recording_lerobot.py",
    "tests/spatia_model/geometry",
    "tests/spatia_model/memory",
    "tests/spatia_model/generator/test_conversion.py",
    "tests/spatia_model/generator/test_lora.py",
    "tests/spatia_model/generator/test_release_parts.py",
    "tests/spatia_model/generator/test_sampler.py",
    "tests/agents/test_ppo.py",
)


def pins() -> list[str]:
    """`name>=1.2` as `name==1.2.0`, for the core dependencies, all extras, and pytest. Of a package's bounds the highest counts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    stated = [*project["dependencies"], *(line for extra, lines in optional.items() if extra != "dev" for line in lines)]
    stated += [line for line in optional["dev"] if line.startswith(("pytest", "hatchling"))]
    lowest: dict[str, tuple[tuple[int, ...], str]] = {}
    for line in stated:
        match = re.match(r"([\w.-]+)(?:\[[^]]*])?>=([0-9.]+)", line)
        if match is None:
            raise SystemExit(f"lower_bounds: error: {line!r} states no lower bound: write name>=version")
        bound = tuple(int(part) for part in match[2].split("."))
        pin = re.sub(r">=\s*([0-9.]+)", lambda found: f"=={_whole(found[1])}", line)
        name = match[1].lower()
        lowest[name] = max(lowest.get(name, (bound, pin)), (bound, pin))
    return [pin for _, pin in lowest.values()]


def _whole(version: str) -> str:
    """1.2 -> 1.2.0: `==` compares all parts."""
    return ".".join([*version.split("."), "0", "0"][: max(3, version.count(".") + 1)])


def run(*command: str | Path, **environment: str) -> None:
    print("+", *command, file=sys.stderr, flush=True)
    status = subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}).returncode
    if status:
        sys.exit(f"lower_bounds: error: {command[0]} failed with status {status}; the lines above say which bound to raise")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print what would be installed and stop")
    parser.add_argument("--place", type=Path, default=PLACE, metavar="FOLDER", help="where to build the venv (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="use the venv of an earlier call")
    args = parser.parse_args()
    if args.list:
        print("\n".join(pins()))
        return 0
    place = args.place.expanduser().absolute()
    python = place / "bin" / "python"
    if place.exists() and any(place.iterdir()) and not (place / "pyvenv.cfg").exists():
        sys.exit(f"lower_bounds: error: {place} is no venv, and would be emptied; give another --place")
    if place == ROOT / ".venv":
        sys.exit("lower_bounds: error: .venv is the project's own; give another --place")
    if not args.keep or not python.exists():
        shutil.rmtree(place, ignore_errors=True)
        run(sys.executable, "-m", "venv", place)
        pip = (python, "-m", "pip", "install", "--quiet", "--no-compile")
        wanted = pins()
        torch = next(pin for pin in wanted if pin.startswith("torch=="))
        if asked := os.environ.get("SPATIA_TORCH"):
            run(*pip, asked)
            wanted.remove(torch)
        elif subprocess.run([*pip, f"{torch}+cpu"], stderr=subprocess.DEVNULL).returncode:  # some indexes hold the CPU build themselves
            run(*pip, "--index-url", CPU_INDEX, torch)
        run(*pip, *wanted)
        run(*pip, "--no-deps", "--editable", ".")
    run(python, "agents/random_walk.py", "--env", "SpatiaTruth-v0", "--steps", "2")
    run(python, "-m", "pytest", "-q", *(test for test in TESTS if (ROOT / test).exists()))
    print("the stated lower bounds hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
