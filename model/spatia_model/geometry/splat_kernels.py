# type: ignore  (Warp compiles the functions of this file; to a type checker they are not Python)
"""Warp kernels that draw points: one source for CPU and GPU. Use them through `spatia_model.geometry.rendering`.

All four work on a list of (frame, chunk) pairs that survived frustum culling; a chunk is a run of consecutive points.
On the CPU a launch is serial; on a GPU `lanes` threads share a chunk. Only order-free operations (minimum, integer sum) meet in
memory, so the picture does not depend on the order of threads.
"""

# ruff: noqa: UP018 - int(0) and float(0.0) declare Warp variables that change; literals are constants

from spatia_model.geometry.warp_runtime import wp

wp.set_module_options({"enable_backward": False})

FAR = wp.constant(1.0e30)
_DISTANCE_STEPS = wp.constant(65536.0)  # fixed-point steps per squared pixel in the nearest-centre key


@wp.struct
class View:
    fx: wp.float32
    fy: wp.float32
    cx: wp.float32
    cy: wp.float32
    width: wp.int32
    height: wp.int32
    near: wp.float32


@wp.func
def to_camera(pose: wp.array3d[wp.float32], f: wp.int32, p: wp.vec3):
    return wp.vec3(
        pose[f, 0, 0] * p[0] + pose[f, 0, 1] * p[1] + pose[f, 0, 2] * p[2] + pose[f, 0, 3],
        pose[f, 1, 0] * p[0] + pose[f, 1, 1] * p[1] + pose[f, 1, 2] * p[2] + pose[f, 1, 3],
        pose[f, 2, 0] * p[0] + pose[f, 2, 1] * p[1] + pose[f, 2, 2] * p[2] + pose[f, 2, 3],
    )


@wp.kernel
def thin_depth(
    entries: wp.array2d[wp.int32],  # (E, 2) frame, chunk
    starts: wp.array[wp.int32],  # (C + 1,)
    lanes: wp.int32,
    points: wp.array[wp.vec3],
    radius: wp.array[wp.float32],
    drawn: wp.array[wp.int32],  # 0: skip the point
    pose: wp.array3d[wp.float32],  # (T, 3, 4) world -> camera
    view: View,
    grow: wp.float32,
    cap: wp.float32,
    depth: wp.array3d[wp.float32],  # (T, H + 2 border, W + 2 border) out: the nearest square's depth
    border: wp.int32,  # pixels drawn around the image, so that its rim has neighbours on both sides
):
    e, lane = wp.tid()
    f = entries[e, 0]
    c = entries[e, 1]
    i = starts[c] + lane
    while i < starts[c + 1]:
        if drawn[i] != 0:
            p = to_camera(pose, f, points[i])
            z = p[2]
            if z > view.near:
                u = view.fx * p[0] / z + view.cx
                v = view.fy * p[1] / z + view.cy
                r = wp.clamp(grow * view.fx * radius[i] / z, 0.5, cap)
                u = u + float(border)
                v = v + float(border)
                if u + r > 0.0 and v + r > 0.0 and u - r < float(depth.shape[2]) and v - r < float(depth.shape[1]):
                    x0 = wp.max(int(wp.ceil(u - r - 0.5)), 0)
                    x1 = wp.min(int(wp.floor(u + r - 0.5)), depth.shape[2] - 1)
                    y0 = wp.max(int(wp.ceil(v - r - 0.5)), 0)
                    y1 = wp.min(int(wp.floor(v + r - 0.5)), depth.shape[1] - 1)
                    for y in range(y0, y1 + 1):
                        for x in range(x0, x1 + 1):
                            if z < depth[f, y, x]:
                                wp.atomic_min(depth, f, y, x, z)
        i += lanes


@wp.func
def _nearest_along(depth: wp.array3d[wp.float32], f: wp.int32, y: wp.int32, x: wp.int32, dy: wp.int32, dx: wp.int32, reach: wp.int32):
    height = depth.shape[1]
    width = depth.shape[2]
    z = float(FAR)
    for k in range(1, reach + 1):
        yy = y + dy * k
        xx = x + dx * k
        if yy >= 0 and yy < height and xx >= 0 and xx < width:
            z = wp.min(z, depth[f, yy, xx])
    return z


@wp.kernel
def close_gaps(
    frame_first: wp.int32,
    padded: wp.array3d[wp.float32],  # (T, H + 2 border, W + 2 border) in
    border: wp.int32,
    hole_reach: wp.int32,
    leak_reach: wp.int32,
    hole_pairs: wp.int32,
    leak_pairs: wp.int32,
    leak_gap: wp.float32,
    layer: wp.array3d[wp.float32],  # (T, H, W) out: the depth that may be drawn at each pixel
):
    frame, y, x = wp.tid()
    f = frame + frame_first
    z = padded[f, y + border, x + border]
    reach = leak_reach
    needed = leak_pairs
    limit = z / (1.0 + leak_gap)
    if z >= FAR:
        reach = hole_reach
        needed = hole_pairs
        limit = FAR
    found = int(0)
    nearest = float(FAR)
    for d in range(4):
        dx = int(1)
        dy = int(0)
        if d == 1:
            dx = 0
            dy = 1
        elif d == 2:
            dy = 1
        elif d == 3:
            dy = -1
        ahead = _nearest_along(padded, f, y + border, x + border, dy, dx, reach)
        both = wp.max(ahead, _nearest_along(padded, f, y + border, x + border, -dy, -dx, reach))
        if both < limit:
            found += 1
            nearest = wp.min(nearest, both)
    if found >= needed:
        layer[f, y, x] = nearest
    else:
        layer[f, y, x] = z


