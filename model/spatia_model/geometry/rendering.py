"""Point splatting: the memory seen from a path, with a z-buffer and a hole mask.

A point is a small square that faces the camera, drawn in three steps:

1. *Front layer.* Every point fills a thin square into a depth buffer.
2. *Gaps.* A pixel that is empty, or much deeper than its neighbours on opposite sides, is a gap in an undersampled surface: it takes the
   neighbours' depth, so that a surface behind does not leak through a nearer one.
3. *Colour.* Among the points of the front layer whose (wider) square holds the pixel, the one whose centre is nearest wins. Nearest
   centre is sharper than nearest depth: neighbours on one surface differ in depth by noise, and in position by what they show.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from spatia_model.geometry import se3
from spatia_model.geometry.camera import check_path
from spatia_model.geometry.culling import Chunks, visible_chunks
from spatia_model.types import Camera, Projection

_EMPTY = torch.iinfo(torch.int64).max
_FAR = 1e30
_GPU_LANES = 32
_pool: ThreadPoolExecutor | None = None


@dataclass(frozen=True)
class SplatStyle:
    """How points become squares; lengths are shares of a point's radius, pixels where said."""

    thin: float = 0.6  # half side of the square that decides depth
    fat: float = 1.0  # half side of the square that may give colour
    blend: float = 0.85
    cap: float = 6.0  # largest half side, pixels
    tolerance: float = 0.04  # thickness of the front layer, share of depth (beside the point's own size)
    hole_reach: int = 6  # pixels searched on either side of an empty pixel
    hole_pairs: int = 3  # of the 4 directions, how many must be closed by neighbours
    leak_reach: int = 3
    leak_pairs: int = 3
    leak_gap: float = 0.1  # a pixel this share deeper than its neighbours is a leak


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(8, thread_name_prefix="splat")
    return _pool


def _check(points: torch.Tensor, colors: torch.Tensor, T_world_camera: torch.Tensor, radius: torch.Tensor | float) -> None:
    check_path(T_world_camera)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype != torch.float32:
        raise ValueError(f"points are {tuple(points.shape)} {points.dtype}; expected (N, 3) float32 in metres")
    if tuple(colors.shape) != tuple(points.shape) or colors.dtype != torch.uint8:
        raise ValueError(f"colors are {tuple(colors.shape)} {colors.dtype}; expected {tuple(points.shape)} uint8, one colour per point")
    if isinstance(radius, torch.Tensor):
        if tuple(radius.shape) != (len(points),):
            raise ValueError(f"radius has shape {tuple(radius.shape)}; expected one number or ({len(points)},)")
    elif not radius > 0:
        raise ValueError(f"radius = {radius} m; expected a positive length")


