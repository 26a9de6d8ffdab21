"""The CUDA rasterizer's sources, run on the CPU by the SIMT host emulator: the promises of the CPU backend's
tests hold for them too, whatever the order of threads and blocks."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

import pytest
import torch
from kernels import test_rasterizer, test_rasterizer_limit
from kernels.scenes import SCENES, Scene, random_scene
from kernels.test_features import (  # noqa: F401
    test_features_have_the_bits_of_plain_colours_on_black,
    test_no_features_give_no_images,
    test_the_pass_before_stays_as_it_was,
)
from kernels.test_rasterizer import (  # noqa: F401  (collected here as well, and run on the emulated backend)
    test_a_logarithm_that_is_not_finite_gets_no_gradient,
    test_arguments_that_are_not_contiguous_give_the_same_image,
    test_autograd_gives_what_the_pair_without_a_graph_gives,
    test_each_output_alone_has_exact_gradients,
    test_equal_depths_are_drawn_in_the_order_of_their_numbers,
    test_images_and_every_gradient_match_the_float64_oracle,
    test_logarithms_and_logits_get_the_gradients_of_the_activations,
    test_the_backward_pass_can_be_repeated,
    test_unused_sh_bands_are_neither_read_nor_given_a_gradient,
    truths,
)
from kernels.test_rasterizer_infinite import (  # noqa: F401
    test_a_logit_that_is_no_number_or_a_logarithm_of_no_size_is_absent,
    test_infinite_logits_and_logarithms_give_the_bits_of_large_finite_ones,
    test_infinite_logits_and_logarithms_match_the_oracle_of_their_limits,
)
from kernels.test_rasterizer_input import (  # noqa: F401
    test_a_gaussian_that_is_not_finite_leaves_the_others_alone,
    test_images_of_no_pixels_are_empty_and_their_gradients_zero,
    test_more_gaussians_in_one_pixel_than_a_batch_holds,
    test_no_cameras_give_no_images,
    test_one_giant_gaussian_is_drawn_everywhere,
    test_render_from_a_camera_that_is_not_finite_equals_background,
    test_render_of_gaussians_that_are_not_finite_equals_background,
    test_scenes_with_nothing_to_draw_equal_background,
)
from kernels.test_rasterizer_limit import (  # noqa: F401
    test_a_scene_can_be_drawn_after_one_that_was_refused,
    test_the_number_that_is_needed_is_the_least_that_suffices,
    test_too_many_is_a_value_error_that_says_what_is_needed_and_what_to_do,
)
from kernels.test_rasterizer_no_opacity import (  # noqa: F401
    test_a_faint_gaussian_that_is_not_drawn_still_pays_its_penalty,
    test_adam_leaves_rows_of_no_opacity_as_they_are,
    test_rows_of_no_opacity_change_no_bit_and_have_no_gradient,
)

from ddpo3d_fast import kernels
from ddpo3d_fast.kernels import _entries

from . import build


@pytest.fixture(autouse=True)
def poisoned_memory(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh device memory holds anything: NaN here."""
    empty = torch.empty

    def poisoned(*size: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*size, **options)
        return tensor.fill_(255) if tensor.dtype == torch.uint8 else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


def everything(scene: Scene, capacity: kernels.TileCapacity | None = None) -> dict[str, torch.Tensor]:
    out, state = kernels.rasterize_forward(**scene.arguments(), capacity=capacity)
    safe = torch.ones(scene.cameras, scene.height, scene.width, dtype=torch.bool)
    weights = test_rasterizer.loss_weights(scene, safe)
    grads = kernels.rasterize_backward(state, weights["rgb"], weights["alpha"], weights["depth"])
    return out._asdict() | {f"grad_{name}": grad for name, grad in grads._asdict().items()}


def equal_depths() -> Scene:
    """Ten Gaussians of different colours at each of eight places."""
    scene = random_scene(43, count=80, scale=(0.1, 0.4))
    return scene.changed(means=scene.tensors["means"][:8].repeat(10, 1))


