"""The density of Gaussians on a grid, against float64 torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast.kernels import gaussian_density, get_num_threads, set_num_threads

CUT = 1 / 255


def cloud(count: int = 60, seed: int = 0) -> dict[str, Tensor]:
    """Gaussians of all shapes, some outside of the grid, some below the cut."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return {
        "means": 2.4 * rand(count, 3) - 1.2,
        "quats": torch.randn(count, 4, generator=generator) * 3,
        "scales": 0.02 * (12 * rand(count, 3)).exp().clamp(max=15),
        "opacities": rand(count) ** 3,
    }


GRID: dict[str, Any] = {"origin": (-1.0, -0.9, -0.8), "cell": 0.06, "size": (35, 18, 21)}


def oracle(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    origin: tuple[float, ...],
    cell: float,
    size: tuple[int, ...],
    dilation: float = 0.0,
) -> Tensor:
    axes = [o + cell * torch.arange(n, dtype=torch.float64) for o, n in zip(origin, size, strict=True)]
    z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    points, total = torch.stack([x, y, z], -1), torch.zeros_like(x)
    for mean, quat, scale, opacity in zip(
        means.double(), quats.double(), scales.double(), opacities.double(), strict=True
    ):
        w, a, b, c = quat / quat.norm()
        cross = torch.stack(
            [torch.stack([0 * w, -c, b]), torch.stack([c, 0 * w, -a]), torch.stack([-b, a, 0 * w])]
        )
        turn = torch.eye(3, dtype=torch.float64) + 2 * w * cross + 2 * cross @ cross
        covariance = turn @ torch.diag(scale**2) @ turn.T + dilation * torch.eye(3, dtype=torch.float64)
        offset = points - mean
        power = torch.einsum("...i,ij,...j->...", offset, covariance.inverse(), offset)
        value = opacity * (-0.5 * power).exp()
        total += torch.where(value >= CUT, value, 0.0)
    return total


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dilation", [0.0, 0.002])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_density_equals_the_oracle(seed: int, dilation: float) -> None:
    got = gaussian_density(**cloud(seed=seed), **GRID, dilation=dilation)
    assert got.shape == (21, 18, 35)
    assert relative(got, oracle(**cloud(seed=seed), **GRID, dilation=dilation)) < 1e-5


@pytest.mark.parametrize("size", [(1, 1, 1), (17, 16, 15), (3, 40, 1)])
def test_grids_of_any_size_are_the_same_points(size: tuple[int, int, int]) -> None:
    grid = GRID | {"origin": (-0.3, -0.2, -0.1), "size": size}
    assert relative(gaussian_density(**cloud(), **grid), oracle(**cloud(), **grid)) < 1e-5


def test_a_dilation_makes_flat_gaussians_visible() -> None:
    scene = cloud() | {"scales": torch.tensor([0.1, 0.1, 0.0]).repeat(60, 1)}
    assert not gaussian_density(**scene, **GRID).any()
    got = gaussian_density(**scene, **GRID, dilation=0.003)
    assert relative(got, oracle(**scene, **GRID, dilation=0.003)) < 1e-5


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gaussian_that_is_not_finite_counts_nowhere(name: str, value: float) -> None:
    if (name, value) == ("opacities", math.inf):
        return  # which is what it says
    scene, without = cloud(), cloud()
    scene[name][7] = value
    without["opacities"][7] = 0
    assert torch.equal(gaussian_density(**scene, **GRID), gaussian_density(**without, **GRID))


def test_giants_and_needles_are_no_special_case() -> None:
    scene = cloud()
    scene["scales"][::3] = torch.tensor([1e5, 1e3, 2.0])
    scene["scales"][1::3] = torch.tensor([1.0, 0.03, 1.0])
    got, expected = gaussian_density(**scene, **GRID), oracle(**scene, **GRID)
    assert relative(got, expected) < 1e-5


def test_results_are_the_same_to_the_bit_for_any_number_of_threads() -> None:
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            results.append(gaussian_density(**cloud(), **GRID))
    finally:
        set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_nothing_gives_nothing() -> None:
    none = {name: tensor[:0] for name, tensor in cloud().items()}
    assert not gaussian_density(**none, **GRID).any()
    assert gaussian_density(**cloud(), **GRID | {"size": (4, 0, 4)}).shape == (4, 0, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"means": torch.zeros(60, 2)}, ValueError, r"means: expected shape \[N, 3\], got \[60, 2\]"),
        ({"opacities": torch.zeros(3)}, ValueError, r"opacities: expected shape \[60\], got \[3\]"),
        ({"scales": torch.zeros(60, 3).double()}, TypeError, "scales: expected torch.float32"),
        ({"origin": (0.0, math.nan, 0.0)}, ValueError, "origin: expected three finite numbers"),
        ({"origin": (0.0, 0.0)}, TypeError, "origin: expected three numbers, got 2"),
        ({"cell": 0.0}, ValueError, "cell: expected a positive number, got 0"),
        ({"cell": "1"}, TypeError, "cell: expected a number, got str"),
        ({"size": (1, 2, -1)}, ValueError, "size: expected three numbers of 0 or more"),
        ({"size": (2048, 2048, 2048)}, ValueError, r"size: .* 2\^31 points at most"),
        ({"size": (1.5, 2, 2)}, TypeError, "size: expected three ints, got float"),
        ({"dilation": -1.0}, ValueError, "dilation: expected 0 or more, got -1.0"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        gaussian_density(**cloud() | GRID | change)
    assert "\n" not in str(caught.value)
