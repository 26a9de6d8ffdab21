"""The fused Adam against torch.optim.Adam."""

import math

import numpy as np
import pytest
import torch

from ddpo3d_fast.kernels import get_num_threads, set_num_threads
from ddpo3d_fast.kernels.adam import AdamGroup, adam, adam_groups


def run(param, grads, **options):
    param, exp_avg, exp_avg_sq = param.clone(), torch.zeros_like(param), torch.zeros_like(param)
    for step, grad in enumerate(grads, start=1):
        adam(param, grad, exp_avg, exp_avg_sq, step, **options)
    return param, exp_avg, exp_avg_sq


def problem(shape=(1500, 3), steps=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (torch.rand(shape, generator=generator) * 8 - 6)
    grads = [torch.randn(shape, generator=generator) * scale for _ in range(steps)]
    return torch.randn(shape, generator=generator), grads


def torch_adam(param, grads, lr, betas=(0.9, 0.99), eps=1e-15):
    """torch.optim.Adam in float64."""
    param = param.double().requires_grad_()
    optimizer = torch.optim.Adam([param], lr=lr, betas=betas, eps=eps)
    for grad in grads:
        param.grad = grad.double()
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize("shape", [(1500, 3), (4097,), (7, 2, 5), (1, 1), ()])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.99), 1e-15), ((0.8, 0.999), 1e-8), ((0.0, 0.0), 1e-6)])
def test_adam_equals_torch_to_float32_rounding(shape, betas, eps):
    param, grads = problem(shape)
    got, _, _ = run(param, grads, lr=1e-2, beta1=betas[0], beta2=betas[1], eps=eps)
    expected = torch_adam(param, grads, 1e-2, betas, eps)
    # Each of 20 updates rounds a parameter that is at most 0.6 away, and is itself good to 2e-6 of the rate.
    bound = 20 * (2**-24 * (param.abs() + 0.6) + 2e-6 * 1e-2)
    assert ((got.double() - expected).abs() <= bound).all()
    assert (expected - param.double()).abs().mean() > 1000 * bound.mean()  # they did move


