"""Points as soft discs of one size on screen, the nearest few composited: how the release draws its memory.

What PyTorch3D's `PointsRasterizer` and `AlphaCompositor` compute (their documentation states the rule): a point covers the pixels whose
centres lie within `radius` in normalised device coordinates (the image's shorter side is 2 long); of a pixel's points the nearest
`points_per_pixel` count, front to back, each with alpha = 1 - (distance / radius)^2, over black.
"""

from __future__ import annotations

import math

import torch

from spatia_model.geometry import se3
from spatia_model.geometry.camera import check_path
from spatia_model.types import Camera, Projection

_NONE = torch.iinfo(torch.int64).max


def composite_points(
    points: torch.Tensor,
    colors: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    radius: float = 0.01,
    points_per_pixel: int = 5,
    rows: torch.Tensor | None = None,
) -> Projection:
    """Draw points (N, 3) with colours (N, 3) uint8 along a path (T, 4, 4). On the points' device; the result is on the CPU.

    `rows` (N,): what `Projection.index` holds for each point (None: its own row). Depth and index are those of the front point; `alpha`
    says how much of a pixel is covered.
    """
    check_path(T_world_camera)
    if points.ndim != 2 or points.shape[1] != 3 or tuple(colors.shape) != tuple(points.shape):
        raise ValueError(f"points {tuple(points.shape)} and colours {tuple(colors.shape)}; expected both (N, 3)")
    if not radius > 0 or points_per_pixel < 1:
        raise ValueError(f"radius {radius}, points_per_pixel {points_per_pixel}; expected a positive radius and 1 or more points")
    if len(points) >= 1 << 31:
        raise ValueError(f"{len(points)} points; at most {(1 << 31) - 1} can be drawn")
    names = torch.arange(len(points), device=points.device) if rows is None else rows.to(points.device)
    shape = (len(T_world_camera), camera.height, camera.width)
    rgb, alpha = torch.zeros(*shape, 3, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)
    depth, index = torch.zeros(shape), torch.full(shape, -1, dtype=torch.int32)
    reach = radius * min(camera.height, camera.width) / 2  # pixels
    for frame, T_camera_world in enumerate(se3.inverse(T_world_camera).to(points.device, torch.float32)):
        uv, z, seen = _on_screen(points, T_camera_world, camera, reach)
        if not len(seen):
            continue
        color, cover, front = _frame(uv, z, colors[seen], camera, reach, points_per_pixel)
        rgb[frame], alpha[frame] = (color * 255).to(torch.uint8).cpu(), (cover * 255).to(torch.uint8).cpu()
        covered = front >= 0
        depth[frame] = torch.where(covered, z[front.clamp(min=0)], torch.zeros_like(cover)).cpu()
        index[frame] = torch.where(covered, names[seen[front.clamp(min=0)]], torch.full_like(front, -1)).int().cpu()
    return Projection(rgb, depth, index >= 0, index, alpha)


def _on_screen(
    points: torch.Tensor, T_camera_world: torch.Tensor, camera: Camera, reach: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixel coordinates (n, 2), z-depth (n,) and rows (n,) of the points in front of the camera whose disc may touch the image."""
    local = points.float() @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
    z = local[:, 2]
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    safe = z.clamp(min=1e-8)
    u, v = fx * local[:, 0] / safe + cx, fy * local[:, 1] / safe + cy
    seen = ((z > 0) & (u > -reach) & (u < camera.width + reach) & (v > -reach) & (v < camera.height + reach)).nonzero()[:, 0]
    return torch.stack([u, v], 1)[seen], z[seen], seen


def _frame(
    uv: torch.Tensor, z: torch.Tensor, colors: torch.Tensor, camera: Camera, reach: float, points_per_pixel: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Colour (H, W, 3) and cover (H, W) in 0..1, and the front point's row (H, W), -1 for none.

    Depth peeling: a pass finds every pixel's nearest point behind the one found before. Depth (positive, so its bits sort like it) and row
    make one key.
    """
    height, width = camera.height, camera.width
    key = (z.contiguous().view(torch.int32).long() << 31) | torch.arange(len(z), device=z.device)
    corner = (uv - reach).floor().long()  # (n, 2) pixel of the disc's corner
    steps = math.ceil(2 * reach) + 2
    before = torch.full((height * width,), -1, dtype=torch.int64, device=z.device)
    total = torch.zeros(height * width, 3, device=z.device)
    cover, clear = torch.zeros(height * width, device=z.device), torch.ones(height * width, device=z.device)
    front = torch.full((height * width,), -1, dtype=torch.int64, device=z.device)
    for layer in range(points_per_pixel):
        nearest = torch.full((height * width,), _NONE, dtype=torch.int64, device=z.device)
        for dy in range(steps):
            for dx in range(steps):
                x, y = corner[:, 0] + dx, corner[:, 1] + dy
                distance = (x + 0.5 - uv[:, 0]).square() + (y + 0.5 - uv[:, 1]).square()
                inside = (distance <= reach * reach) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
                pixel = (y * width + x).clamp(0, height * width - 1)
                behind = inside & (key > before[pixel])
                nearest.scatter_reduce_(0, pixel[behind], key[behind], "amin")
        found = nearest < _NONE
        if not bool(found.any()):
            break
        row = torch.where(found, nearest & ((1 << 31) - 1), torch.zeros_like(nearest))
        column = torch.arange(height * width, device=z.device)
        dx, dy = column % width + 0.5 - uv[row, 0], torch.div(column, width, rounding_mode="floor") + 0.5 - uv[row, 1]
        weight = torch.where(found, clear * (1 - (dx * dx + dy * dy) / (reach * reach)), torch.zeros_like(clear))
        total += weight[:, None] * (colors[row].float() / 255)
        cover += weight
        clear = clear - weight
        before = torch.where(found, nearest, torch.full_like(nearest, _NONE))
        if layer == 0:
            front = torch.where(found, row, front)
    return total.view(height, width, 3).clamp(0, 1), cover.view(height, width).clamp(0, 1), front.view(height, width)


def average_cells(points: torch.Tensor, colors: torch.Tensor, cell: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One point per cubic cell (metres): mean place (n, 3) float32 and colour (n, 3) uint8, and the first row of each cell (n,).

    The grid begins half a cell before the least coordinates, as Open3D's voxel down-sampling has it.
    """
    if not len(points):
        return points, colors, torch.zeros(0, dtype=torch.int64, device=points.device)
    low = points.amin(0).double() - cell / 2
    place = ((points.double() - low) / cell).floor().long()
    extent = place.amax(0) + 1
    key = (place[:, 0] * extent[1] + place[:, 1]) * extent[2] + place[:, 2]
    cells, which = torch.unique(key, return_inverse=True)
    count = torch.zeros(len(cells), dtype=torch.float64, device=points.device).index_add_(
        0, which, torch.ones_like(key, dtype=torch.float64)
    )
    zeros = torch.zeros(len(cells), 3, dtype=torch.float64, device=points.device)
    mean = zeros.index_add(0, which, points.double()) / count[:, None]
    color = zeros.index_add(0, which, colors.double()) / count[:, None]
    rows = torch.arange(len(points), device=points.device)
    first = torch.full((len(cells),), len(points), dtype=torch.int64, device=points.device).scatter_reduce_(0, which, rows, "amin")
    return mean.float(), color.round().to(torch.uint8), first
