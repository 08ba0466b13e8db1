"""`spatia doctor`: what a machine with this and that is told."""

from __future__ import annotations

import argparse
import json
import re
import socket
from pathlib import Path

import pytest

from spatia_env.commands import doctor
from spatia_env.commands.doctor import GIB, TIERS, Machine, cached, examine
from spatia_model.perception.catalog import PACKAGES, WEIGHTS

BARE, BIG, SMALL = (
    Machine(4, 16 * GIB),
    Machine(16, 128 * GIB, [{"name": "H200", "bytes": 140 * GIB}]),
    Machine(8, 32 * GIB, [{"name": "4090", "bytes": 24 * GIB}]),
)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache; and no network, which no part of this needs."""
    monkeypatch.setattr(doctor, "_cache_folder", lambda: tmp_path / "hub")
    monkeypatch.setattr(doctor, "_free_disk", lambda: 500 * 10**9)
    monkeypatch.setattr(socket, "socket", lambda *given, **named: pytest.fail("a network connection was opened"))
    return tmp_path / "hub"


@pytest.fixture
def everything_installed(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    monkeypatch.setattr(doctor, "_package", lambda package: {"version": "1.0", "use": package.use, "install": package.install})


def put(hub: Path, name: str, *files: str) -> Path:
    """A repository in the hub cache, as huggingface_hub lays it out: links into blobs."""
    repo = hub / f"models--{WEIGHTS[name].hub_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / "abc"
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        path = snapshot / file
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = repo / "blobs" / f"{i}{path.name}"
        blob.write_text("x" * (i + 1))
        path.symlink_to(blob)
    return snapshot


def put_all(hub: Path) -> None:
    for name, weights in WEIGHTS.items():
        put(hub, name, *(pattern.replace("*", "-1") for pattern in weights.files))


def test_a_bare_machine_runs_the_embedded_tier_and_is_told_what_the_others_lack():
    found = examine(BARE)
    tiers = found["tiers"]
    assert set(tiers) == set(TIERS) == {"spatia-mini", "spatia-5b", "perception release", "perception paper", "perception today"}
    assert tiers["spatia-mini"]["state"] == "runs" and found["missing"] == []
    large = tiers["spatia-5b"]
    assert large["state"] == "does not run" and large["how"] == "needs a GPU with 11 GiB of memory or more; there is none"
    assert any("Wan-AI/Wan2.2-TI2V-5B-Diffusers (or Wan-AI/Wan2.2-TI2V-5B), 34.2 GB: hf download" in line for line in large["missing"])
    assert large["download_gb"] == pytest.approx(34.2 + WEIGHTS["spatia"].size, abs=0.1)
    assert any("map-anything.git" in line for line in tiers["perception release"]["missing"])
    assert any("git clone https://github.com/iSEE-Laboratory/ReferDINO" in line for line in tiers["perception paper"]["missing"])


@pytest.mark.parametrize(
    ("machine", "state", "how"),
    [
        (BIG, "runs", "all on the GPU"),
        (SMALL, "runs slowly", "offload='model'"),
        (Machine(8, 0, [{"name": "", "bytes": 16 * GIB}]), "runs slowly", "8 bits"),
        (Machine(8, 0, [{"name": "", "bytes": 12 * GIB}]), "runs slowly", "offload='group'"),
        (Machine(8, 0, [{"name": "", "bytes": 8 * GIB}]), "does not run", "the largest here has 8 GiB"),
        (BARE, "does not run", "there is none"),
    ],
)
def test_the_5b_by_the_size_of_the_gpu(hub, everything_installed, machine, state, how):
    put_all(hub)
    tier = examine(machine)["tiers"]["spatia-5b"]
    assert tier["state"] == state and how in tier["how"] and tier["missing"] == []


def test_what_is_said_of_the_5b_is_what_it_will_do():
    """The steps are those of `choose_fit`."""
    from spatia_model.generator.fitting import choose_fit

    for least, _, how in TIERS["spatia-5b"].gpu:
        fit = choose_fit(int(least))
        told = [
            word
            for word in (f"offload='{fit.offload}'" if fit.offload != "none" else "", f"quantise='{fit.quantise}'" if fit.quantise else "")
            if word
        ]
        assert all(word.split("=")[1] in how or word in how or "the same" in how for word in told), (how, fit)
        assert choose_fit(int(least) - 1) != fit or fit.offload == "group"


def test_one_core_is_slow(everything_installed):
    assert examine(Machine(1, GIB))["tiers"]["spatia-mini"]["state"] == "runs slowly"


def test_weights_are_looked_up_in_the_cache(hub):
    assert cached(WEIGHTS["sam3"])["cached"] is False
    snapshot = put(hub, "sam3", "model.safetensors")
    found = cached(WEIGHTS["sam3"])
    assert found["cached"] is True and found["path"] == str(snapshot) and found["absent"] == []
    assert found["files"] == [{"name": "model.safetensors", "bytes": 1, "licence": "SAM License"}]


def test_half_a_download_is_told_apart(hub):
    snapshot = put(hub, "qwen3-vl", "model-00001-of-00002.safetensors", "tokenizer.json")
    (snapshot / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    found = cached(WEIGHTS["qwen3-vl"])
    assert found["cached"] is False and found["absent"] == ["model-00002-of-00002.safetensors"] and found["path"]
    put(hub, "mapanything", "config.json")
    assert cached(WEIGHTS["mapanything"])["absent"] == ["model.safetensors"]
    broken = put(hub, "keye-vl", "model.safetensors", "modeling_keye_vl.py") / "model.safetensors.index.json"
    broken.write_text("{")
    assert cached(WEIGHTS["keye-vl"])["absent"] == ["model.safetensors.index.json"]


def test_either_copy_of_the_backbone_will_do(hub, everything_installed):
    put(hub, "wan22-ti2v-5b-original", *WEIGHTS["wan22-ti2v-5b-original"].files)
    put(hub, "spatia", *WEIGHTS["spatia"].files)
    assert examine(BIG)["tiers"]["spatia-5b"]["state"] == "runs"


def test_a_full_disk_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "_free_disk", lambda: 10 * 10**9)
    assert any(line.startswith("disk: 37 GB to download, 10 GB free") for line in examine(BIG)["tiers"]["spatia-5b"]["missing"])


def test_a_missing_core_package_stops_every_tier(monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else version(name))
    found = examine(BARE)
    assert found["missing"] == ["package peft: pip install peft"]
    assert all(tier["state"] == "does not run" and tier["missing"][0].startswith("package peft") for tier in found["tiers"].values())
    monkeypatch.setattr(doctor, "examine", lambda machine, model: found)
    assert doctor.run(argparse.Namespace(json=True)) == 1


def test_both_outputs_name_every_tier_weight_licence_and_package(capsys, hub):
    put(hub, "mapanything", "config.json")
    assert doctor.run(argparse.Namespace(json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    for entry in found["weights"].values():
        assert entry["licence"] and entry["size_gb"] > 0 and isinstance(entry["cached"], bool)
    assert found["weights"]["spatia-mini"]["files"] and all(file["licence"] for file in found["weights"]["spatia-mini"]["files"])
    assert doctor.run(argparse.Namespace(json=False)) == 0
    text = capsys.readouterr().out
    for name in (*TIERS, *(weights.hub_id for weights in WEIGHTS.values()), *PACKAGES, *(weights.licence for weights in WEIGHTS.values())):
        assert name in text
    assert "absent: model.safetensors" in text


def test_every_extra_is_listed_with_what_is_here_of_it(monkeypatch, capsys):
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    versions = {"minari": "0.5.4", "pyarrow": "18.0.0", "tqdm": "5.0", "accelerate": None, "ray": "2.60.0"}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else real(name))
    found = examine(BARE)["extras"]
    assert set(found) == set(project["optional-dependencies"])
    for extra, lines in project["optional-dependencies"].items():
        assert found[extra]["install"] == f'pip install -e ".[{extra}]"'
        for line in lines:
            name = re.split(r"[\[><=;]", line)[0].strip()
            assert (name in found[extra]["packages"]) == (name != "spatia"), (extra, line)
    assert found["ray"] == {
        "install": 'pip install -e ".[ray]"',
        "complete": True,
        "packages": {"ray": {"version": "2.60.0", "wanted": found["ray"]["packages"]["ray"]["wanted"], "met": True}},
    }
    train = found["train"]["packages"]
    assert not found["train"]["complete"] and train["tqdm"]["met"] and train["accelerate"]["version"] is None
    assert not train["pyarrow"]["met"]  # too old
    assert doctor.run(argparse.Namespace(json=False)) == 0
    text = capsys.readouterr().out
    assert 'pip install -e ".[train]"' in text and "accelerate not installed" in text and "pyarrow 18.0.0 (needs >=" in text
    assert re.search(r"ray +all here +pip install", text) and "lerobot" in text


def test_extras_of_an_installed_wheel_come_from_its_metadata(monkeypatch):
    from email.message import Message

    from spatia_env.commands import extras

    told = Message()
    for extra in ("ray", "dev"):
        told["Provides-Extra"] = extra
    for line in ("torch>=2.13", "ray>=2.40; extra == 'ray'", "spatia[ray]; extra == 'dev'", "pytest>=8.3; extra == 'dev'"):
        told["Requires-Dist"] = line
    monkeypatch.setattr(extras, "_CHECKOUT", Path("/nowhere/pyproject.toml"))
    monkeypatch.setattr(extras.importlib.metadata, "metadata", lambda name: told)
    found = extras.examine(lambda name: None)
    assert {extra: list(entry["packages"]) for extra, entry in found.items()} == {"ray": ["ray"], "dev": ["pytest"]}
    assert found["ray"]["install"] == 'pip install "spatia[ray]"' and not found["ray"]["complete"]


def folder_of(place: Path, perception: str, size: int = 4) -> Path:
    """As converted: one file of `size` bytes (sparse)."""
    (place / "vae").mkdir(parents=True)
    with open(place / "vae" / "model.safetensors", "wb") as file:
        file.truncate(size)
    described = {"files": {"vae/model.safetensors": {"size": size, "sha256": ""}}, "perception": perception}
    (place / "spatia.json").write_text(json.dumps(described))
    return place


def test_a_converted_folder_needs_no_download(tmp_path, everything_installed, capsys):
    """The hub's cache is empty: what was fetched may go once it is converted."""
    large = folder_of(tmp_path / "large", "embedded", 28 * 10**9)
    model = examine(BIG, large)["model"]
    assert (model["state"], model["how"], model["missing"], model["size_gb"]) == ("runs", "all on the GPU", [], 28.0)
    assert examine(SMALL, large)["model"]["state"] == "runs slowly"
    assert examine(BARE, large)["model"]["state"] == "does not run"  # no GPU, and nothing to fetch that would mend it
    assert examine(BIG, large)["tiers"]["spatia-5b"]["state"] == "does not run" and examine(BIG)["model"] is None
    seeing = examine(BIG, folder_of(tmp_path / "seeing", "today"))["model"]
    assert seeing["state"] == "does not run" and any("facebook/sam3" in line for line in seeing["missing"])
    (large / "vae" / "model.safetensors").write_bytes(b"x")
    model = examine(BIG, large)["model"]
    assert model["state"] == "does not run" and model["absent"] == ["vae/model.safetensors"] and "28000000000 bytes" in model["missing"][0]
    assert doctor.run(argparse.Namespace(json=False, model=str(large))) == 1
    assert "missing: file vae/model.safetensors" in capsys.readouterr().out


def test_folders_that_are_no_model(tmp_path, capsys):
    from spatia_env import cli

    for folder, message in ((tmp_path / "none", "is no folder"), (tmp_path, "spatia.json is missing or can't be read")):
        assert cli.main(["doctor", "--model", str(folder)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and message in err and "Traceback" not in err


def test_tiers_name_things_that_exist():
    for tier in TIERS.values():
        assert set(tier.packages) <= set(PACKAGES) and {name for names in tier.weights for name in names} <= set(WEIGHTS)
        assert list(tier.gpu) == sorted(tier.gpu, key=lambda step: -step[0])
