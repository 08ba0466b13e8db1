import math

import pytest
import torch

from spatia_model.geometry import se3
from spatia_model.geometry.camera import camera_from_fov, project
from spatia_model.geometry.point_compositing import average_cells, composite_points
from spatia_model.geometry.visibility import frontmost_points

SEED = 2_000_600


def scene(count: int = 300):
    generator = torch.Generator().manual_seed(SEED)
    points = torch.rand(count, 3, generator=generator) * torch.tensor([3.0, 2.0, 3.0]) + torch.tensor([-1.5, -1.0, -0.5])
    colors = torch.randint(0, 256, (count, 3), generator=generator).to(torch.uint8)
    twists = torch.tensor([[0, 0, 0, 0, 0, 0], [0.2, 0.1, -0.5, 0.1, 0.3, 0.2]], dtype=torch.float64)
    return points, colors, se3.exp(twists), camera_from_fov(1.2, 40, 24)


def composite_reference(points, colors, path, camera, radius, points_per_pixel):
    """Every point against every pixel, in depth order: (T, H, W, 3) and (T, H, W) in 0..1."""
    uv, z = project(points, path, camera)
    reach = radius * min(camera.height, camera.width) / 2
    rows, columns = torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5
    pictures, covers = [], []
    for t in range(len(path)):
        order = z[t].argsort(stable=True)
        order = order[z[t][order] > 0]
        place = uv[t][order].double()
        square = (columns[None, None] - place[:, 0, None, None]).square() + (rows[None, :, None] - place[:, 1, None, None]).square()
        inside = square <= reach * reach
        chosen = inside & (inside.cumsum(0) <= points_per_pixel)
        alpha = torch.where(chosen, 1 - square / reach**2, torch.zeros_like(square))
        before = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)[:-1]])
        weight = alpha * before
        pictures.append(torch.einsum("nhw,nc->hwc", weight, colors[order].double() / 255))
        covers.append(weight.sum(0))
    return torch.stack(pictures), torch.stack(covers)


@pytest.mark.parametrize(("radius", "points_per_pixel"), [(0.16, 5), (0.3, 2), (0.05, 1)])
def test_it_is_the_plain_rule(radius, points_per_pixel):
    points, colors, path, camera = scene()
    drawn = composite_points(points, colors, path, camera, radius, points_per_pixel)
    picture, cover = composite_reference(points, colors, path, camera, radius, points_per_pixel)
    assert 0.05 < float(cover.mean()) < 0.999
    assert (drawn.rgb.double() - picture * 255).abs().max() <= 1 + 1e-2  # fractions are cut off
    assert (drawn.alpha.double() - cover * 255).abs().max() <= 1 + 1e-2
    assert torch.equal(drawn.mask, drawn.index >= 0)
    assert torch.equal(drawn.mask, cover > 0) or (drawn.mask ^ (cover > 0)).float().mean() < 1e-3  # a centre on a disc's rim
    t, v, u = (int(x) for x in drawn.mask.nonzero()[7])
    uv, z = project(points, path, camera)
    near = ((uv[t] - torch.tensor([u + 0.5, v + 0.5])).norm(dim=1) <= radius * 12) & (z[t] > 0)
    assert drawn.depth[t, v, u] == pytest.approx(float(z[t][near].min()), rel=1e-5)
    assert int(drawn.index[t, v, u]) == int(torch.where(near, z[t], torch.inf).argmin())


def test_rows_name_the_points_and_nothing_is_nothing():
    points, colors, path, camera = scene(40)
    plain = composite_points(points, colors, path, camera, 0.2)
    named = composite_points(points, colors, path, camera, 0.2, rows=torch.arange(40) + 1000)
    assert torch.equal(named.index, torch.where(plain.mask, plain.index + 1000, plain.index))
    empty = composite_points(points[:0], colors[:0], path, camera)
    assert not empty.mask.any() and not empty.rgb.any() and not empty.alpha.any()
    for arguments in ({"radius": 0.0}, {"points_per_pixel": 0}):
        with pytest.raises(ValueError, match="radius"):
            composite_points(points, colors, path, camera, **arguments)
    with pytest.raises(ValueError, match="colours"):
        composite_points(points, colors[:3], path, camera)


def test_cells_are_averaged():
    points, colors, _, _ = scene()
    mean, color, first = average_cells(points, colors, 0.5)
    low = points.double().amin(0) - 0.25
    cells: dict = {}
    for row, point in enumerate(points.double()):
        cells.setdefault(tuple(((point - low) / 0.5).floor().long().tolist()), []).append(row)
    assert len(cells) == len(mean) < len(points)
    for rows in cells.values():
        place = (first == rows[0]).nonzero()[:, 0]
        assert len(place) == 1
        assert torch.allclose(mean[place[0]], points[rows].double().mean(0).float(), atol=1e-6)
        assert (color[place[0]].double() - colors[rows].double().mean(0)).abs().max() <= 0.5
    assert len(average_cells(points[:0], colors[:0], 0.1)[0]) == 0


def test_frontmost_points_are_the_nearest_of_their_pixel():
    points, _, path, camera = scene()
    points = torch.cat([points, points[:5] + 1e-9])  # twins are equally near
    seen = frontmost_points(points, path, camera)
    uv, z = project(points, path, camera)
    for t in range(len(path)):
        nearest: dict = {}
        for n in range(len(points)):
            pixel = (math.floor(uv[t, n, 0]), math.floor(uv[t, n, 1]))
            if z[t, n] > 0 and 0 <= pixel[0] < camera.width and 0 <= pixel[1] < camera.height:
                nearest.setdefault(pixel, []).append((float(z[t, n]), n))
        wanted = {n for found in nearest.values() for depth, n in found if depth <= min(found)[0] + 1e-6}
        assert {int(n) for n in seen[t].nonzero()[:, 0]} == wanted
    assert 0 < seen[0].sum() < len(points)
