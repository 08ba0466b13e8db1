"""Fixtures of the tests of tasks: a world without weights, and a walker's env in it."""

from __future__ import annotations

import pytest

from spatia_env import SpatiaNavEnv
from tests.fakes import FakeWorld


@pytest.fixture(scope="module")
def fakes():
    return FakeWorld(image_size=40)  # SB3's checker wants 36 pixels


@pytest.fixture
def nav(fakes, picture):
    def make(task, **arguments):
        return SpatiaNavEnv(image=picture, model=fakes, task=task, **arguments)

    return make
