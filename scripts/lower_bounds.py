"""Install the lowest versions that pyproject.toml states into a scratch venv and try them.

    python scripts/lower_bounds.py            # .cache/lower-bounds, about ten minutes with downloads
    python scripts/lower_bounds.py --list     # only say what would be installed

A bound that no longer holds (no wheel for this Python, or a test that fails) makes the exit status 1: raise it.
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
EXTRAS = ("agents", "eval")
TESTS = ("tests/spatia_env", "tests/test_imports.py", "tests/spatia_model/geometry", "tests/spatia_model/memory")


def pins() -> list[str]:
    """`name>=1.2` as `name==1.2`, for the core dependencies, the extras under test, and pytest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    stated = [*project["dependencies"], *(line for extra in EXTRAS for line in optional[extra])]
    stated += [line for line in optional["dev"] if line.startswith(("pytest", "hatchling"))]
    return [re.sub(r">=\s*([0-9.]+)", lambda match: f"=={_whole(match[1])}", line) for line in stated]


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
    parser.add_argument("--keep", action="store_true", help="use the venv of an earlier call")
    args = parser.parse_args()
    if args.list:
        print("\n".join(pins()))
        return 0
    python = PLACE / "bin" / "python"
    if not args.keep or not python.exists():
        shutil.rmtree(PLACE, ignore_errors=True)
        run(sys.executable, "-m", "venv", PLACE)
        run(python, "-m", "pip", "install", "--quiet", *pins())
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ".")
    run(python, "agents/random_walk.py", "--env", "SpatiaTruth-v0", "--steps", "2")
    run(python, "-m", "pytest", "-q", *(test for test in TESTS if (ROOT / test).exists()))
    print("the stated lower bounds hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
