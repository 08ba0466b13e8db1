"""The package's extras (`pip install "spatia[train]"`): what each installs, and whether it is here."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "spatia"
_CHECKOUT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def stated() -> tuple[dict[str, list[str]], str]:
    """Requirement lines of every extra, and the form of the install line, with {} for the extra's name.

    A checkout's pyproject.toml says more than what was installed of it, which may be older.
    """
    try:
        project = tomllib.loads(_CHECKOUT.read_text(encoding="utf-8"))["project"]
        if project["name"] == NAME:
            return project["optional-dependencies"], 'pip install -e ".[{}]"'
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        pass
    from packaging.requirements import Requirement

    found: dict[str, list[str]] = {}
    try:
        described = importlib.metadata.metadata(NAME)
    except importlib.metadata.PackageNotFoundError:
        return {}, ""
    lines = described.get_all("Requires-Dist") or []
    for extra in described.get_all("Provides-Extra") or []:
        given = [(line, Requirement(line).marker) for line in lines]
        found[extra] = [
            line.partition(";")[0].strip()
            for line, marker in given
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        ]
    return found, f'pip install "{NAME}[{{}}]"'


def examine(version: Callable[[str], str | None]) -> dict[str, Any]:
    """Per extra its install line, whether all of it is here, and its packages: version (None: not installed), what is asked for, whether
    that is met.

    version: of an installed distribution, or None.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:  # comes with huggingface_hub; where that is missing, doctor's list of needed packages says so
        return {}
    extras, install = stated()
    found = {}
    for extra, lines in extras.items():
        packages = {}
        for requirement in map(Requirement, lines):
            if requirement.name == NAME or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
                continue  # `dev` asks for the other extras, which are listed themselves
            here = version(requirement.name)
            met = here is not None and requirement.specifier.contains(here, prereleases=True)
            packages[requirement.name] = {"version": here, "wanted": str(requirement.specifier), "met": met}
        complete = all(package["met"] for package in packages.values())
        found[extra] = {"install": install.format(extra), "complete": complete, "packages": packages}
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """`examine`'s findings for a person: an extra a line, and its packages below."""
    told = []
    for extra, entry in found.items():
        packages = entry["packages"]
        here = sum(package["met"] for package in packages.values())
        state = "all here" if entry["complete"] else f"{here} of {len(packages)} here"
        told.append(f"  {extra:12} {state:14} {entry['install']}")
        told.append(f"{'':15}{', '.join(_one(name, package) for name, package in packages.items())}")
    return told


def _one(name: str, package: dict[str, Any]) -> str:
    if package["version"] is None:
        return f"{name} not installed"
    return f"{name} {package['version']}" + ("" if package["met"] else f" (needs {package['wanted']})")