@pytest.mark.parametrize("blocks", ["in_order", "shuffled", "interleaved"])
@pytest.mark.parametrize("name", ["cameras", "sh1", "layers", "equal depths"])
def test_any_order_of_threads_and_blocks_gives_the_same_bits(
    simt: ModuleType, name: str, blocks: str
) -> None:
    scene = equal_depths() if name == "equal depths" else SCENES[name]
    expected = everything(scene)
    for seed in range(1, 9):
        simt.set_order(seed, blocks)
        for key, value in everything(scene).items():
            assert value.equal(expected[key]), (seed, key)


@pytest.mark.parametrize("name", ["cameras", "many", "sh3", "antialiased_sh"])
def test_the_two_backends_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actual = everything(SCENES[name])
    monkeypatch.undo()
    for key, value in everything(SCENES[name]).items():
        if key == "radii":
            assert value.equal(actual[key])
        else:
            assert (value - actual[key]).norm() <= 1e-6 * value.norm(), key


@pytest.mark.parametrize("runs", [2, 3])
def test_a_list_longer_than_shared_memory_sorts_is_in_order(runs: int) -> None:
    run = 1024  # entries
    count = int((runs - 0.3) * run)
    scene = random_scene(40, count=count, scale=(1.0, 2.0), opacity=(0.006, 0.008), width=4, height=4)
    drawn = (everything(scene)["radii"] > 0).sum()
    assert (runs - 1) * run < drawn <= runs * run
    truth = test_rasterizer.expect(scene)
    found = test_rasterizer.errors(test_rasterizer.compute(scene, truth["safe"]), truth)
    assert max(found.values()) <= test_rasterizer.TOLERANCE, found


def test_launches_of_a_step_and_no_wait_for_the_device(simt: ModuleType) -> None:
    for cameras in (1, 4):
        scene = random_scene(41, cameras=cameras)
        simt.reset_counters()
        _, state = kernels.rasterize_forward(**scene.arguments(), capacity=kernels.TileCapacity())
        kernels.rasterize_backward(state, torch.ones(cameras, 48, 48, 3), of_cameras=False)
        counters = simt.counters()
        assert counters["launches"] == [
            "rasterize clear",
            "rasterize project",
            "rasterize ranges",
            "rasterize scatter",
            "rasterize blend",
            "rasterize blend vjp",
            "rasterize gaussians vjp",
        ]
        waits = ("memsets", "synchronizations", "copies", "allocations")
        assert not any(counters[name] for name in waits)


def test_a_capacity_that_suffices_changes_no_bit() -> None:
    scene = SCENES["sh2"]
    capacity = kernels.TileCapacity()
    expected, actual = everything(scene), everything(scene, capacity)
    assert all(value.equal(actual[key]) for key, value in expected.items())
    assert 0 < capacity.needed <= capacity.entries
    assert not capacity.overflowed


def test_too_small_a_capacity_is_flagged_and_grows_to_fit() -> None:
    scene = SCENES["plain"]
    capacity = kernels.TileCapacity(10)
    out, state = kernels.rasterize_forward(**scene.arguments(), capacity=capacity)
    assert state.overflow is not None
    assert state.overflow.item() != 0
    assert out.rgb.isnan().all()
    grads = kernels.rasterize_backward(state, torch.ones_like(out.rgb))
    assert all(not grad.any() for grad in grads)
    assert capacity.overflowed
    assert capacity.grow()
    assert not capacity.overflowed
    assert all(value.equal(everything(scene, capacity)[key]) for key, value in everything(scene).items())
    assert not capacity.grow()


@pytest.mark.parametrize("name", test_rasterizer_limit.SCENES)
def test_both_backends_count_the_same_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = test_rasterizer_limit.SCENES[name]
    needed = test_rasterizer_limit.too_many(scene, 1).needed
    monkeypatch.undo()
    assert test_rasterizer_limit.too_many(scene, 1).needed == needed


