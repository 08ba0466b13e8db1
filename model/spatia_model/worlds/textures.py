# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""Procedural textures and sky as Warp functions: analytic, filtered by the pixel's footprint, the same on CPU and GPU.

Every texture maps a point of a surface to an albedo. `u, v` are metres on the surface (v grows downwards on walls), `fp` is the
width of a pixel on the surface in metres: details finer than it fade to their mean, so that nothing flickers.
"""

# ruff: noqa: UP018, SIM109  (in Warp float() makes a variable, and there is no `in`)
from __future__ import annotations

from spatia_model.geometry.warp_runtime import wp

wp.set_module_options({"enable_backward": False, "fast_math": True})

# Texture kinds, as stored in a material's first number.
(
    PLAIN,
    PLASTER,
    BRICK,
    CHECKER,
    PLANK,
    STRIPES,
    MARBLE,
    FABRIC,
    WALLPAPER,
    GRASS,
    COBBLE,
    PICTURE,
    FOLIAGE,
    BOOKS,
    RUG,
    WOOD,
    METAL,
    SIDING,
    BALL,
    SPOTS,
) = range(20)


@wp.func
def hash01(x: int, y: int, s: int) -> float:
    """Uniform in [0, 1) from three integers."""
    h = wp.uint32(x) * wp.uint32(374761393) + wp.uint32(y) * wp.uint32(668265263) + wp.uint32(s) * wp.uint32(974634777)
    h = (h ^ (h >> wp.uint32(13))) * wp.uint32(1274126177)
    h = (h ^ (h >> wp.uint32(15))) * wp.uint32(668265295)
    return float((h ^ (h >> wp.uint32(16))) & wp.uint32(16777215)) * (1.0 / 16777216.0)


@wp.func
def value_noise(u: float, v: float, s: int) -> float:
    """Smooth noise in [-1, 1] with features of size one."""
    fu = wp.floor(u)
    fv = wp.floor(v)
    iu = int(fu)
    iv = int(fv)
    a = u - fu
    b = v - fv
    a = a * a * (3.0 - 2.0 * a)
    b = b * b * (3.0 - 2.0 * b)
    top = wp.lerp(hash01(iu, iv, s), hash01(iu + 1, iv, s), a)
    low = wp.lerp(hash01(iu, iv + 1, s), hash01(iu + 1, iv + 1, s), a)
    return 2.0 * wp.lerp(top, low, b) - 1.0


@wp.func
def fbm(u: float, v: float, s: int, fp: float, octaves: int) -> float:
    """Sum of octaves of noise, about -1..1, each octave fading when it gets finer than the footprint."""
    total = float(0.0)
    amp = float(0.6)
    width = float(fp)
    x = float(u)
    y = float(v)
    for i in range(octaves):
        fade = wp.clamp(1.6 - 2.0 * width, 0.0, 1.0)
        if fade > 0.0:
            total += amp * fade * value_noise(x, y, s + i * 17)
        nx = 1.63 * x - 1.23 * y
        y = 1.23 * x + 1.63 * y
        x = nx
        width *= 2.04
        amp *= 0.55
    return total


@wp.func
def step_to(x: float, fp: float) -> float:
    """1 where x > 0, 0 where x < 0, with an edge as wide as a pixel."""
    return wp.clamp(0.5 + x / wp.max(fp, 1.0e-3), 0.0, 1.0)


@wp.func
def mix3(a: wp.vec3, b: wp.vec3, t: float) -> wp.vec3:
    return a + (b - a) * wp.clamp(t, 0.0, 1.0)


@wp.func
def cells(u: float, v: float, s: int) -> wp.vec3:
    """Voronoi cells of size one: (distance to the nearest centre, margin to the second nearest, id of the cell in 0..1)."""
    iu = int(wp.floor(u))
    iv = int(wp.floor(v))
    d1 = float(9.0)
    d2 = float(9.0)
    who = float(0.0)
    for k in range(9):
        cx = iu + k % 3 - 1
        cy = iv + k // 3 - 1
        dx = float(cx) + hash01(cx, cy, s) - u
        dy = float(cy) + hash01(cx, cy, s + 5) - v
        d = dx * dx + dy * dy
        if d < d1:
            d2 = d1
            d1 = d
            who = hash01(cx, cy, s + 9)
        elif d < d2:
            d2 = d
    return wp.vec3(wp.sqrt(d1), wp.sqrt(d2) - wp.sqrt(d1), who)


@wp.func
def hue_colour(h: float) -> wp.vec3:
    """A muted colour of the given hue in 0..1 (linear light)."""
    r = 0.5 + 0.5 * wp.cos(6.2832 * h)
    g = 0.5 + 0.5 * wp.cos(6.2832 * (h - 0.33))
    b = 0.5 + 0.5 * wp.cos(6.2832 * (h - 0.67))
    return wp.vec3(0.04 + 0.5 * r * r, 0.04 + 0.45 * g * g, 0.04 + 0.45 * b * b)


@wp.func
def painting(x: float, y: float, s: int, fp: float, a: wp.vec3, b: wp.vec3) -> wp.vec3:
    """A picture on [-1, 1]^2: a landscape, circles, a page of text or coloured fields, by seed."""
    what = hash01(s, 3, 11)
    col = wp.vec3(0.0, 0.0, 0.0)
    if what < 0.4:  # landscape with three layers of hills
        col = mix3(a, wp.vec3(0.85, 0.8, 0.7), 0.5 + 0.5 * y)
        sx = x - 1.2 * hash01(s, 1, 2) + 0.6
        sy = y + 0.5
        col = mix3(col, wp.vec3(0.9, 0.75, 0.35), step_to(0.2 - wp.sqrt(sx * sx + sy * sy), fp))
        for k in range(3):
            h = -0.15 + 0.35 * float(k) + 0.3 * fbm(x * 1.3 + 7.0 * float(k), 0.5, s + k, fp, 4)
            hill = b * (1.0 - 0.27 * float(k)) * (1.0 + 0.4 * fbm(x * 5.0, y * 5.0, s, fp * 5.0, 3))
            col = mix3(col, hill, step_to(y - h, fp))
    elif what < 0.7:  # discs over a field
        col = a * (1.0 + 0.3 * fbm(x * 2.0, y * 2.0, s, fp * 2.0, 3))
        for k in range(6):
            dx = x - 1.6 * hash01(s, k, 21) + 0.8
            dy = y - 1.6 * hash01(s, k, 22) + 0.8
            r = 0.15 + 0.35 * hash01(s, k, 23)
            col = mix3(col, mix3(b, hue_colour(hash01(s, k, 24)), 0.6), step_to(r - wp.sqrt(dx * dx + dy * dy), fp))
    elif what < 0.85:  # a page: a headline and lines of words
        col = wp.vec3(0.75, 0.72, 0.64)
        row = wp.floor((y + 1.0) * 7.0)
        fy = (y + 1.0) * 7.0 - row
        word = hash01(int(wp.floor(x * 9.0 + 40.0)), int(row), s)
        if row > 1.0 and wp.abs(x) < 0.75:
            if word > 0.25 and hash01(int(wp.floor(x * 36.0)), int(row), s + 1) > 0.2:
                col = mix3(col, wp.vec3(0.05, 0.05, 0.07), wp.clamp(0.75 * step_to(0.25 - wp.abs(fy - 0.5), fp * 7.0), 0.0, 1.0))
        elif row == 1.0 and wp.abs(x) < 0.6:
            col = mix3(col, b, step_to(0.4 - wp.abs(fy - 0.5), fp * 7.0))
    else:  # fields of colour
        gx = int(wp.floor(x * 2.0 + 0.35 * wp.sin(3.0 * y + float(s % 7))))
        gy = int(wp.floor(y * 2.5))
        col = mix3(hue_colour(hash01(gx, gy, s)), a, 0.3) * (1.0 + 0.25 * fbm(x * 6.0, y * 6.0, s, fp * 6.0, 3))
    return col


@wp.func
def albedo(
    m0: wp.vec4, m1: wp.vec4, m2: wp.vec4, m3: wp.vec4, u: float, v: float, hu: float, hv: float, seed: int, fp: float, q: wp.vec3
) -> wp.vec3:
    """Albedo of a material (see `scene.Material`) at a surface point.

    `hu, hv` are the half sizes of the face in metres, `q` is the unit direction of the point in the body's own frame (balls).
    """
    kind = int(m0[0])
    scale = m0[1]
    contrast = m0[2]
    a = wp.vec3(m1[0], m1[1], m1[2])
    b = wp.vec3(m2[0], m2[1], m2[2])
    c = wp.vec3(m3[0], m3[1], m3[2])
    aspect = m2[3]
    extra = m3[3]
    col = a
    if kind == PLAIN:
        col = a * (1.0 + contrast * fbm(u * 2.0, v * 2.0, seed, fp * 2.0, 3))
    elif kind == PLASTER:
        n = fbm(u * scale, v * scale, seed, fp * scale, 5)
        fine = fbm(u * scale * 9.0, v * scale * 9.0, seed + 3, fp * scale * 9.0, 2)
        col = mix3(a, b, 0.5 + contrast * n) * (1.0 + 0.3 * contrast * fine)
    elif kind == BRICK or kind == CHECKER:
        wide = scale * aspect
        row = wp.floor(v / scale)
        iv = int(row)
        uu = u / wide + extra * float(iv & 1)
        iu = int(wp.floor(uu))
        du = (0.5 - wp.abs(uu - wp.floor(uu) - 0.5)) * wide
        dv = (0.5 - wp.abs(v / scale - row - 0.5)) * scale
        gap = contrast * scale
        far = wp.clamp(fp / scale - 0.35, 0.0, 1.0)
        solid = wp.lerp(step_to(wp.min(du, dv) - gap, fp), 1.0 - 2.0 * contrast, far)
        t = hash01(iu, iv, seed)
        if kind == CHECKER:
            t = float((iu + iv) & 1)
        t = wp.lerp(t, 0.5, far)
        shadeb = 1.0 + 0.22 * (hash01(iu, iv, seed + 7) - 0.5) * (1.0 - far) + 0.16 * fbm(u * 7.0, v * 7.0, seed + 1, fp * 7.0, 3)
        col = mix3(c * (1.0 + 0.2 * fbm(u * 3.0, v * 3.0, seed + 2, fp * 3.0, 2)), mix3(a, b, t) * shadeb, solid)
    elif kind == PLANK:
        row = wp.floor(v / scale)
        iv = int(row)
        length = scale * aspect
        uu = u / length + hash01(iv, 5, seed)
        iu = int(wp.floor(uu))
        du = (0.5 - wp.abs(uu - wp.floor(uu) - 0.5)) * length
        dv = (0.5 - wp.abs(v / scale - row - 0.5)) * scale
        far = wp.clamp(fp / scale - 0.35, 0.0, 1.0)
        shift = float(iv) * 3.7 + float(iu) * 1.3
        grain = fbm(u * 1.6 + shift, v * 26.0 + shift, seed, fp * 14.0, 3)
        solid = wp.lerp(step_to(wp.min(du, dv) - 0.003, fp), 0.96, far)
        col = mix3(a, b, wp.lerp(hash01(iu, iv, seed), 0.5, far) + contrast * grain) * (0.35 + 0.65 * solid)
    elif kind == STRIPES:
        x = u / scale
        d = (wp.abs(x - wp.floor(x) - 0.5) - 0.25) * scale
        far = wp.clamp(fp / scale - 0.4, 0.0, 1.0)
        col = mix3(a, b, wp.lerp(step_to(d, fp), 0.5, far)) * (1.0 + contrast * fbm(u * 4.0, v * 4.0, seed, fp * 4.0, 3))
    elif kind == MARBLE:
        n = fbm(u * scale, v * scale, seed, fp * scale, 5)
        vein = 1.0 - wp.abs(wp.sin((u + 0.6 * v) * scale * 1.7 + 4.5 * n))
        col = mix3(a, b, vein * vein * vein * contrast + 0.2 * n)
    elif kind == FABRIC:
        far = wp.clamp(1.3 - fp * scale * 0.5, 0.0, 1.0)
        weave = wp.sin(u * scale * 3.14159) * wp.sin(v * scale * 3.14159) * far
        n = fbm(u * 6.0, v * 6.0, seed, fp * 6.0, 4)
        col = mix3(a, b, 0.35 + 0.4 * contrast * weave + 0.6 * contrast * n)
    elif kind == WALLPAPER:
        row = wp.floor(v / scale)
        x = u / scale + 0.5 * float(int(row) & 1)
        x = x - wp.floor(x) - 0.5
        y = v / scale - row - 0.5
        r = wp.sqrt(x * x + y * y)
        ang = wp.atan2(y, x)
        edge = aspect * (0.75 + 0.3 * wp.cos(extra * ang))
        far = wp.clamp(fp / scale * 2.5 - 0.5, 0.0, 1.0)
        inside = step_to((edge - r) * scale, fp) - 0.6 * step_to((0.4 * edge - r) * scale, fp)
        col = mix3(a, b, wp.lerp(inside, 0.22, far)) * (1.0 + contrast * fbm(u * 3.0, v * 3.0, seed, fp * 3.0, 3))
    elif kind == GRASS:
        big = fbm(u * 0.5, v * 0.5, seed, fp * 0.5, 3)
        blades = fbm(u * 16.0, v * 5.0, seed + 1, fp * 13.0, 3)
        tufts = fbm(u * 3.5, v * 3.5, seed + 2, fp * 3.5, 3)
        col = mix3(mix3(a, b, 0.5 + 0.9 * tufts + 0.6 * blades), c, 0.25 + 1.1 * big) * (1.0 + contrast * blades)
    elif kind == COBBLE:
        k = cells(u / scale + 0.15 * value_noise(u * 3.0, v * 3.0, seed), v / scale, seed)
        far = wp.clamp(fp / scale * 1.4 - 0.4, 0.0, 1.0)
        solid = wp.lerp(step_to((k[1] - 2.0 * contrast) * scale, fp + 0.15 * scale), 0.8, far)
        n = fbm(u * 5.0, v * 5.0, seed + 4, fp * 5.0, 3)
        col = mix3(c, mix3(a, b, wp.lerp(k[2], 0.5, far)) * (1.0 + 0.3 * n - 0.25 * k[0] * (1.0 - far)), solid)
    elif kind == PICTURE:
        x = u / hu
        y = v / hv
        rim = wp.min(hu - wp.abs(u), hv - wp.abs(v)) - 0.035
        col = painting(x * 1.08, y * 1.08, seed, fp / wp.min(hu, hv), a, b)
        col = mix3(c, col, step_to(rim, fp))
    elif kind == FOLIAGE:
        k = cells(u * scale, v * scale, seed)
        k2 = cells(u * scale * 2.3 + 3.0, v * scale * 2.3, seed + 31)
        far = wp.clamp(fp * scale - 0.3, 0.0, 1.0)
        light = wp.lerp(0.6 * k[2] + 0.7 * k2[2] - 0.7 * k[0] - 0.3 * k2[0] + 0.25, 0.45, far)
        light += 0.3 * fbm(u * 2.0, v * 2.0, seed + 7, fp * 2.0, 2)
        col = mix3(a, b, light) * (0.55 + 0.6 * wp.clamp(light, 0.0, 1.2))
        col = mix3(col, c, extra * step_to(k2[2] - 0.86, 0.05) * (1.0 - far))
    elif kind == BOOKS:
        x = u / scale
        i = int(wp.floor(x + 0.35 * value_noise(x * 0.7, 0.5, seed)))
        h = hash01(i, 1, seed)
        top = (v + hv) / (2.0 * hv)
        far = wp.clamp(fp / scale - 0.5, 0.0, 1.0)
        spine = mix3(hue_colour(hash01(i, 2, seed)), a, 0.35 + 0.4 * hash01(i, 3, seed)) * (0.55 + 0.9 * hash01(i, 4, seed))
        band = step_to(0.035 - wp.abs(top - 0.45 - 0.3 * h), fp)
        spine = mix3(spine, wp.vec3(0.7, 0.65, 0.5), band * 0.7)
        xx = x + 0.35 * value_noise(x * 0.7, 0.5, seed)
        edge = wp.abs(xx - wp.floor(xx) - 0.5)
        spine = spine * (1.0 - 0.6 * step_to(edge - 0.42, fp / scale))
        col = mix3(mix3(spine, c, step_to(0.06 + 0.32 * h - top, fp)), mix3(a, b, 0.5), 0.6 * far)
    elif kind == RUG:
        rim = wp.min(hu - wp.abs(u), hv - wp.abs(v))
        x = wp.abs(u)
        y = wp.abs(v)
        dia = wp.abs(x / hu + y / hv - 0.55)
        ring = wp.sin(wp.sqrt(x * x + y * y) * scale * 6.2832)
        far = wp.clamp(1.5 - fp * scale * 3.0, 0.0, 1.0)
        col = mix3(a, b, step_to(0.12 - dia, fp / hu) + 0.5 * step_to(ring - 0.2, fp * 20.0) * far)
        zig = rim + 0.02 * wp.sin((u + v) * scale * 12.0) * far
        col = mix3(col, c, step_to(0.2 - zig, fp) * step_to(zig - 0.08, fp))
        col = mix3(col, b, step_to(0.04 - rim, fp))
        col = col * (1.0 + contrast * fbm(u * 14.0, v * 14.0, seed, fp * 14.0, 3))
    elif kind == WOOD:
        n = fbm(u * 0.9, v * 7.0, seed, fp * 5.0, 3)
        ring = wp.sin(v * scale + 7.0 * n)
        fine = fbm(u * 4.0, v * 50.0, seed + 3, fp * 30.0, 2)
        col = mix3(a, b, 0.5 + 0.5 * contrast * ring * wp.clamp(1.5 - fp * scale * 0.5, 0.0, 1.0) + contrast * fine)
    elif kind == METAL:
        n = fbm(u * 3.0, v * 60.0, seed, fp * 30.0, 3)
        col = mix3(a, b, 0.5 + contrast * n + 0.4 * wp.sin(u * 5.0 + v * 3.0) * contrast)
    elif kind == SIDING:
        x = v / scale
        row = wp.floor(x)
        f = x - row
        iu = int(wp.floor(u / (scale * aspect) + hash01(int(row), 3, seed)))
        far = wp.clamp(fp / scale - 0.35, 0.0, 1.0)
        t = wp.lerp(hash01(iu, int(row), seed), 0.5, far)
        lip = wp.lerp(1.0 - 0.55 * step_to(f - 0.86, fp / scale) - 0.2 * (1.0 - f), 0.82, far)
        col = mix3(a, b, t) * lip * (1.0 + contrast * fbm(u * 3.0, v * 20.0, seed, fp * 14.0, 3))
    elif kind == BALL:
        ang = wp.atan2(q[2], q[0]) * extra * 0.159155
        d = (wp.abs(ang - wp.floor(ang) - 0.5) - 0.25) * 6.2832 * hu / extra * wp.sqrt(1.0 - q[1] * q[1])
        col = mix3(a, b, step_to(d, fp))
        col = mix3(col, b, step_to(wp.abs(q[1]) - 0.93, fp / hu))
    elif kind == SPOTS:
        d = wp.abs(q[0])
        d = wp.max(d, wp.max(wp.abs(q[1]), wp.abs(q[2])))
        d = wp.max(d, (wp.abs(q[0]) + wp.abs(q[1]) + wp.abs(q[2])) * 0.57735)
        col = mix3(a, b, step_to((d - 0.95) * hu * 3.0, fp))
    return wp.vec3(wp.clamp(col[0], 0.0, 1.0), wp.clamp(col[1], 0.0, 1.0), wp.clamp(col[2], 0.0, 1.0))


@wp.func
def sky(d: wp.vec3, env: wp.array(dtype=wp.vec4), fp: float) -> wp.vec3:
    """Radiance of the sky in direction d (y down): gradient, sun glow, clouds, a line of hills or trees. `fp` is radians per pixel."""
    e0 = env[0]
    e1 = env[1]
    e5 = env[5]
    e6 = env[6]
    seed = int(e6[3])
    up = -d[1]
    t = wp.pow(wp.clamp(up, 0.0, 1.0), 0.5)
    col = mix3(wp.vec3(e1[0], e1[1], e1[2]), wp.vec3(e0[0], e0[1], e0[2]), t)
    if up > 0.02:
        x = d[0] / (up + 0.12) * e1[3]
        z = d[2] / (up + 0.12) * e1[3]
        n = fbm(x, z, seed, fp * e1[3] / (up * up + 0.02), 5)
        cover = wp.clamp((n + e0[3]) * 1.8, 0.0, 1.0) * wp.clamp(up * 5.0, 0.0, 1.0)
        lit = wp.clamp(0.75 + 0.6 * fbm(x + 0.25, z + 0.2, seed + 40, fp * e1[3] / (up * up + 0.02), 3), 0.5, 1.1)
        col = mix3(col, wp.vec3(e6[0], e6[1], e6[2]) * lit, cover)
    l0 = env[8]
    if l0[3] < 0.5:
        glow = wp.clamp(d[0] * l0[0] + d[1] * l0[1] + d[2] * l0[2], 0.0, 1.0)
        col = col + wp.vec3(1.0, 0.85, 0.6) * (0.25 * wp.pow(glow, 24.0) + 3.0 * step_to(glow - 0.9985, 0.001))
    az = wp.atan2(d[2], d[0])
    flat = 1.0 / wp.sqrt(wp.max(d[0] * d[0] + d[2] * d[2], 1.0e-4))
    ridge = e5[3] * (0.6 + 0.5 * fbm(d[0] * flat * 3.0, d[2] * flat * 3.0, seed + 3, fp * 3.0, 5))
    hill = wp.vec3(e5[0], e5[1], e5[2]) * (1.0 + 0.5 * fbm(az * 30.0, up * 30.0, seed + 5, fp * 30.0, 3))
    return mix3(col, hill, step_to(ridge - up, fp))
