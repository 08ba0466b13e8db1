from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from spatia_model.config import MiniConfig, mini_camera
from spatia_model.geometry.camera import camera_from_fov, pixel_rays
from spatia_model.geometry.planes import continued
from spatia_model.memory.mapping import MappingConfig
from spatia_model.perception import CompactPerception, CompactPerceptionConfig
from spatia_model.perception.compact import (
    BESIDE,
    CONFIDENT_ERROR,
    MOST_DOUBT,
    TYPICAL_DEPTH,
    UNSURE,
    _Core,
    _Look,
    cautious,
    confidence_of,
    level_rays,
    median,
    stack_inputs,
)
from spatia_model.types import Camera, Projection
from tests.spatia_model.tiny import SEED, SIZE, picture, walk

CAMERA = mini_camera(MiniConfig(image_size=SIZE))
SURE = -4.0  # log of a log depth's error scale


def network(widths: tuple[int, ...] = (8, 8, 8), every: int = 1) -> CompactPerception:
    """Random everywhere; residual branches start at zero."""
    torch.manual_seed(SEED)
    net = CompactPerception(CompactPerceptionConfig(widths, every=every))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return net.eval()


def frames(count: int = 2, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    return torch.stack([picture(SEED + i, height, width) for i in range(count)])


def projection(count: int = 2, height: int = SIZE, width: int = SIZE) -> Projection:
    generator = torch.Generator().manual_seed(SEED)
    mask = torch.rand(count, height, width, generator=generator) > 0.4
    depth = (0.5 + 5 * torch.rand(count, height, width, generator=generator)) * mask
    return Projection(frames(count, height, width).flip(1) * mask.unsqueeze(-1), depth, mask, mask.int() - 1)


def test_inputs_lie_where_the_network_expects_them():
    rgb, prior, earlier, path = frames(), projection(), frames().flip(0), walk(0, frames=2)
    x = stack_inputs(rgb, path, CAMERA, prior, earlier)
    assert x.shape == (2, CompactPerception.CHANNELS, SIZE, SIZE) and x.dtype == torch.float32
    for t, v, u in ((0, 3, 5), (1, 20, 9), (1, 30, 31)):
        known = bool(prior.mask[t, v, u])
        torch.testing.assert_close(x[t, :3, v, u], rgb[t, v, u] / 127.5 - 1)
        torch.testing.assert_close(x[t, 3:6, v, u], (prior.rgb[t, v, u] / 127.5 - 1) * known)
        expected = math.log(float(prior.depth[t, v, u]) / TYPICAL_DEPTH) if known else 0.0
        assert float(x[t, 6, v, u]) == pytest.approx(expected, abs=1e-5)
        assert float(x[t, 7, v, u]) == known
        torch.testing.assert_close(x[t, 8:11, v, u], earlier[t, v, u] / 127.5 - 1)
    torch.testing.assert_close(x[:, 11:], level_rays(path, CAMERA))
    assert prior.mask.any() and not prior.mask.all()


def test_without_memory_and_past_their_inputs_are_empty():
    x = stack_inputs(frames(), walk(0, frames=2), CAMERA, None, None)
    assert x[:, 3:8].abs().max() == 0
    assert torch.equal(x[:, 8:11], x[:, :3])  # nothing moved


def test_level_rays_equal_a_loop():
    heading, pitch = 0.9, 0.4
    turn = torch.eye(4, dtype=torch.float64)
    turn[0, 0] = turn[2, 2] = math.cos(heading)
    turn[0, 2], turn[2, 0] = math.sin(heading), -math.sin(heading)
    tilt = torch.eye(4, dtype=torch.float64)
    tilt[1, 1] = tilt[2, 2] = math.cos(pitch)
    tilt[1, 2], tilt[2, 1] = math.sin(pitch), -math.sin(pitch)  # the view axis points down by `pitch`
    path = torch.stack([turn @ tilt, tilt, walk(5)[-1]])
    camera = camera_from_fov(math.radians(75), 6, 4)
    found, rays = level_rays(path, camera), pixel_rays(camera)
    assert found.shape == (3, 3, 4, 6)
    for v in range(4):
        for u in range(6):
            expected = tilt[:3, :3] @ rays[v, u].double()  # whatever the heading
            for t in range(2):
                torch.testing.assert_close(found[t, :, v, u].double(), expected, atol=1e-6, rtol=1e-6)
            world = path[2, :3, :3] @ rays[v, u].double()
            assert float(found[2, 1, v, u]) == pytest.approx(float(world[1]), abs=1e-6)
    straight_down = torch.eye(4, dtype=torch.float64)
    straight_down[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    (rays_down,) = level_rays(straight_down[None], camera)
    assert torch.isfinite(rays_down).all() and (rays_down[1] == 1).all()
    assert (rays_down[2].diff(dim=0) < 0).all()  # the upper edge of the picture is ahead


def test_a_level_camera_looks_down_below_its_middle():
    level = level_rays(walk(5)[-1:], CAMERA)[0]
    assert (level[1, SIZE // 2 :] > 0).all() and (level[1, : SIZE // 2] < 0).all()
    assert (level[0, :, SIZE // 2 :] > 0).all() and torch.allclose(level[2], torch.ones(()))


def test_a_constant_plane_gives_the_depth_of_that_plane():
    """A floor 1.5 m below the camera is one constant of the head: (0, 1 / 1.5, 0) without the typical offset."""
    net = network()
    with torch.no_grad():
        net.head.weight.zero_()
        assert net.head.bias is not None
        net.head.bias.zero_()
        net.head.bias[4:8] = 1 / 1.5  # four pixels of the unshuffled plane's "down"
        net.head.bias[12:16] = -1 / TYPICAL_DEPTH
        net.head.bias[24:28] = SURE
    pose, size = walk(5)[-1:], 2 * SIZE  # in smaller pictures the edge's pixels are a little off: they repeat their neighbours' rays
    camera = mini_camera(MiniConfig(image_size=size))
    depth = net.perceive(frames(1, size, size), pose, camera).depth[0]
    true = 1.5 / level_rays(pose, camera)[0, 1]
    near = (true > 0) & (true < 6)
    assert near.float().mean() > 0.2
    torch.testing.assert_close(depth[near], true[near], rtol=0.02, atol=0)


def test_what_is_perceived_has_the_frames_shape_and_makes_sense():
    seen = network().perceive(frames(3), walk(0, frames=3), CAMERA, projection(3), frames(3).flip(0))
    for part in (seen.depth, seen.confidence, seen.dynamic):
        assert part.shape == (3, SIZE, SIZE) and part.dtype == torch.float32 and torch.isfinite(part).all()
        assert not part.is_inference()  # states may go anywhere
    assert (seen.depth > 0).all()
    for share in (seen.confidence, seen.dynamic):
        assert share.min() >= 0 and share.max() <= 1
    assert seen.dynamic.max() > 0


def test_the_median_equals_a_loop_and_mends_single_pixels():
    depth = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(SEED))
    found = median(depth, 3)
    for t in range(2):
        for v in range(6):
            for u in range(7):
                near = [depth[t, min(max(v + i, 0), 5), min(max(u + j, 0), 6)] for i in (-1, 0, 1) for j in (-1, 0, 1)]
                assert float(found[t, v, u]) == float(torch.stack(near).median())
    wall = torch.full((1, 9, 9), 2.0)
    spotted = wall.clone()
    spotted[0, 4, 4] = 9.0
    assert torch.equal(median(spotted), wall)


def test_frames_between_get_their_neighbours_depth_and_no_confidence():
    all_of_them, some = network(every=1), network(every=2)
    path, prior = walk(0, frames=4), projection(4)
    everything, seen = (net.perceive(frames(4), path, CAMERA, prior, frames(4).flip(0)) for net in (all_of_them, some))
    for name in ("depth", "confidence", "dynamic"):  # the last is always looked at
        torch.testing.assert_close(getattr(seen, name)[[1, 3]], getattr(everything, name)[[1, 3]], atol=1e-5, rtol=1e-4)
    assert torch.equal(seen.depth[[0, 2]], seen.depth[[1, 3]]) and torch.equal(seen.dynamic[[0, 2]], seen.dynamic[[1, 3]])
    assert seen.confidence[[0, 2]].abs().max() == 0 and seen.confidence[[1, 3]].min() > 0
    with pytest.raises(ValueError, match="every"):
        CompactPerceptionConfig(every=0)


def test_frames_of_a_clip_are_independent():
    net, path = network(), walk(0, frames=2)
    both = net.perceive(frames(), path, CAMERA, projection(), frames().flip(0))
    prior = projection()
    one = Projection(prior.rgb[1:], prior.depth[1:], prior.mask[1:], prior.index[1:])
    alone = net.perceive(frames()[1:], path[1:], CAMERA, one, frames()[:1])
    for name in ("depth", "confidence", "dynamic"):
        torch.testing.assert_close(getattr(both, name)[1:], getattr(alone, name), atol=1e-4, rtol=1e-4)


def test_an_open_gate_keeps_the_memory_s_depth():
    """With a head silent but for the gate, depth is the memory's where there is one, the typical one elsewhere."""
    net, prior = network(), projection()
    with torch.no_grad():
        net.head.weight.zero_()
        assert net.head.bias is not None
        net.head.bias.zero_()
        net.head.bias[20:24] = 30.0
        net.head.bias[24:28] = SURE
    seen = net.perceive(frames(), walk(0, frames=2), CAMERA, prior)
    expected = torch.where(prior.mask, prior.depth, torch.full_like(prior.depth, TYPICAL_DEPTH))
    torch.testing.assert_close(seen.depth, expected, atol=1e-3, rtol=1e-3)


def test_with_extends_the_memory_s_surfaces_go_on_beyond_it():
    """As above, the gate open everywhere: where the memory shows nothing, its surfaces continued; without memory, the typical depth."""
    prior = projection()
    net = CompactPerception(CompactPerceptionConfig((8, 8), every=1, extends=True)).eval()
    with torch.no_grad():
        net.head.weight.zero_()
        assert net.head.bias is not None
        net.head.bias.zero_()
        net.head.bias[20:24] = 30.0
        net.head.bias[24:28] = SURE
    path = walk(0, frames=2)
    seen = net.perceive(frames(), path, CAMERA, prior)
    torch.testing.assert_close(seen.depth, continued(prior.depth, prior.mask), atol=1e-3, rtol=1e-3)
    assert not bool(prior.mask.all())
    assert float((net.perceive(frames(), path, CAMERA).depth - TYPICAL_DEPTH).abs().max()) < 1e-3
    plain, told = (stack_inputs(frames(), path, CAMERA, prior, None, extends) for extends in (False, True))
    assert torch.equal(plain[:, :6], told[:, :6]) and torch.equal(plain[:, 7:], told[:, 7:])  # colours and mask say what is known
    assert torch.equal(plain[:, 6] * plain[:, 7], told[:, 6] * told[:, 7])


@pytest.mark.parametrize(("height", "width"), [(37, 50), (2, 2), (17, 32)])
def test_odd_sizes_are_padded_and_cut(height, width):
    net = network()
    camera = Camera(CAMERA.K, width, height)
    seen = net.perceive(frames(1, height, width), walk(0, frames=1), camera, projection(1, height, width))
    assert seen.depth.shape == seen.confidence.shape == seen.dynamic.shape == (1, height, width)
    # The same as padding by hand with the border's pixels.
    x = stack_inputs(frames(1, height, width), walk(0, frames=1), camera, projection(1, height, width), None)
    h, w = -(-height // 8) * 8, -(-width // 8) * 8
    rows, columns = torch.arange(h).clamp(max=height - 1), torch.arange(w).clamp(max=width - 1)
    with torch.no_grad():
        whole = net(x[:, :, rows][:, :, :, columns])
        part = net(x)
    for a, b in zip(part, whole, strict=True):
        torch.testing.assert_close(a, b[:, :height, :width], atol=1e-5, rtol=1e-5)


def test_confidence_is_the_chance_of_a_small_error():
    scales = torch.linspace(-7, 3, 50)
    confidence = confidence_of(scales)
    falls = confidence.diff()
    assert (falls <= 0).all() and (falls[scales[1:] > -4] < 0).all()  # below that it is 1 to float32's last digit
    assert confidence[0] > 0.999 and confidence[-1] < 0.01
    scale = 0.04  # of a Laplace error, against 200,000 draws
    generator = torch.Generator().manual_seed(SEED)
    signs = torch.rand(2, 200_000, generator=generator).log()
    errors = (scale * (signs[0] - signs[1])).abs()
    assert float((errors < CONFIDENT_ERROR).float().mean()) == pytest.approx(float(confidence_of(torch.tensor(math.log(scale)))), abs=0.01)


def test_what_is_told_cautiously_equals_a_loop():
    generator = torch.Generator().manual_seed(SEED)
    depth, scale = (torch.randn(2, 9, 7, generator=generator) for _ in range(2))
    told = cautious(depth, scale)
    for t, row, column in itertools.product(range(2), range(9), range(7)):
        b = math.exp(float(scale[t, row, column]))
        expected = float(depth[t, row, column])
        if 1 - math.exp(-CONFIDENT_ERROR / b) < UNSURE:
            b = min(b, MOST_DOUBT)
            beside = depth[t, max(0, row - BESIDE) : row + BESIDE + 1, max(0, column - BESIDE) : column + BESIDE + 1]
            expected = max(expected - b * math.log(1 + b) / (1 - b), float(beside.min()))
        assert float(told[t, row, column]) == pytest.approx(expected, abs=1e-5)
    assert 0.1 < float((told < depth - 1e-4).float().mean()) < 0.9


@pytest.mark.parametrize("scale", [0.3, 0.4, 0.55])
def test_what_is_unsure_is_told_where_its_relative_error_is_least(scale):
    truth = torch.distributions.Laplace(math.log(3.0), scale).icdf((torch.arange(200_000) + 0.5) / 200_000).exp()
    told = torch.linspace(0.3, 4.0, 371)
    errors = torch.stack([(depth / truth - 1).abs().mean() for depth in told])
    doubtful, sure = torch.tensor([[[3.0, 0.2]]]).log(), math.log(0.01)
    best = float(cautious(doubtful, torch.tensor([[[math.log(scale), sure]]])).exp()[0, 0, 0])  # beside something near
    assert best == pytest.approx(float(told[errors.argmin()]), rel=0.02)
    assert best < 3 * 0.95


def test_doubt_far_from_anything_nearer_changes_nothing():
    flat = torch.full((1, 8, 8), 1.5)
    torch.testing.assert_close(cautious(flat, torch.zeros(1, 8, 8)), flat)
    edge = -CONFIDENT_ERROR / math.log1p(-UNSURE)
    assert float(confidence_of(torch.tensor(edge).log())) == pytest.approx(UNSURE)
    depth = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(SEED))
    assert torch.equal(cautious(depth, torch.full((1, 8, 8), edge * 0.99).log()), depth)  # sure enough
    assert not torch.equal(cautious(depth, torch.full((1, 8, 8), edge * 1.01).log()), depth)


def test_by_default_a_map_takes_nothing_that_is_told_cautiously():
    assert MappingConfig().min_confidence >= UNSURE


def test_gradients_reach_every_parameter():
    net = network()
    x = stack_inputs(frames(), walk(0, frames=2), CAMERA, projection(), frames().flip(0))
    log_depth, log_scale, logit = net(x)
    (log_depth.square().mean() + log_scale.mean() + logit.mean()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def more(**settings) -> tuple[CompactPerception, CompactPerception]:
    """A random network, and one with `settings` besides that has its weights; what it has more is new."""
    net = network()
    torch.manual_seed(SEED)
    grown = CompactPerception(replace(net.config, **settings)).eval()
    missing, extra = grown.load_state_dict(net.state_dict(), strict=False)
    assert missing and not extra
    return net, grown


@pytest.mark.parametrize("settings", [{"core": (64, 2)}, {"twice": True}, {"core": (32, 1), "twice": True}])
def test_what_a_network_grows_by_changes_nothing_until_it_is_trained(settings):
    net, grown = more(**settings)
    x = stack_inputs(frames(), walk(0, frames=2), CAMERA, projection(), frames().flip(0))
    with torch.no_grad():
        for before, after in zip(net(x), grown(x), strict=True):
            torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)
        for p in grown.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    log_depth, log_scale, logit = grown(x)
    (log_depth.square().mean() + log_scale.mean() + logit.mean()).backward()
    for name, p in grown.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_a_core_is_looks_at_its_own_width():
    core = _Core(8, 64, 2)
    with torch.no_grad():
        for p in core.parameters():
            p.copy_(torch.randn(p.shape) * 0.1)
    x = torch.randn(2, 8, 4, 3)

    def normed(y):
        return y / (y.square().mean(1, keepdim=True) + 1e-4).sqrt()

    def linear(conv, y):
        return torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], y) + conv.bias[:, None, None]

    assert [look.heads for look in core.looks] == [2, 2]
    with torch.no_grad():
        y = core.looks[1](core.looks[0](linear(core.enter, normed(x))))
        torch.testing.assert_close(core(x), x + linear(core.leave, normed(y)), atol=1e-5, rtol=1e-5)


def test_settings_of_both_networks_come_from_json():
    config = CompactPerceptionConfig(extends=True, first=CompactPerceptionConfig((8, 8), core=(64, 2), twice=True))
    assert CompactPerceptionConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"core": (48, 2)}, "in steps of 32"),
        ({"core": (64, 0)}, "a number of blocks"),
        ({"core": (0, 2)}, "a width"),
        ({"core": (-32, 1)}, "core="),
        ({"core": (64,)}, "core="),
        ({"first": CompactPerceptionConfig(first=CompactPerceptionConfig())}, "first=None"),
    ],
)
def test_networks_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        CompactPerceptionConfig(**settings)


