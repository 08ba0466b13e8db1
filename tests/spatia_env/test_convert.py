"""`spatia convert` as a person meets it: plans, errors in one line, checks and the way back."""

from __future__ import annotations

import json

import pytest

from spatia_env import cli
from tests.spatia_model.generator.tiny_release import write_release


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return [str(path) for path in write_release(tmp_path_factory.mktemp("files"))]


def fails(capsys, *words: str) -> str:
    assert cli.main(["convert", *words]) == 1
    shown = capsys.readouterr()
    line = shown.err.strip().splitlines()[-1]
    assert not shown.out and line.startswith("spatia convert: error:") and "Traceback" not in shown.err
    return line


def test_what_is_missing_is_said(files, capsys, tmp_path):
    base, spatia, sizes = files
    assert "--base, --spatia and --out" in fails(capsys)
    assert "--spatia is missing" in fails(capsys, "--base", base, "--out", str(tmp_path))
    assert "--out is missing" in fails(capsys, "--base", base, "--spatia", spatia)
    assert "give --base" in fails(capsys, "--check", str(tmp_path), "--export", str(tmp_path))
    assert "spatia.json: no such file" in fails(capsys, "--check", str(tmp_path))
    assert "odd.safetensors: no such file" in fails(
        capsys,
        "--base",
        base,
        "--spatia",
        spatia,
        "--out",
        str(tmp_path / "x"),
        "--architecture",
        sizes,
        "--control-file",
        "odd.safetensors",
    )
    assert "dim is 24, expected 3072" in fails(capsys, "--base", base, "--spatia", spatia, "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_plan_convert_check_and_back(files, capsys, tmp_path):
    base, spatia, sizes = files
    words = ["convert", "--base", base, "--spatia", spatia, "--architecture", sizes, "--preset", "paper", "--json"]
    assert cli.main([*words, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["bytes"] > 500_000 and not planned["written"]
    out = tmp_path / "model"
    assert cli.main([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    done = json.loads(shown.out)
    assert done == {**planned, "out": str(out), "written": True} and "converting:" in shown.err
    files_written = [path for path in out.rglob("*") if path.is_file() and path.name != ".convert.json"]
    assert len(files_written) == done["files"]
    assert json.loads((out / "spatia.json").read_text())["world"]["matching"] == "iou"
    assert cli.main(["convert", "--check", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"]
    assert cli.main(["convert", "--export", str(out), "--out", str(tmp_path / "back")]) == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["lora_weights_10000.safetensors", "step-8500.safetensors"]
    capsys.readouterr()
    (out / "lora" / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in fails(capsys, "--check", str(out))
