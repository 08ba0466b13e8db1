from __future__ import annotations

import torch

from spatia_model.config import FRAME_RATE, MiniConfig, mini_camera
from spatia_model.perception import OraclePerceiver
from spatia_model.types import GroundTruth
from tests.spatia_model.tiny import SIZE, walk


class Clock:
    """A world whose depth is its time and whose left half moves."""

    def render(self, T_world_camera, camera, times):
        self.asked = T_world_camera
        shape = (len(times), camera.height, camera.width)
        dynamic = torch.zeros(shape, dtype=torch.bool)
        dynamic[..., : camera.width // 2] = True
        return GroundTruth(torch.zeros(*shape, 3, dtype=torch.uint8), times.float()[:, None, None].expand(shape), dynamic)


def test_the_oracle_reads_the_truth_at_the_times_asked():
    world, camera = Clock(), mini_camera(MiniConfig(image_size=SIZE))
    oracle = OraclePerceiver(world, lambda count: (9 + torch.arange(count)) / FRAME_RATE)
    seen = oracle.perceive(torch.zeros(8, SIZE, SIZE, 3, dtype=torch.uint8), walk(1), camera)
    assert torch.equal(world.asked, walk(1))
    assert torch.equal(seen.depth[:, 0, 0], (9 + torch.arange(8)) / FRAME_RATE)
    assert seen.confidence.shape == (8, SIZE, SIZE) and (seen.confidence == 1).all()
    assert seen.dynamic.dtype == torch.float32 and (seen.dynamic[..., :16] == 1).all() and (seen.dynamic[..., 16:] == 0).all()
