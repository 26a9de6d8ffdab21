"""The rasterizer keeps its promises: exact images and gradients, the same bits for any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import kernels

from . import oracle
from .scenes import PARAMETERS, SCENES, Scene, random_scene

TOLERANCE = 1e-5  # relative L2


def loss_weights(scene: Scene, safe: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Random d(loss)/d(output) in float32, zero where a cut-off lies within rounding."""
    g = torch.Generator().manual_seed(seed)
    shape = (scene.cameras, scene.height, scene.width)
    mask = safe.float()
    return {
        "rgb": torch.randn(*shape, 3, generator=g) * mask[..., None],
        "alpha": torch.randn(*shape, generator=g) * mask,
        "depth": 0.3 * torch.randn(*shape, generator=g) * mask,
    }


def expect(scene: Scene, outputs: tuple[str, ...] = ("rgb", "alpha", "depth")) -> dict[str, Tensor]:
    """The oracle's images (masked) and gradients."""
    arguments = scene.arguments(torch.float64, requires_grad=True)
    out = oracle.render(**arguments)
    weights = loss_weights(scene, out.safe)
    loss = sum((getattr(out, name) * weights[name].double()).sum() for name in outputs)
    grads = torch.autograd.grad(loss, [arguments[name] for name in PARAMETERS], allow_unused=True)
    expected = {name: getattr(out, name).detach() for name in ("rgb", "alpha", "depth", "safe")}
    for name, grad in zip(PARAMETERS, grads, strict=True):
        expected[f"grad_{name}"] = torch.zeros_like(arguments[name]) if grad is None else grad
    return expected


