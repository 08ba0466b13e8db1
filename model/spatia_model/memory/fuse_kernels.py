# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""Warp kernels of `PointMemory.fuse`: voxel keys, averages per voxel, and the merge of two sorted maps.

Every output has one thread that reads its inputs in a fixed order, so results do not depend on the order of threads.
The key's layout is `voxel_keys`'.
"""

# ruff: noqa: UP018 - int(0) and float(0.0) declare Warp variables that change; literals are constants

from spatia_model.geometry.warp_runtime import wp

wp.set_module_options({"enable_backward": False})

_HALF = wp.constant(1 << 19)
_TOP_LEVEL = wp.constant(7)


@wp.func
def _cell(x: wp.float32, side: wp.float64):
    return wp.int64(wp.clamp(wp.int32(wp.floor(wp.float64(x) / side)), -_HALF, _HALF - 1) + _HALF)


@wp.kernel
def voxel_key(
    points: wp.array[wp.vec3],
    footprint: wp.array[wp.float32],
    weight: wp.array[wp.float32],
    voxel: wp.float64,
    key: wp.array[wp.int64],  # (N,) out; the largest int64 where the point is not to be fused
):
    i = wp.tid()
    if weight[i] > 0.0:
        level = wp.int32(0)
        side = voxel
        while level < _TOP_LEVEL and 2.0 * float(side) <= footprint[i]:
            side = side * wp.float64(2.0)
            level += 1
        p = points[i]
        x = _cell(p[0], side)
        y = _cell(p[1], side)
        z = _cell(p[2], side)
        low = wp.int64(15)
        four = wp.int64(4)
        k = wp.int64(level) << wp.int64(60)
        k = k | ((x >> four) << wp.int64(44)) | ((y >> four) << wp.int64(28)) | ((z >> four) << wp.int64(12))
        key[i] = k | ((x & low) << wp.int64(8)) | ((y & low) << four) | (z & low)
    else:
        key[i] = wp.int64(0x7FFFFFFFFFFFFFFF)


@wp.kernel
def average(
    order: wp.array[wp.int64],  # (N,) rows by key
    starts: wp.array[wp.int64],  # (S + 1,)
    points: wp.array[wp.vec3],
    colors: wp.array2d[wp.uint8],
    weight: wp.array[wp.float32],
    footprint: wp.array[wp.float32],
    voxel: wp.float32,
    position: wp.array[wp.vec3],  # (S,) out
    color: wp.array[wp.vec3],  # (S,) out, 0..255
    evidence: wp.array[wp.float32],  # (S,) out
):
    s = wp.tid()
    origin = points[wp.int32(order[wp.int32(starts[s])])]  # offsets stay small, so float32 sums stay exact enough far from the origin
    total = float(0.0)
    gathered = float(0.0)
    p = wp.vec3()
    c = wp.vec3()
    for j in range(wp.int32(starts[s]), wp.int32(starts[s + 1])):
        i = wp.int32(order[j])
        w = weight[i]
        total += w
        share = wp.min(footprint[i] / voxel, 1.0)
        gathered += w * share * share
        p += w * (points[i] - origin)
        c += w * wp.vec3(float(colors[i, 0]), float(colors[i, 1]), float(colors[i, 2]))
    position[s] = origin + p / total
    color[s] = c / total
    evidence[s] = gathered


@wp.kernel
def place_old(
    shift: wp.array[wp.int64],  # (N,) how many new voxels come before each old one
    keys: wp.array[wp.int64],
    position: wp.array[wp.vec3],
    colors: wp.array2d[wp.uint8],
    confidence: wp.array[wp.float32],
    last_seen: wp.array[wp.int32],
    out_keys: wp.array[wp.int64],
    out_position: wp.array[wp.vec3],
    out_colors: wp.array2d[wp.uint8],
    out_confidence: wp.array[wp.float32],
    out_last_seen: wp.array[wp.int32],
):
    i = wp.tid()
    o = i + wp.int32(shift[i])
    out_keys[o] = keys[i]
    out_position[o] = position[i]
    for k in range(3):
        out_colors[o, k] = colors[i, k]
    out_confidence[o] = confidence[i]
    out_last_seen[o] = last_seen[i]


@wp.kernel
def place_new(
    row: wp.array[wp.int64],  # (S,) row in the output
    known: wp.array[wp.bool],  # (S,) the output row already holds this voxel
    keys: wp.array[wp.int64],
    position: wp.array[wp.vec3],
    color: wp.array[wp.vec3],
    evidence: wp.array[wp.float32],
    most: wp.float32,
    step: wp.int32,
    out_keys: wp.array[wp.int64],
    out_position: wp.array[wp.vec3],
    out_colors: wp.array2d[wp.uint8],
    out_confidence: wp.array[wp.float32],
    out_last_seen: wp.array[wp.int32],
):
    s = wp.tid()
    o = wp.int32(row[s])
    e = evidence[s]
    p = position[s]
    c = color[s]
    if known[s]:
        before = out_confidence[o]
        share = e / (e + before)
        p = out_position[o] + share * (p - out_position[o])
        old = wp.vec3(float(out_colors[o, 0]), float(out_colors[o, 1]), float(out_colors[o, 2]))
        c = old + share * (c - old)
        e = e + before
    out_keys[o] = keys[s]
    out_position[o] = p
    for k in range(3):
        out_colors[o, k] = wp.uint8(wp.clamp(c[k] + 0.5, 0.0, 255.0))
    out_confidence[o] = wp.min(e, most)
    out_last_seen[o] = step
