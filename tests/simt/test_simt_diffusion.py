"""The CUDA kernels of diffusion arithmetic and Adam, under the emulator, keep the CPU backend's promises."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from kernels.diffusion_cases import CASES, Case, placed, run_adam, run_diffusion, run_with_one_unaligned

# The CPU backend's own tests: each runs here again, through the emulated kernels.
from kernels.test_adam import (  # noqa: F401
    test_a_gradient_that_is_no_number_counts_as_zero,
    test_a_noncontiguous_gradient_is_read_in_its_own_order,
    test_a_rate_per_row_equals_one_call_per_row,
    test_adam_equals_torch_to_float32_rounding,
    test_empty_parameters_are_no_special_case,
    test_zero_gradients_from_the_start_move_nothing,
)
from kernels.test_diffusion import (  # noqa: F401
    test_a_clean_scale_multiplies_the_clean_guess_before_the_clip,
    test_a_clean_scale_of_one_changes_no_bit_of_a_clipped_guess,
    test_add_noise_equals_the_oracle,
    test_csd_is_the_derivative_of_sds_in_the_guidance_scale,
    test_denoise_action_equals_the_oracle,
    test_empty_and_scalar_latents_are_no_special_case,
    test_epsilon_predictions_need_no_noisy_latents,
    test_every_float16_value_is_read_exactly,
    test_full_rescale_gives_the_guided_guess_the_deviation_of_the_conditional_one,
    test_mixed_residual_equals_the_oracle,
    test_nfsd_at_small_timesteps_is_sds_without_its_noise,
    test_nfsd_is_the_papers_residual_with_its_choice_by_item,
    test_nfsd_with_an_empty_negative_prompt_is_csd_times_the_scale,
    test_noise_is_box_muller_of_the_counter_words,
    test_noncontiguous_latents_are_read_in_their_own_order,
    test_noninfected_items_survive_a_nan_prediction,
    test_only_the_wanted_outputs_are_made_and_they_do_not_change,
    test_policy_gradient_equals_autograd_of_the_log_probability_without_the_unet,
    test_predictions_that_nearly_agree_leave_their_difference_exact,
    test_score_residual_equals_the_oracle,
    test_shorter_noise_is_a_prefix_of_longer_noise,
    test_the_true_noise_as_prediction_gives_the_clean_latents_back,
    test_without_variance_the_action_is_the_mean_and_log_prob_zero,
)
from torch import Tensor

from ddpo3d_fast.kernels import (
    _backend,
    add_noise,
    csd_mixture,
    denoise_action,
    mixed_residual,
    philox_normal,
    score_residual,
)
from ddpo3d_fast.kernels.adam import AdamGroup, adam, adam_groups

from .build import build, product_sources, run_sanitized

pytestmark = pytest.mark.usefixtures("nothing_waits")


def on_the_cpu_backend(function: Callable[..., dict[str, Tensor]], *arguments: object) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "uses_cuda", lambda device, name="": False)
        patch.setattr(_backend, "backend", lambda device: _backend._C)
        return function(*arguments)


def differences(got: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert got.keys() == expected.keys()
    return [name for name in got if not torch.equal(*(x[name].nan_to_num(1e9) for x in (got, expected)))]


@pytest.mark.parametrize("name", CASES)
def test_every_output_has_the_cpu_backends_bits(name: str) -> None:
    got, expected = run_diffusion(CASES[name]), on_the_cpu_backend(run_diffusion, CASES[name])
    assert differences(got, expected) in ([], ["log_prob"])
    # Both sum squares in double, in another order; the result is rounded to float once.
    torch.testing.assert_close(got["log_prob"], expected["log_prob"], rtol=2e-7, atol=0)


def test_adam_has_the_cpu_backends_bits() -> None:
    assert not differences(run_adam(), on_the_cpu_backend(run_adam))


@pytest.mark.parametrize(
    "name", ["mixed", "odd halves", "more actions than a block's table", "several blocks"]
)
def test_no_result_depends_on_the_order_of_threads_or_blocks(simt: ModuleType, name: str) -> None:
    expected = run_diffusion(CASES[name])
    for seed in range(1, 9):
        simt.set_order(seed, ("shuffled", "interleaved")[seed % 2])
        assert not differences(run_diffusion(CASES[name]), expected)


def test_no_result_of_adam_depends_on_the_order_of_threads_or_blocks(simt: ModuleType) -> None:
    expected = run_adam()
    for seed in range(1, 9):
        simt.set_order(seed, ("shuffled", "interleaved")[seed % 2])
        assert not differences(run_adam(), expected)


def test_no_access_is_out_of_bounds() -> None:
    build(product_sources(), "sanitized")  # here, so that no compiler runs against the script's time limit
    result = run_sanitized(
        "from kernels.diffusion_cases import CASES, run_adam, run_diffusion, run_with_one_unaligned\n"
        "from simt.build import load\n"
        "from ddpo3d_fast.kernels import _backend\n"
        "module = load('sanitized')\n"
        "_backend.uses_cuda, _backend.backend = lambda *_: True, lambda _: module\n"
        "for case in CASES.values():\n"
        "    run_diffusion(case)\n"
        "run_with_one_unaligned()\n"
        "run_adam()\n"
        "print('clean', len(module.counters()['launches']))\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("clean ")
    assert int(result.stdout.split()[1]) >= 5 * len(CASES)


# ---- launches
# --------------------------------------------------------------------------------------------------------


def launches_of(simt: ModuleType, function: Callable[[], object]) -> list[str]:
    simt.reset_counters()
    function()
    return list(simt.counters()["launches"])


def test_every_op_is_one_launch_and_a_log_probability_one_more(simt: ModuleType) -> None:
    x, alphas, weight = torch.randn(6, 4, 16, 16), torch.full((6,), 0.5), torch.ones(6)
    prediction = (x, x, x, alphas)

    def denoise(*outputs: str) -> None:
        denoise_action(*prediction, alphas + 0.1, 2.0, "epsilon", outputs=outputs)

    def residual() -> None:
        score_residual(*prediction, weight, 2.0, "epsilon", actions=3, action_weight=weight, action_stream=1)

    assert launches_of(simt, lambda: philox_normal((5000,), 1, 2)) == ["philox_normal"]
    assert launches_of(simt, lambda: add_noise(x[:2], alphas, 1, 2, actions=3)) == ["add_noise"]
    assert launches_of(simt, residual) == ["score_residual"]
    mixed = (x, x, x, x, alphas, weight, csd_mixture(6), "sample")
    assert launches_of(simt, lambda: mixed_residual(*mixed, actions=3)) == ["mixed_residual"]
    assert launches_of(simt, lambda: denoise("guided_noise", "clean", "mean", "action")) == ["denoise_action"]
    assert launches_of(simt, lambda: denoise("action", "log_prob")) == ["denoise_action", "log_prob"]
    assert launches_of(simt, lambda: denoise("log_prob")) == ["denoise_action", "log_prob"]
    assert launches_of(simt, denoise) == []


@pytest.mark.parametrize(("count", "launches"), [(0, 0), (1, 1), (6, 1), (8, 1), (9, 2)])
def test_eight_groups_are_one_launch_of_adam(simt: ModuleType, count: int, launches: int) -> None:
    groups = [AdamGroup(*torch.rand(4, 100, 3), lr=0.1) for _ in range(count)]
    assert launches_of(simt, lambda: adam_groups(groups, 1)) == ["adam"] * launches


def test_too_many_groups_are_refused(simt: ModuleType) -> None:
    with pytest.raises(ValueError, match="groups: expected at most 8, got 9"):
        simt.adam_cuda(
            groups=[(0, 0, 0, 0, 0, 0, 0.0, 0)] * 9,
            step=1,
            beta1=0.9,
            beta2=0.99,
            epsilon=1e-15,
            device_step=0,
            rate_scales=0,
            rate_scale_stride=0,
            skip=0,
            cuda_stream=0,
        )


# ---- numbers that a captured graph reads anew
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1, 2**40, -3])
def test_a_stream_offset_is_added_to_every_stream(offset: int) -> None:
    case = Case(actions=2)
    x, alphas, weight = torch.randn(4, *case.shape), torch.full((4,), 0.5), torch.ones(4)
    prediction = (x, x, x, alphas)

    def run(base: int, stream_offset: Tensor | None) -> dict[str, Tensor]:
        stream, other = base % 2**64, (base + 7) % 2**64
        step = denoise_action(
            *prediction, alphas + 0.1, 2.0, "sample", seed=1, stream=stream, stream_offset=stream_offset
        )
        return step._asdict() | {
            "normal": philox_normal((33,), 1, stream, stream_offset=stream_offset),
            "noisy": add_noise(x[:2], alphas, 1, stream, 2, stream_offset=stream_offset),
            "residual": score_residual(
                *prediction, weight, 2.0, "epsilon", None, 1, stream, 2, weight, other, stream_offset
            ),
        }  # fmt: skip

    number = torch.tensor([offset])
    expected = run(5 + offset, None)
    assert not differences(run(5, number), expected)
    assert not differences(on_the_cpu_backend(run, 5, number), expected)
    assert len(differences(run(5, None), expected)) == 5  # all but the guess and the mean


def draw(simt: ModuleType, out: Tensor, count: int, offset: Tensor | None = None) -> None:
    """`philox_normal` with seed 1 and stream 2, past the op."""
    simt.philox_normal_cuda(
        out=out.data_ptr(),
        count=count,
        seed=1,
        stream=2,
        stream_offset=0 if offset is None else offset.data_ptr(),
        cuda_stream=0,
    )


def test_the_offset_is_read_when_the_kernel_runs_and_not_before(simt: ModuleType) -> None:
    out, number = torch.empty(8), torch.tensor([4])
    for offset in (4, 5):
        number.fill_(offset)
        draw(simt, out, 8, number)
        assert torch.equal(out, philox_normal((8,), 1, 2 + offset))


def test_adam_reads_step_rate_and_flag_on_the_device() -> None:
    start = torch.rand(3, 4, 50, 3)

    def run(step: int | Tensor, rates: float, **numbers: Tensor) -> dict[str, Tensor]:
        groups = [
            AdamGroup(*start[0].clone(), lr=rates),
            AdamGroup(*start[1].clone(), lr=torch.full((50,), rates)),
        ]
        adam_groups(groups, step, **numbers)
        return {f"{i}.{name}": tensor for i, g in enumerate(groups) for name, tensor in g._asdict().items()}

    def parameters(result: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in result.items() if not name.endswith("lr")}

    flag, half = torch.zeros(1, dtype=torch.int32), torch.tensor([0.5])
    for steps in (1, 12, 3000):
        expected = parameters(run(steps, 0.125))
        got = parameters(run(torch.tensor([steps]), 0.25, rate_scale=half, skip=flag))
        assert not differences(got, expected)
    untouched = parameters(run(1, 0.25, skip=flag - 1))
    assert torch.equal(untouched["0.param"], start[0, 0])
    assert torch.equal(untouched["1.exp_avg_sq"], start[1, 3])


# ---- edges
# ----------------------------------------------------------------------------------------------------------


def test_values_out_of_range_give_what_the_formulas_give_and_no_error(simt: ModuleType) -> None:
    """On a GPU nothing is checked that only a wait could tell; the CPU tensors here are, so the kernels are
    called as they are."""
    x, out = torch.ones(6, 8), torch.empty(6, 8)
    alphas = torch.tensor([-1.0, 0.0, 2.0, torch.inf, torch.nan, 0.5])
    simt.add_noise_cuda(
        latents=x.data_ptr(),
        latents_type=0,
        alphas_cumprod=alphas.data_ptr(),
        noisy=out.data_ptr(),
        views=6,
        actions=1,
        dims=8,
        seed=0,
        stream=0,
        stream_offset=0,
        cuda_stream=0,
    )
    noise = philox_normal(x.shape, 0, 0)
    assert out[[0, 2, 3, 4]].isnan().all()
    assert torch.equal(out[1], noise[1])
    torch.testing.assert_close(out[5], 0.5**0.5 * (x + noise)[5])


def test_the_coefficient_of_an_absent_prediction_counts_as_zero(simt: ModuleType) -> None:
    """Python refuses it on the CPU only: to know it on a GPU would be a wait."""
    x, y, alphas, weight = torch.randn(2, 8), torch.randn(2, 8), torch.full((2,), 0.5), torch.ones(2)
    mixture = csd_mixture(2)
    expected = mixed_residual(x, x, y, None, alphas, weight, mixture, "sample")
    mixture[:, 2] = 5
    out = torch.full((2, 8), torch.nan)
    tensors = {"noisy": x, "conditional": x, "unconditional": y}
    named = {name: tensor.data_ptr() for name, tensor in tensors.items()} | {"negative": 0}
    named |= dict.fromkeys([f"{name}_type" for name in named], 0)
    named |= {"alphas_cumprod": alphas.data_ptr(), "residual_weight": weight.data_ptr()}
    named |= {"mixture": mixture.data_ptr(), "type": 2, "views": 2, "actions": 1, "dims": 8}
    named["grad"] = out.data_ptr()
    simt.mixed_residual_cuda(params=simt.MixedResidual(**named), cuda_stream=0)
    assert torch.equal(out, expected)
    out.fill_(torch.nan)
    _backend._C.mixed_residual(params=_backend._C.MixedResidual(**named))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 1023, 1027])
def test_nothing_beside_the_output_is_written(simt: ModuleType, count: int) -> None:
    for shift in (0, 1):
        memory = torch.full((count + 8,), -7.0)
        draw(simt, memory[shift:], count)
        assert torch.equal(memory[shift : shift + count], philox_normal((count,), 1, 2))
        assert (memory[:shift] == -7).all()
        assert (memory[shift + count :] == -7).all()


def test_one_unaligned_input_among_aligned_ones_is_read_too() -> None:
    first, *others = run_with_one_unaligned()
    assert all(torch.equal(first, other) for other in others)


def test_unaligned_views_are_read_and_updated_in_place() -> None:
    tensors = [placed(torch.rand(100, 3), "cpu", unaligned) for unaligned in (True, False, True, True)]
    twins = [tensor.clone() for tensor in tensors]
    adam(*tensors, step=2, lr=0.1)
    adam(*twins, step=2, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(tensors, twins, strict=True))