@wp.kernel
def nearest_centre(
    entries: wp.array2d[wp.int32],
    starts: wp.array[wp.int32],
    lanes: wp.int32,
    points: wp.array[wp.vec3],
    radius: wp.array[wp.float32],
    drawn: wp.array[wp.int32],
    pose: wp.array3d[wp.float32],
    view: View,
    grow: wp.float32,
    cap: wp.float32,
    tolerance: wp.float32,  # layer thickness as a share of depth, beside the point's own size
    layer: wp.array3d[wp.float32],
    blend: wp.float32,
    winner: wp.array3d[wp.int64],  # (T, H, W) out: squared distance to the pixel's centre << 32 | point
    colors: wp.array2d[wp.uint8],
    sums: wp.array4d[wp.int32],
):
    e, lane = wp.tid()
    f = entries[e, 0]
    c = entries[e, 1]
    i = starts[c] + lane
    while i < starts[c + 1]:
        if drawn[i] != 0:
            p = to_camera(pose, f, points[i])
            z = p[2]
            if z > view.near:
                u = view.fx * p[0] / z + view.cx
                v = view.fy * p[1] / z + view.cy
                r = wp.clamp(grow * view.fx * radius[i] / z, 0.5, cap)
                if u + r > 0.0 and v + r > 0.0 and u - r < float(view.width) and v - r < float(view.height):
                    x0 = wp.max(int(wp.ceil(u - r - 0.5)), 0)
                    x1 = wp.min(int(wp.floor(u + r - 0.5)), view.width - 1)
                    y0 = wp.max(int(wp.ceil(v - r - 0.5)), 0)
                    y1 = wp.min(int(wp.floor(v + r - 0.5)), view.height - 1)
                    thickness = tolerance * z + 2.0 * radius[i]
                    rb = wp.max(blend * view.fx * radius[i] / z, 0.75)
                    inv = 1.0 / (rb * rb)
                    for y in range(y0, y1 + 1):
                        dy = float(y) + 0.5 - v
                        for x in range(x0, x1 + 1):
                            if wp.abs(z - layer[f, y, x]) <= thickness:
                                dx = float(x) + 0.5 - u
                                key = (wp.int64((dx * dx + dy * dy) * _DISTANCE_STEPS) << wp.int64(32)) | wp.int64(i)
                                if key < winner[f, y, x]:
                                    wp.atomic_min(winner, f, y, x, key)
                                w = wp.max(1.0 - (dx * dx + dy * dy) * inv, 0.0)
                                w = w * w * 1024.0
                                if w > 1.0:
                                    wi = int(w)
                                    wp.atomic_add(sums, f, y, x, 0, wi)
                                    for k in range(3):
                                        wp.atomic_add(sums, f, y, x, k + 1, wi * int(colors[i, k]))
        i += lanes


@wp.kernel
def resolve(
    frame_first: wp.int32,
    points: wp.array[wp.vec3],
    colors: wp.array2d[wp.uint8],
    pose: wp.array3d[wp.float32],
    empty: wp.int64,
    winner: wp.array3d[wp.int64],
    sums: wp.array4d[wp.int32],
    rgb: wp.array4d[wp.uint8],
    depth: wp.array3d[wp.float32],
    index: wp.array3d[wp.int32],
):
    frame, y, x = wp.tid()
    f = frame + frame_first
    key = winner[f, y, x]
    if key == empty:
        index[f, y, x] = -1
        depth[f, y, x] = 0.0
        for k in range(3):
            rgb[f, y, x, k] = wp.uint8(0)
    else:
        i = wp.int32(key & wp.int64(0x7FFFFFFF))
        index[f, y, x] = i
        depth[f, y, x] = to_camera(pose, f, points[i])[2]
        for k in range(3):
            if sums[f, y, x, 0] > 0:
                rgb[f, y, x, k] = wp.uint8((sums[f, y, x, k + 1] + sums[f, y, x, 0] / 2) / sums[f, y, x, 0])
            else:
                rgb[f, y, x, k] = colors[i, k]


@wp.kernel
def look_through(
    entries: wp.array2d[wp.int32],
    starts: wp.array[wp.int32],
    lanes: wp.int32,
    points: wp.array[wp.vec3],
    radius: wp.array[wp.float32],
    pose: wp.array3d[wp.float32],
    view: View,
    free: wp.array3d[wp.float32],  # (T, H, W) depth up to which the ray is known to be free, 0 where nothing is known
    weight: wp.array3d[wp.float32],  # (T, H, W) how sure that is, 0..1
    margin: wp.float32,
    penalty: wp.array[wp.int32],  # (N,) out: sum of weights of the frames that look through the point, in 1/256
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
            if x >= 0 and y >= 0 and x < view.width and y < view.height:  # noqa: SIM102
                if z < free[f, y, x] * (1.0 - margin) - 2.0 * radius[i]:
                    wp.atomic_add(penalty, i, wp.int32(weight[f, y, x] * 256.0))
        i += lanes
