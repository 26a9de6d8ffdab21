"""The CUDA kernels between Gaussians and meshes, under the emulator, keep the CPU backend's promises."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

# The CPU backend's own tests: each runs here again, through the emulated kernels.
from kernels.test_density import (  # noqa: F401
    GRID,
    cloud,
    test_a_dilation_makes_flat_gaussians_visible,
    test_a_gaussian_that_is_not_finite_counts_nowhere,
    test_giants_and_needles_are_no_special_case,
    test_grids_of_any_size_are_the_same_points,
    test_nothing_gives_nothing,
    test_the_density_equals_the_oracle,
)
from kernels.test_triangles import (  # noqa: F401
    SIZE,
    soup,
    test_neighbours_leave_no_gap,
    test_samples_and_their_gradient_equal_torchs,
    test_what_is_behind_a_camera_or_not_finite_is_not_drawn,
    test_what_pixels_see_equals_the_oracle,
    textured,
)
from kernels.test_triangles import (
    test_nothing_gives_nothing as test_no_triangle_gives_nothing,  # noqa: F401
)
from scene.test_textured import (  # noqa: F401
    test_a_texture_learns_what_views_should_show,
    test_an_update_is_adam_down_the_gradient_of_the_views,
    test_moved_pictures_are_those_of_other_colours_and_the_scene_stays,
    test_views_equal_the_oracle,
)

from ddpo3d_fast.kernels import _backend, gaussian_density, rasterize_triangles, sample_texture_backward

from .build import run_sanitized

pytestmark = pytest.mark.usefixtures("nothing_waits")


ORDERS = [(seed, ("shuffled", "interleaved")[seed % 2]) for seed in range(1, 5)]


def test_no_density_depends_on_the_order_of_threads_or_blocks(simt: ModuleType) -> None:
    scene = cloud(count=700)  # more than a block gathers at once
    grid = GRID | {"size": (9, 17, 8)}
    expected = gaussian_density(**scene, **grid)
    for order in ORDERS:
        simt.set_order(*order)
        assert torch.equal(gaussian_density(**scene, **grid), expected)


def test_two_runs_of_triangles_and_textures_agree_to_the_bit_in_any_order(simt: ModuleType) -> None:
    texture, where = textured()
    weights = torch.randn(*where["triangles"].shape, 3)

    def run() -> list[torch.Tensor]:
        hits = rasterize_triangles(**soup(), width=SIZE[0], height=SIZE[1])
        return [*hits, sample_texture_backward(weights, *texture.shape[:2], **where)]

    expected = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "uses_cuda", lambda device, name="": False)
        patch.setattr(_backend, "backend", lambda device: _backend._C)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))  # the CPU backend's bits
    for order in ORDERS:
        simt.set_order(*order)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


SANITIZED = """
import torch
torch.set_num_threads(1)
from simt import build
from kernels import test_density, test_triangles
from ddpo3d_fast import kernels
from ddpo3d_fast.kernels import _backend
module = build.load("sanitized")
_backend.uses_cuda = lambda device, name="device": True
_backend.backend = lambda device: module
module.set_order(1, "interleaved")
kernels.gaussian_density(**test_density.cloud(600), **test_density.GRID | {"size": (9, 8, 10)})
kernels.rasterize_triangles(**test_triangles.soup(), width=44, height=39)
texture, where = test_triangles.textured()
kernels.sample_texture(texture, **where)
kernels.sample_texture_backward(torch.ones(2, 39, 44, 3), 16, 9, **where)
print("clean")
"""


def test_the_sanitizers_find_nothing() -> None:
    result = run_sanitized(SANITIZED)
    assert result.stdout.strip() == "clean", result.stderr[-3000:]