def compute(
    scene: Scene, safe: Tensor, outputs: tuple[str, ...] = ("rgb", "alpha", "depth")
) -> dict[str, Tensor]:
    """The same from the kernels, without autograd."""
    arguments = scene.arguments()
    out, state = kernels.rasterize_forward(**arguments)
    weights = loss_weights(scene, safe)
    grads = kernels.rasterize_backward(
        state, *(weights[n] if n in outputs else None for n in ("rgb", "alpha", "depth"))
    )
    named = {
        ("means2d_offsets" if name == "means2d" else name): grad for name, grad in grads._asdict().items()
    }
    return {
        **{name: getattr(out, name) for name in ("rgb", "alpha", "depth", "radii")},
        **{f"grad_{name}": named[name] for name in PARAMETERS},
    }


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative L2 of every image and gradient; absolute where the truth is zero."""
    found = {}
    for name, truth in expected.items():
        if name == "safe":
            continue
        value = actual[name].double()
        if name in ("rgb", "alpha", "depth"):
            mask = expected["safe"].double()
            mask = mask[..., None] if name == "rgb" else mask
            value, truth = value * mask, truth * mask
        found[name] = float((value - truth).norm() / (truth.norm() if truth.norm() > 0 else 1))
    return found


@pytest.fixture(scope="module")
def truths() -> dict[str, dict[str, Tensor]]:
    return {}


def truth_of(name: str, truths: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    if name not in truths:
        truths[name] = expect(SCENES[name])
    return truths[name]


@pytest.mark.parametrize("name", SCENES)
def test_images_and_every_gradient_match_the_float64_oracle(name: str, truths: dict) -> None:
    truth = truth_of(name, truths)
    found = errors(compute(SCENES[name], truth["safe"]), truth)
    assert max(found.values()) <= TOLERANCE, found


def test_the_oracle_masks_fewer_than_one_pixel_in_a_thousand(truths: dict) -> None:
    masks = [truth_of(name, truths)["safe"] for name in SCENES]
    unsafe, pixels = sum(int((~mask).sum()) for mask in masks), sum(mask.numel() for mask in masks)
    assert unsafe < pixels / 1000


def test_the_scenes_hold_what_their_names_say(truths: dict) -> None:
    def radii(name: str) -> Tensor:
        return compute(SCENES[name], truth_of(name, truths)["safe"])["radii"]

    assert len(SCENES) >= 20
    assert radii("giants").max() >= 1000
    assert 0 < radii("specks")[radii("specks") > 0].min() <= 2
    assert not radii("off_screen").any()
    assert 0.05 < (radii("far_out") > 0).float().mean() < 0.5
    depths = SCENES["across_near"].tensors["means"] @ SCENES["across_near"].tensors["viewmats"][0, 2, :3]
    depths = depths + SCENES["across_near"].tensors["viewmats"][0, 2, 3]
    assert (depths < 0.3).sum() > 20
    assert (depths > 1.0).sum() > 2
    assert truth_of("opaque", truths)["alpha"].mean() > 0.9  # many pixels stop early


@pytest.mark.parametrize("outputs", [("rgb",), ("alpha",), ("depth",)])
def test_each_output_alone_has_exact_gradients(outputs: tuple[str, ...]) -> None:
    scene = random_scene(30, sh_degree=1, antialiased=True, cameras=2, width=40, height=32)
    truth = expect(scene, outputs)
    found = errors(compute(scene, truth["safe"], outputs), truth)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("name", ["plain", "opaque", "needles", "tall", "antialiased_sh", "many"])
def test_every_simd_level_matches_the_oracle(
    level: str, name: str, truths: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPO3D_SIMD", level)
    try:
        assert kernels.build_info()["simd"] == level
    except ValueError as error:
        pytest.skip(str(error))
    truth = truth_of(name, truths)
    found = errors(compute(SCENES[name], truth["safe"]), truth)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("call", ["rasterize_forward", "build_info"])
@pytest.mark.parametrize(
    ("level", "shown"), [("mmx", "mmx"), ("AVX2", "AVX2"), ("a\nb\udcff", "a?b?"), ("x" * 10_000, "x" * 40)]
)
def test_an_unknown_simd_level_is_refused_in_one_short_line(
    call: str, level: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPO3D_SIMD", level)
    arguments = random_scene(0, count=1).arguments() if call == "rasterize_forward" else {}
    with pytest.raises(
        ValueError, match=r"^DDPO3D_SIMD: expected a level of this processor \(scalar"
    ) as error:
        getattr(kernels, call)(**arguments)
    assert str(error.value).endswith(f"), got '{shown}'")


@pytest.mark.parametrize("name", ["cameras", "sh3", "far_out"])
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    scene = (
        random_scene(31, count=3000, cameras=3, width=100, height=70) if name == "cameras" else SCENES[name]
    )
    safe = torch.ones(scene.cameras, scene.height, scene.width, dtype=torch.bool)
    before = kernels.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7, 1):
            kernels.set_num_threads(threads)
            results.append(compute(scene, safe))
    finally:
        kernels.set_num_threads(before)
    for result in results[1:]:
        for key, value in results[0].items():
            assert value.equal(result[key]), key


def test_equal_depths_are_drawn_in_the_order_of_their_numbers() -> None:
    scene = random_scene(32, count=2, spread=0.0, scale=(0.3, 0.3), opacity=(0.9, 0.9))
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    out, _ = kernels.rasterize_forward(**scene.changed(colors=colors).arguments())
    center = out.rgb[0, scene.height // 2, scene.width // 2]
    assert center[0] > 5 * center[1] > 0


def test_autograd_gives_what_the_pair_without_a_graph_gives() -> None:
    scene = SCENES["sh2"]
    weights = loss_weights(scene, torch.ones(scene.cameras, scene.height, scene.width, dtype=torch.bool))
    arguments = scene.arguments(requires_grad=True)
    out = kernels.rasterize(**arguments)
    sum((getattr(out, name) * weight).sum() for name, weight in weights.items()).backward()
    plain, state = kernels.rasterize_forward(**scene.arguments())
    grads = kernels.rasterize_backward(state, weights["rgb"], weights["alpha"], weights["depth"])
    for name in ("rgb", "alpha", "depth", "radii"):
        assert getattr(out, name).equal(getattr(plain, name)), name
    for name in PARAMETERS:
        expected = grads.means2d if name == "means2d_offsets" else getattr(grads, name)
        assert arguments[name].grad.equal(expected), name


def test_autograd_gives_gradients_only_to_what_asked_for_them() -> None:
    arguments = SCENES["plain"].arguments()
    arguments["opacities"].requires_grad_()
    kernels.rasterize(**arguments).depth.sum().backward()
    assert arguments["opacities"].grad.abs().sum() > 0
    assert arguments["means"].grad is None


def test_a_change_in_place_before_the_backward_pass_is_noticed() -> None:
    arguments = SCENES["plain"].arguments()
    arguments["opacities"].requires_grad_()
    loss = kernels.rasterize(**arguments).rgb.sum()
    arguments["means"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_backward_pass_can_be_repeated() -> None:
    _, state = kernels.rasterize_forward(**SCENES["plain"].arguments())
    ones = torch.ones(1, 48, 48, 3)
    first, second = (kernels.rasterize_backward(state, ones) for _ in range(2))
    assert first.means.equal(second.means)
    assert first.viewmats.equal(second.viewmats)


def test_arguments_that_are_not_contiguous_give_the_same_image() -> None:
    scene = SCENES["sh1"]
    arguments = scene.arguments()
    strided = {
        name: value.movedim(0, -1).contiguous().movedim(-1, 0) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    assert not strided["means"].is_contiguous()
    assert kernels.rasterize_forward(**strided)[0].rgb.equal(kernels.rasterize_forward(**arguments)[0].rgb)


def test_unused_sh_bands_are_neither_read_nor_given_a_gradient() -> None:
    scene = SCENES["sh3"]
    low = scene.changed(colors=scene.tensors["colors"][:, :4].contiguous()).arguments() | {"sh_degree": 1}
    full = scene.arguments() | {"sh_degree": 1}
    full["colors"][:, 4:] = float("nan")
    (out_low, _), (out_full, state) = kernels.rasterize_forward(**low), kernels.rasterize_forward(**full)
    assert out_low.rgb.equal(out_full.rgb)
    grad = kernels.rasterize_backward(state, torch.ones_like(out_full.rgb)).colors
    assert grad[:, :4].abs().sum() > 0
    assert not grad[:, 4:].any()


def test_means2d_gradient_predicts_the_effect_of_moving_a_gaussian_on_the_screen() -> None:
    scene = random_scene(33, count=1, spread=0.0, scale=(0.2, 0.3), opacity=(0.8, 0.8))
    out, state = kernels.rasterize_forward(**scene.arguments())
    weight = torch.linspace(0, 1, scene.width).expand(1, scene.height, scene.width).contiguous()
    grad = kernels.rasterize_backward(state, None, weight).means2d[0, 0]
    # A step so small that no pixel crosses the 1/255 cut.
    moved = scene.changed(means2d_offsets=torch.tensor([[[0.01, 0.0]]]))
    alpha = kernels.rasterize_forward(**moved.arguments())[0].alpha
    slope = ((alpha - out.alpha).double() * weight).sum().item() / 0.01
    assert slope == pytest.approx(float(grad[0]), rel=1e-3)
    assert slope > 1


def test_logarithms_and_logits_get_the_gradients_of_the_activations() -> None:
    scene = random_scene(33, cameras=2, count=80, width=40, height=40)
    scales, opacities = scene.tensors["scales"], scene.tensors["opacities"]
    raw = {"scales": scales.log().requires_grad_(), "opacities": opacities.logit().requires_grad_()}
    activated = {"scales": raw["scales"].exp(), "opacities": raw["opacities"].sigmoid()}
    arguments = scene.arguments()
    out = kernels.rasterize(**arguments | activated)
    weights = loss_weights(scene, torch.ones(2, 40, 40, dtype=torch.bool))
    penalty = 0.3 * activated["opacities"].sum()
    loss = sum((getattr(out, name) * weight).sum() for name, weight in weights.items()) + penalty
    loss.backward()
    direct, state = kernels.rasterize_forward(
        **arguments | {k: v.detach() for k, v in raw.items()}, activated=False
    )
    grads = kernels.rasterize_backward(state, *weights.values(), opacity_penalty=0.3)
    assert torch.allclose(direct.rgb, out.rgb, atol=1e-6)
    for name, tensor in raw.items():
        assert (getattr(grads, name) - tensor.grad).norm() <= 1e-5 * tensor.grad.norm(), name


def test_a_logarithm_that_is_not_finite_gets_no_gradient() -> None:
    scene = random_scene(34, count=10)
    log_scales, logits = scene.tensors["scales"].log(), scene.tensors["opacities"].logit()
    log_scales[3], logits[4] = float("nan"), float("inf")
    arguments = scene.arguments() | {"scales": log_scales, "opacities": logits, "activated": False}
    _, state = kernels.rasterize_forward(**arguments)
    grads = kernels.rasterize_backward(state, torch.ones(1, 48, 48, 3), opacity_penalty=1.0)
    assert not grads.scales[3].any()
    assert all(grad.isfinite().all() for grad in grads)
