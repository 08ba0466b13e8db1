# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""Warp kernels of `consolidation`: the mean depth of the front surface in each pixel, and the move of its points onto it."""

# ruff: noqa: UP018 - int(0) and float(0.0) declare Warp variables that change; literals are constants

from spatia_model.geometry.splat_kernels import View, to_camera
from spatia_model.geometry.warp_runtime import wp

wp.set_module_options({"enable_backward": False})

_FAR = wp.constant(1.0e29)
_OFFSET_STEPS = wp.constant(8192.0)  # fixed-point steps of a relative depth offset
_WEIGHT_STEPS = wp.constant(64.0)  # fixed-point steps of confidence


@wp.kernel
def nearest(
    entries: wp.array2d[wp.int32],
    starts: wp.array[wp.int32],
    lanes: wp.int32,
    points: wp.array[wp.vec3],
    pose: wp.array3d[wp.float32],
    view: View,
    centre: wp.array3d[wp.float32],  # (T, H, W) out: depth of the nearest point in each pixel
):
    e, lane = wp.tid()
    f = entries[e, 0]
    c = entries[e, 1]
    i = starts[c] + lane
    while i < starts[c + 1]:
        p = to_camera(pose, f, points[i])
        z = p[2]
        if z > view.near:
            x = int(wp.floor(view.fx * p[0] / z + view.cx))
            y = int(wp.floor(view.fy * p[1] / z + view.cy))
            if x >= 0 and y >= 0 and x < view.width and y < view.height:
                wp.atomic_min(centre, f, y, x, z)
        i += lanes


@wp.kernel
def layer_sums(
    entries: wp.array2d[wp.int32],
    starts: wp.array[wp.int32],
    lanes: wp.int32,
    points: wp.array[wp.vec3],
    confidence: wp.array[wp.float32],
    pose: wp.array3d[wp.float32],
    view: View,
    ahead: wp.float32,  # the layer reaches this share of depth in front of its centre
    behind: wp.float32,  # and this share behind
    centre: wp.array3d[wp.float32],  # (T, H, W)
    sums: wp.array4d[wp.int32],  # (T, H, W, 2) out: weights, weighted relative offsets from the centre
):
    e, lane = wp.tid()
    f = entries[e, 0]
    c = entries[e, 1]
    i = starts[c] + lane
    while i < starts[c + 1]:
        p = to_camera(pose, f, points[i])
        z = p[2]
        if z > view.near:
            x = int(wp.floor(view.fx * p[0] / z + view.cx))
            y = int(wp.floor(view.fy * p[1] / z + view.cy))
            if x >= 0 and y >= 0 and x < view.width and y < view.height:
                offset = z / centre[f, y, x] - 1.0
                if offset >= -ahead and offset <= behind:
                    w = int(wp.max(confidence[i] * _WEIGHT_STEPS, 1.0))
                    wp.atomic_add(sums, f, y, x, 0, w)
                    wp.atomic_add(sums, f, y, x, 1, w * int(wp.round(offset * _OFFSET_STEPS)))
        i += lanes


@wp.kernel
def layer_mean(sums: wp.array4d[wp.int32], centre: wp.array3d[wp.float32]):
    f, y, x = wp.tid()
    w = sums[f, y, x, 0]
    if w > 0:
        centre[f, y, x] = centre[f, y, x] * (1.0 + float(sums[f, y, x, 1]) / (float(w) * _OFFSET_STEPS))
    else:
        centre[f, y, x] = 1.0e30
    sums[f, y, x, 0] = 0
    sums[f, y, x, 1] = 0


@wp.kernel
def pull(
    rows: wp.array[wp.int32],  # points to look at
    points: wp.array[wp.vec3],
    radius: wp.array[wp.float32],
    least: wp.float32,  # shorter moves, as shares of the point's radius, are not worth making
    pose: wp.array3d[wp.float32],
    position: wp.array2d[wp.float32],  # (T, 3) camera centres in the world
    view: View,
    tolerance: wp.float32,
    same: wp.float32,  # neighbouring pixels whose depths differ by less than this share are one surface
    centre: wp.array3d[wp.float32],
    out: wp.array[wp.vec3],  # (N, 3)
    moved: wp.array[wp.int32],  # (N,)
):
    i = rows[wp.tid()]
    shift = wp.vec3()
    count = int(0)
    for f in range(centre.shape[0]):
        p = to_camera(pose, f, points[i])
        z = p[2]
        if z > view.near:
            u = view.fx * p[0] / z + view.cx - 0.5
            v = view.fy * p[1] / z + view.cy - 0.5
            x = int(wp.floor(u))
            y = int(wp.floor(v))
            if x >= 0 and y >= 0 and x + 1 < view.width and y + 1 < view.height:
                a = centre[f, y, x]
                b = centre[f, y, x + 1]
                c = centre[f, y + 1, x]
                d = centre[f, y + 1, x + 1]
                low = wp.min(wp.min(a, b), wp.min(c, d))
                high = wp.max(wp.max(a, b), wp.max(c, d))
                if high < _FAR and high < low * (1.0 + same):
                    # inverse depth is linear across a plane's image
                    s = u - float(x)
                    t = v - float(y)
                    inverse = (1.0 - t) * ((1.0 - s) / a + s / b) + t * ((1.0 - s) / c + s / d)
                    scale = 1.0 / (inverse * z)
                    if wp.abs(scale - 1.0) <= tolerance:
                        eye = wp.vec3(position[f, 0], position[f, 1], position[f, 2])
                        shift += (scale - 1.0) * (points[i] - eye)
                        count += 1
    if count > 0:
        shift = shift / float(count)
        if wp.length(shift) > least * radius[i]:
            out[i] = points[i] + shift
            moved[i] = 1
