"""The benchmark of frames that the map mostly knows, with eyes whose figures are known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from spatia_model.types import Perception
from spatia_model.world_model import WorldModel
from tests.spatia_model.tiny import tiny_model

SEED = 2_000_000


class Believer:
    """Depth as the map has it, far away where it has none; nothing moves."""

    def __init__(self, factor: float):
        self.factor = factor

    def perceive(self, frames, T_world_camera, camera, prior=None, previous=None):
        assert prior is not None and previous is not None and previous.shape == frames.shape
        looked = (torch.arange(len(frames)) % 2 == 1).float()[:, None, None].expand(prior.depth.shape)
        return Perception(torch.where(prior.mask, prior.depth * self.factor, 1e4), looked, torch.zeros_like(prior.depth))


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_believing_the_map_is_as_good_as_the_map(monkeypatch, factor):
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "seen_again.py"
    spec = importlib.util.spec_from_file_location("seen_again", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    tiny = tiny_model()
    model = WorldModel(tiny.generator, Believer(factor), tiny.config, tiny.mapping)
    monkeypatch.setattr(WorldModel, "from_pretrained", staticmethod(lambda name: model))
    figures = benchmark.measure("any", worlds=2, seed=SEED, clips=2)
    assert figures["frames"] == 2 * 2 * 4  # every other frame is looked at
    assert 0.3 < figures["coverage"] < 1 and figures["dynamic_iou"] == 0
    assert figures["abs_rel_prior"] < 0.2 and figures["abs_rel_off"] > 100
    if factor == 1:
        assert figures["abs_rel_on"] == figures["abs_rel_prior"]
    else:
        assert figures["abs_rel_on"] == pytest.approx(0.5, abs=0.2)
