"""Random pictures for the VAE, and the sample picture."""

from __future__ import annotations

import numpy as np
import pytest

from spatia_model.worlds.pictures import random_pan, random_picture
from spatia_model.worlds.samples import SAMPLE_SEED, sample_image


def test_same_seed_same_picture() -> None:
    assert np.array_equal(random_picture(3, 64), random_picture(np.random.default_rng(3), 64))
    assert not np.array_equal(random_picture(3, 64), random_picture(4, 64))
    assert random_picture(5, (40, 72)).shape == (40, 72, 3)
    assert np.array_equal(random_pan(3, 4, 32), random_pan(3, 4, 32))


def test_pictures_are_varied_and_hold_together() -> None:
    pictures = np.stack([random_picture(i, 48) for i in range(40)]).astype(np.float32)
    assert pictures.shape == (40, 48, 48, 3)
    means, spreads = pictures.mean((1, 2)), pictures.std((1, 2)).mean(-1)
    assert means.std() > 20 and spreads.std() > 8
    assert np.median(spreads) > 15
    steps = np.abs(np.diff(pictures, axis=2)).mean((1, 2, 3))
    assert (steps / np.maximum(spreads, 1)).mean() < 0.7  # white noise has 1.13


def test_pans_move_slowly() -> None:
    moving = 0
    for seed in range(12):
        pan = random_pan(seed, 9, 48).astype(np.float32)
        assert pan.shape == (9, 48, 48, 3)
        near, far = np.abs(pan[1] - pan[0]).mean(), np.abs(pan[8] - pan[0]).mean()
        moving += far > 1.2 * near
    assert moving >= 5
    assert random_pan(0, 1, 32).dtype == np.uint8


def test_refusals() -> None:
    with pytest.raises(ValueError, match="size"):
        random_picture(0, 4)
    with pytest.raises(ValueError, match="frames"):
        random_pan(0, 0)


def test_sample_picture() -> None:
    assert 2_000_000 <= SAMPLE_SEED < 3_000_000  # never trained on
    image = sample_image(64, supersample=2)
    assert image.shape == (64, 64, 3)
    assert float(image.float().std()) > 20
