"""The table writer: a row that names a key gets that key's value, everything else stays."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from spatia_model.model_folder import EIGHT_BITS

ROOT = Path(__file__).resolve().parents[1]


def load():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    spec.loader.exec_module(module)
    return module


figures = load()

TEXT = """| figure | aim | on | off |
|---|---|---|---|
| back home (`psnr_c`) | ≥ 28 dB | 1 | 2 |
| speed (`frames_per_second`) | ≥ 24 | 3 | |
| kept (`unknown_key`) | – | 4 | |

`psnr_c` in prose stays.

| figure | on | off |
|---|---|---|
| `psnr_c` / `ssim_c` | 5 | 6 |

| part | architecture | parameters | file |
|---|---|---|---|
| autoencoder | convolutions | 7 | `vae.safetensors`, 8 MB |
"""


def test_rows_with_keys_are_replaced_and_nothing_else():
    rows = {
        "psnr_c": ["30 dB", "16 dB"],
        "ssim_c": ["0.9", "0.5"],
        "frames_per_second": ["25"],
        "vae.safetensors": ["3 M", "`vae.safetensors`, 7 MB"],
    }
    written = figures.fill(TEXT, rows)
    expected = (
        TEXT.replace("| 1 | 2 |", "| 30 dB | 16 dB |").replace("| 3 | |", "| 25 | |").replace("| 5 | 6 |", "| 30 dB / 0.9 | 16 dB / 0.5 |")
    )
    assert written == expected.replace("| 7 | `vae.safetensors`, 8 MB |", "| 3 M | `vae.safetensors`, 7 MB |")
    assert figures.fill(written, rows) == written


def test_cells_have_units_and_intervals():
    assert figures.cell({"psnr_c": 24.94, "psnr_c_ci95": 2.0}, "psnr_c") == "24.9 ± 2.0 dB"
    assert figures.cell({"coverage": 0.881, "coverage_ci95": None}, "coverage") == "88 %"
    assert figures.cell({"ssim_c": None}, "ssim_c") == "–"


def test_every_figure_of_the_readme_is_one_that_is_written():
    """A row of the table of figures whose key nobody measures would stay as it is for ever."""
    table = (ROOT / "README.md").read_text().split("## How good it is")[1].split("## How it was trained")[0]
    known = {*figures.FORMATS, "psnr_vae", "gradient_energy_vae", "psnr_vae_photo", "dynamic_photo", "frames_per_second", "weights_mb"}
    rows = [line for line in table.splitlines() if line.startswith("| ") and "(`" in line]
    assert len(rows) > 15
    for line in rows:
        assert any(f"(`{key}`)" in line for key in known), line


def test_the_size_of_the_weights_is_what_lies_there():
    counts, sizes = figures.weights()
    assert sum(sizes.values()) <= 25e6 and 1.3e7 < sum(counts.values()) < 1.8e7
    each = {part: 1 if f"{part}.safetensors" in EIGHT_BITS else 2 for part in counts}  # bytes
    assert all(abs(sizes[part] - each[part] * counts[part]) < 0.05 * sizes[part] + 20000 for part in counts)
