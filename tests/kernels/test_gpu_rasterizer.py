"""The rasterizer on a real CUDA device keeps the CPU backend's promises, and those of a stream: no waits, the
same bits at every replay of a captured graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import kernels
from ddpo3d_fast.kernels import (
    Rasterization,
    RasterizeGradients,
    RasterizeState,
    TileCapacity,
    _backend,
    rasterize,
    rasterize_backward,
    rasterize_forward,
)
from ddpo3d_fast.kernels.adam import AdamGroup, adam_groups

from . import test_rasterizer
from .scenes import SCENES, Scene, random_scene
from .test_rasterizer import (  # noqa: F401  (collected here as well, and run on the device)
    test_a_logarithm_that_is_not_finite_gets_no_gradient,
    test_arguments_that_are_not_contiguous_give_the_same_image,
    test_autograd_gives_gradients_only_to_what_asked_for_them,
    test_autograd_gives_what_the_pair_without_a_graph_gives,
    test_each_output_alone_has_exact_gradients,
    test_equal_depths_are_drawn_in_the_order_of_their_numbers,
    test_images_and_every_gradient_match_the_float64_oracle,
    test_logarithms_and_logits_get_the_gradients_of_the_activations,
    test_means2d_gradient_predicts_the_effect_of_moving_a_gaussian_on_the_screen,
    test_the_backward_pass_can_be_repeated,
    test_unused_sh_bands_are_neither_read_nor_given_a_gradient,
    truths,
)
from .test_rasterizer_infinite import (  # noqa: F401
    test_a_logit_that_is_no_number_or_a_logarithm_of_no_size_is_absent,
    test_infinite_logits_and_logarithms_give_the_bits_of_large_finite_ones,
    test_infinite_logits_and_logarithms_match_the_oracle_of_their_limits,
)
from .test_rasterizer_input import (  # noqa: F401
    test_a_gaussian_that_is_not_finite_leaves_the_others_alone,
    test_images_of_no_pixels_are_empty_and_their_gradients_zero,
    test_more_gaussians_in_one_pixel_than_a_batch_holds,
    test_no_cameras_give_no_images,
    test_one_giant_gaussian_is_drawn_everywhere,
    test_render_from_a_camera_that_is_not_finite_equals_background,
    test_render_of_gaussians_that_are_not_finite_equals_background,
    test_scenes_with_nothing_to_draw_equal_background,
)
from .test_rasterizer_limit import (  # noqa: F401
    test_a_scene_can_be_drawn_after_one_that_was_refused,
    test_the_number_that_is_needed_is_the_least_that_suffices,
    test_too_many_is_a_value_error_that_says_what_is_needed_and_what_to_do,
)
from .test_rasterizer_no_opacity import (  # noqa: F401
    test_a_faint_gaussian_that_is_not_drawn_still_pays_its_penalty,
    test_rows_of_no_opacity_change_no_bit_and_have_no_gradient,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not kernels.build_info()["cuda"], reason="built without the CUDA backend"),
]

DEVICE = torch.device("cuda")
Result = TypeVar("Result")


def to_device(arguments: dict[str, Any], device: torch.device | str | None = None) -> dict[str, Any]:
    device = device or DEVICE
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in arguments.items()}


def to_host(tensors: Any) -> Any:
    """The same named tuple with its tensors on the CPU."""
    return type(tensors)(*(tensor if tensor is None else tensor.cpu() for tensor in tensors))


@pytest.fixture(autouse=True)
def through_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU backend's tests hand over tensors on the CPU and look at results on the CPU."""

    def forward(**arguments: Any) -> tuple[Any, RasterizeState]:
        out, state = rasterize_forward(**to_device(arguments))
        return to_host(out), state

    def backward(state: RasterizeState, *gradients: Tensor | None, **settings: Any) -> RasterizeGradients:
        moved = (None if gradient is None else gradient.to(DEVICE) for gradient in gradients)
        return to_host(rasterize_backward(state, *moved, **settings))

    monkeypatch.setattr(kernels, "rasterize_forward", forward)
    monkeypatch.setattr(kernels, "rasterize_backward", backward)
    monkeypatch.setattr(kernels, "rasterize", lambda **arguments: to_host(rasterize(**to_device(arguments))))


class Loss:
    """A scene on the device and a loss; `run` does nothing but launch."""

    def __init__(self, scene: Scene, device: torch.device | str | None = None) -> None:
        self.arguments = to_device(scene.arguments(), device)
        safe = torch.ones(scene.cameras, scene.height, scene.width, dtype=torch.bool)
        weights = test_rasterizer.loss_weights(scene, safe)
        self.upstream = [weights[name].to(device or DEVICE) for name in ("rgb", "alpha", "depth")]

    def run(self, capacity: TileCapacity | None = None) -> dict[str, Tensor]:
        out, state = rasterize_forward(**self.arguments, capacity=capacity)
        gradients = rasterize_backward(state, *self.upstream)
        return {**out._asdict(), **{f"grad_{name}": g for name, g in gradients._asdict().items()}}


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].equal(value), name


