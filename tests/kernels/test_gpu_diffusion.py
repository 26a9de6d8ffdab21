"""The diffusion arithmetic and Adam on a real GPU: the CPU backend's results, no waits, captured graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ddpo3d_fast.kernels import (
    add_noise,
    build_info,
    csd_mixture,
    denoise_action,
    guidance_rescale,
    mixed_residual,
    nfsd_mixture,
    philox_normal,
    score_residual,
)
from ddpo3d_fast.kernels.adam import AdamGroup, adam_groups

from .diffusion_cases import CASES, run_adam, run_diffusion, run_with_one_unaligned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not build_info()["cuda"], reason="built without the CUDA backend"),
]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Any host synchronisation that torch knows of is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def relative_l2(got: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_computes_what_the_cpu_computes(name: str) -> None:
    got, expected = run_diffusion(CASES[name], "cuda"), run_diffusion(CASES[name])
    assert got.keys() == expected.keys()
    torch.testing.assert_close(got["normal"], expected["normal"], rtol=1e-6, atol=1e-6)
    for output in got:
        assert relative_l2(got[output], expected[output]) <= 1e-5, output


def test_one_unaligned_input_among_aligned_ones_is_read_too() -> None:
    first, *others = run_with_one_unaligned("cuda")
    assert relative_l2(first, run_with_one_unaligned()[0]) <= 1e-5
    assert all(torch.equal(first, other) for other in others)


def test_adam_on_a_gpu_computes_what_it_computes_on_the_cpu() -> None:
    got, expected = run_adam("cuda"), run_adam()
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["mixed", "odd halves", "several blocks"])
def test_two_runs_agree_to_the_bit(name: str) -> None:
    first, second = (run_diffusion(CASES[name], "cuda") for _ in range(2))
    assert all(torch.equal(first[output], second[output]) for output in first)


def test_a_large_array_has_the_cpus_noise_to_its_last_element() -> None:
    count = 2**24 + 3
    got = philox_normal((count,), 5, 6, device="cuda").cpu()
    torch.testing.assert_close(got, philox_normal((count,), 5, 6), rtol=1e-6, atol=1e-6)


def test_nothing_waits_for_the_gpu(no_waiting: None) -> None:
    x = torch.zeros(4, 4, 16, 16, device="cuda", dtype=torch.float16)
    alphas, weight = torch.full((4,), 0.5, device="cuda"), torch.ones(4, device="cuda")
    prev = torch.full((4,), 0.7, device="cuda")
    flag = torch.zeros(1, device="cuda", dtype=torch.int32)
    number, scale = torch.ones(1, device="cuda", dtype=torch.int64), torch.ones(1, device="cuda")
    philox_normal((100,), 1, 2, "cuda", number)
    add_noise(x[:2], alphas, 1, 2, 2, number)
    denoise_action(x, x, x, alphas, prev, 2.0, "epsilon", stream_offset=number)
    score_residual(x, x, x, alphas, weight, 2.0, "epsilon", actions=2, stream_offset=number)
    factors = guidance_rescale(x, x, 0.5)
    score_residual(x, x, x, alphas, weight, 2.0, "epsilon", clean_scale=factors)
    timesteps = torch.arange(4, device="cuda")
    mixed_residual(x, x, x, x, alphas, weight, nfsd_mixture(timesteps, 7.5), "sample", actions=2)
    mixed_residual(x, x, x, None, alphas, weight, csd_mixture(4, "cuda"), "epsilon")
    group = AdamGroup(*torch.zeros(4, 10, 3, device="cuda"), lr=weight[0])
    adam_groups(
        [group, group._replace(lr=torch.ones(10, device="cuda"))], number, 0.9, 0.99, 1e-8, scale, flag
    )


def test_a_captured_graph_reads_the_offset_the_step_and_the_flag_anew() -> None:
    start = torch.rand(4, 50, 3)
    group = AdamGroup(*start.cuda(), lr=0.1)
    twin = AdamGroup(*start.clone(), lr=0.1)
    number = torch.ones(1, device="cuda", dtype=torch.int64)
    flag = torch.zeros(1, device="cuda", dtype=torch.int32)

    def step() -> Tensor:
        adam_groups([group], number, skip=flag)
        return philox_normal((1000,), 1, 2, "cuda", number)

    flag.fill_(1)
    step()  # nothing is updated
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = step()
    for index, skipped in enumerate([False, False, True, False], start=1):
        number.fill_(index)
        flag.fill_(int(skipped))
        graph.replay()
        if not skipped:
            adam_groups([twin], index)
        torch.testing.assert_close(noise.cpu(), philox_normal((1000,), 1, 2 + index), rtol=1e-6, atol=1e-6)
        for got, expected in zip(group[:4], twin[:4], strict=True):
            torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_the_current_stream_is_used() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # until then the inputs are not there
        latents = torch.ones(2, 4096, device="cuda")
        noisy = add_noise(latents, torch.full((2,), 0.5, device="cuda"), 1, 2)
    stream.synchronize()
    torch.testing.assert_close(
        noisy.cpu(), add_noise(torch.ones(2, 4096), torch.full((2,), 0.5), 1, 2), rtol=1e-6, atol=1e-6
    )


def test_tensors_on_two_devices_are_refused() -> None:
    x, alphas = torch.zeros(2, 4, device="cuda"), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="alphas_cumprod: expected a tensor on cuda:0 as latents"):
        add_noise(x, alphas, 0, 0)
    with pytest.raises(
        ValueError, match=r"groups\[0\].grad: expected a tensor on cuda:0 as groups\[0\].param"
    ):
        adam_groups([AdamGroup(x, torch.zeros(2, 4), x, x, 0.1)], 1)
