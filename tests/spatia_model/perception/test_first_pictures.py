"""The benchmark of first pictures, with perceivers whose figures are known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.types import Perception

CONFIG = MiniConfig(image_size=32)


@pytest.fixture
def benchmark(monkeypatch):
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "first_pictures.py"
    spec = importlib.util.spec_from_file_location("first_pictures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    depth = torch.full((2, 32, 32), 4.0)
    depth[:, :8] = 50.0  # sky
    dynamic = torch.zeros(2, 32, 32, dtype=torch.bool)
    dynamic[:, 10:18, 10:18] = True  # 64 pixels
    dynamic[0, 20:24, 20:24] = True  # 16: too few to be looked for
    shown = {"rgb": torch.zeros(2, 32, 32, 3, dtype=torch.uint8), "depth": depth.half(), "dynamic": dynamic}
    shown["rgb"][1] = 255
    shown["T_world_camera"] = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    monkeypatch.setattr(module, "views", lambda seed, count, config, anywhere: (shown, {}))

    def measured(perceive) -> dict[str, float]:
        perceiver = SimpleNamespace(perceive=lambda rgb, pose, camera: perceive(shown, int(rgb.max() > 0)))
        mapping = SimpleNamespace(dynamic_threshold=0.5)
        world = SimpleNamespace(config=CONFIG, camera=mini_camera(CONFIG), perceiver=perceiver, mapping=mapping)
        monkeypatch.setattr(module, "WorldModel", SimpleNamespace(from_pretrained=lambda model: world))
        return module.measure("any", worlds=3, seed=1, pictures=2)

    return measured


def test_the_truth_is_perfect(benchmark):
    figures = benchmark(
        lambda shown, i: Perception(shown["depth"][i][None].float(), torch.ones(1, 32, 32), shown["dynamic"][i][None].float())
    )
    assert figures == {
        "pictures": 6,
        "abs_rel": 0.0,
        "abs_rel_median": 0.0,
        "movers": 6,
        "movers_found": 1.0,
        "false_things": 0.0,
        "dynamic_iou": 1.0,
    }


def test_errors_are_counted(benchmark):
    def perceive(shown, i):
        """Everything a quarter too far; of the first picture nothing moves, of the second a patch that does not."""
        called = torch.zeros(1, 32, 32)
        called[0, 26:30, 2:6] = float(i)
        return Perception(shown["depth"][i][None].float() * 1.25, torch.ones(1, 32, 32), called)

    figures = benchmark(perceive)
    assert (figures["abs_rel"], figures["movers_found"], figures["false_things"], figures["dynamic_iou"]) == (0.25, 0.0, 0.5, 0.0)
