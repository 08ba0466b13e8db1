# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""Warp kernel behind `pictures.py`: overlapping shapes seen from the front, over leaves, over a background."""

# ruff: noqa: UP018  (in Warp float() makes a variable)
from __future__ import annotations

from spatia_model.geometry.warp_runtime import wp
from spatia_model.worlds.textures import cells, fbm, hash01, mix3

wp.set_module_options({"enable_backward": False, "fast_math": True})


@wp.func
def shape_gap(kind: int, x: float, y: float, rx: float, ry: float) -> float:
    """Roughly the signed distance to a shape at the origin, negative inside: ellipse, box, triangle, ring."""
    out = float(0.0)
    if kind == 0:
        k = wp.sqrt(x * x / (rx * rx) + y * y / (ry * ry))
        out = (k - 1.0) * wp.min(rx, ry)
    elif kind == 1:
        out = wp.max(wp.abs(x) - rx, wp.abs(y) - ry)
    elif kind == 2:
        out = wp.max(wp.max(-y - 0.5 * ry, 0.866 * x + 0.5 * y - 0.5 * rx), -0.866 * x + 0.5 * y - 0.5 * rx)
    else:
        k = wp.sqrt(x * x / (rx * rx) + y * y / (ry * ry))
        out = wp.abs(k - 0.8) * wp.min(rx, ry) - 0.2 * wp.min(rx, ry)
    return out


@wp.func
def pattern(kind: int, u: float, v: float, seed: int, fp: float, scale: float) -> float:
    """A texture around 0, about -1..1, on coordinates in pictures."""
    n = float(0.0)
    if kind == 1:
        n = 1.2 * fbm(u * scale, v * scale, seed, fp * scale, 6)
    elif kind == 2:
        n = 1.3 * fbm(u * scale * 0.25, v * scale * 2.0, seed, fp * scale * 1.2, 5)
    elif kind == 3:
        w = wp.clamp(1.6 - fp * scale * 1.6, 0.0, 1.0)
        n = w * wp.sin(6.2832 * (u * scale + 0.35 * fbm(u * 4.0, v * 4.0, seed, fp * 4.0, 3))) + 0.5 * fbm(
            u * 9.0, v * 9.0, seed, fp * 9.0, 4
        )
    elif kind == 4:
        c = cells(u * scale, v * scale, seed)
        n = wp.clamp(1.6 - fp * scale * 1.4, 0.0, 1.0) * (1.6 * c[2] - 0.8 - 0.9 * wp.clamp(0.3 - c[1] * 2.0, 0.0, 0.3) / 0.3)
        n += 0.4 * fbm(u * scale * 2.0, v * scale * 2.0, seed, fp * scale * 2.0, 3)
    elif kind == 5:
        w = wp.clamp(1.6 - fp * scale * 1.6, 0.0, 1.0)
        n = 0.7 * w * wp.sin(6.2832 * u * scale) * wp.sin(6.2832 * v * scale) + 0.5 * fbm(u * 5.0, v * 5.0, seed, fp * 5.0, 5)
    elif kind == 6:  # rows of words
        row = int(wp.floor(v * scale))
        f = v * scale - wp.floor(v * scale)
        ink = hash01(int(wp.floor(u * scale * 2.7)), row, seed)
        gap = hash01(int(wp.floor(u * scale * 0.8)), row, seed + 1)
        if f > 0.3 and f < 0.75 and ink > 0.35 and gap > 0.2:
            n = -2.0 * wp.clamp(1.8 - fp * scale * 2.7, 0.0, 1.0)
    elif kind == 7:
        n = 0.9 * fbm(u * scale, v * scale, seed, fp * scale, 6)
        n = 1.0 - 2.6 * wp.abs(n)
    return n


