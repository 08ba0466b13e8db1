"""Pictures with nothing to go by but their looks: how they are looked at, and by which network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import grey_opening

from spatia_model.geometry.neighbours import opened
from spatia_model.perception import CompactPerception, CompactPerceptionConfig
from spatia_model.perception.compact import LOOKS, PART, SUSPICION, cautious, confidence_of, median, stack_inputs
from tests.spatia_model.perception.test_compact import CAMERA, frames, network, projection
from tests.spatia_model.tiny import SIZE, walk


def looked_at_plainly(net: CompactPerception, x: torch.Tensor) -> list[torch.Tensor]:
    """What a first picture's looks come to, one after the other: log depth, log scale and motion, each (N, SIZE, SIZE)."""

    def mirror(y):
        y = y[..., range(SIZE - 1, -1, -1)]
        return torch.cat([y[:, :11], -y[:, 11:12], y[:, 12:]], 1) if y.shape[1] == x.shape[1] else y

    def expose(y, gain):
        return torch.cat([((y[:, :3] + 1) * gain - 1).clamp(-1, 1), y[:, 3:8], ((y[:, 8:11] + 1) * gain - 1).clamp(-1, 1), y[:, 11:]], 1)

    def told(y):
        return torch.stack(net(y), 1)  # (N, 3, SIZE, SIZE)

    with torch.no_grad():
        looks = []
        for down, right, gain in LOOKS:
            up, back = ([min(max(i + by, 0), SIZE - 1) for i in range(SIZE)] for by in (-down, down))
            left, forth = ([min(max(i + by, 0), SIZE - 1) for i in range(SIZE)] for by in (-right, right))
            for turn in (lambda y: y, mirror):
                seen = told(expose(turn(x)[:, :, up][:, :, :, left], gain))
                looks.append(turn(seen[:, :, back][:, :, :, forth]))
        whole = sum(looks) / len(looks)
        side, total, count = round(PART * SIZE), torch.zeros_like(whole), torch.zeros(SIZE, SIZE)

        def share(i, start):  # one window fades out while the other fades in
            i = SIZE - 1 - i if start else i
            return min(max((side - i - 0.5) / (2 * side - SIZE), 0.0), 1.0)

        for top in (0, SIZE - side):
            for left in (0, SIZE - side):
                rows, columns = slice(top, top + side), slice(left, left + side)
                near = F.interpolate(x[:, :, rows, columns], size=(SIZE, SIZE), mode="bilinear")
                seen = F.adaptive_avg_pool2d((told(near) + mirror(told(mirror(near)))) / 2, (side, side))
                for one, all_of_it in zip(seen, whole, strict=True):
                    one[0] += (all_of_it[0, rows, columns] - one[0]).median()
                weight = torch.tensor([[share(i, top) * share(j, left) for j in range(SIZE)] for i in range(SIZE)])[rows, columns]
                total[:, :, rows, columns] += seen * weight
                count[rows, columns] += weight
    torch.testing.assert_close(count, torch.ones(SIZE, SIZE))
    return list(((whole + total) / 2).unbind(1))


