"""Bad input to the rasterizer: degenerate scenes have defined results, wrong arguments get one clear line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ddpo3d_fast import kernels

from .scenes import Scene, random_scene

zeros, full = torch.zeros, torch.full
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


def render_and_backward(scene: Scene) -> tuple[kernels.Rasterization, kernels.RasterizeGradients]:
    out, state = kernels.rasterize_forward(**scene.arguments())
    grads = kernels.rasterize_backward(state, *(torch.ones_like(image) for image in out[:3]))
    return out, grads


def assert_background(scene: Scene) -> None:
    """Nothing is drawn, and only the background has a gradient."""
    out, grads = render_and_backward(scene)
    assert out.rgb.equal(scene.tensors["backgrounds"][:, None, None].expand_as(out.rgb))
    assert not out.alpha.any()
    assert not out.depth.any()
    assert not out.radii.any()
    for name, grad in grads._asdict().items():
        assert torch.isfinite(grad).all(), name
        assert name == "backgrounds" or not grad.any(), name


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "colors"])
def test_render_of_gaussians_that_are_not_finite_equals_background(name: str, value: float) -> None:
    scene = random_scene(0, count=40)
    tensor = scene.tensors[name].clone()
    tensor.view(40, -1)[:, 0] = value
    assert_background(scene.changed(**{name: tensor}))


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "colors", "means2d_offsets"])
def test_a_gaussian_that_is_not_finite_leaves_the_others_alone(name: str) -> None:
    scene = random_scene(1, count=40, sh_degree=1)
    broken = scene.tensors[name].clone()
    (broken[0] if name == "means2d_offsets" else broken)[7] = float("nan")
    absent = scene.tensors["opacities"].clone()
    absent[7] = 0
    out, grads = render_and_backward(scene.changed(**{name: broken}))
    expected_out, expected_grads = render_and_backward(scene.changed(opacities=absent))
    for key in ("rgb", "alpha", "depth", "radii"):
        assert getattr(out, key).equal(getattr(expected_out, key)), key
    for key, grad in grads._asdict().items():
        assert grad.equal(getattr(expected_grads, key)), key


@pytest.mark.parametrize("name", ["viewmats", "means2d_offsets"])
def test_render_from_a_camera_that_is_not_finite_equals_background(name: str) -> None:
    scene = random_scene(2, count=40)
    assert_background(scene.changed(**{name: torch.full_like(scene.tensors[name], float("nan"))}))


@pytest.mark.parametrize(
    "scene",
    [
        random_scene(3, count=0),
        random_scene(3, count=0, cameras=3),
        random_scene(3, opacity=(0.0, 0.0)),
        random_scene(3, opacity=(-1.0, -0.5)),
        random_scene(3, opacity=(0.0, 1 / 256)),
        random_scene(3, near=50.0, far=51.0),
        random_scene(3, count=20).changed(quats=zeros(20, 4)),
        random_scene(3, count=20, scale=(1.0, 1.0), antialiased=True).changed(scales=zeros(20, 3)),
        random_scene(3, count=20).changed(means=full((20, 3), 3e38)),
    ],
    ids=[
        "none",
        "none_3_cameras",
        "opacity_0",
        "negative",
        "below_cut",
        "culled",
        "no_rotation",
        "points",
        "far_away",
    ],
)
def test_scenes_with_nothing_to_draw_equal_background(scene: Scene) -> None:
    assert_background(scene)


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 8), (8, 0)])
def test_images_of_no_pixels_are_empty_and_their_gradients_zero(width: int, height: int) -> None:
    scene = random_scene(4, count=10, width=width, height=height)
    out, grads = render_and_backward(scene.changed(intrinsics=torch.eye(3)[None]))
    assert out.rgb.shape == (1, height, width, 3)
    assert not out.radii.any()
    assert all(not grad.any() for grad in grads)


def test_no_cameras_give_no_images() -> None:
    out, grads = render_and_backward(random_scene(5, count=10, cameras=0))
    assert out.rgb.shape == (0, 48, 48, 3)
    assert grads.viewmats.shape == (0, 4, 4)
    assert not grads.means.any()


@pytest.mark.parametrize("size", [1e3, 1e10, 1e19, 3e38])
def test_one_giant_gaussian_is_drawn_everywhere(size: float) -> None:
    scene = random_scene(6, count=1, spread=0.0, opacity=(0.5, 0.5), width=512, height=300)
    scene = scene.changed(scales=full((1, 3), size))
    out, grads = render_and_backward(scene)
    assert torch.allclose(out.alpha, torch.full_like(out.alpha, 0.5), atol=1e-3)
    assert out.radii.item() > 0
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_more_gaussians_in_one_pixel_than_a_batch_holds() -> None:
    scene = random_scene(
        7, count=5000, spread=0.0, scale=(9.0, 9.0), opacity=(0.005, 0.005), width=4, height=4
    )
    out, grads = render_and_backward(scene)
    expected = 1 - (1 - 0.005) ** 5000
    assert out.alpha.min() > 0.99
    assert out.alpha.max() <= expected + 1e-4
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"means": zeros(10, 2)}, ValueError, r"means: expected shape \[N, 3\], got \[10, 2\]"),
        ({"means": zeros(30)}, ValueError, r"means: expected shape \[N, 3\], got \[30\]"),
        ({"means": [[0.0, 0.0, 0.0]]}, TypeError, r"means: expected a torch.Tensor, got list"),
        ({"means": None}, TypeError, r"means: expected a torch.Tensor, got NoneType"),
        ({"means": zeros(10, 3).double()}, TypeError, r"means: .* torch.float32, got torch.float64"),
        ({"means": zeros(10, 3).to_sparse()}, TypeError, r"means: expected a dense tensor"),
        ({"means": zeros(10, 3, device="meta")}, ValueError, r"means: expected a CPU .* got one on meta"),
        ({"quats": zeros(9, 4)}, ValueError, r"quats: expected shape \[10, 4\], got \[9, 4\]"),
        ({"quats": zeros(10, 4, device="meta")}, ValueError, r"quats: expected device cpu .* got meta"),
        ({"quats": zeros(10, 4).long()}, TypeError, r"quats: expected torch.float32, got torch.int64"),
        ({"scales": zeros(10, 1)}, ValueError, r"scales: expected shape \[10, 3\]"),
        ({"opacities": zeros(10, 1)}, ValueError, r"opacities: expected shape \[10\], got \[10, 1\]"),
        ({"colors": zeros(10, 4)}, ValueError, r"colors: expected shape \[10, 3\], got \[10, 4\]"),
        ({"colors": zeros(10, 1, 3)}, ValueError, r"colors: expected shape \[10, 3\], got \[10, 1, 3\]"),
        ({"sh_degree": 0}, ValueError, r"colors: expected shape \[10, K, 3\], got \[10, 3\]"),
        ({"sh_degree": 2, "colors": zeros(10, 4, 3)}, ValueError, r"colors: expected at least 9 .* got 4"),
        ({"sh_degree": 4, "colors": zeros(10, 25, 3)}, ValueError, r"sh_degree: expected 0 to 3, got 4"),
        ({"sh_degree": -1, "colors": zeros(10, 25, 3)}, ValueError, r"sh_degree: expected 0 to 3, got -1"),
        ({"sh_degree": 1.0}, TypeError, r"sh_degree: expected None or an int, got float"),
        ({"viewmats": torch.eye(4)}, ValueError, r"viewmats: expected shape \[C, 4, 4\], got \[4, 4\]"),
        ({"intrinsics": torch.eye(3)}, ValueError, r"intrinsics: expected shape \[1, 3, 3\], got \[3, 3\]"),
        ({"intrinsics": zeros(1, 3, 3)}, ValueError, r"intrinsics: expected positive focal lengths"),
        ({"intrinsics": full((1, 3, 3), float("nan"))}, ValueError, r"intrinsics: expected positive"),
        ({"backgrounds": zeros(3)}, ValueError, r"backgrounds: expected shape \[1, 3\], got \[3\]"),
        ({"means2d_offsets": zeros(1, 9, 2)}, ValueError, r"means2d_offsets: expected shape \[1, 10, 2\]"),
        ({"width": -1}, ValueError, r"width: expected 0 to 32768 pixels, got -1"),
        ({"width": 10**9}, ValueError, r"width: expected 0 to 32768 pixels"),
        ({"height": 64.0}, TypeError, r"height: expected an int, got float"),
        ({"height": True}, TypeError, r"height: expected an int, got bool"),
        ({"near": 0.0}, ValueError, r"near, far: expected 0 < near < far, got near 0.0"),
        ({"near": 2.0, "far": 1.0}, ValueError, r"near, far: .* got near 2.0 and far 1.0"),
        ({"near": float("nan")}, ValueError, r"near, far: expected 0 < near < far"),
        ({"near": "0.1"}, TypeError, r"near: expected a number, got str"),
        ({"near": np.True_}, TypeError, r"near: expected a number, got bool"),
        ({"antialiased": 1}, TypeError, r"antialiased: expected a bool, got int"),
        ({"max_entries": 0}, ValueError, r"max_entries: expected 1 to 4294967295, got 0"),
        ({"max_entries": 2**32}, ValueError, r"max_entries: expected 1 to 4294967295, got 4294967296"),
        ({"max_entries": 1e9}, TypeError, r"max_entries: expected an int, got float"),
        ({"width": np.float64(8)}, TypeError, r"width: expected an int, got float64"),
        ({"width": np.True_}, TypeError, r"width: expected an int, got bool"),
        ({"width": torch.tensor(8)}, TypeError, r"width: expected an int, got Tensor"),
        ({"sh_degree": True}, TypeError, r"sh_degree: expected None or an int, got bool"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("op", [kernels.rasterize, kernels.rasterize_forward])
def test_a_wrong_argument_is_named_with_what_was_expected(
    op: Any, changes: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        op(**random_scene(8, count=10).arguments() | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("integer", [np.uint8, np.int16, np.int64])
def test_numbers_of_numpy_are_numbers(integer: type) -> None:
    scene = random_scene(8, count=10, width=40, height=30, sh_degree=1)
    expected, _ = kernels.rasterize_forward(**scene.arguments(), near=0.5, far=8.0, max_entries=100)
    numbers = {name: integer(scene.settings[name]) for name in ("width", "height", "sh_degree")}
    limits = {"near": np.float32(0.5), "far": np.float16(8.0), "max_entries": integer(100)}
    out, _ = kernels.rasterize_forward(**scene.arguments() | numbers | limits)
    assert out.rgb.equal(expected.rgb)
    assert kernels.TileCapacity(integer(100)).entries == 100
    before = kernels.get_num_threads()
    try:
        kernels.set_num_threads(integer(3))
        assert kernels.get_num_threads() == 3
    finally:
        kernels.set_num_threads(before)


@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        ((zeros(1, 48, 48),), ValueError, r"grad_rgb: expected shape \[1, 48, 48, 3\], got"),
        ((None, zeros(48, 48)), ValueError, r"grad_alpha: expected shape \[1, 48, 48\], got \[48, 48\]"),
        ((None, None, zeros(1, 48, 48).double()), TypeError, r"grad_depth: expected torch.float32"),
        ((1.0,), TypeError, r"grad_rgb: expected a torch.Tensor, got float"),
    ],
)  # fmt: skip
def test_a_wrong_gradient_is_named_with_what_was_expected(
    gradients: tuple, error: type, message: str
) -> None:
    _, state = kernels.rasterize_forward(**random_scene(8, count=10).arguments())
    with pytest.raises(error, match=message):
        kernels.rasterize_backward(state, *gradients)


def test_a_backward_pass_without_a_state_is_refused() -> None:
    with pytest.raises(TypeError, match="state: expected what rasterize_forward returned, got NoneType"):
        kernels.rasterize_backward(None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -3, 1025, 10**12])
def test_a_wrong_number_of_threads_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="num_threads: expected 1 to 1024, got"):
        kernels.set_num_threads(count)


def test_a_number_of_threads_that_is_no_int_is_refused() -> None:
    with pytest.raises(TypeError, match="count: expected an int, got float"):
        kernels.set_num_threads(2.0)  # type: ignore[arg-type]
