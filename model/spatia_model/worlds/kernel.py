# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""The ray-caster and the distance field: two Warp kernels, the same source on CPU and GPU. Tables: see `tracing.py` and `scene.py`."""

# ruff: noqa: UP018  (in Warp float() makes a variable)
from __future__ import annotations

from spatia_model.geometry.warp_runtime import wp
from spatia_model.worlds.shapes import MISS, hit_shape, shape_normal, surface_uv, to_local, to_world
from spatia_model.worlds.textures import albedo, sky
from spatia_model.worlds.tracing import static_sdf, trace_moving, trace_static

wp.set_module_options({"enable_backward": False, "fast_math": True})

FAR = 50.0  # metres: the depth of the sky
FAR_ = wp.constant(50.0)


@wp.kernel
def distance_kernel(
    points: wp.array(dtype=wp.vec3),
    limit: float,
    prims: wp.array2d(dtype=wp.vec4),
    groups: wp.array2d(dtype=wp.vec4),
    out: wp.array(dtype=float),
):
    i = wp.tid()
    out[i] = static_sdf(points[i], limit, prims, groups)


@wp.func
def tone(c: wp.vec3, env: wp.array(dtype=wp.vec4)) -> wp.vec3:
    """Radiance to display values in 0..1: exposure and white balance, a soft shoulder, gamma 2, saturation, contrast."""
    e = env[4]
    k = env[7]
    r = wp.sqrt(1.0 - wp.exp(-c[0] * e[0]))
    g = wp.sqrt(1.0 - wp.exp(-c[1] * e[1]))
    b = wp.sqrt(1.0 - wp.exp(-c[2] * e[2]))
    grey = 0.3 * r + 0.59 * g + 0.11 * b
    r = grey + (r - grey) * e[3]
    g = grey + (g - grey) * e[3]
    b = grey + (b - grey) * e[3]
    return wp.vec3(
        wp.clamp((r - 0.5) * k[0] + 0.5, 0.0, 1.0), wp.clamp((g - 0.5) * k[0] + 0.5, 0.0, 1.0), wp.clamp((b - 0.5) * k[0] + 0.5, 0.0, 1.0)
    )