@wp.kernel
def picture_kernel(
    shapes: wp.array2d(
        dtype=wp.vec4
    ),  # (N, 4): [x, y, rx, ry], [cos, sin, kind, seed], [rgb, texture strength], [slope rgb, texture kind + scale / 1000]
    ground: wp.array(dtype=wp.vec4),  # 4: [top rgb, seed], [bottom rgb, texture], [leaf rgb dark, leaf scale], [leaf rgb light, cover]
    horizon: float,
    soft: float,
    bend: float,  # how far outlines wander, as in things that grew
    out: wp.array2d(dtype=wp.vec3),
):
    i, j = wp.tid()
    px = 1.0 / float(wp.min(out.shape[0], out.shape[1]))
    x = (float(j) + 0.5) * px
    y = (float(i) + 0.5) * px
    if bend > 0.0:
        x0 = x
        x += bend * fbm(x0 * 4.0, y * 4.0, 77, px * 4.0, 5)
        y += bend * fbm(x0 * 4.0 + 9.0, y * 4.0, 78, px * 4.0, 5)
    col = wp.vec3(0.0, 0.0, 0.0)
    left = float(1.0)
    shade = float(1.0)
    for k in range(shapes.shape[0]):
        s0 = shapes[k, 0]
        s1 = shapes[k, 1]
        dx = x - s0[0]
        dy = y - s0[1]
        reach = wp.max(s0[2], s0[3]) * 1.42 + 0.5 * wp.min(s0[2], s0[3])
        if wp.abs(dx) > reach or wp.abs(dy) > reach:
            continue
        u = s1[0] * dx + s1[1] * dy
        v = s1[0] * dy - s1[1] * dx
        gap = shape_gap(int(s1[2]), u, v, s0[2], s0[3])
        size = wp.min(s0[2], s0[3])
        cover = wp.clamp(0.5 - gap / px, 0.0, 1.0)
        if cover > 0.0:
            s2 = shapes[k, 2]
            s3 = shapes[k, 3]
            what = int(wp.floor(s3[3]))
            scale = (s3[3] - wp.floor(s3[3])) * 1000.0
            base = wp.vec3(s2[0], s2[1], s2[2])
            slope = wp.vec3(s3[0], s3[1], s3[2])
            n = 0.5 * s2[3] * pattern(what, u + 3.0, v + 3.0, int(s1[3]), px, scale)
            here = base + slope * (u / s0[2]) + base * n + wp.vec3(0.15, 0.15, 0.15) * n
            if s1[2] < 0.5:  # round things are darker towards one side
                here = here * (0.8 + 0.35 * wp.clamp(-(dx + dy) / (s0[2] + s0[3]) * 2.0, -1.0, 1.0))
            col += here * (left * cover * shade)
            left *= 1.0 - cover
            if left < 0.02:
                break
        elif gap < size * 0.5:
            shade *= 1.0 - soft * wp.clamp(1.0 - gap / (size * 0.5), 0.0, 1.0)
    if left >= 0.02:
        g0 = ground[0]
        g1 = ground[1]
        g2 = ground[2]
        g3 = ground[3]
        seed = int(g0[3])
        what = int(wp.floor(g1[3]))
        scale = (g1[3] - wp.floor(g1[3])) * 1000.0
        n = 0.5 * pattern(what, x, y, seed, px, scale)
        here = mix3(wp.vec3(g0[0], g0[1], g0[2]), wp.vec3(g1[0], g1[1], g1[2]), y) * (1.0 + 0.7 * n)
        edge = horizon + 0.25 * fbm(x * 3.0, 0.5, seed + 5, px, 5)
        if y > edge and g3[3] > 0.0:
            found = int(0)
            for layer in range(5):  # leaves: ellipses on jittered grids, bright ones in front
                size = g2[3] * (1.0 - 0.12 * float(layer))
                cx = int(wp.floor(x / size))
                cy = int(wp.floor(y / size))
                for k in range(9):
                    if found == 0:
                        ax = cx + k % 3 - 1
                        ay = cy + k // 3 - 1
                        turn = 6.2832 * hash01(ax, ay, seed + 31 * layer)
                        dx = x - (float(ax) + hash01(ax, ay, seed + 31 * layer + 1)) * size
                        dy = y - (float(ay) + hash01(ax, ay, seed + 31 * layer + 2)) * size
                        c = wp.cos(turn)
                        s = wp.sin(turn)
                        u = (c * dx + s * dy) / size
                        v = (c * dy - s * dx) / size
                        r = 1.0 - wp.sqrt(u * u * 1.7 + v * v * 11.0)
                        if r > 0.0 and hash01(ax, ay, seed + 31 * layer + 3) < g3[3]:
                            found = 1
                            light = hash01(ax, ay, seed + 31 * layer + 4)
                            light = light * (1.0 - 0.19 * float(layer)) * (0.75 + 0.6 * wp.clamp(v * 3.0 + 0.3, 0.0, 1.0))
                            light += 0.35 * fbm(x * 5.0, y * 5.0, seed + 9, px * 5.0, 4)
                            here = mix3(wp.vec3(g2[0], g2[1], g2[2]), wp.vec3(g3[0], g3[1], g3[2]), light)
            if found == 0:
                here = wp.vec3(g2[0], g2[1], g2[2]) * (0.45 + 0.3 * fbm(x * 8.0, y * 8.0, seed + 2, px * 8.0, 4))
        col += here * (left * shade)
    out[i, j] = col