def fitting_capacity(loss: Loss) -> TileCapacity:
    """Room enough, known from one pass that has run."""
    capacity = TileCapacity()
    loss.run(capacity)
    torch.cuda.synchronize()
    capacity.grow()
    loss.run(capacity)
    torch.cuda.synchronize()
    assert not capacity.overflowed
    return capacity


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any host synchronisation that torch knows of is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(call: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The graph of a call that has run before. Capturing fails at a wait or an allocation, torch's aside."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), no_waiting():
        result = call()
    return graph, result


# ---- The same numbers


@pytest.mark.parametrize("name", SCENES)
def test_the_device_agrees_with_the_cpu(name: str, truths: dict) -> None:  # noqa: F811
    scene = SCENES[name]
    safe = test_rasterizer.truth_of(name, truths)["safe"]
    actual = test_rasterizer.compute(scene, safe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "rasterize_forward", rasterize_forward)
        patch.setattr(kernels, "rasterize_backward", rasterize_backward)
        expected = test_rasterizer.compute(scene, safe)
    assert actual.pop("radii").equal(expected.pop("radii"))
    found = test_rasterizer.errors(actual, {**expected, "safe": safe})
    assert max(found.values()) <= test_rasterizer.TOLERANCE, found


def test_a_list_longer_than_shared_memory_sorts_is_in_order() -> None:
    scene = random_scene(40, count=2600, scale=(1.0, 2.0), opacity=(0.006, 0.008), width=4, height=4)
    truth = test_rasterizer.expect(scene)
    actual = test_rasterizer.compute(scene, truth["safe"])
    assert (actual["radii"] > 0).sum() > 2.1 * 1024  # three runs
    found = test_rasterizer.errors(actual, truth)
    assert max(found.values()) <= test_rasterizer.TOLERANCE, found


def test_a_scene_that_fills_the_device_agrees_with_the_cpu() -> None:
    scene = random_scene(50, count=20_000, cameras=4, width=300, height=260, scale=(0.01, 0.04))
    loss, twin = Loss(scene), Loss(scene, "cpu")
    actual, expected = loss.run(), twin.run()
    for name, value in expected.items():
        difference = (actual[name].cpu().double() - value.double()).norm() / value.double().norm()
        assert difference <= 1e-4, name  # a pixel in which rounding decides a cut-off is worth 1e-5


# ---- The same bits


@pytest.mark.parametrize("name", ["cameras", "sh3", "layers", "giants", "needles", "antialiased_sh"])
def test_two_runs_give_the_same_bits(name: str) -> None:
    assert_same_bits(Loss(SCENES[name]).run(), Loss(SCENES[name]).run())


def test_ten_runs_that_fill_the_device_give_the_same_bits() -> None:
    loss = Loss(random_scene(51, count=20_000, cameras=4, width=300, height=260, scale=(0.01, 0.04)))
    expected = loss.run()
    for _ in range(10):
        assert_same_bits(loss.run(), expected)


def test_a_capacity_that_suffices_changes_no_bit_and_does_not_wait() -> None:
    loss = Loss(SCENES["sh2"])
    expected, capacity = loss.run(), fitting_capacity(loss)
    with no_waiting():
        actual = loss.run(capacity)
    assert_same_bits(actual, expected)


def test_a_forward_pass_without_a_capacity_is_seen_to_wait() -> None:
    loss = Loss(SCENES["plain"])
    loss.run()
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        loss.run()


@pytest.mark.parametrize("name", ["cameras", "sh3", "layers", "tall", "none", "off_screen"])
def test_every_replay_of_a_captured_graph_gives_the_plain_calls_bits(name: str) -> None:
    loss = Loss(SCENES[name])
    expected, capacity = loss.run(), fitting_capacity(loss)
    graph, actual = captured(lambda: loss.run(capacity))
    for _ in range(2):
        for value in actual.values():
            value.fill_(-7)  # what a replay does not write shows
        with no_waiting():
            graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(actual, expected)


def test_a_captured_graph_reads_its_inputs_anew() -> None:
    loss, other = Loss(SCENES["plain"]), Loss(random_scene(52, opacity=(0.3, 0.9)))
    expected, capacity = other.run(), fitting_capacity(loss)
    graph, actual = captured(lambda: loss.run(capacity))
    for name, value in loss.arguments.items():
        if isinstance(value, Tensor):
            value.copy_(other.arguments[name])
    for mine, theirs in zip(loss.upstream, other.upstream, strict=True):
        mine.copy_(theirs)
    graph.replay()
    torch.cuda.synchronize()
    assert not capacity.overflowed
    assert_same_bits(actual, expected)


# ---- Too little room


def test_too_small_a_capacity_is_flagged_and_grows_to_fit() -> None:
    loss, capacity = Loss(SCENES["plain"]), TileCapacity(10)
    expected = loss.run()
    out, state = rasterize_forward(**loss.arguments, capacity=capacity)
    gradients = rasterize_backward(state, *loss.upstream)
    assert state.overflow is not None
    assert state.overflow.item() != 0
    assert out.rgb.isnan().all()
    assert all(not gradient.any() for gradient in gradients)
    assert capacity.overflowed
    assert capacity.grow()
    assert_same_bits(loss.run(capacity), expected)
    torch.cuda.synchronize()
    assert not capacity.overflowed


def test_a_captured_step_is_left_undone_for_lack_of_room_and_done_when_repeated() -> None:
    arguments = to_device(SCENES["plain"].arguments())
    names = ("means", "quats", "scales", "opacities", "colors")
    start = {name: arguments[name].clone() for name in names}
    moments = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in start.items()}
    number = torch.ones(1, dtype=torch.int64, device=DEVICE)
    upstream = torch.ones(1, 48, 48, 3, device=DEVICE)
    capacity = TileCapacity(10)

    def step() -> None:
        _, state = rasterize_forward(**arguments, capacity=capacity)
        gradients = rasterize_backward(state, upstream, of_cameras=False)
        groups = [AdamGroup(arguments[n], getattr(gradients, n), *moments[n], lr=0.01) for n in names]
        adam_groups(groups, number, skip=state.overflow)

    step()
    torch.cuda.synchronize()
    graph, _ = captured(step)
    graph.replay()
    torch.cuda.synchronize()
    assert all(arguments[name].equal(start[name]) for name in names)
    assert capacity.grow()
    graph, _ = captured(step)
    graph.replay()
    torch.cuda.synchronize()
    assert all(arguments[name].isfinite().all() for name in names)
    assert all(not arguments[name].equal(start[name]) for name in names)


