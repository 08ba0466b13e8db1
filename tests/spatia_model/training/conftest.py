"""A training folder for the tests of stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spatia_model.data.latents import encode_walk
from spatia_model.data.procedural import write_atomic
from tests.spatia_model.data.fake_walks import fake_walk, write
from tests.spatia_model.generator.test_vae import build
from tests.spatia_model.tiny import SEED, picture
from tests.spatia_model.training.stage_checks import CAPTIONS, CONFIG, PROMPT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder: walks, windows, latents, pictures."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, SEED)
    write(folder, SEED + 1)
    np.save(folder / "pictures.npy", np.stack([picture(SEED + i, 72, 72).numpy() for i in range(3)]))
    (folder / "latents").mkdir()
    for seed in (SEED, SEED + 1):
        metadata = {"captions": json.dumps(CAPTIONS), "prompt": PROMPT}
        write_atomic(folder / "latents" / f"{seed}.safetensors", encode_walk(fake_walk(seed), build(), CONFIG), metadata)
    return folder
