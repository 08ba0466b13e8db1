"""What an install brings: the wheel's content, and that the project's files say the same things."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="hatchling (extra: dev) is not installed")
    folder = tmp_path_factory.mktemp("dist")
    code = f"import hatchling.build; print(hatchling.build.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


def test_top_level_is_exactly_the_two_packages(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"spatia_env", "spatia_model"}


def test_wheel_has_code_and_bundled_data(wheel):
    names = set(wheel.namelist())
    assert {"spatia_env/__init__.py", "spatia_env/env.py", "spatia_model/types.py"} <= names
    tracked = subprocess.run(["git", "ls-files", "spatia_env", "model/spatia_model"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0 and tracked.stdout:
        expected = {line.removeprefix("model/") for line in tracked.stdout.splitlines() if (ROOT / line).exists()}
        assert expected <= names, sorted(expected - names)
    for data in ("spatia_env/assets", "model/spatia_model/pretrained"):
        for path in (ROOT / data).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)).removeprefix("model/") in names


def test_wheel_is_small_and_clean(wheel):
    assert sum(entry.compress_size for entry in wheel.infolist()) < 40e6  # 25 MB of weights, some pictures, code
    assert not [name for name in wheel.namelist() if name.endswith((".pyc", ".pkl", ".pt", ".ckpt", ".bin"))]


def test_command_and_licence(wheel):
    names = wheel.namelist()
    points = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "spatia = spatia_env.cli:entry" in points
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


def test_versions_agree():
    import spatia_env

    assert PROJECT["project"]["version"] == spatia_env.__version__


def test_dependencies_have_lower_bounds_and_no_torchvision():
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (line for lines in lists for line in lines):
        name = re.split(r"[\[>=<;~! ]", requirement)[0].lower()
        assert name not in {"torchvision", "torchaudio", "timm"}
        assert name == "spatia" or ">=" in requirement, f"{requirement} has no lower bound"


def test_lower_bounds_are_pinned_for_every_extra_and_their_tests_exist():
    spec = importlib.util.spec_from_file_location("lower_bounds", ROOT / "scripts" / "lower_bounds.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pins = script.pins()
    names = [re.split(r"[\[=]", pin)[0].lower() for pin in pins]
    assert len(set(names)) == len(names) and {"torch", "ray", "transformers", "uvicorn", "pytest"} <= set(names)
    assert "pyarrow==20.0.0" in pins  # of two bounds the higher
    assert all("==" in pin and ">=" not in pin for pin in pins)
    assert all((ROOT / test).exists() for test in script.TESTS)


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("setup", "demo", "test", "lint", "bench"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_nothing_names_a_private_index_or_path():
    for name in ("pyproject.toml", "Makefile", "scripts/setup.sh", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"/(work|opt|root|home)/|find-links|extra-index", text), name