def test_one_scale_is_too_few():
    with pytest.raises(ValueError, match="at least two scales"):
        CompactPerceptionConfig(widths=(8,))


def test_looks_lie_at_the_last_scales():
    assert CompactPerception(CompactPerceptionConfig((8, 12, 16), looks=(1, 2))).looks[0].qkv.in_channels == 12
    widths = [look.qkv.in_channels for look in CompactPerception(CompactPerceptionConfig((8, 12, 16), looks=(2, 0, 1))).looks]
    assert widths == [8, 8, 16]
    earlier = CompactPerception(CompactPerceptionConfig((8, 12, 16), looks=2))  # as folders of earlier versions say it
    assert [look.qkv.in_channels for look in earlier.looks] == [12, 12] and earlier.config.looks == (2, 0)
    for looks in ((1, 1, 1, 1), (-1, 2), -1):
        with pytest.raises(ValueError, match="up to 3 numbers"):
            CompactPerceptionConfig((8, 12, 16), looks=looks)


def test_a_look_equals_a_loop():
    """Softmax attention of every place over all places, head by head, then two linear maps of each place; both added."""
    torch.manual_seed(SEED)
    look = _Look(8, heads=2)
    with torch.no_grad():
        for p in look.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    x = torch.randn(1, 8, 3, 2)
    places = x[0].flatten(1).T.double()  # (6, 8)

    def linear(conv, rows):
        return rows @ conv.weight[:, :, 0, 0].double().T + conv.bias.double()

    def normed(rows):
        return rows / (rows.square().mean(1, keepdim=True) + 1e-4).sqrt()

    with torch.no_grad():
        queries, keys, values = linear(look.qkv, normed(places)).view(6, 3, 2, 4).unbind(1)
        seen = torch.zeros(6, 2, 4, dtype=torch.float64)
        for place in range(6):
            for head in range(2):
                weight = torch.stack([queries[place, head] @ keys[other, head] / 2 for other in range(6)]).softmax(0)
                seen[place, head] = sum(weight[other] * values[other, head] for other in range(6))
        places = places + linear(look.out, seen.flatten(1))
        hidden = linear(look.wide, normed(places))
        places = places + linear(look.narrow, hidden * hidden.sigmoid())
        torch.testing.assert_close(look(x)[0].flatten(1).T.double(), places, atol=1e-5, rtol=1e-5)


def test_looks_reach_from_one_corner_to_the_other():
    x = stack_inputs(frames(1), walk(0, frames=1), CAMERA, None, None)
    other = x.clone()
    other[..., -2:, -2:] += 1
    for looks, reaches in ((1, True), (0, False)):
        torch.manual_seed(SEED)
        net = CompactPerception(CompactPerceptionConfig((8, 8), looks=(looks,))).eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape) * 0.1)
            assert (net(x)[0][..., 0, 0] != net(other)[0][..., 0, 0]).item() is reaches
