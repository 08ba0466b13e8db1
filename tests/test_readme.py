"""The README's Python runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "model" / "spatia_model" / "pretrained" / "spatia-mini" / "config.json"
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def test_there_are_ten_lines_of_python():
    assert BLOCKS
    assert sum(bool(line.strip()) for line in BLOCKS[0].splitlines()) == 10
    for block in BLOCKS:
        compile(block, "README.md", "exec")


@pytest.mark.weights
@pytest.mark.skipif(not CONFIG.exists(), reason="the embedded weights of spatia-mini are not in this checkout")
@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_the_readmes_python_runs(block, tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}"}
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"\(8, 128, 128, 3\) (\d+)% remembered, (\d+) points", done.stdout)
    assert printed, done.stdout
    assert int(printed[2]) > 1000