def test_first_pictures_are_looked_at_as_a_loop_would():
    net, path = network(), walk(0, frames=2)
    log_depth, log_scale, logit = looked_at_plainly(net, stack_inputs(frames(), path, CAMERA, None, None))
    seen = net.perceive(frames(), path, CAMERA)
    torch.testing.assert_close(
        seen.depth, median(torch.where(logit > 0, log_depth, cautious(log_depth, log_scale)).exp()), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(seen.confidence, confidence_of(log_scale), atol=1e-5, rtol=1e-5)
    found = net._look_again(stack_inputs(frames(), path, CAMERA, None, None))
    torch.testing.assert_close(found[2], logit, atol=1e-5, rtol=1e-5)


def test_windows_of_a_picture_keep_its_scale():
    """A network that takes what it sees enlarged for nearer would pull the corners' windows toward the camera; they are put back."""
    net, path = network(), torch.eye(4, dtype=torch.float64)[None]
    x = stack_inputs(frames(1), path, CAMERA, None, None)

    def says(y):
        broad = y[:, 11].amax() - y[:, 11].amin()
        return torch.ones(1, SIZE, SIZE) * broad, torch.zeros(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)

    net.forward = says
    whole = net._look(x)[0]
    torch.testing.assert_close(net._look_again(x)[0], whole, atol=0.05, rtol=0)
    assert float((net._look(F.interpolate(x[..., :24, :24], size=SIZE))[0] - whole).abs().max()) > 0.2


@pytest.mark.parametrize("by_looks", [False, True])
def test_without_evidence_only_looks_can_tell_what_moves(by_looks):
    net, path = network(), walk(0, frames=2)
    net.config = replace(net.config, by_looks=by_looks)
    x = stack_inputs(frames(), path, CAMERA, None, None)
    logit = looked_at_plainly(net, x)[2]
    seen = net.perceive(frames(), path, CAMERA).dynamic
    expected = opened((logit[-1:] + SUSPICION).sigmoid())[0] if by_looks else torch.zeros(SIZE, SIZE)
    torch.testing.assert_close(seen[-1], expected, atol=1e-5, rtol=1e-5)
    assert bool(seen.any()) == by_looks
    assert net.perceive(frames(), path, CAMERA, previous=frames().flip(0)).dynamic.max() > 0
    assert net.perceive(frames(), path, CAMERA, projection()).dynamic.max() > 0


def test_a_mirrored_first_picture_is_the_same_place_mirrored():
    """Level and straight ahead: the mirror's rays are the picture's."""
    net, pose = network(), torch.eye(4, dtype=torch.float64)[None]
    seen, mirrored = (net.perceive(f, pose, CAMERA) for f in (frames(1), frames(1).flip(2)))
    torch.testing.assert_close(mirrored.depth.flip(2), seen.depth, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mirrored.confidence.flip(2), seen.confidence, atol=1e-4, rtol=1e-4)


def test_what_is_thin_is_no_thing_that_may_move():
    image = torch.zeros(1, 12, 12)
    image[0, :, 2:4] = 1.0  # a post
    image[0, 4:8, 7:11] = 0.8  # a box
    image[0, 10:, 10:] = 0.9  # a thing cut off by the picture's corner
    seen = opened(image)
    expected = torch.from_numpy(grey_opening(image[0].numpy(), size=(3, 3), mode="nearest"))
    assert torch.equal(seen[0], expected)
    assert not seen[0, :, :6].any() and torch.equal(seen[0, 4:8, 7:11], image[0, 4:8, 7:11]) and seen[0, 11, 11] == 0.9


def test_first_pictures_have_a_network_of_their_own():
    """Without a memory and an earlier frame it alone is asked, of depth, motion and pitch; else it is not."""
    net, path = network(), walk(0, frames=2)
    both = CompactPerception(replace(net.config, first=CompactPerceptionConfig((8, 8), core=(32, 1)), by_looks=True)).eval()
    both.load_state_dict(net.state_dict(), strict=False)
    alone = CompactPerception(replace(both.config.first, every=1, by_looks=True)).eval()
    alone.load_state_dict(both.first.state_dict())
    assert both.of_first is both.first and net.of_first is net
    for theirs, told in ((alone, {}), (net, {"prior": projection()}), (net, {"previous": frames().flip(0)})):
        seen, expected = (one.perceive(frames(), path, CAMERA, **told) for one in (both, theirs))
        for name in ("depth", "confidence", "dynamic"):
            torch.testing.assert_close(getattr(seen, name), getattr(expected, name), atol=1e-6, rtol=1e-6)
    assert both.pitch_of(frames(1), CAMERA) == alone.pitch_of(frames(1), CAMERA)
