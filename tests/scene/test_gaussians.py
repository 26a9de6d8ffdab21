"""The scene renders itself, takes image gradients without autograd, and remembers its optimiser."""

import math

import pytest
import torch

from ddpo3d_fast.kernels import rasterize
from ddpo3d_fast.scene import Gaussians, LearningRates, initial_cloud, orbit
from ddpo3d_fast.scene.gaussians import COLOR_MARGIN, PARAMETERS, SH_C0

RATES = LearningRates(means=8e-3, quats=1e-2, log_scales=1e-2, logit_opacities=5e-2, sh=0.1)


def cloud(count=60, seed=0, sh_degree=0):
    gaussians = initial_cloud(count, seed, sh_degree)
    generator = torch.Generator().manual_seed(seed + 100)
    gaussians.sh += 0.4 * torch.randn(gaussians.sh.shape, generator=generator)
    gaussians.log_scales += 0.3 * torch.randn(count, 3, generator=generator)
    gaussians.logit_opacities += torch.randn(count, generator=generator)
    return gaussians


def memory(tensor, rows):
    """All that a scene's tensor is the first rows of."""
    return tensor.as_strided((rows, *tensor.shape[1:]), tensor.stride())


def image_gradients(cameras, size, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(cameras), size, size)
    return torch.randn(*shape, 3, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("sh_degree", [0, 2])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_update_takes_the_gradient_that_autograd_takes(sh_degree, penalty):
    gaussians, cameras, size = cloud(sh_degree=sh_degree), orbit(3), 32
    backgrounds = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    grad_rgb, grad_alpha = image_gradients(cameras, size)

    raw = {name: getattr(gaussians, name).clone().requires_grad_() for name in PARAMETERS}
    opacities, scales = raw["logit_opacities"].sigmoid(), raw["log_scales"].exp()
    out = rasterize(
        raw["means"], raw["quats"], scales, opacities, raw["sh"], cameras.viewmats,
        cameras.intrinsics(size, size), size, size, sh_degree=sh_degree, backgrounds=backgrounds,
    )  # fmt: skip
    loss = (out.rgb * grad_rgb).sum() + (out.alpha * grad_alpha).sum()
    (loss + penalty * opacities.sum()).backward()

    views = gaussians.render(cameras, size, size, backgrounds)
    assert torch.allclose(views.rgb, out.rgb, atol=1e-6)  # activated in double precision here
    gaussians.update(views, grad_rgb, grad_alpha, RATES, 1, penalty, beta1=0.0)
    for name in PARAMETERS:
        # With beta1 = 0 the first moment is the gradient itself.
        got, expected = gaussians.exp_avg[name], raw[name].grad
        assert expected.norm() > 0
        assert (got - expected).norm() <= 1e-5 * expected.norm(), name


def test_room_for_more_changes_no_picture_no_update_and_no_checkpoint():
    plain, roomy, cameras = cloud(), cloud(), orbit(2)
    roomy.reserve(100)
    assert (len(roomy), roomy.rows, plain.rows) == (60, 128, 60)
    for step in (1, 2, 3):
        for gaussians in (plain, roomy):
            views = gaussians.render(cameras, 32, 32)
            moved = gaussians.update(views, *image_gradients(cameras, 32), RATES, step, opacity_penalty=0.5)
            assert moved.shape == (*views.visible.shape, 2) == (2, gaussians.rows, 2)
            assert not views.visible[:, 60:].any()
            assert not moved[:, 60:].any()
    expected, got = plain.state_dict(), roomy.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert roomy.to("cpu").rows == roomy[:].rows == 60


@pytest.mark.parametrize("count", [30, 60, 64])
def test_a_scene_becomes_another_in_the_memory_it_has(count):
    gaussians, cameras = cloud(), orbit(2)
    gaussians.reserve(60)
    places = {name: getattr(gaussians, name).data_ptr() for name in PARAMETERS}
    views = gaussians.render(cameras, 16, 16)  # moments that are not zero
    gaussians.update(views, *image_gradients(cameras, 16), RATES, 1)
    other = cloud(count, seed=1)
    for moments in (other.exp_avg, other.exp_avg_sq):
        for name in PARAMETERS:
            moments[name] += 1
    assert gaussians.become(other)
    assert places == {name: getattr(gaussians, name).data_ptr() for name in PARAMETERS}
    assert (len(gaussians), gaussians.rows) == (count, 64)
    expected, got = other.state_dict(), gaussians.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    behind = {name: memory(tensor, 64)[count:].clone() for name, tensor in gaussians._tensors().items()}
    assert not any(tensor.any() for name, tensor in behind.items() if name.startswith("exp_avg"))
    for scene in (gaussians, other):
        views = scene.render(cameras, 16, 16)
        assert int(views.visible.sum(1).max()) <= count
        scene.update(views, *image_gradients(cameras, 16), RATES, 2)
    assert all(torch.equal(gaussians.state_dict()[name], t) for name, t in other.state_dict().items())
    assert all(torch.equal(memory(t, 64)[count:], behind[n]) for n, t in gaussians._tensors().items())
    gaussians.become(cloud(64, seed=2))  # what lay behind the last row has not come to life
    assert torch.equal(gaussians.render(cameras, 16, 16).rgb, cloud(64, seed=2).render(cameras, 16, 16).rgb)


def test_a_scene_becomes_a_larger_one_in_new_memory_with_room():
    gaussians, other = cloud(), cloud(70, seed=1)
    assert not gaussians.become(other)
    assert (len(gaussians), gaussians.rows) == (70, 128)
    assert all(torch.equal(gaussians.state_dict()[name], t) for name, t in other.state_dict().items())


def test_rendering_and_updating_build_no_autograd_graph():
    gaussians, cameras = cloud(), orbit(2)
    views = gaussians.render(cameras, 16, 16)
    gaussians.update(views, *image_gradients(cameras, 16), RATES, 1)
    assert not views.rgb.requires_grad
    assert not any(getattr(gaussians, name).requires_grad for name in PARAMETERS)


def test_repeated_updates_bring_the_views_to_their_targets():
    cameras, size = orbit(4), 32
    target = cloud(seed=1).render(cameras, size, size).rgb
    gaussians = cloud(seed=2)
    errors = []
    for step in range(1, 121):
        views = gaussians.render(cameras, size, size)
        errors.append((views.rgb - target).square().mean().item())
        gaussians.update(views, views.rgb - target, None, RATES, step)
    assert errors[-1] < errors[0] / 10


def test_the_opacity_penalty_alone_lets_gaussians_fade():
    gaussians, cameras = cloud(), orbit(2)
    before = gaussians.activated()
    for step in range(1, 6):
        views = gaussians.render(cameras, 16, 16)
        gaussians.update(views, torch.zeros_like(views.rgb), None, RATES, step, 0.01)
    after = gaussians.activated()
    assert (after.opacities < before.opacities).all()
    assert torch.equal(after.scales, before.scales)
    assert torch.equal(after.means, before.means)


def test_colours_stay_where_they_can_still_move():
    gaussians, cameras = cloud(), orbit(2)
    for step in range(1, 60):
        views = gaussians.render(cameras, 16, 16)
        gaussians.update(views, torch.ones_like(views.rgb), None, RATES, step)
    colors = 0.5 + SH_C0 * gaussians.sh[:, 0]
    assert colors.min() >= 0.99 * COLOR_MARGIN
    views = gaussians.render(cameras, 16, 16)
    gaussians.update(views, -torch.ones_like(views.rgb), None, RATES, 60, beta1=0.0)
    visible = (views.radii > 0).any(0)
    assert (gaussians.exp_avg["sh"][visible] != 0).float().mean() > 0.8


def test_a_nan_in_the_image_gradient_poisons_no_parameter():
    gaussians, cameras = cloud(), orbit(2)
    views = gaussians.render(cameras, 16, 16)
    grad = torch.ones_like(views.rgb)
    grad[0, 8, 8] = math.nan
    gaussians.update(views, grad, None, RATES, 1)
    assert all(tensor.isfinite().all() for tensor in gaussians.state_dict().values())


def run(gaussians, first, last):
    cameras = orbit(2)
    for step in range(first, last + 1):
        views = gaussians.render(cameras, 16, 16)
        gaussians.update(views, *image_gradients(cameras, 16, seed=step), RATES, step)
    return gaussians


def test_going_on_from_a_state_dict_equals_never_having_stopped():
    unbroken = run(cloud(), 1, 6)
    state = run(cloud(), 1, 3).state_dict()
    resumed = initial_cloud(5, seed=9)  # another number of Gaussians
    resumed.load_state_dict(state)
    run(resumed, 4, 6)
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_state_dict_is_a_copy():
    gaussians = cloud()
    state = gaussians.state_dict()
    run(gaussians, 1, 1)
    assert not torch.equal(state["means"], gaussians.means)


def test_moving_to_a_device_copies_parameters_and_moments():
    gaussians = run(cloud(), 1, 1)
    moved = gaussians.to("cpu")
    assert all(torch.equal(moved.state_dict()[name], t) for name, t in gaussians.state_dict().items())
    moved.means.zero_()
    assert gaussians.means.any()
    assert {tensor.device.type for tensor in gaussians.to("meta").state_dict().values()} == {"meta"}


def test_choosing_rows_copies_parameters_and_moments():
    gaussians = run(cloud(), 1, 2)
    chosen = gaussians[[4, 2]]
    assert len(chosen) == 2
    assert torch.equal(chosen.exp_avg_sq["sh"], gaussians.exp_avg_sq["sh"][[4, 2]])
    chosen.means.zero_()
    assert gaussians.means[4].any()


def test_an_empty_scene_renders_its_background():
    nothing = cloud()[[]]
    backgrounds = torch.tensor([[0.2, 0.4, 0.6]])
    views = nothing.render(orbit(1), 8, 8, backgrounds)
    assert torch.equal(views.rgb, backgrounds.expand(1, 8, 8, 3))
    nothing.update(views, torch.ones_like(views.rgb), None, RATES, 1)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("means", torch.zeros(4, 2), ValueError, r"means: expected shape \(4, 3\), got \(4, 2\)"),
        ("means", torch.tensor(1.0), ValueError, r"means: expected shape \(0, 3\), got \(\)"),
        ("quats", torch.zeros(3, 4), ValueError, r"quats: expected shape \(4, 4\), got \(3, 4\)"),
        (
            "log_scales",
            torch.zeros(4, 3).double(),
            TypeError,
            "log_scales: expected float32, got torch.float64",
        ),
        ("sh", torch.zeros(4, 3), ValueError, r"sh: expected shape \(4, K, 3\)"),
        ("sh", torch.zeros(4, 5, 3), ValueError, r"sh: expected shape .*got \(4, 5, 3\)"),
    ],
)
def test_parameters_that_do_not_fit_are_named(argument, value, error, message):
    good = {
        "means": torch.zeros(4, 3),
        "quats": torch.ones(4, 4),
        "log_scales": torch.zeros(4, 3),
        "logit_opacities": torch.zeros(4),
        "sh": torch.zeros(4, 1, 3),
    }
    Gaussians(**good)
    with pytest.raises(error, match=message):
        Gaussians(**(good | {argument: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("sh"), "missing entry 'sh'"),
        (lambda state: state.update(colour=torch.zeros(1)), "unknown entry 'colour'"),
        (lambda state: state.update({"exp_avg.sh": torch.zeros(2, 1, 3)}), r"exp_avg.sh: expected"),
    ],
)  # fmt: skip
def test_a_wrong_state_dict_changes_nothing(change, message):
    gaussians = cloud()
    before, state = gaussians.state_dict(), gaussians.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        gaussians.load_state_dict(state)
    assert all(torch.equal(before[name], tensor) for name, tensor in gaussians.state_dict().items())