def test_a_capacity_is_the_limit_where_there_is_one() -> None:
    scene = SCENES["plain"]
    out, _ = kernels.rasterize_forward(**scene.arguments(), max_entries=1, capacity=kernels.TileCapacity())
    assert out.rgb.isfinite().all()


def test_a_launch_that_outlives_its_capacity_writes_to_nobody_elses_memory(
    simt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a graph that is replayed, or one that is still queued, when the capacity has died."""
    launch, launches = simt.rasterize_project_cuda, []

    def remembered(*arguments: Any, **named: Any) -> None:
        launches.append((arguments, named))
        launch(*arguments, **named)

    monkeypatch.setattr(simt, "rasterize_project_cuda", remembered)
    first, second = kernels.TileCapacity(), kernels.TileCapacity()
    alive = [kernels.rasterize_forward(**SCENES["plain"].arguments(), capacity=c) for c in (first, second)]
    needed = first.needed
    assert needed == second.needed > 0
    del first
    gc.collect()
    taken = [torch.zeros(1, dtype=torch.int64) for _ in range(1000)]
    third = kernels.TileCapacity()
    alive.append(kernels.rasterize_forward(**SCENES["cameras"].arguments(), capacity=third))
    others = third.needed
    assert others != needed
    kept = [range(block.data_ptr(), block.data_ptr() + block.nbytes) for block in _entries._blocks]
    for arguments, named in launches[:2]:
        assert any(named["needed"] in block for block in kept)  # else the launch would spoil the heap
        launch(*arguments, **named)
    assert not any(number.any() for number in taken)
    assert (second.needed, third.needed) == (needed, others)


@pytest.mark.parametrize("entries", [0, -1, 2**32])
def test_a_capacity_out_of_range_is_refused(entries: int) -> None:
    with pytest.raises(ValueError, match=f"entries: expected 1 to 4294967295, got {entries}"):
        kernels.TileCapacity(entries)


def test_a_gradient_that_is_not_wanted_is_not_made() -> None:
    _, state = kernels.rasterize_forward(**SCENES["plain"].arguments())
    grads = kernels.rasterize_backward(state, torch.ones(1, 48, 48, 3), of_cameras=False)
    assert grads.viewmats is None
    assert grads.backgrounds is None
    everything_else = kernels.rasterize_backward(state, torch.ones(1, 48, 48, 3))
    assert grads.means.equal(everything_else.means)


@pytest.mark.parametrize("focal", [0.0, -50.0, float("nan")])
def test_a_focal_length_that_is_not_positive_draws_nothing(focal: float) -> None:
    scene = random_scene(42, count=40)
    intrinsics = scene.tensors["intrinsics"].clone()
    intrinsics[:, 0, 0] = focal
    out, _ = kernels.rasterize_forward(**scene.changed(intrinsics=intrinsics).arguments())
    assert not out.alpha.any()


SANITIZED = """
import torch
torch.set_num_threads(1)
from simt import build
from kernels.scenes import SCENES
from ddpo3d_fast import kernels
from ddpo3d_fast.kernels import _backend
module = build.load("sanitized")
_backend.uses_cuda = lambda device, name="device": True
_backend.backend = lambda device: module
names = "plain one_pixel tall none needles far_out sh3 antialiased_sh giants layers"
for scene in map(SCENES.get, names.split()):
    module.set_order(1, "interleaved")
    out, state = kernels.rasterize_forward(**scene.arguments())
    grads = kernels.rasterize_backward(state, *(torch.ones_like(image) for image in out[:3]))
    assert grads.means.isfinite().all()
print("clean")
"""


def test_the_sanitizers_find_nothing() -> None:
    result = build.run_sanitized(SANITIZED)
    assert result.stdout.strip() == "clean", result.stderr[-3000:]
