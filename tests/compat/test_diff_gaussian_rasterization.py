"""`ddpo3d_fast.compat.diff_gaussian_rasterization`: its conventions against plain torch in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernels.oracle import spherical_harmonics
from kernels.scenes import random_scene
from torch import Tensor

from compat.dense import Picture, blend, relative
from ddpo3d_fast.compat import diff_gaussian_rasterization as dropin

WIDTH, HEIGHT, TAN = 50, 40, (0.5, 0.42)


@pytest.fixture(autouse=True)
def returns() -> Iterator[None]:
    dropin.use("depth-alpha")
    yield
    dropin.use("original")


def settings(**changed: Any) -> dropin.GaussianRasterizationSettings:
    scene = random_scene(3, count=1)
    viewmatrix = scene.tensors["viewmats"][0].T.contiguous()
    near, far = 0.01, 100.0
    projection = torch.zeros(4, 4)
    projection[0, 0], projection[1, 1] = 1 / TAN[0], 1 / TAN[1]
    projection[2, 2], projection[2, 3], projection[3, 2] = far / (far - near), -far * near / (far - near), 1
    made = dropin.GaussianRasterizationSettings(
        image_height=HEIGHT,
        image_width=WIDTH,
        tanfovx=TAN[0],
        tanfovy=TAN[1],
        bg=torch.tensor([0.2, 0.5, 0.9]),
        scale_modifier=1.3,
        viewmatrix=viewmatrix,
        projmatrix=viewmatrix @ projection.T,
        sh_degree=3,
        campos=torch.tensor([0.3, 2.0, -1.0]),  # anywhere: it is not taken from the view
        prefiltered=False,
        debug=False,
    )
    return made._replace(**changed)


def gaussians(count: int = 120) -> dict[str, Tensor]:
    tensors = random_scene(5, count=count, scale=(0.005, 0.3), opacity=(0.1, 1.0), sh_degree=3).tensors
    return {
        "means3D": tensors["means"],
        "opacities": tensors["opacities"][:, None],
        "scales": tensors["scales"],
        "rotations": tensors["quats"],  # of any length
        "shs": tensors["colors"],
    }


def matrices(quats: Tensor) -> Tensor:
    """As the formula has it, the quaternion not made a unit one."""
    r, x, y, z = quats.unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - r * z), 2 * (x * z + r * y)]
    rows += [2 * (x * y + r * z), 1 - 2 * (x * x + z * z), 2 * (y * z - r * x)]
    rows += [2 * (x * z - r * y), 2 * (y * z + r * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def expected(t: dict[str, Tensor], s: dropin.GaussianRasterizationSettings) -> tuple[Picture, Tensor, Tensor]:
    """The picture, the means on the image in NDC [P, 2], radii."""
    view, full = s.viewmatrix.double(), s.projmatrix.double()
    points = t["means3D"] @ view[:3, :3] + view[3, :3]
    clip = torch.cat([t["means3D"], torch.ones_like(t["means3D"][:, :1])], 1) @ full
    ndc = clip[:, :2] / clip[:, 3:]
    if ndc.requires_grad:
        ndc.retain_grad()
    size = torch.tensor([WIDTH, HEIGHT])
    pixels = ((ndc + 1) * size - 1) / 2  # centres at integers
    x, y, z = points.unbind(-1)
    fx, fy = WIDTH / (2 * TAN[0]), HEIGHT / (2 * TAN[1])
    slope_x, slope_y = (x / z).clamp(-1.3 * TAN[0], 1.3 * TAN[0]), (y / z).clamp(-1.3 * TAN[1], 1.3 * TAN[1])
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], -1)
    if "cov3D_precomp" in t:
        a, b, c, d, e, f = t["cov3D_precomp"].unbind(-1)
        covariance = torch.stack([a, b, c, b, d, e, c, e, f], -1).reshape(-1, 3, 3)
    else:
        root = matrices(t["rotations"]) * (t["scales"] * s.scale_modifier)[:, None]
        covariance = root @ root.mT
    to_image = jacobian.reshape(-1, 2, 3) @ view[:3, :3].T
    flat = to_image @ covariance @ to_image.mT
    det = torch.linalg.det(flat)
    dilated = flat + 0.3 * torch.eye(2)
    opacities = t["opacities"][:, 0]
    if s.antialiasing:
        opacities = opacities * (det / torch.linalg.det(dilated)).clamp(min=0.000025).sqrt()
    middle = (dilated[:, 0, 0] + dilated[:, 1, 1]) / 2
    longest = middle + (middle**2 - torch.linalg.det(dilated)).clamp(min=0.1).sqrt()
    radii = torch.ceil(3 * longest.sqrt()).detach()
    inverse = torch.linalg.inv(dilated)
    conics = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], -1)
    if "shs" in t:
        directions = torch.nn.functional.normalize(t["means3D"] - s.campos.double(), dim=-1)
        colors = (spherical_harmonics(directions, t["shs"], s.sh_degree) + 0.5).clamp(min=0)
    else:
        colors = t["colors_precomp"]
    picture = blend(
        pixels + 0.5, conics, z, opacities, colors, s.bg.double(), WIDTH, HEIGHT,
        visible=z > 0.2, alpha_max=0.99, through_clamp=True, square=radii,
    )  # fmt: skip
    low, high = pixels - radii[:, None], pixels + radii[:, None]
    on_image = ((high + 15 >= 16) & (low < torch.ceil(size / 16) * 16)).all(1)
    return picture, ndc, torch.where((z > 0.2) & on_image, radii, 0)


def check(t: dict[str, Tensor], s: dropin.GaussianRasterizationSettings, limit: float = 1e-4) -> None:
    exact = {name: tensor.double().requires_grad_() for name, tensor in t.items()}
    picture, ndc, radii = expected(exact, s)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in t.items()}
    means2D = torch.zeros_like(leaves["means3D"], requires_grad=True)
    color, got_radii, depth, alpha = dropin.GaussianRasterizer(s)(means2D=means2D, **leaves)
    assert color.shape == (3, HEIGHT, WIDTH)
    assert depth.shape == alpha.shape == (1, HEIGHT, WIDTH)
    safe = picture.safe
    assert safe.double().mean() > 0.9
    assert relative(color[:, safe], picture.colors[safe].T) <= limit
    assert relative(depth[0][safe], picture.depth[safe]) <= limit
    assert relative(alpha[0][safe], picture.alpha[safe]) <= limit
    assert got_radii.dtype == torch.int32
    assert ((got_radii - radii).abs() <= 1).all()
    assert (got_radii > 0).equal(radii > 0)
    g = torch.Generator().manual_seed(0)
    w = torch.randn(5, HEIGHT, WIDTH, generator=g) * safe
    ((color * w[:3]).sum() + (depth * w[3]).sum() + (alpha * w[4]).sum()).backward()
    colors = picture.colors.permute(2, 0, 1)
    ((colors * w[:3]).sum() + (picture.depth * w[3]).sum() + (picture.alpha * w[4]).sum()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert relative(leaf.grad, exact[name].grad) <= limit, name  # type: ignore[arg-type]
    assert means2D.grad is not None
    assert ndc.grad is not None
    assert relative(means2D.grad[:, :2], ndc.grad) <= limit
    assert not means2D.grad[:, 2].any()


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("antialiasing", [False, True])
def test_images_and_gradients_follow_the_conventions(degree: int, antialiasing: bool) -> None:
    check(gaussians(), settings(sh_degree=degree, antialiasing=antialiasing))


def test_given_covariances_and_colours_follow_the_conventions() -> None:
    t = gaussians()
    root = matrices(torch.nn.functional.normalize(t.pop("rotations"), dim=-1)) * t.pop("scales")[:, None]
    full = (root @ root.mT).flatten(1)
    t["cov3D_precomp"] = full[:, [0, 1, 2, 4, 5, 8]].contiguous()
    check(t, settings())
    del t["shs"]
    t["colors_precomp"] = torch.rand(120, 3, generator=torch.Generator().manual_seed(1))
    check(t, settings())


def test_a_clamped_alpha_passes_its_gradient_on() -> None:
    t = gaussians(20)
    t["opacities"][::2] = 1.0
    t["scales"][::2] = 0.5
    check(t, settings())


def test_what_lies_in_the_plane_of_the_camera_has_a_gradient_of_zero() -> None:
    t, s = gaussians(), settings()
    view = s.viewmatrix.T
    t["means3D"][0] = -view[:3, :3].T @ view[:3, 3]
    leaves = {name: tensor.requires_grad_() for name, tensor in t.items()}
    dropin.GaussianRasterizer(s)(means2D=torch.zeros(120, 3), **leaves)[0].sum().backward()
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[0].any()


def test_a_faint_gaussian_has_a_radius_though_it_is_not_drawn() -> None:
    t = gaussians() | {"opacities": torch.full((120, 1), 1e-4)}
    _, radii, _, alpha = dropin.GaussianRasterizer(settings())(means2D=torch.zeros(120, 3), **t)
    assert radii.any()
    assert not alpha.any()


def test_what_a_call_returns_can_be_chosen() -> None:
    t, s = gaussians(), settings()
    color, radii, depth, _ = dropin.GaussianRasterizer(s)(means2D=torch.zeros(120, 3), **t)
    dropin.use("original")
    original = dropin.GaussianRasterizer(s)(means2D=torch.zeros(120, 3), **t)
    assert [x.equal(y) for x, y in zip(original, (color, radii), strict=True)] == [True, True]
    dropin.use("inverse-depth")
    _, _, inverse = dropin.GaussianRasterizer(s)(means2D=torch.zeros(120, 3), **t)
    assert inverse.shape == depth.shape
    flat = torch.eye(4)  # all at a depth of 2
    t["means3D"] = torch.cat([0.3 * t["means3D"][:, :2], torch.full((120, 1), 2.0)], 1)
    s = s._replace(viewmatrix=flat, projmatrix=flat @ (torch.linalg.inv(s.viewmatrix) @ s.projmatrix))
    _, _, inverse = dropin.GaussianRasterizer(s)(means2D=torch.zeros(120, 3), **t)
    dropin.use("depth-alpha")
    _, _, depth, alpha = dropin.GaussianRasterizer(s)(means2D=torch.zeros(120, 3), **t)
    assert torch.allclose(inverse, alpha / 2, atol=1e-5)
    assert torch.allclose(depth, alpha * 2, atol=1e-5)
    with pytest.raises(ValueError, match="returns: expected one of original"):
        dropin.use("everything")


def test_mark_visible_is_what_lies_farther_than_a_fifth_before_the_camera() -> None:
    s = settings(viewmatrix=torch.eye(4))
    points = torch.tensor([[0, 0, 0.19], [9, 9, 0.21], [0, 0, -1.0]])
    assert dropin.GaussianRasterizer(s).markVisible(points).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"colors_precomp": torch.zeros(120, 3)}, "shs, colors_precomp: expected exactly one"),
        ({"shs": None}, "shs, colors_precomp: expected exactly one"),
        ({"cov3D_precomp": torch.zeros(120, 6)}, "cov3D_precomp: expected exactly one"),
        ({"scales": None}, "cov3D_precomp: expected exactly one"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dropin.GaussianRasterizer(settings())(means2D=torch.zeros(120, 3), **(gaussians() | wrong))


def test_settings_have_their_order_and_a_default() -> None:
    fields = dropin.GaussianRasterizationSettings._fields
    assert fields[:6] == ("image_height", "image_width", "tanfovx", "tanfovy", "bg", "scale_modifier")
    assert fields[6:10] == ("viewmatrix", "projmatrix", "sh_degree", "campos")
    assert fields[10:] == ("prefiltered", "debug", "antialiasing")
    assert math.isclose(settings().tanfovx, TAN[0])
    assert settings().antialiasing is False
