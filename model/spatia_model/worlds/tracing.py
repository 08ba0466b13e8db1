# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""Warp functions on whole worlds: the nearest hit of a ray, and the distance to the nearest static body.

A world reaches the kernels as tables of float32 (built in `scene.py`):

* `prims` (P, 4) vec4: [centre, kind], [half size, cos yaw], [sin yaw, material, seed, group], [texture offset, ambient share].
* `groups` (G, 2) vec4: [lower corner, first prim], [upper corner, one past the last prim]: boxes that let a ray skip a whole table.
* `parts` (K, 3) vec4: pieces of moving objects: [half size, kind], [material, seed, mover, 0], [0, 0, 0, bounding radius].

`yaw` turns about the world's y axis (which points down).
"""

# ruff: noqa: UP018  (in Warp float() makes a variable)
from __future__ import annotations

from spatia_model.geometry.warp_runtime import wp
from spatia_model.worlds.shapes import MISS, hit_shape, safe_inverse, shape_distance, to_local

wp.set_module_options({"enable_backward": False, "fast_math": True})


@wp.func
def trace_static(
    o: wp.vec3,
    d: wp.vec3,
    limit: float,
    any_hit: int,
    row: int,
    order: wp.array2d(dtype=int),
    prims: wp.array2d(dtype=wp.vec4),
    groups: wp.array2d(dtype=wp.vec4),
) -> wp.vec2:
    """Nearest static hit within `limit`: (t, prim or -1), over the groups in a row of `order` (its first entry says how many).

    With any_hit the first one found is enough (shadows).
    """
    best = float(limit)
    who = float(-1.0)
    ix = safe_inverse(d[0])
    iy = safe_inverse(d[1])
    iz = safe_inverse(d[2])
    sx = wp.abs(ix)
    sy = wp.abs(iy)
    sz = wp.abs(iz)
    for i in range(order[row, 0]):
        g = order[row, i + 1]
        lo = groups[g, 0]
        hi = groups[g, 1]
        x0 = (lo[0] - o[0]) * ix
        x1 = (hi[0] - o[0]) * ix
        y0 = (lo[1] - o[1]) * iy
        y1 = (hi[1] - o[1]) * iy
        z0 = (lo[2] - o[2]) * iz
        z1 = (hi[2] - o[2]) * iz
        near = wp.max(wp.max(wp.min(x0, x1), wp.min(y0, y1)), wp.min(z0, z1))
        away = wp.min(wp.min(wp.max(x0, x1), wp.max(y0, y1)), wp.max(z0, z1))
        if near <= away and away > 0.0 and near < best:
            for k in range(int(lo[3]), int(hi[3])):
                a = prims[k, 0]
                b = prims[k, 1]
                si = prims[k, 2][0]
                m = wp.vec3(o[0] - a[0], o[1] - a[1], o[2] - a[2])
                t = float(MISS)
                if si == 0.0 and a[3] == 0.0:  # an upright box along the axes: most of them
                    cx = m[0] * ix
                    cy = m[1] * iy
                    cz = m[2] * iz
                    ax = sx * b[0]
                    ay = sy * b[1]
                    az = sz * b[2]
                    into = -wp.min(wp.min(cx + ax, cy + ay), cz + az)
                    out = -wp.max(wp.max(cx - ax, cy - ay), cz - az)
                    if into <= out and into > 0.0:
                        t = into
                else:
                    t = hit_shape(int(a[3]), to_local(m, b[3], si), to_local(d, b[3], si), wp.vec3(b[0], b[1], b[2]))
                if t < best:
                    best = t
                    who = float(k)
            if any_hit == 1 and who >= 0.0:
                break
    return wp.vec2(best, who)


@wp.func
def trace_moving(
    o: wp.vec3,
    d: wp.vec3,
    limit: float,
    frame: int,
    parts: wp.array2d(dtype=wp.vec4),
    where: wp.array2d(dtype=wp.vec3),
    turn: wp.array2d(dtype=wp.quat),
) -> wp.vec2:
    """Nearest hit with a moving part within `limit`: (t, part or -1)."""
    best = float(limit)
    who = float(-1.0)
    a = wp.dot(d, d)
    for k in range(parts.shape[0]):
        m = o - where[frame, k]
        b = wp.dot(m, d)
        bound = parts[k, 2][3]
        if b * b - a * (wp.dot(m, m) - bound * bound) > 0.0:
            q = turn[frame, k]
            h = parts[k, 0]
            t = hit_shape(int(h[3]), wp.quat_rotate_inv(q, m), wp.quat_rotate_inv(q, d), wp.vec3(h[0], h[1], h[2]))
            if t < best:
                best = t
                who = float(k)
    return wp.vec2(best, who)


@wp.func
def static_sdf(p: wp.vec3, limit: float, prims: wp.array2d(dtype=wp.vec4), groups: wp.array2d(dtype=wp.vec4)) -> float:
    """Signed distance to the union of the static bodies, exact below `limit`."""
    best = float(limit)
    for g in range(groups.shape[0]):
        lo = groups[g, 0]
        hi = groups[g, 1]
        x = wp.max(wp.max(lo[0] - p[0], p[0] - hi[0]), 0.0)
        y = wp.max(wp.max(lo[1] - p[1], p[1] - hi[1]), 0.0)
        z = wp.max(wp.max(lo[2] - p[2], p[2] - hi[2]), 0.0)
        near = x * x + y * y + z * z
        if near == 0.0 or (best > 0.0 and near < best * best):
            for k in range(int(lo[3]), int(hi[3])):
                a = prims[k, 0]
                b = prims[k, 1]
                q = to_local(wp.vec3(p[0] - a[0], p[1] - a[1], p[2] - a[2]), b[3], prims[k, 2][0])
                best = wp.min(best, shape_distance(int(a[3]), q, wp.vec3(b[0], b[1], b[2])))
    return best
