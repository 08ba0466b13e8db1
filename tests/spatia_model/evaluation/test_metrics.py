from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spatia_model.evaluation.metrics import blur, gradient_energy, psnr, ssim


def random(*shape: int, seed: int = 2_000_000) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_equals_its_formula():
    a, b = random(2, 3, 5, 7) * 2 - 1, random(2, 3, 5, 7, seed=2_000_001) * 2 - 1
    mse = float(((a - b).double() ** 2).mean())
    assert psnr(a, b) == pytest.approx(10 * math.log10(4 / mse), abs=1e-4)
    x, y = (a * 100 + 100).to(torch.uint8), (b * 100 + 100).to(torch.uint8)
    mse = float(((x.double() - y.double()) ** 2).mean())
    assert psnr(x, y, span=255) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-4)
    assert psnr(a, a) == pytest.approx(100)


def test_psnr_counts_only_what_the_mask_selects():
    a, b = random(2, 3, 5, 7), random(2, 3, 5, 7, seed=2_000_001)
    mask = random(2, 1, 5, 7, seed=2_000_002) > 0.6
    errors = [float((a - b)[i, c, y, x] ** 2) for i in range(2) for c in range(3) for y in range(5) for x in range(7) if mask[i, 0, y, x]]
    assert psnr(a, b, mask) == pytest.approx(10 * math.log10(4 / np.mean(errors)), abs=1e-4)
    assert math.isnan(psnr(a, b, torch.zeros_like(mask)))


def test_gradient_energy_equals_a_loop():
    x, mask = random(2, 4, 5), random(2, 4, 5, seed=2_000_001) > 0.3

    def loop(selected: torch.Tensor) -> float:
        right, below = [], []
        for n in range(2):
            for i in range(4):
                for j in range(5):
                    for other, found in (((n, i, j + 1), right), ((n, i + 1, j), below)):
                        if other[1] < 4 and other[2] < 5 and selected[n, i, j] and selected[other]:
                            found.append(float((x[n, i, j] - x[other]) ** 2))
        return float(np.mean(right) + np.mean(below))

    assert gradient_energy(x) == pytest.approx(loop(torch.ones_like(mask)), rel=1e-5)
    assert gradient_energy(x, mask) == pytest.approx(loop(mask), rel=1e-5)
    assert math.isnan(gradient_energy(x, torch.zeros_like(mask)))
    assert gradient_energy(torch.full((3, 8, 8), 0.3)) == 0


def test_blurring_lowers_gradient_energy():
    x = random(1, 3, 16, 16)
    assert gradient_energy(blur(x, 1.0)) < 0.2 * gradient_energy(x)


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.5])
def test_blur_is_a_gaussian(sigma):
    from scipy.ndimage import gaussian_filter1d

    x = random(2, 3, 12, 14)
    options = {"sigma": sigma, "radius": max(1, int(3 * sigma)), "mode": "mirror"}
    expected = gaussian_filter1d(gaussian_filter1d(x.double().numpy(), axis=2, **options), axis=3, **options)
    torch.testing.assert_close(blur(x, sigma), torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)


def test_ssim_equals_its_formula():
    from scipy.ndimage import gaussian_filter

    a = (random(20, 24, 3) * 255).to(torch.uint8)
    b = (0.6 * a + 0.4 * random(20, 24, 3, seed=2_000_001) * 255).to(torch.uint8)
    values = []
    for c in range(3):
        x, y = a[..., c].double().numpy(), b[..., c].double().numpy()

        def mean(v):
            return gaussian_filter(v, 1.5, truncate=3.5)

        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append((((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))[5:-5, 5:-5].mean())
    assert ssim(a, b) == pytest.approx(float(np.mean(values)), abs=1e-6)
    assert 0.1 < ssim(a, b) < 0.98
    assert ssim(a, a) == pytest.approx(1)


def test_ssim_of_a_stack_is_the_mean():
    a = (random(3, 16, 16, 3) * 255).to(torch.uint8)
    b = a.flip(1)
    assert ssim(a, b) == pytest.approx(np.mean([ssim(x, y) for x, y in zip(a, b, strict=True)]))
