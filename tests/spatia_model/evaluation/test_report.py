"""Means, intervals, tables and strips."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from spatia_model.evaluation.report import mean_ci95, print_report, save_strip, summarise


def test_interval_holds_the_mean_about_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        mean, width = mean_ci95(rng.normal(3, 2, 6))
        assert mean is not None and width is not None
        inside += abs(mean - 3) <= width
    assert 925 <= inside <= 975


def test_what_was_not_measured_is_left_out() -> None:
    assert mean_ci95([1.0, None, 3.0, math.nan, math.inf])[0] == 2
    assert mean_ci95([]) == (None, None)
    assert mean_ci95([5.0, None]) == (5.0, None)
    result = summarise([{"a": 1.0}, {"a": 2.0, "b": None}], ["a", "b"])
    assert result["a"] == 1.5 and result["b"] is None and result["b_ci95"] is None
    assert result["a_ci95"] == pytest.approx(6.353, abs=1e-3)  # t(0.975, 1) * 0.5


def test_json_is_one_object_and_the_table_names_units(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "a": 1.5,
        "a_ci95": 0.25,
        "b": None,
        "b_ci95": None,
        "config": {"worlds": 2, "steps": None},
        "details": {"c": 3.0, "c_ci95": None},
    }
    print_report(result, True, {"a": "dB", "b": ""})
    assert json.loads(capsys.readouterr().out) == result
    print_report(result, False, {"a": "dB", "b": ""})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "worlds 2" and "1.500 +- 0.250" in lines[1] and lines[1].endswith("dB")
    assert lines[2].split() == ["b", "-"] and lines[3].split() == ["c", "3.000"]


def test_strip_shows_rows_under_each_other(tmp_path) -> None:
    red = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 255
    save_strip(tmp_path / "deep" / "a.png", {"truth": red, "made": red // 2}, scale=2)
    sheet = np.asarray(Image.open(tmp_path / "deep" / "a.png"))
    assert sheet.shape == (2 * 18, 84 + 3 * 18, 3)
    assert tuple(sheet[8, 84 + 8]) == (255, 0, 0) and tuple(sheet[18 + 8, 84 + 18 + 8]) == (127, 0, 0)
    with pytest.raises(ValueError, match="equally long"):
        save_strip(tmp_path / "b.png", {"a": red, "b": red[:1]})