def splat(
    points: torch.Tensor,
    colors: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    radius: torch.Tensor | float,
    near: float = 0.05,
    *,
    drawn: torch.Tensor | None = None,
    chunks: Chunks | None = None,
    style: SplatStyle | None = None,
    threads: int = 1,
) -> Projection:
    """Draws points into every frame of a path.

    points (N, 3) float32 world metres; colors (N, 3) uint8; T_world_camera (T, 4, 4); radius: metres, one number or (N,): half a point's
    size. Points nearer than `near` (m) along the optical axis are not drawn, nor those where `drawn` (N,) bool is False. `chunks` bounds
    runs of points for culling. `threads` splits frames on the CPU. Raises ValueError on wrong shapes or types. `splat_reference` is the
    same in plain torch.
    """
    _check(points, colors, T_world_camera, radius)
    from spatia_model.geometry import splat_kernels as kernels
    from spatia_model.geometry.warp_runtime import wp

    style = style or SplatStyle()
    device = points.device
    frames, height, width = len(T_world_camera), camera.height, camera.width
    shape = (frames, height, width)
    rgb = torch.empty(*shape, 3, dtype=torch.uint8, device=device)
    depth = torch.empty(shape, dtype=torch.float32, device=device)
    border = max(style.hole_reach, style.leak_reach)
    thin = torch.full((frames, height + 2 * border, width + 2 * border), _FAR, dtype=torch.float32, device=device)
    layer = torch.empty(shape, dtype=torch.float32, device=device)
    index = torch.empty(shape, dtype=torch.int32, device=device)
    winner = torch.full(shape, _EMPTY, dtype=torch.int64, device=device)
    if not len(points) or not frames:
        return Projection(rgb.zero_(), depth.zero_(), torch.zeros(shape, dtype=torch.bool, device=device), index.fill_(-1))

    chunks = chunks or Chunks.unbounded(len(points), device)
    T_camera_world = se3.inverse(T_world_camera)
    entries = visible_chunks(chunks, T_camera_world, camera, near).contiguous()
    pose = wp.from_torch(T_camera_world[:, :3].to(device, torch.float32).contiguous())
    if not isinstance(radius, torch.Tensor):
        radius = torch.full((len(points),), float(radius), device=device)
    w_points = wp.from_torch(points.contiguous(), dtype=wp.vec3)
    w_radius = wp.from_torch(radius.float().contiguous())
    w_drawn = wp.from_torch(torch.ones(len(points), dtype=torch.int32, device=device) if drawn is None else drawn.int().contiguous())
    w_colors, w_starts = wp.from_torch(colors.contiguous()), wp.from_torch(chunks.starts)
    w_thin, w_depth, w_layer, w_winner = wp.from_torch(thin), wp.from_torch(depth), wp.from_torch(layer), wp.from_torch(winner)
    w_rgb, w_index = wp.from_torch(rgb), wp.from_torch(index)
    w_sums = wp.from_torch(torch.zeros(*shape, 4, dtype=torch.int32, device=device))
    view = make_view(camera, near)
    lanes = _GPU_LANES if device.type == "cuda" else 1

    def draw(first: int, last: int, mine: torch.Tensor) -> None:
        w_entries = wp.from_torch(mine)
        size, pixels = (len(mine), lanes), (last - first, height, width)
        run = launcher(device)
        seen = [w_entries, w_starts, lanes, w_points, w_radius, w_drawn, pose, view]
        run(kernels.thin_depth, size, [*seen, style.thin, style.cap, w_thin, border])
        limits = [style.hole_reach, style.leak_reach, style.hole_pairs, style.leak_pairs, style.leak_gap]
        run(kernels.close_gaps, pixels, [first, w_thin, border, *limits, w_layer])
        run(kernels.nearest_centre, size, [*seen, style.fat, style.cap, style.tolerance, w_layer, style.blend, w_winner, w_colors, w_sums])
        run(kernels.resolve, pixels, [first, w_points, w_colors, pose, _EMPTY, w_winner, w_sums, w_rgb, w_depth, w_index])

    parts = 1 if device.type == "cuda" else max(1, min(threads, frames))
    if parts == 1:
        draw(0, frames, entries)
    else:
        bounds = [frames * i // parts for i in range(parts + 1)]
        cuts = torch.searchsorted(entries[:, 0].contiguous(), torch.tensor(bounds, dtype=torch.int32)).tolist()
        jobs = [_executor().submit(draw, bounds[i], bounds[i + 1], entries[cuts[i] : cuts[i + 1]]) for i in range(1, parts)]
        draw(bounds[0], bounds[1], entries[cuts[0] : cuts[1]])
        for job in jobs:
            job.result()
    return Projection(rgb, depth, index >= 0, index)


def make_view(camera: Camera, near: float):
    """The kernels' camera struct."""
    from spatia_model.geometry import splat_kernels as kernels

    view = kernels.View()
    view.fx, view.fy = float(camera.K[0, 0]), float(camera.K[1, 1])
    view.cx, view.cy = float(camera.K[0, 2]), float(camera.K[1, 2])
    view.width, view.height, view.near = camera.width, camera.height, near
    return view


def launcher(device: torch.device):
    """Launches a kernel on torch's own stream, so that no synchronisation is needed between the two."""
    from spatia_model.geometry.warp_runtime import wp

    stream = wp.stream_from_torch(torch.cuda.current_stream(device)) if device.type == "cuda" else None
    name = str(wp.device_from_torch(device))

    def run(kernel, dim, inputs) -> None:
        if 0 not in tuple(dim):
            wp.launch(kernel, dim=dim, inputs=inputs, device=name, stream=stream)

    return run


def look_through(
    points: torch.Tensor,
    radius: torch.Tensor,
    chunks: Chunks,
    free: torch.Tensor,
    weight: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    margin: float,
    near: float = 0.05,
) -> torch.Tensor:
    """(N,) float32: for every point (N, 3), the summed weight of the frames whose free space holds it.

    free (T, H, W): z-depth in metres up to which a pixel's ray is known to be empty (0: nothing known); weight (T, H, W) in 0..1, counted
    in 1/256. A point counts where z < free * (1 - margin) - 2 * radius.
    """
    from spatia_model.geometry import splat_kernels as kernels
    from spatia_model.geometry.warp_runtime import wp

    check_path(T_world_camera)
    expected = (len(T_world_camera), camera.height, camera.width)
    if tuple(free.shape) != expected:
        raise ValueError(f"depth has shape {tuple(free.shape)}; expected {expected}: frames, height and width of the path and camera")
    device = points.device
    T_camera_world = se3.inverse(T_world_camera)
    entries = visible_chunks(chunks, T_camera_world, camera, near).contiguous()
    penalty = torch.zeros(len(points), dtype=torch.int32, device=device)
    lanes = _GPU_LANES if device.type == "cuda" else 1
    inputs = [wp.from_torch(entries), wp.from_torch(chunks.starts), lanes, wp.from_torch(points.contiguous(), dtype=wp.vec3)]
    inputs += [wp.from_torch(radius.contiguous()), wp.from_torch(T_camera_world[:, :3].to(device, torch.float32).contiguous())]
    inputs += [
        make_view(camera, near),
        wp.from_torch(free.contiguous()),
        wp.from_torch(weight.contiguous()),
        margin,
        wp.from_torch(penalty),
    ]
    launcher(device)(kernels.look_through, (len(entries), lanes), inputs)
    return penalty.float() / 256


def splat_reference(
    points: torch.Tensor,
    colors: torch.Tensor,
    T_world_camera: torch.Tensor,
    camera: Camera,
    radius: torch.Tensor | float,
    near: float = 0.05,
    *,
    style: SplatStyle | None = None,
) -> Projection:
    """What `splat` computes, in plain torch over every point and pixel: for tests, and to read. Arguments as in `splat`."""
    style = style or SplatStyle()
    width, height, border = camera.width, camera.height, max(style.hole_reach, style.leak_reach)
    radii = torch.as_tensor(radius, dtype=torch.float32).expand(len(points))
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    frames = []
    for T_camera_world in se3.inverse(T_world_camera).float():
        x, y, z = (points @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]).unbind(1)
        ahead = z > near
        u, v = fx * x / z + cx, fy * y / z + cy

        def distances(margin: int, u: torch.Tensor = u, v: torch.Tensor = v) -> tuple[torch.Tensor, torch.Tensor]:
            """(N, H', W') offsets of every pixel centre from every point, in an image with a margin."""
            columns = torch.arange(-margin, width + margin) + 0.5
            rows = torch.arange(-margin, height + margin) + 0.5
            return columns[None, None] - u[:, None, None], rows[None, :, None] - v[:, None, None]

        def covers(grow: float, margin: int, z: torch.Tensor = z, ahead: torch.Tensor = ahead) -> torch.Tensor:
            half = (grow * fx * radii / z).clamp(0.5, style.cap)[:, None, None]
            dx, dy = distances(margin)
            return (dx.abs() <= half) & (dy.abs() <= half) & ahead[:, None, None]

        depths = z[:, None, None].expand(-1, height + 2 * border, width + 2 * border)
        thin = torch.where(covers(style.thin, border), depths, torch.tensor(_FAR)).amin(0)
        layer = _closed(thin, border, style)

        dx, dy = distances(0)
        square = dx * dx + dy * dy
        thickness = style.tolerance * z + 2 * radii
        candidate = covers(style.fat, 0) & ((z[:, None, None] - layer).abs() <= thickness[:, None, None])
        nearest, index = torch.where(candidate, square, torch.tensor(torch.inf)).min(0)
        mask = nearest < torch.inf
        reach = (style.blend * fx * radii / z).clamp(min=0.75)[:, None, None]
        weight = ((1 - square / reach**2).clamp(min=0).square() * 1024).floor() * candidate
        weight = torch.where(weight > 0, weight, torch.zeros(())).double()
        total = weight.sum(0)
        blended = torch.einsum("nhw,nc->hwc", weight, colors.double())
        blended = torch.div(blended + torch.div(total, 2, rounding_mode="floor")[..., None], total.clamp(min=1)[..., None]).floor()
        rgb = torch.where((total > 0)[..., None], blended, colors[index].double()).to(torch.uint8) * mask[..., None]
        frames.append((rgb, z[index] * mask, mask, torch.where(mask, index, -1).int()))
    rgb, depth, mask, index = (torch.stack(x) for x in zip(*frames, strict=True))
    return Projection(rgb, depth, mask, index)


