# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""Warp functions on single bodies: where a ray meets them, how far away they are, normals and surface coordinates.

Kinds: 0 box, 1 vertical cylinder, 2 cylinder along its own x axis, 3 sphere. All work in the body's own frame.
"""

# ruff: noqa: SIM108, UP018  (Warp compiles these functions: no conditional expressions, and float() makes a variable)
from __future__ import annotations

from spatia_model.geometry.warp_runtime import wp

wp.set_module_options({"enable_backward": False, "fast_math": True})

BOX, CYLINDER, LYING_CYLINDER, SPHERE = range(4)
MISS = wp.constant(1.0e9)


@wp.func
def to_local(p: wp.vec3, co: float, si: float) -> wp.vec3:
    """World direction to the frame of a body turned by yaw about y."""
    return wp.vec3(co * p[0] - si * p[2], p[1], si * p[0] + co * p[2])


@wp.func
def to_world(p: wp.vec3, co: float, si: float) -> wp.vec3:
    return wp.vec3(co * p[0] + si * p[2], p[1], co * p[2] - si * p[0])


@wp.func
def safe_inverse(x: float) -> float:
    y = x
    if wp.abs(x) < 1.0e-9:
        y = 1.0e-9
    return 1.0 / y


@wp.func
def hit_shape(kind: int, o: wp.vec3, d: wp.vec3, h: wp.vec3) -> float:
    """Distance along the ray (in units of d) to a body at the origin of its own frame, or MISS. The origin must be outside."""
    best = float(MISS)
    if kind == 0:
        ix = safe_inverse(d[0])
        iy = safe_inverse(d[1])
        iz = safe_inverse(d[2])
        ax = wp.abs(ix) * h[0]
        ay = wp.abs(iy) * h[1]
        az = wp.abs(iz) * h[2]
        near = wp.max(wp.max(-o[0] * ix - ax, -o[1] * iy - ay), -o[2] * iz - az)
        away = wp.min(wp.min(-o[0] * ix + ax, -o[1] * iy + ay), -o[2] * iz + az)
        if near <= away and near > 0.0:
            best = near
    elif kind == 3:
        a = wp.dot(d, d)
        b = wp.dot(o, d)
        disc = b * b - a * (wp.dot(o, o) - h[0] * h[0])
        if disc > 0.0:
            t = (-b - wp.sqrt(disc)) / a
            if t > 0.0:
                best = t
    else:
        p = o
        e = d
        g = h
        if kind == 2:  # stand it up
            p = wp.vec3(o[1], o[0], o[2])
            e = wp.vec3(d[1], d[0], d[2])
            g = wp.vec3(h[1], h[0], h[2])
        a = e[0] * e[0] + e[2] * e[2]
        b = p[0] * e[0] + p[2] * e[2]
        disc = b * b - a * (p[0] * p[0] + p[2] * p[2] - g[0] * g[0])
        if disc > 0.0 and a > 1.0e-12:
            t = (-b - wp.sqrt(disc)) / a
            if t > 0.0 and wp.abs(p[1] + t * e[1]) < g[1]:
                best = t
        iy = safe_inverse(e[1])
        t = -p[1] * iy - wp.abs(iy) * g[1]
        if t > 0.0 and t < best:
            x = p[0] + t * e[0]
            z = p[2] + t * e[2]
            if x * x + z * z < g[0] * g[0]:
                best = t
    return best


@wp.func
def shape_distance(kind: int, p: wp.vec3, h: wp.vec3) -> float:
    """Signed distance to a body in its own frame (negative inside)."""
    s = float(0.0)
    if kind == 3:
        s = wp.length(p) - h[0]
    elif kind == 0:
        q = wp.vec3(wp.abs(p[0]) - h[0], wp.abs(p[1]) - h[1], wp.abs(p[2]) - h[2])
        m = wp.vec3(wp.max(q[0], 0.0), wp.max(q[1], 0.0), wp.max(q[2], 0.0))
        s = wp.length(m) + wp.min(wp.max(q[0], wp.max(q[1], q[2])), 0.0)
    else:
        r = wp.sqrt(p[0] * p[0] + p[2] * p[2]) - h[0]
        e = wp.abs(p[1]) - h[1]
        if kind == 2:
            r = wp.sqrt(p[1] * p[1] + p[2] * p[2]) - h[1]
            e = wp.abs(p[0]) - h[0]
        m0 = wp.max(r, 0.0)
        m1 = wp.max(e, 0.0)
        s = wp.sqrt(m0 * m0 + m1 * m1) + wp.min(wp.max(r, e), 0.0)
    return s


@wp.func
def shape_normal(kind: int, p: wp.vec3, h: wp.vec3) -> wp.vec3:
    """Outward normal at a point of the surface, in the body's own frame."""
    n = wp.vec3(0.0, 0.0, 0.0)
    if kind == 3:
        n = p / h[0]
    elif kind == 0:
        x = wp.abs(p[0]) - h[0]
        y = wp.abs(p[1]) - h[1]
        z = wp.abs(p[2]) - h[2]
        if x >= y and x >= z:
            n = wp.vec3(wp.sign(p[0]), 0.0, 0.0)
        elif y >= z:
            n = wp.vec3(0.0, wp.sign(p[1]), 0.0)
        else:
            n = wp.vec3(0.0, 0.0, wp.sign(p[2]))
    elif kind == 1:
        r = wp.sqrt(p[0] * p[0] + p[2] * p[2])
        if r - h[0] >= wp.abs(p[1]) - h[1]:
            n = wp.vec3(p[0] / r, 0.0, p[2] / r)
        else:
            n = wp.vec3(0.0, wp.sign(p[1]), 0.0)
    else:
        r = wp.sqrt(p[1] * p[1] + p[2] * p[2])
        if r - h[1] >= wp.abs(p[0]) - h[0]:
            n = wp.vec3(0.0, p[1] / r, p[2] / r)
        else:
            n = wp.vec3(wp.sign(p[0]), 0.0, 0.0)
    return n


@wp.func
def surface_uv(kind: int, p: wp.vec3, n: wp.vec3, h: wp.vec3) -> wp.vec4:
    """Coordinates on the surface in metres and the half sizes of the face: (u, v, hu, hv)."""
    out = wp.vec4(p[0], p[1], h[0], h[1])
    if kind == 0:
        if wp.abs(n[0]) > 0.5:
            out = wp.vec4(p[2] * n[0], p[1], h[2], h[1])
        elif wp.abs(n[1]) > 0.5:
            if h[0] >= h[2]:
                out = wp.vec4(p[0], p[2], h[0], h[2])
            else:
                out = wp.vec4(p[2], p[0], h[2], h[0])
        else:
            out = wp.vec4(-p[0] * n[2], p[1], h[0], h[1])
    elif kind == 3:
        out = wp.vec4(wp.atan2(p[2], p[0]) * h[0], wp.asin(wp.clamp(p[1] / h[0], -1.0, 1.0)) * h[0], h[0], h[0])
    elif kind == 1:
        if wp.abs(n[1]) > 0.5:
            out = wp.vec4(p[0], p[2], h[0], h[0])
        else:
            out = wp.vec4(wp.atan2(p[2], p[0]) * h[0], p[1], 3.14159 * h[0], h[1])
    else:
        if wp.abs(n[0]) > 0.5:
            out = wp.vec4(p[1], p[2], h[1], h[1])
        else:
            out = wp.vec4(p[0], wp.atan2(p[2], p[1]) * h[1], h[0], 3.14159 * h[1])
    return out