@pytest.mark.parametrize("form", ["rows", "column"])
def test_a_rate_per_row_equals_one_call_per_row(form):
    param, grads = problem((40, 3), steps=5)
    rates = torch.linspace(0, 0.1, 40)
    got, _, _ = run(param, grads, lr=rates if form == "rows" else rates[:, None])
    for row in range(40):
        expected, _, _ = run(param[row], [grad[row] for grad in grads], lr=rates[row].item())
        torch.testing.assert_close(got[row], expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(got[0], param[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_gradient_that_is_no_number_counts_as_zero(bad):
    param, grads = problem((100,), steps=6)
    zeroed = [grad.clone() for grad in grads]
    grads[2][17] = bad
    zeroed[2][17] = 0.0
    got, expected = run(param, grads, lr=0.1), run(param, zeroed, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(tensor.isfinite().all() for tensor in got)


def test_zero_gradients_from_the_start_move_nothing():
    param = torch.tensor([0.0, -0.0, 1.5, -1e-45, 3e38, math.inf, -math.inf])
    got, exp_avg, exp_avg_sq = run(param, [torch.zeros(7)] * 3, lr=0.1)
    assert torch.equal(got.view(torch.int32), param.view(torch.int32))
    assert not exp_avg.any()
    assert not exp_avg_sq.any()


@pytest.mark.parametrize("integer", [np.uint8, np.int64])
def test_numbers_of_numpy_are_numbers(integer):
    param, grads = problem((30, 4), steps=1)
    expected, _, _ = run(param, grads, lr=0.5, beta1=0.5, beta2=0.75, eps=0.125)
    tensors = param.clone(), grads[0], torch.zeros(30, 4), torch.zeros(30, 4)
    half, rest, eps = np.float32(0.5), np.float64(0.75), np.float16(0.125)
    adam(*tensors, integer(1), half, half, rest, eps)
    assert torch.equal(tensors[0], expected)


def test_a_noncontiguous_gradient_is_read_in_its_own_order():
    param, grads = problem((30, 4), steps=2)
    transposed = [grad.T.contiguous().T for grad in grads]
    assert torch.equal(run(param, transposed, lr=0.1)[0], run(param, grads, lr=0.1)[0])


def test_results_are_the_same_to_the_bit_for_any_number_of_threads():
    param, grads = problem((10_007, 3), steps=3)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            set_num_threads(threads)
            results.append(
                run(param, grads, lr=torch.rand(10_007, generator=torch.Generator().manual_seed(1)))
            )
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_empty_parameters_are_no_special_case():
    run(torch.zeros(0, 3), [torch.zeros(0, 3)], lr=0.1)


def groups_of_two(seed=0):
    param, grads = problem((20, 3), steps=3, seed=seed)
    rates = torch.linspace(0, 0.1, 20)
    return [
        AdamGroup(param.clone(), grads[0], grads[1].abs(), grads[2].abs(), 0.1),
        AdamGroup(param.clone(), grads[0], grads[1].abs(), grads[2].abs(), rates),
    ]


def test_groups_equal_one_call_per_group():
    together, apart = groups_of_two(), groups_of_two()
    adam_groups(together, 7, beta1=0.8, beta2=0.95, eps=1e-8)
    for group in apart:
        adam(*group[:4], 7, group.lr, beta1=0.8, beta2=0.95, eps=1e-8)
    for got, expected in zip(together, apart, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got[:4], expected[:4], strict=True))


def test_step_rate_scale_and_skip_may_be_tensors():
    got, expected, untouched = groups_of_two(), groups_of_two(), groups_of_two()
    flag = torch.zeros(1, dtype=torch.int32)
    adam_groups(got, torch.tensor([7]), rate_scale=torch.tensor([0.5]), skip=flag)
    adam_groups(got, torch.tensor(8), rate_scale=torch.tensor([0.5]), skip=flag + 1)
    adam_groups([group._replace(lr=group.lr * 0.5) for group in expected], 7)
    for a, b, c in zip(got, expected, untouched, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
        assert not torch.equal(a.param, c.param)


def test_every_group_may_have_a_rate_scale_of_its_own():
    got, expected = groups_of_two(), groups_of_two()
    adam_groups(got, 7, rate_scale=torch.tensor([0.25, 0.5]))
    adam_groups([expected[0]._replace(lr=0.025), expected[1]._replace(lr=expected[1].lr * 0.5)], 7)
    for a, b in zip(got, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))


@pytest.mark.parametrize(
    ("group", "options", "error", "message"),
    [
        ({"exp_avg": [1.0]}, {}, TypeError, r"^groups\[1\].exp_avg: expected a torch tensor, got list"),
        (
            {"grad": torch.zeros(2)},
            {},
            ValueError,
            r"^groups\[1\].grad: expected the shape \(20, 3\) of param",
        ),
        ({"lr": -1.0}, {}, ValueError, r"^groups\[1\].lr: expected 0 or more, got -1.0"),
        ({}, {"step": torch.tensor(0)}, ValueError, "^step: expected 1 or more, got 0"),
        (
            {},
            {"step": torch.tensor(1.0)},
            ValueError,
            "^step: expected one torch.int64 on cpu, got 1 of torch.f",
        ),
        ({}, {"rate_scale": 0.5}, TypeError, "^rate_scale: expected a torch tensor, got float"),
        ({}, {"rate_scale": torch.ones(3)}, ValueError, "^rate_scale: expected 1 or 2 torch.float32 on cpu"),
        (
            {},
            {"skip": torch.zeros(2, dtype=torch.int32)},
            ValueError,
            "^skip: expected one torch.int32 on cpu",
        ),
    ],
)
def test_a_bad_group_is_one_line_and_no_group_is_updated(group, options, error, message):
    groups, before = groups_of_two(), groups_of_two()
    with pytest.raises(error, match=message) as caught:
        adam_groups([groups[0], groups[1]._replace(**group)], **({"step": 1} | options))
    assert "\n" not in str(caught.value)
    assert torch.equal(groups[0].param, before[0].param)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"param": [1.0]}, TypeError, "param: expected a torch tensor, got list"),
        ({"param": torch.zeros(4, 3).double()}, TypeError, "param: expected float32, got torch.float64"),
        ({"param": torch.zeros(3, 4).T}, ValueError, "param: expected a contiguous tensor"),
        (
            {"grad": torch.zeros(4, 2)},
            ValueError,
            r"grad: expected the shape \(4, 3\) of param, got \(4, 2\)",
        ),
        ({"grad": torch.zeros(4, 3, device="meta")}, ValueError, "grad: expected a tensor on the CPU"),
        ({"exp_avg": torch.zeros(3, 4).T}, ValueError, "exp_avg: expected a contiguous tensor"),
        ({"step": 0}, ValueError, "step: expected 1 or more, got 0"),
        ({"step": 1.0}, TypeError, "step: expected an int, got float"),
        ({"step": True}, TypeError, "step: expected an int, got bool"),
        ({"step": np.float32(1)}, TypeError, "step: expected an int, got float32"),
        ({"lr": -0.1}, ValueError, "lr: expected 0 or more, got -0.1"),
        ({"lr": math.nan}, ValueError, "lr: expected 0 or more, got nan"),
        ({"lr": torch.zeros(3)}, ValueError, r"lr: expected a float or shape \(4,\), got \(3,\)"),
        ({"lr": torch.full((4,), -1.0)}, ValueError, "lr: expected rates of 0 or more"),
        ({"beta1": 1.0}, ValueError, r"beta1: expected a number in \[0, 1\), got 1.0"),
        ({"eps": 0.0}, ValueError, "eps: expected a positive number, got 0.0"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(change, error, message):
    zeros = torch.zeros(4, 3)
    good = {
        "param": zeros.clone(),
        "grad": zeros,
        "exp_avg": zeros.clone(),
        "exp_avg_sq": zeros.clone(),
        "step": 1,
        "lr": 0.1,
    }
    adam(**good)
    with pytest.raises(error, match=message) as caught:
        adam(**(good | change))
    assert "\n" not in str(caught.value)