def _closed(thin: torch.Tensor, border: int, style: SplatStyle) -> torch.Tensor:
    """The front layer (H, W) of a depth buffer (H + 2 border, W + 2 border), with gaps closed from opposite neighbours."""
    height, width = thin.shape[0] - 2 * border, thin.shape[1] - 2 * border
    middle = thin[border : border + height, border : border + width]

    def along(dy: int, dx: int, reach: int) -> torch.Tensor:
        steps = [thin[border + k * dy : border + k * dy + height, border + k * dx : border + k * dx + width] for k in range(1, reach + 1)]
        return torch.stack(steps).amin(0)

    def closing(reach: int, limit: torch.Tensor, pairs: int) -> torch.Tensor:
        both = torch.stack([torch.maximum(along(dy, dx, reach), along(-dy, -dx, reach)) for dy, dx in ((0, 1), (1, 0), (1, 1), (-1, 1))])
        closed = both < limit
        return torch.where(closed.sum(0) >= pairs, torch.where(closed, both, torch.tensor(_FAR)).amin(0), middle)

    leaks = closing(style.leak_reach, middle / (1 + style.leak_gap), style.leak_pairs)
    holes = closing(style.hole_reach, torch.full_like(middle, _FAR), style.hole_pairs)
    return torch.where(middle >= _FAR, holes, leaks)
