"""Rigid motions as 4x4 matrices, batched over leading dimensions.

A transform is named after both its frames: `T_a_b` takes points from frame b to frame a. Twists are
`[tx, ty, tz, rx, ry, rz]`: translation in metres first, then the rotation vector in radians.
Formulas: Eade, "Lie Groups for 2D and 3D Transformations" (2017).
"""

from __future__ import annotations

import torch

_SMALL_ANGLE = 1e-4  # below it the series are more exact than the closed forms, in float64


def _check(T: torch.Tensor, name: str = "T") -> None:
    if T.ndim < 2 or T.shape[-2:] != (4, 4):
        raise ValueError(f"{name} has shape {tuple(T.shape)}; expected (..., 4, 4), one homogeneous matrix per pose")


def inverse(T_a_b: torch.Tensor) -> torch.Tensor:
    """T_b_a of rigid `T_a_b` (..., 4, 4). Exact for a rigid matrix, and cheaper than a general inverse."""
    _check(T_a_b, "T_a_b")
    R_b_a = T_a_b[..., :3, :3].transpose(-1, -2)
    T_b_a = torch.zeros_like(T_a_b)
    T_b_a[..., :3, :3] = R_b_a
    T_b_a[..., :3, 3] = -(R_b_a @ T_a_b[..., :3, 3:])[..., 0]
    T_b_a[..., 3, 3] = 1
    return T_b_a


def _hat(w: torch.Tensor) -> torch.Tensor:
    """(..., 3) -> (..., 3, 3) cross-product matrix."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*w.shape[:-1], 3, 3)


def _coefficients(angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """sin(a)/a, (1-cos a)/a^2, (a-sin a)/a^3, with series near zero."""
    small = angle < _SMALL_ANGLE
    safe = torch.where(small, torch.ones_like(angle), angle)
    square = angle * angle
    a = torch.where(small, 1 - square / 6, torch.sin(safe) / safe)
    b = torch.where(small, 0.5 - square / 24, (1 - torch.cos(safe)) / safe**2)
    c = torch.where(small, 1 / 6 - square / 120, (safe - torch.sin(safe)) / safe**3)
    return a, b, c


def exp(twist: torch.Tensor) -> torch.Tensor:
    """Twist (..., 6) `[tx, ty, tz, rx, ry, rz]` -> transform (..., 4, 4)."""
    if twist.ndim < 1 or twist.shape[-1] != 6:
        raise ValueError(f"twist has shape {tuple(twist.shape)}; expected (..., 6): tx, ty, tz (m), rx, ry, rz (rad)")
    t, w = twist[..., :3], twist[..., 3:]
    a, b, c = (k[..., None, None] for k in _coefficients(w.norm(dim=-1)))
    W = _hat(w)
    W2 = W @ W
    eye = torch.eye(3, dtype=twist.dtype, device=twist.device)
    T = torch.zeros(*twist.shape[:-1], 4, 4, dtype=twist.dtype, device=twist.device)
    T[..., :3, :3] = eye + a * W + b * W2
    T[..., :3, 3] = ((eye + b * W + c * W2) @ t[..., None])[..., 0]
    T[..., 3, 3] = 1
    return T


def _quaternion(R: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) -> (..., 4) unit quaternion (w, x, y, z), w >= 0; the largest component leads, so it is stable everywhere."""
    m = R.unbind(-2)
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in m)
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20], -1),
            torch.stack([m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )  # (..., 4, 4): each row is the quaternion times 4 times one of its components
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


def log(T: torch.Tensor) -> torch.Tensor:
    """Transform (..., 4, 4) -> twist (..., 6), rotation angle in [0, pi]. Inverse of `exp`."""
    _check(T)
    q = _quaternion(T[..., :3, :3])
    v_norm = q[..., 1:].norm(dim=-1)
    angle = 2 * torch.atan2(v_norm, q[..., 0])
    small = v_norm < _SMALL_ANGLE
    scale = torch.where(small, 2 + v_norm**2 / 3, angle / torch.where(small, torch.ones_like(v_norm), v_norm))
    w = q[..., 1:] * scale[..., None]
    a, b, _ = _coefficients(angle)
    # V^-1 = I - W/2 + d W^2 with d = (1 - a / (2b)) / angle^2
    tiny = angle < 1e-2  # cancellation in 1 - a/(2b): the series' error (angle^4 / 30240) is below 1e-12 here
    safe = torch.where(tiny, torch.ones_like(angle), angle)
    d = torch.where(tiny, 1 / 12 + angle**2 / 720, (1 - a / (2 * b)) / safe**2)
    W = _hat(w)
    eye = torch.eye(3, dtype=T.dtype, device=T.device)
    t = (eye - 0.5 * W + d[..., None, None] * (W @ W)) @ T[..., :3, 3:]
    return torch.cat([t[..., 0], w], -1)


def transform_points(T_a_b: torch.Tensor, points_b: torch.Tensor) -> torch.Tensor:
    """Points (..., N, 3) from frame b to frame a by (..., 4, 4); leading dimensions broadcast."""
    _check(T_a_b, "T_a_b")
    T = T_a_b.to(points_b.dtype)
    return points_b @ T[..., :3, :3].transpose(-1, -2) + T[..., None, :3, 3]


def rotation_angle(R_or_T: torch.Tensor) -> torch.Tensor:
    """Angle (...,) in [0, pi] of rotations (..., 3, 3) or transforms (..., 4, 4). Exact also for tiny angles."""
    if R_or_T.ndim < 2 or R_or_T.shape[-2:] not in ((3, 3), (4, 4)):
        raise ValueError(f"rotation has shape {tuple(R_or_T.shape)}; expected (..., 3, 3) or (..., 4, 4)")
    q = _quaternion(R_or_T[..., :3, :3])
    return 2 * torch.atan2(q[..., 1:].norm(dim=-1), q[..., 0])


def orthonormalise(T: torch.Tensor) -> torch.Tensor:
    """The rigid transform nearest to `T` (..., 4, 4) (rotation by SVD): removes drift after many products."""
    _check(T)
    U, _, Vh = torch.linalg.svd(T[..., :3, :3])
    sign = torch.linalg.det(U @ Vh)
    U = torch.cat([U[..., :2], U[..., 2:] * sign[..., None, None]], -1)
    out = T.clone()
    out[..., :3, :3] = U @ Vh
    out[..., 3, :] = torch.tensor([0, 0, 0, 1], dtype=T.dtype, device=T.device)
    return out


def interpolate(T_a_0: torch.Tensor, T_a_1: torch.Tensor, s: torch.Tensor | float) -> torch.Tensor:
    """The pose at share `s` (scalar or (S,)) of the constant-velocity motion from `T_a_0` to `T_a_1` (..., 4, 4).

    Returns (..., 4, 4), or (..., S, 4, 4) for `s` of shape (S,). s = 0 gives `T_a_0`, s = 1 gives `T_a_1`; values outside extrapolate.
    """
    twist = log(inverse(T_a_0) @ T_a_1)
    share = torch.as_tensor(s, dtype=T_a_0.dtype, device=T_a_0.device)
    if share.ndim == 0:
        return T_a_0 @ exp(twist * share)
    if share.ndim != 1:
        raise ValueError(f"s has shape {tuple(share.shape)}; expected a number or (S,)")
    return T_a_0[..., None, :, :] @ exp(twist[..., None, :] * share[:, None])
