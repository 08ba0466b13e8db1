"""Preparing with the tools of the tests."""

from __future__ import annotations

import pytest

from spatia_model.data.prepare import run
from spatia_model.data.prepare.tools import Tools


@pytest.fixture
def made_with(monkeypatch):
    """`prepare` with these tools in place of those it would load."""

    def use(given: Tools) -> Tools:
        monkeypatch.setattr(run, "load_tools", lambda *names: given)
        return given

    return use
