"""SE(3) as algebra: the axioms hold for random motions, tiny ones and half turns."""

import math

import pytest
import torch

from spatia_model.geometry import se3

EYE = torch.eye(4, dtype=torch.float64)


def twists(kind: str, count: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2_000_001)
    twist = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    axis = twist[:, 3:] / twist[:, 3:].norm(dim=1, keepdim=True)
    angle = {
        "any": 3.0 * torch.rand(count, 1, generator=generator, dtype=torch.float64),
        "tiny": torch.tensor(1e-7),
        "zero": torch.tensor(0.0),
    }
    angle |= {"half turn": torch.tensor(math.pi - 1e-9), "series border": torch.tensor(1e-2), "small": torch.tensor(1e-4)}
    twist[:, 3:] = axis * angle[kind]
    return twist


KINDS = ["any", "tiny", "zero", "half turn", "series border", "small"]


@pytest.mark.parametrize("kind", KINDS)
def test_exp_is_the_matrix_exponential(kind: str):
    twist = twists(kind)
    generator = torch.zeros(len(twist), 4, 4, dtype=torch.float64)
    generator[:, :3, :3] = se3._hat(twist[:, 3:])
    generator[:, :3, 3] = twist[:, :3]
    torch.testing.assert_close(se3.exp(twist), torch.linalg.matrix_exp(generator), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_log_is_the_inverse_of_exp(kind: str):
    twist = twists(kind)
    T = se3.exp(twist)
    torch.testing.assert_close(se3.exp(se3.log(T)), T, atol=1e-8 if kind == "half turn" else 1e-11, rtol=0)
    if kind != "half turn":  # there the axis has two signs
        torch.testing.assert_close(se3.log(T), twist, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_group_axioms(kind: str):
    A = se3.exp(twists(kind))
    B = A.roll(1, 0)
    torch.testing.assert_close(A @ se3.inverse(A), EYE.expand_as(A), atol=1e-12, rtol=0)
    torch.testing.assert_close(se3.inverse(A @ B), se3.inverse(B) @ se3.inverse(A), atol=1e-12, rtol=0)


def test_points_compose_like_matrices():
    A, B = se3.exp(twists("any", 2))
    points = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2_000_002))
    torch.testing.assert_close(se3.transform_points(A, se3.transform_points(B, points)), se3.transform_points(A @ B, points))
    homogeneous = torch.cat([points, torch.ones(7, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(se3.transform_points(A, points), (A @ homogeneous.T).T[:, :3])


def test_angle_of_rotation_is_exact_for_tiny_angles():
    angles = torch.tensor([0.0, 1e-10, 1e-4, 0.5, 3.0, math.pi], dtype=torch.float64)
    twist = torch.zeros(6, 6, dtype=torch.float64)
    twist[:, 4] = angles
    torch.testing.assert_close(se3.rotation_angle(se3.exp(twist)), angles, atol=1e-12, rtol=1e-9)


def test_interpolation_has_constant_velocity_and_meets_its_ends():
    A, B = se3.exp(twists("any", 2))
    path = se3.interpolate(A, B, torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(path[0], A)
    torch.testing.assert_close(path[-1], B)
    steps = se3.inverse(path[:-1]) @ path[1:]
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-10, rtol=0)


def test_orthonormalise_repairs_drift_and_leaves_rigid_motions_alone():
    T = se3.exp(twists("any", 8))
    torch.testing.assert_close(se3.orthonormalise(T), T, atol=1e-12, rtol=0)
    bent = T.clone()
    bent[:, :3, :3] += 1e-3
    mended = se3.orthonormalise(bent)
    torch.testing.assert_close(mended[:, :3, :3] @ mended[:, :3, :3].transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(8, 3, 3))
    assert bool((torch.linalg.det(mended) > 0.99).all())


@pytest.mark.parametrize("call", [se3.inverse, se3.log, se3.orthonormalise])
def test_wrong_shapes_are_named(call):
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(\.\.\., 4, 4\)"):
        call(torch.eye(3))