# ---- Host memory that the device writes


def pinned_words() -> list[Tensor]:
    """What torch's allocator of pinned memory has at hand, 16 bytes at a time."""
    return [torch.zeros(2, dtype=torch.int64, pin_memory=True) for _ in range(16)]


@pytest.mark.parametrize("with_capacity", [True, False])
def test_a_launch_that_outlives_its_capacity_writes_to_nobody_elses_memory(
    with_capacity: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, stream, wait = Loss(SCENES["plain"]), torch.cuda.Stream(), _backend.wait
    loss.run(fitting_capacity(loss))
    torch.cuda.synchronize()

    def then_hold_up(device: torch.device) -> None:  # the blend is queued after the pairs have been counted
        wait(device)
        torch.cuda._sleep(400_000_000)

    monkeypatch.setattr(_backend, "wait", then_hold_up)
    pinned_words()  # so that the allocator has some to give without asking the driver, which waits
    with torch.cuda.stream(stream):
        if with_capacity:
            torch.cuda._sleep(400_000_000)  # 0.2 s or more
        result = rasterize_forward(**loss.arguments, capacity=TileCapacity() if with_capacity else None)
    del result
    gc.collect()
    held_up = not stream.query()
    taken = pinned_words()
    torch.cuda.synchronize()
    assert held_up
    assert not any(words.any() for words in taken)


# ---- Streams and devices


def test_another_stream_is_used_when_it_is_current() -> None:
    loss = Loss(SCENES["cameras"])
    expected, means = loss.run(), loss.arguments["means"].clone()
    capacity = fitting_capacity(loss)
    loss.arguments["means"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # until then the Gaussians are elsewhere
        loss.arguments["means"].copy_(means)
        actual, waiting = loss.run(capacity), loss.run()
    stream.synchronize()
    assert_same_bits(actual, expected)
    assert_same_bits(waiting, expected)


def test_a_second_device_gives_the_same_bits_while_the_first_is_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
        pytest.skip("two devices of different kinds")
    expected, actual = Loss(SCENES["sh1"]).run(), Loss(SCENES["sh1"], "cuda:1").run()
    assert all(value.device == torch.device("cuda:1") for value in actual.values())
    assert_same_bits({name: value.to("cuda:0") for name, value in actual.items()}, expected)


def test_tensors_on_two_devices_are_refused() -> None:
    arguments = to_device(SCENES["plain"].arguments())
    with pytest.raises(ValueError, match="quats: expected device cuda:0 as the other tensors, got cpu"):
        rasterize_forward(**{**arguments, "quats": arguments["quats"].cpu()})
    out, state = rasterize_forward(**arguments)
    with pytest.raises(ValueError, match="grad_rgb: expected device cuda:0 as the other tensors, got cpu"):
        rasterize_backward(state, torch.ones_like(out.rgb, device="cpu"))


def test_a_focal_length_that_is_not_finite_draws_nothing() -> None:
    """On the CPU it is refused; here looking at it would be a wait."""
    arguments = to_device(SCENES["plain"].arguments())
    arguments["intrinsics"][:, 0, 0] = float("nan")
    out, state = rasterize_forward(**arguments)
    gradients = rasterize_backward(state, torch.ones_like(out.rgb))
    assert out.rgb.equal(arguments["backgrounds"][:, None, None].expand_as(out.rgb))
    assert not gradients.means.any()


def test_results_stay_on_the_device() -> None:
    arguments = to_device(SCENES["plain"].arguments())
    out, state = rasterize_forward(**arguments)
    assert isinstance(out, Rasterization)
    assert {t.device for t in (*out, *rasterize_backward(state, torch.ones_like(out.rgb)))} == {
        arguments["means"].device
    }