@wp.kernel
def render_kernel(
    first: int,  # frame that tid 0 stands for
    refine: int,  # 0: the centre ray of every pixel; n: n x n rays where the first pass found an edge
    poses: wp.array(dtype=wp.mat44),
    intrinsics: wp.vec4,
    prims: wp.array2d(dtype=wp.vec4),
    groups: wp.array2d(dtype=wp.vec4),
    order: wp.array2d(dtype=int),
    mats: wp.array2d(dtype=wp.vec4),
    env: wp.array(dtype=wp.vec4),
    parts: wp.array2d(dtype=wp.vec4),
    where: wp.array2d(dtype=wp.vec3),
    turn: wp.array2d(dtype=wp.quat),
    threshold: float,
    color: wp.array3d(dtype=wp.vec3),
    lights: wp.array4d(dtype=wp.vec3),
    ident: wp.array3d(dtype=int),
    depth: wp.array3d(dtype=float),
    rgb: wp.array4d(dtype=wp.uint8),
):
    f0, y, x = wp.tid()
    f = f0 + first
    n = int(1)
    same = int(0)  # all neighbours show the same face, only its texture changes
    relight = int(1)  # light changes across the pixel, or is not known yet
    if refine > 0:
        me = ident[f, y, x]
        mine = color[f, y, x]
        bright = lights[f, y, x, 0]
        limit = 0.04 + 0.12 * (bright[0] + bright[1] + bright[2])
        differs = int(0)
        same = 1
        relight = 0
        for k in range(4):
            xx = wp.clamp(x + (1 - k // 2) * (1 - 2 * (k % 2)), 0, ident.shape[2] - 1)
            yy = wp.clamp(y + (k // 2) * (1 - 2 * (k % 2)), 0, ident.shape[1] - 1)
            other = color[f, yy, xx]
            gap = wp.max(wp.abs(other[0] - mine[0]), wp.max(wp.abs(other[1] - mine[1]), wp.abs(other[2] - mine[2])))
            if ident[f, yy, xx] != me:
                differs = 1
                same = 0
            else:
                lamp = lights[f, yy, xx, 0]
                if wp.abs(lamp[0] - bright[0]) + wp.abs(lamp[1] - bright[1]) + wp.abs(lamp[2] - bright[2]) > limit:
                    relight = 1
            if gap > threshold:
                differs = 1
        n = refine * refine * differs
        if me < 8 or me >= (1 << 20):
            same = 0
    pose = poses[f]
    o = wp.vec3(pose[0, 3], pose[1, 3], pose[2, 3])
    total = wp.vec3(0.0, 0.0, 0.0)
    for s in range(n):
        px = float(x) + 0.5
        py = float(y) + 0.5
        if refine > 0:
            px = float(x) + (float(s % refine) + 0.5) / float(refine)
            py = float(y) + (float(s // refine) + 0.5) / float(refine)
        cx = (px - intrinsics[2]) / intrinsics[0]
        cy = (py - intrinsics[3]) / intrinsics[1]
        # z of the ray in the camera is one, so t is z-depth
        d = wp.vec3(
            pose[0, 0] * cx + pose[0, 1] * cy + pose[0, 2],
            pose[1, 0] * cx + pose[1, 1] * cy + pose[1, 2],
            pose[2, 0] * cx + pose[2, 1] * cy + pose[2, 2],
        )
        stretch = wp.length(d)
        pixel = 1.0 / (intrinsics[0] * stretch)
        hit = wp.vec2(float(MISS), -1.0)
        if same == 1:  # most likely the face that the centre shows
            k = ident[f, y, x] / 8 - 1
            a4 = prims[k, 0]
            b4 = prims[k, 1]
            si = prims[k, 2][0]
            m = to_local(wp.vec3(o[0] - a4[0], o[1] - a4[1], o[2] - a4[2]), b4[3], si)
            hit = wp.vec2(hit_shape(int(a4[3]), m, to_local(d, b4[3], si), wp.vec3(b4[0], b4[1], b4[2])), float(k))
        if hit[0] > FAR_:
            hit = trace_static(o, d, FAR_, 0, f, order, prims, groups)
        moving = trace_moving(o, d, hit[0], f, parts, where, turn)
        t = moving[0]
        code = int(0)
        lit = wp.vec3(0.0, 0.0, 0.0)
        if hit[1] < 0.0 and moving[1] < 0.0:
            lit = sky(d / stretch, env, pixel)
        else:
            p = o + d * t
            nl = wp.vec3(0.0, 0.0, 0.0)
            n_world = wp.vec3(0.0, 0.0, 0.0)
            tex = wp.vec3(0.0, 0.0, 0.0)
            h = wp.vec3(0.0, 0.0, 0.0)
            kind = int(0)
            mat = int(0)
            seed = int(0)
            share = float(1.0)
            q = wp.vec3(0.0, 0.0, 1.0)
            if moving[1] >= 0.0:
                k = int(moving[1])
                b4 = parts[k, 0]
                c4 = parts[k, 1]
                h = wp.vec3(b4[0], b4[1], b4[2])
                kind = int(b4[3])
                tex = wp.quat_rotate_inv(turn[f, k], p - where[f, k])
                nl = shape_normal(kind, tex, h)
                n_world = wp.quat_rotate(turn[f, k], nl)
                mat = int(c4[0])
                seed = int(c4[1])
                q = wp.normalize(tex)
                code = 1 << 20
                code += int(c4[2])
            else:
                k = int(hit[1])
                a4 = prims[k, 0]
                b4 = prims[k, 1]
                c4 = prims[k, 2]
                d4 = prims[k, 3]
                h = wp.vec3(b4[0], b4[1], b4[2])
                kind = int(a4[3])
                local = to_local(wp.vec3(p[0] - a4[0], p[1] - a4[1], p[2] - a4[2]), b4[3], c4[0])
                nl = shape_normal(kind, local, h)
                n_world = to_world(nl, b4[3], c4[0])
                tex = local + wp.vec3(d4[0], d4[1], d4[2])
                mat = int(c4[1])
                seed = int(c4[2])
                share = d4[3]
                code = 8 * k + int(wp.abs(nl[1]) > 0.5) + 2 * int(wp.abs(nl[0]) > 0.5) + 8
            uv = surface_uv(kind, tex, nl, h)
            facing = wp.max(-wp.dot(n_world, d) / stretch, 0.05)
            fp = t * stretch * pixel / wp.sqrt(facing)
            m1 = mats[mat, 1]
            base = albedo(mats[mat, 0], m1, mats[mat, 2], mats[mat, 3], uv[0], uv[1], uv[2], uv[3], seed, fp, q)
            gloss = mats[mat, 0][3]
            light = wp.vec3(0.0, 0.0, 0.0)
            shine = wp.vec3(0.0, 0.0, 0.0)
            known = int(0)
            if relight == 0:  # the centre or a neighbour shows this face: take its light
                for k in range(5):
                    xx = wp.clamp(x + (k % 2) * (k - 2), 0, ident.shape[2] - 1)
                    yy = wp.clamp(y + (1 - k % 2) * (k - 3) * int(k > 0), 0, ident.shape[1] - 1)
                    if known == 0 and ident[f, yy, xx] == code:
                        light = lights[f, yy, xx, 0]
                        shine = lights[f, yy, xx, 1]
                        known = 1
            if known == 0:
                # contact darkening: how far away is the next surface, a hand's breadth off this one
                open = wp.clamp(static_sdf(p + n_world * 0.3, 0.3, prims, groups) / 0.3, 0.0, 1.0)
                ao = 1.0 - env[2][3] * 0.85 * (1.0 - open) * (1.0 - 0.4 * open)
                for k in range(parts.shape[0]):
                    w = where[f, k] - p
                    r = wp.min(parts[k, 0][1], parts[k, 0][0])
                    l2 = wp.dot(w, w)
                    if l2 < 9.0 * r * r and l2 > 1.1 * r * r:
                        ao *= 1.0 - 0.8 * wp.clamp(wp.dot(n_world, w) / wp.sqrt(l2), 0.0, 1.0) * wp.clamp(r * r / l2 - 0.1, 0.0, 1.0)
                side = 0.5 - 0.5 * n_world[1]
                up = wp.vec3(env[2][0], env[2][1], env[2][2])
                down = wp.vec3(env[3][0], env[3][1], env[3][2])
                light = (up * side + down * (1.0 - side)) * ao * share
                start = p + n_world * 0.004
                for i in range(int(env[7][3])):
                    l0 = env[8 + 2 * i]
                    l1 = env[9 + 2 * i]
                    to = wp.vec3(l0[0], l0[1], l0[2])
                    power = float(1.0)
                    reach = float(FAR_)
                    hide = float(0.0)
                    if l0[3] > 0.5:
                        to = to - p
                        reach = wp.length(to)
                        to = to / reach
                        hide = wp.min(0.3, 0.9 * reach)  # the light sits in its bulb, which must not darken the room
                        power = 1.0 / (1.0 + reach * reach * 0.18)
                    lam = wp.dot(n_world, to)
                    if lam > 0.0:
                        dark = float(0.0)
                        if l1[3] > 0.5:
                            blocked = trace_static(start, to, reach - hide, 1, poses.shape[0], order, prims, groups)
                            if blocked[1] >= 0.0:
                                dark = 1.0
                            else:
                                blocked = trace_moving(start, to, reach - hide, f, parts, where, turn)
                                if blocked[1] >= 0.0:
                                    dark = 1.0
                        amount = power * (1.0 - dark)
                        light += wp.vec3(l1[0], l1[1], l1[2]) * (lam * amount * (0.6 + 0.4 * ao))
                        if gloss > 0.0:
                            half = wp.normalize(to - d / stretch)
                            spec = wp.pow(wp.max(wp.dot(half, n_world), 0.0), 8.0 + 60.0 * gloss)
                            shine += wp.vec3(l1[0], l1[1], l1[2]) * (gloss * spec * amount)
                if gloss > 0.0:  # a hint of the sky or the ceiling in what shines
                    shine += up * (gloss * (0.04 + 0.5 * wp.pow(1.0 - facing, 5.0)) * ao)
            if refine == 0:
                lights[f, y, x, 0] = light
                lights[f, y, x, 1] = shine
            glow = m1[3]
            lit = wp.vec3(base[0] * (light[0] + glow), base[1] * (light[1] + glow), base[2] * (light[2] + glow)) + shine
            haze = 1.0 - wp.exp(-env[3][3] * t * stretch)
            lit = lit * (1.0 - haze) + wp.vec3(env[1][0], env[1][1], env[1][2]) * haze
        edge = wp.vec2(px / float(color.shape[2]) - 0.5, py / float(color.shape[1]) - 0.5)
        total += tone(lit * (1.0 - env[7][1] * wp.dot(edge, edge)), env)
        if refine == 0:
            ident[f, y, x] = code
            depth[f, y, x] = t
    if n > 0:
        total = total / float(n)
        if refine == 0:
            color[f, y, x] = total
        rgb[f, y, x, 0] = wp.uint8(total[0] * 255.0 + 0.5)
        rgb[f, y, x, 1] = wp.uint8(total[1] * 255.0 + 0.5)
        rgb[f, y, x, 2] = wp.uint8(total[2] * 255.0 + 0.5)
